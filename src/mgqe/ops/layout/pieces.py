"""Where the pieces of a row lie, in tables whose subspaces differ in width or in bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from mgqe.ops.layout.packed_format import MAX_BITS


class Piece(NamedTuple):
    """One subspace as the rows of a tier have it.

    Attributes:
        bit: where its code begins in a packed row.
        bits: of the code, 0 to 16; without bits every row has centroid 0.
        coordinate: its first coordinate.
        width: how many coordinates it has.
        entry: where its centroids begin in the codebook, whose subspaces lie one after another.
        num_centroids: that the codebook holds for it; the tier chooses among the first 2**bits.
    """

    bit: int
    bits: int
    coordinate: int
    width: int
    entry: int
    num_centroids: int


def pieces(widths: Sequence[int], bits: Sequence[int], num_centroids: Sequence[int]) -> tuple[Piece, ...]:
    """The pieces of a tier: of each subspace its width, the bits of its codes, and the centroids of its codebook."""
    at_bit = accumulate(bits, initial=0)
    coordinates = accumulate(widths, initial=0)
    entries = accumulate((w * k for w, k in zip(widths, num_centroids, strict=True)), initial=0)
    return tuple(map(Piece, at_bit, bits, coordinates, widths, entries, num_centroids))


def codebook_sizes(bits_of_readers: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """How many centroids a codebook holds for each subspace: as many as the tiers that read it can name."""
    return tuple(1 << max(bits) for bits in zip(*bits_of_readers, strict=True))


def mixed_row_bytes(bits: Sequence[int]) -> int:
    """Bytes of a packed row whose codes have so many bits."""
    return -(-sum(bits) // 8)


def check_bits(bits: Sequence[int]) -> None:
    """Raise ValueError for bits outside 0 .. 16."""
    if wrong := [b for b in bits if not 0 <= b <= MAX_BITS]:
        raise ValueError(f"bits of a code must be 0 to {MAX_BITS}, got {wrong[0]}")
