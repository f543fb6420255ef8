"""Codes in packed rows, for the kernels that read them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_codes(row, size, bit, bits, there):
    """The codes of so many ``bits`` from ``bit`` on in the rows of ``size`` bytes at the addresses ``row``."""
    first, left = row + (bit >> 3), size - (bit >> 3)  # bytes of the row from here on
    word = tl.load(first.to(tl.pointer_type(tl.uint8)), mask=there & (left > 0), other=0).to(tl.int64)
    word |= tl.load((first + 1).to(tl.pointer_type(tl.uint8)), mask=there & (left > 1), other=0).to(tl.int64) << 8
    word |= tl.load((first + 2).to(tl.pointer_type(tl.uint8)), mask=there & (left > 2), other=0).to(tl.int64) << 16
    return (word >> (bit & 7)) & ((tl.full(bit.shape, 1, tl.int64) << bits) - 1)
