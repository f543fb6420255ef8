"""Matrices in NumPy's files: .npy, which is mapped, and .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgqe.vectors.vectors import Vectors, choose

STARTS = {".npy": b"\x93NUMPY", ".npz": b"PK"}
PICKLE = b"\x80"  # of protocol 2 and later


def read_npy(path: Path) -> Vectors:
    """The array of an .npy file. ValueError: it is cut short, or holds Python objects."""
    try:
        _check_start(path, ".npy")
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise _unread(".npy", error) from error
    return Vectors(rows)


def read_npz(path: Path, name: str | None) -> Vectors:
    """An array of an .npz archive, and its array ``ids``, if there is one of as many rows."""
    import zipfile

    try:
        _check_start(path, ".npz")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {each: archive[each] for each in archive.files}
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _unread(".npz", error) from error
    matrices = [each for each, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
    chosen = choose(matrices, {each: array.shape for each, array in arrays.items()}, name, "array")
    return Vectors(arrays[chosen], arrays.get("ids"), chosen)


def _check_start(path: Path, kind: str) -> None:
    """ValueError unless the file begins as its kind does, or as a pickle. NumPy calls everything else a pickle, too."""
    with path.open("rb") as file:
        if not file.read(8).startswith((STARTS[kind], PICKLE)):
            raise ValueError("it does not begin as such files do")


def _unread(kind: str, error: Exception) -> ValueError:
    """What a user is told. NumPy itself recommends to run what pickles hold."""
    if "pickle" in str(error) or "Python objects" in str(error):
        return ValueError("it holds Python objects, which are not loaded since that runs code: save an array of floats")
    return ValueError(f"it cannot be read as {kind}: {error}")
