"""Where each coordinate of a row has its code, for programs that look coordinates up by whole bytes.

A code of up to 8 bits lies in one byte of a packed row, or in the upper bits of one and the lower bits of the next. In
both cases one byte has all of it: the byte itself, or the upper bits of the first together with the lower bits of the
second, where they are. Such an *index byte*, rotated to the right by the code's first bit, ends with the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from mgqe.codec.layout import TableLayout

BYTE = 8  # bits


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of a tier's rows, one entry for each of the L.

    Attributes:
        byte: where its index byte is: byte ``byte`` of a row; or, from row_bytes on, number ``byte - row_bytes`` of
            ``joined``.
        shift: by how many bits an index byte is rotated.
        bits: of its code.
        first, stride: code c is entry first + c * stride of the flat codebook.
        largest: the largest code that the codebook has.
        scale: which of the codebook's scales it has.
        joined: of each code that lies in two bytes: the first byte, the first bit in it, and its bits in the second.
    """

    byte: tuple[int, ...]
    shift: tuple[int, ...]
    bits: tuple[int, ...]
    first: tuple[int, ...]
    stride: tuple[int, ...]
    largest: tuple[int, ...]
    scale: tuple[int, ...]
    joined: tuple[tuple[int, int, int], ...]


def in_bytes(layout: TableLayout) -> bool:
    """Whether every code has an index byte: codes of up to 8 bits, in rows that have bytes."""
    tiers = [tier for tier in layout.tiers if tier.ids]
    return all(tier.row_bytes and max(tier.code_bits or (tier.bits,)) <= BYTE for tier in tiers)


def coordinates_of(layout: TableLayout, tier: int, book_shape: tuple[int, ...]) -> Coordinates:
    """The coordinates of a tier, whose codebook has this shape: flat in a mixed table, else (pieces, K, width)."""
    shape = layout.tiers[tier]
    code_bits = shape.code_bits or (shape.bits,) * shape.num_subspaces
    starts = list(accumulate(code_bits, initial=0))[:-1]
    byte: list[int] = []
    joined: list[tuple[int, int, int]] = []
    for start, bits in zip(starts, code_bits, strict=True):
        first, shift = divmod(start, BYTE)
        if shift + bits > BYTE:
            byte.append(shape.row_bytes + len(joined))
            joined.append((first, shift, shift + bits - BYTE))
        else:
            byte.append(min(first, shape.row_bytes - 1))  # a code without bits may begin behind the row
    entries = _mixed(layout, tier) if layout.widths else _even(layout, tier, book_shape)
    code, first_entry, stride, largest, scale = (tuple(column) for column in zip(*entries, strict=True))
    return Coordinates(
        tuple(byte[j] for j in code),
        tuple(starts[j] % BYTE for j in code),
        tuple(code_bits[j] for j in code),
        first_entry,
        stride,
        largest,
        scale,
        tuple(joined),
    )


def _mixed(layout: TableLayout, tier: int) -> list[tuple[int, int, int, int, int]]:
    """Of each coordinate: its code, first entry, stride, largest code and scale."""
    return [
        (j, piece.entry + t, piece.width, piece.num_centroids - 1, j)
        for j, piece in enumerate(layout.pieces(tier))
        for t in range(piece.width)
    ]


def _even(layout: TableLayout, tier: int, book_shape: tuple[int, ...]) -> list[tuple[int, int, int, int, int]]:
    books, size, width = book_shape
    books_per_subspace = max(1, books // layout.tiers[tier].num_subspaces)
    found = []
    for i in range(layout.embedding_dim):
        piece = i // width
        book = 0 if books == 1 else piece
        found.append((piece // books_per_subspace, book * size * width + i % width, width, size - 1, book))
    return found
