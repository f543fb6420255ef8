"""mgqe_reader: reads what mgqe writes, with NumPy and the compiled library alone: look-ups, bags and top-K.

It is for services: there is no torch in it, and it cannot train or write. Its results have the bits of mgqe's.
docs/reader.md shows it, and the C interface under it (``mgqe.h``), which other languages call.
"""

from mgqe_reader.collection import Collection, Hits
from mgqe_reader.ids import IdMap
from mgqe_reader.library import ArtifactError, include_folder, library_path
from mgqe_reader.table import Table, TopK, load

__all__ = ["ArtifactError", "Collection", "Hits", "IdMap", "Table", "TopK", "include_folder", "library_path", "load"]
