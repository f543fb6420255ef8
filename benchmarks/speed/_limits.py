"""The loops of the bounds (_limits.cpp, _fused_*.cpp), compiled for this processor when they are first needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "src/mgqe/ops/native"  # whose headers move packed rows to columns
NATIVE, WITHOUT_AVX512 = "-march=native", "-march=haswell"
SOURCES = {
    "_limits.cpp": NATIVE,
    "_fused_search.cpp": NATIVE,
    "_fused_bag.cpp": NATIVE,
    "_fused_avx2.cpp": WITHOUT_AVX512,
}


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
        objects = []
        for source, processor in SOURCES.items():
            objects.append(str(Path(folder) / f"{source}.o"))
            flags = ["-std=c++20", "-O3", processor, "-fPIC", f"-I{KERNELS}", "-c", str(HERE / source)]
            subprocess.run([compiler, *flags, "-o", objects[-1]], check=True)
        made = Path(folder) / "limits.so"
        subprocess.run([compiler, "-shared", *objects, "-o", str(made)], check=True)
        return ctypes.CDLL(str(made))  # stays mapped when the file is gone


def run(name: str, *given: Tensor | int) -> int:
    """One of the loops over tensors and numbers, which must stay as they are meanwhile; 0 for a tensor: none."""
    function = getattr(loops(), f"mgqe_limits_{name}")
    function.restype = ctypes.c_int64
    passed = [ctypes.c_void_p(each.data_ptr()) if isinstance(each, Tensor) else ctypes.c_int64(each) for each in given]
    return int(function(*passed))


def has_vbmi() -> bool:
    """Whether this processor has the instructions that the AVX-512 kernels need."""
    return bool(run("vbmi"))
