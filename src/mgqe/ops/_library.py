"""Loads the native kernels through ctypes and turns their return codes into Python errors.

The library is optional: built by ``setup.py`` where a C++ compiler is found. Without it every operation takes
its pure-torch twin (:mod:`mgqe.ops.reference`), after one warning.

Environment, read once at the first use:
    ``MGQE_NATIVE=0``: do not load the library (no warning: it was asked for).
    ``MGQE_ISA=scalar|avx2|avx512|neon``: force an instruction set; all of them give the same results.
    ``MGQE_LIBRARY=PATH``: load this library instead of the installed one, such as one built with a sanitizer.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch  # Loaded first, so that the library shares torch's OpenMP runtime and its thread pool.

from mgqe.checks.waiting import reads_wait

ABI_VERSION = 8
ISA_NAMES = ("scalar", "avx2", "avx512", "neon")
_LIBRARY = Path(__file__).with_name("libmgqe_native" + (".dylib" if sys.platform == "darwin" else ".so"))

OUT_OF_RANGE = -3
NOT_FINITE = -6
BAD_OFFSETS = -7
OVERFLOW = -8
LONG_ROWS = -9
_MESSAGES = {
    -1: "the native kernel refused its arguments (a shape, size or pointer that does not fit)",
    -2: "the native kernel could not get memory",
    -5: "the table's tier map is damaged: it points outside a tier",
    -7: "bags of the native kernel do not fit its ids",
    -8: "the scores of a query leave float32",
    -9: "the squared length of a row leaves float32",
    -4: "this processor, or this build of the library, lacks that instruction set",
}
_SIGNATURES: dict[str, list[Any]] = {
    "mgqe_abi_version": [],
    "mgqe_get_isa": [],
    "mgqe_set_isa": [c_int32],
    "mgqe_has_openmp": [],
    "mgqe_assign": [c_void_p] * 3 + [c_int64] * 4 + [c_void_p, c_int32],
    "mgqe_assign_mixed": [c_void_p] + [c_int64] * 2 + [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32],
    "mgqe_quantize_mixed": [c_void_p] * 9 + [c_int32],
    "mgqe_scatter_mixed": [c_void_p] * 4 + [c_float, c_void_p, c_int64, c_int32],
    "mgqe_sum_rows": [c_void_p] * 2 + [c_int64] * 3 + [c_void_p, c_int32],
    "mgqe_gather": [c_void_p] * 2 + [c_int64] * 5 + [c_void_p, c_int32],
    "mgqe_decode_error": [c_void_p] * 4 + [c_int64] * 5 + [c_void_p] * 3 + [c_int32],
    "mgqe_scatter": [c_void_p] * 3 + [c_int64] * 5 + [c_void_p] * 2 + [c_int32],
    "mgqe_transform": [c_void_p] + [c_int64] * 2 + [c_void_p] * 2 + [c_int64, c_void_p, c_int32],
    "mgqe_lookup": [c_void_p] * 2 + [c_int64, c_void_p, c_int32],
    "mgqe_topk": [c_void_p] * 2 + [c_int32],
    "mgqe_row_squares": [c_void_p] * 2 + [c_int32],
    "mgqe_bias_codes": [c_void_p] * 4,
    "mgqe_bag": [c_void_p] * 2 + [c_int64, c_void_p, c_int64, c_int32] + [c_void_p] * 2 + [c_int32],
    "mgqe_max_code": [c_void_p] + [c_int64] * 2 + [c_int32, c_void_p, c_int32],
    "mgqe_unique": [c_void_p] + [c_int64] * 2 + [c_void_p] * 4,
    "mgqe_unique_by_tier": [c_void_p, c_int64] + [c_void_p] * 2 + [c_int64] + [c_void_p] * 4,
}


def _warn(reason: str) -> None:
    warnings.warn(
        f"mgqe runs without its native kernels: {reason}. Everything works, with the same results, but the README's "
        "first example takes about 18 times as long. To have the kernels, install a C++ compiler "
        "(Debian: apt install g++; macOS: xcode-select --install), and then run pip install --force-reinstall "
        "--no-deps --no-cache-dir mgqe. MGQE_NATIVE=0 silences this.",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None (with one warning, unless ``MGQE_NATIVE=0``) where torch must do the work.

    Raises:
        ValueError: ``MGQE_ISA`` names no instruction set, or one that this processor lacks; ``MGQE_LIBRARY``
            names no file.
    """
    if os.environ.get("MGQE_NATIVE", "1").strip().lower() in ("0", "false", "off"):
        return None
    named = os.environ.get("MGQE_LIBRARY", "").strip()
    path = Path(named) if named else _LIBRARY
    if not path.exists():
        if named:
            raise ValueError(f"MGQE_LIBRARY names {named}, which does not exist: correct it or unset it")
        _warn(f"{path.name} was not built")
        return None
    try:
        lib = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes = arguments
            function.restype = c_int32
    except (OSError, AttributeError) as error:
        _warn(f"{path.name} could not be loaded ({error})")
        return None
    if lib.mgqe_abi_version() != ABI_VERSION:
        _warn(f"{path.name} is from another version of mgqe")
        return None
    forced = os.environ.get("MGQE_ISA", "").strip().lower()
    if forced:
        _set_isa(lib, forced)
    return lib


def library_on(device: torch.device) -> ctypes.CDLL | None:
    """The library for tensors on the CPU; None on other devices, where torch does the work."""
    return library() if device.type == "cpu" and not reads_wait(device) else None


def _set_isa(lib: ctypes.CDLL, name: str) -> None:
    if name not in (*ISA_NAMES, "auto"):
        raise ValueError(f"instruction set must be one of {', '.join(ISA_NAMES)} or auto, got {name!r}")
    if lib.mgqe_set_isa(-1 if name == "auto" else ISA_NAMES.index(name)) != 0:
        raise ValueError(f"instruction set {name!r} is not available on this processor: use 'auto' or 'scalar'")


def native_available() -> bool:
    """Whether the native kernels are in use for float32 CPU tensors."""
    return library() is not None


def native_isa() -> str:
    """The instruction set in use: "avx512", "avx2", "neon" or "scalar"; "none" in pure torch."""
    lib = library()
    return "none" if lib is None else ISA_NAMES[lib.mgqe_get_isa()]


def set_native_isa(name: str) -> None:
    """Forces an instruction set for the whole process, ``"auto"`` for the best one.

    Raises:
        ValueError: unknown name, or not available on this processor.
        RuntimeError: the native kernels are not loaded.
    """
    lib = library()
    if lib is None:
        raise RuntimeError("the native kernels are not loaded: there is no instruction set to choose")
    _set_isa(lib, name)


def native_openmp() -> bool:
    """Whether the loaded library was built with OpenMP; without it calls use threads of the library's own."""
    lib = library()
    return lib is not None and bool(lib.mgqe_has_openmp())


def check(status: int, out_of_range: Callable[[], Exception] | None = None) -> None:
    """Raises the Python error for a return code; ``out_of_range`` builds the one that names the value."""
    if status == 0:
        return
    if status == OUT_OF_RANGE and out_of_range is not None:
        raise out_of_range()
    if status == -2:
        raise MemoryError(_MESSAGES[status])
    if status == -5:
        raise ValueError(_MESSAGES[status])
    raise RuntimeError(_MESSAGES.get(status, f"the native kernel failed with code {status}"))
