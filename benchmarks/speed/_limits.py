"""The loops of _limits.cpp, compiled for this processor when they are first needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("_limits.cpp")
CACHE_BYTES = 2048  # of the rows and tables that loops read again and again


@cache
def loops() -> ctypes.CDLL:
    """The compiled loops.

    Raises:
        SystemExit: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise SystemExit("these bounds are loops in C++: install g++ or clang++, or name a compiler in CXX")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "limits.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made)], check=True)
        library = ctypes.CDLL(str(made))  # stays mapped when the file is gone
    loops = ("read", "rows", "levels", "levels_avx2", "search", "matrix_avx2", "tables", "tables_avx2", "columns")
    for name in ("vbmi", *loops):
        getattr(library, f"mgqe_limits_{name}").restype = ctypes.c_int64
    return library


def run(name: str, first: Tensor, *rest: Tensor | int) -> int:
    """One of the loops over tensors and numbers, which must stay as they are meanwhile."""
    given = [
        ctypes.c_void_p(each.data_ptr()) if isinstance(each, Tensor) else ctypes.c_int64(each)
        for each in (first, *rest)
    ]
    return int(getattr(loops(), f"mgqe_limits_{name}")(*given))


def has_vbmi() -> bool:
    """Whether this processor has the instructions that the AVX-512 kernels need."""
    return bool(loops().mgqe_limits_vbmi())


def cached_bytes() -> Tensor:
    """What the loops read from the first-level cache."""
    return torch.randint(256, (CACHE_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
