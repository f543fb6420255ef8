"""Tests of the kernels with each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mgqe import ops

ALL = ("scalar", "avx2", "avx512", "neon")


def each() -> Iterator[str]:
    """Every instruction set of this machine, in force while it is the loop's; none without the library."""
    if not ops.native_available():
        return
    before = ops.native_isa()
    try:
        for name in ALL:
            try:
                ops.set_native_isa(name)
            except ValueError:
                continue
            yield name
    finally:
        ops.set_native_isa(before)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The kernels with this instruction set; skips the test where it or the library is missing."""
    if not ops.native_available():
        pytest.skip("the native library is not built")
    before = ops.native_isa()
    try:
        ops.set_native_isa(name)
    except ValueError:
        pytest.skip(f"no {name} here")
    try:
        yield
    finally:
        ops.set_native_isa(before)
