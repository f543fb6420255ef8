"""The compiled library: where it is, what its functions take (``include/mgqe.h``), and their errors as Python's."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

VERSION = 1  # of the C interface
_HERE = Path(__file__).parent
_NAME = "libmgqe_native" + (".dylib" if sys.platform == "darwin" else ".so")

OUT_OF_RANGE, NO_MEMORY, CANNOT_OPEN = -3, -2, -20
DAMAGED, UNSUPPORTED = -5, -21
VERIFY, NO_VERIFY, COPY = 1, 2, 4  # flags of mgqe_reader_open

_OPEN: list[Any] = [c_char_p, c_int32, POINTER(c_void_p)]
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mgqe_reader_version": (c_int32, []),
    "mgqe_reader_error": (c_char_p, []),
    "mgqe_reader_open": (c_int32, _OPEN),
    "mgqe_reader_close": (None, [c_void_p]),
    "mgqe_reader_num_embeddings": (c_int64, [c_void_p]),
    "mgqe_reader_embedding_dim": (c_int64, [c_void_p]),
    "mgqe_reader_padding_idx": (c_int64, [c_void_p]),
    "mgqe_reader_fallback": (c_void_p, [c_void_p]),
    "mgqe_reader_ids": (c_void_p, [c_void_p]),
    "mgqe_reader_query_weight": (c_void_p, [c_void_p]),
    "mgqe_reader_lookup": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p, c_int32]),
    "mgqe_reader_bag": (
        c_int32,
        [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int32, c_void_p, c_void_p, c_int32],
    ),
    "mgqe_reader_topk": (c_int32, [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p]),
    "mgqe_ids_open": (c_int32, _OPEN),
    "mgqe_ids_close": (None, [c_void_p]),
    "mgqe_ids_count": (c_int64, [c_void_p]),
    "mgqe_ids_kind": (c_int32, [c_void_p]),
    "mgqe_ids_rows_of_integers": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p]),
    "mgqe_ids_rows_of_texts": (c_int32, [c_void_p, c_char_p, c_void_p, c_int64, c_void_p]),
    "mgqe_ids_integers": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p]),
    "mgqe_ids_text": (c_int32, [c_void_p, c_int64, POINTER(c_void_p), POINTER(c_int64)]),
}


class ArtifactError(ValueError):
    """A file cannot be read by this version, or is damaged; the message says what is wrong with it."""


def include_folder() -> Path:
    """The folder of ``mgqe.h``, for ``cc -I``."""
    return _HERE / "include"


def library_path() -> Path:
    """The compiled library, for ``cc``: that of this package, or of the mgqe that it was installed with.

    ``MGQE_LIBRARY`` in the environment names another one. Raises ImportError if there is none.
    """
    named = os.environ.get("MGQE_LIBRARY", "").strip()
    beside = [_HERE / _NAME, _HERE.parent / "mgqe" / "ops" / _NAME]
    found = next((path for path in ([Path(named)] if named else beside) if path.exists()), None)
    if found is None:
        looked = named or f"{beside[0]} and {beside[1]}"
        raise ImportError(
            f"mgqe_reader needs its compiled library, and there is none at {looked}: install a wheel, or install from "
            "source with a C++ compiler on the path (or CXX set)"
        )
    return found


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library. Raises ImportError if there is none, or one of another version."""
    path = library_path()
    try:
        lib = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} cannot be used ({error}): install mgqe_reader again") from error
    if lib.mgqe_reader_version() != VERSION:
        raise ImportError(f"{path} is of another version than mgqe_reader: install it again")
    return lib


def check(status: int) -> None:
    """Raise the Python error of a code that a function of the library returned."""
    if status == 0:
        return
    message = library().mgqe_reader_error().decode(errors="replace")
    if status == OUT_OF_RANGE:
        raise IndexError(message)
    if status == NO_MEMORY:
        raise MemoryError(message)
    if status == CANNOT_OPEN:
        raise OSError(message)
    raise (ArtifactError if status in (DAMAGED, UNSUPPORTED) else ValueError)(message)


def open_handle(opener: str, path: str | os.PathLike[str], mmap: bool, verify: bool | None) -> int:
    """What ``mgqe_reader_open`` or ``mgqe_ids_open`` gives for a file or folder.

    Args:
        mmap: False reads the files into memory.
        verify: compare checksums: True all, False none, None those of the header and of up to 64 MiB.
    """
    if verify not in (True, False, None):
        raise TypeError(f"verify must be True, False or None, got {verify!r}")
    os.stat(path)  # raises FileNotFoundError, whose message Python writes
    flags = (0 if mmap else COPY) | (0 if verify is None else VERIFY if verify else NO_VERIFY)
    handle = c_void_p()
    check(getattr(library(), opener)(os.fsencode(path), flags, ctypes.byref(handle)))
    assert handle.value is not None
    return handle.value
