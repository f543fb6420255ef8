"""Codes in packed rows and the numbers that they name, for the kernels that read them."""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = tl.constexpr(5)  # of each coordinate of a tier: bit, bits, width, place, last


@triton.jit
def read_codes(row, size, bit, bits, there):
    """The codes of so many ``bits`` from ``bit`` on in the rows of ``size`` bytes at the addresses ``row``."""
    first, left = row + (bit >> 3), size - (bit >> 3)  # bytes of the row from here on
    word = tl.load(first.to(tl.pointer_type(tl.uint8)), mask=there & (left > 0), other=0).to(tl.int64)
    word |= tl.load((first + 1).to(tl.pointer_type(tl.uint8)), mask=there & (left > 1), other=0).to(tl.int64) << 8
    word |= tl.load((first + 2).to(tl.pointer_type(tl.uint8)), mask=there & (left > 2), other=0).to(tl.int64) << 16
    return (word >> (bit & 7)) & ((tl.full(bit.shape, 1, tl.int64) << bits) - 1)


@triton.jit
def read_numbers(addresses, row_bytes, fields, book, tier, place, inside, coordinate, length):
    """What the codes of rows (IDS,) name at coordinates (C,): (IDS, C); zeros beyond either."""
    there = inside[:, None] & (coordinate < length)[None, :]
    field = fields + (tier[:, None].to(tl.int64) * length + coordinate[None, :]) * FIELDS
    size = tl.load(row_bytes + tier, mask=inside, other=0)
    row = tl.load(addresses + tier, mask=inside, other=0) + place * size
    bit, bits = tl.load(field, mask=there, other=0), tl.load(field + 1, mask=there, other=0)
    code = read_codes(row[:, None], size[:, None], bit, bits, there)
    code = tl.minimum(code, tl.load(field + 4, mask=there, other=0))
    at = tl.load(field + 3, mask=there, other=0) + code * tl.load(field + 2, mask=there, other=0)
    return tl.load(book + at, mask=there, other=0)
