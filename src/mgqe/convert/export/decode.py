"""Rows from packed codes by standard operators, for exported programs that run without mgqe.

It computes what :mod:`mgqe.ops.reference` does, in a form for tracers: no loop over ids, no branch on values and no
shape that depends on values. Every step starts from the ids, so that constant folding cannot make a dense table of it.
There is no integer division, which the ONNX exporter would do in float32, and no ``>>``, which it does not support.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mgqe.codec.packing import Bits
from mgqe.ops.layout.pieces import Piece

BLOCK_BYTES = 32  # 256 bits, for which there is one rank


def take(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` along the first axis: table (n, ...), index int64 (...) -> (*index, *table.shape[1:])."""
    rows = torch.index_select(table, 0, index.reshape(-1))
    return rows.reshape(*index.shape, *table.shape[1:])


def unpack_codes(packed: Tensor, num_subspaces: int, bits: Bits) -> Tensor:
    """Codes of packed rows: uint8 (n, R) -> int64 (n, D); ``bits`` of all codes, or of each. See docs/format.md."""
    bits_of = [bits] * num_subspaces if isinstance(bits, int) else list(bits)
    starts, row_bytes = [*accumulate(bits_of, initial=0)][:-1], packed.shape[1]
    if set(bits_of) == {8}:
        return packed.long()
    if row_bytes == 0:
        return torch.zeros((packed.shape[0], num_subspaces), dtype=torch.int64, device=packed.device)
    first_bit = torch.tensor(starts, device=packed.device)
    first_byte = torch.bitwise_right_shift(first_bit, 3).clamp(max=row_bytes - 1)  # a code without bits may end a row
    as_int = packed.to(torch.int32)
    word = torch.index_select(as_int, 1, first_byte)
    # A code of b bits that starts at bit s of a byte spans ceil((s + b) / 8) bytes. Bytes past the row's end are not
    # part of a code: the mask removes the byte that is read in their place.
    most_bits = max((start & 7) + width for start, width in zip(starts, bits_of, strict=True))
    for more in range(1, -(-most_bits // 8)):
        byte = torch.index_select(as_int, 1, (first_byte + more).clamp(max=row_bytes - 1))
        word = word | (byte * (1 << (8 * more)))
    shift = (first_bit & 7).to(torch.int32)
    mask = torch.tensor([(1 << width) - 1 for width in bits_of], dtype=torch.int32, device=packed.device)
    return (torch.bitwise_right_shift(word, shift) & mask).long()


def decode_rows(codes: Tensor, centroids: Tensor, scales: Tensor | None) -> Tensor:
    """Rows of codes: int64 (n, D), a codebook (B, K, s) and scales (B,) for int8 -> float32 (n, d).

    B is 1 where subspaces share their centroids, and a multiple of D where a coarse tier reads a finer codebook. The
    codebook is read in its own dtype; only the centroids that are read are converted to float32.
    """
    num_subspaces = codes.shape[1]
    books, size, width = centroids.shape
    books_per_subspace = max(1, books // num_subspaces)
    if books == 1 and num_subspaces > 1:
        index = codes
    else:
        repeated = codes.unsqueeze(2).expand(-1, -1, books_per_subspace).reshape(-1, num_subspaces * books_per_subspace)
        index = repeated + torch.arange(books, device=codes.device) * size
    values = take(centroids.reshape(books * size, width), index).to(torch.float32)
    if scales is not None:
        values = values * scales[:, None]
    return values.reshape(-1, index.shape[1] * width)


def decode_coordinates(codes: Tensor, centroids: Tensor, scales: Tensor | None, pieces: Sequence[Piece]) -> Tensor:
    """Coordinates of a mixed table: codes int64 (n, D), a flat codebook, and scales (D,) for int8 -> float32 (n, L)."""
    device = codes.device
    subspace = torch.tensor([j for j, piece in enumerate(pieces) for _ in range(piece.width)], device=device)
    width = torch.tensor([piece.width for piece in pieces for _ in range(piece.width)], device=device)
    first = torch.tensor([piece.entry + t for piece in pieces for t in range(piece.width)], device=device)
    values = take(centroids, torch.index_select(codes, 1, subspace) * width + first).to(torch.float32)
    return values if scales is None else values * torch.index_select(scales, 0, subspace)


def transform(
    coordinates: Tensor, mean: Tensor, matrix: Tensor, scales: Tensor | None, column_scales: Tensor | None
) -> Tensor:
    """mean (d,) + coordinates (n, L) @ matrix (L, d), whose float32 values are int8 * scales (L,) for int8.

    With column scales (d,), mean + column_scales * (coordinates @ matrix), whose sums are exact.
    """
    if column_scales is not None:
        return mean + torch.matmul(coordinates, matrix.to(torch.float32)) * column_scales
    scaled = coordinates if scales is None else coordinates * scales
    return mean + torch.matmul(scaled, matrix.to(torch.float32))


def rank_in_map(position: Tensor, map_bytes: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """One level of a tier map: whether the bit at each position is set, and how many bits before it are.

    Args:
        position: int64 (n,).
        map_bytes: uint8 (blocks, 32), the level's bit vector.
        ranks: int32 (blocks,), how many bits are set before each block.

    Returns:
        bool (n,), int64 (n,).
    """
    device = position.device
    block, inside = torch.bitwise_right_shift(position, 8), position & 255
    row = torch.index_select(map_bytes, 0, block)
    first_bit = torch.arange(BLOCK_BYTES, device=device) * 8
    below = (inside[:, None] - first_bit).clamp(0, 8)  # how many bits of each byte are below the position
    # Small tables in place of shifts, which take many operators in ONNX.
    byte_masks = torch.tensor([(1 << n) - 1 for n in range(9)], dtype=torch.uint8, device=device)
    popcounts = torch.tensor([n.bit_count() for n in range(256)], dtype=torch.uint8, device=device)
    lower = row & take(byte_masks, below)
    ones = torch.index_select(ranks, 0, block).long() + take(popcounts, lower.long()).long().sum(1)
    single = torch.tensor([1 << n for n in range(8)], dtype=torch.uint8, device=device)
    byte = torch.gather(row, 1, torch.bitwise_right_shift(inside, 3)[:, None]).squeeze(1)
    return (byte & take(single, position & 7)) != 0, ones
