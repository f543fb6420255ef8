"""mgqe_reader: reads what mgqe writes, with NumPy and the compiled library alone: look-ups, bags and top-K.

It is for services: there is no torch in it, and it cannot train or write. Its results have the bits of mgqe's.
docs/reader.md shows it, and the C interface under it (``mgqe.h``), which other languages call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgqe_reader.collection import Collection, Hits
    from mgqe_reader.ids import IdMap
    from mgqe_reader.library import ArtifactError, include_folder, library_path
    from mgqe_reader.table import Table, TopK, load

# Where each name is. NumPy takes longer to import than all else together, and so is imported at the first use.
_MODULES = {
    "ArtifactError": "library",
    "Collection": "collection",
    "Hits": "collection",
    "IdMap": "ids",
    "Table": "table",
    "TopK": "table",
    "include_folder": "library",
    "library_path": "library",
    "load": "table",
}

__all__ = ["ArtifactError", "Collection", "Hits", "IdMap", "Table", "TopK", "include_folder", "library_path", "load"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
