"""Rows from packed codes by standard operators alone, for programs that run where mgqe is not.

The twin of :mod:`mgqe.ops.reference`, written for tracers: no loop over ids, no branch on values, no shape that depends
on values, and nothing that a constant folder could turn into a dense table, since every step begins at the ids.
Integer division is not used, which the ONNX exporter would do in float32, nor ``>>``, which it does not know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.codec.packing import bits_for

BLOCK_BYTES = 32  # of 256 bits, which one rank covers


def take(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` along the first axis: table (n, ...), index int64 (...) -> (*index, *table.shape[1:])."""
    rows = torch.index_select(table, 0, index.reshape(-1))
    return rows.reshape(*index.shape, *table.shape[1:])


def unpack_codes(packed: Tensor, num_subspaces: int, num_centroids: int) -> Tensor:
    """Codes of packed rows: uint8 (n, R) -> int64 (n, D); see docs/format.md."""
    bits, row_bytes = bits_for(num_centroids), packed.shape[1]
    if bits == 8:
        return packed.long()
    at = torch.arange(num_subspaces, device=packed.device) * bits
    low = torch.bitwise_right_shift(at, 3)
    as_int = packed.to(torch.int32)
    word = torch.index_select(as_int, 1, low)
    # A code of b bits that starts at bit s of a byte reaches over ceil((s + b) / 8) bytes. Bytes past the row's end are
    # never part of a code: what stands in for them is cut off by the mask.
    reach = max((int(start) * bits & 7) + bits for start in range(num_subspaces))
    for more in range(1, -(-reach // 8)):
        byte = torch.index_select(as_int, 1, (low + more).clamp(max=row_bytes - 1))
        word = word | (byte * (1 << (8 * more)))
    shift = (at & 7).to(torch.int32)
    return (torch.bitwise_right_shift(word, shift) & ((1 << bits) - 1)).long()


def join_pieces(codes: Tensor, centroids: Tensor, scales: Tensor | None) -> Tensor:
    """Rows of codes: int64 (n, D), a codebook (P, H, w) and scales (P,) for int8 -> float32 (n, d).

    The codebook is read in its own type, and only what is read becomes float32.
    """
    num_subspaces = codes.shape[1]
    pieces, size, width = centroids.shape
    each = max(1, pieces // num_subspaces)
    if pieces == 1 and num_subspaces > 1:
        index = codes
    else:
        spread = codes.unsqueeze(2).expand(-1, -1, each).reshape(-1, num_subspaces * each)
        index = spread + torch.arange(pieces, device=codes.device) * size
    values = take(centroids.reshape(pieces * size, width), index).to(torch.float32)
    if scales is not None:
        values = values * scales[:, None]
    return values.reshape(-1, index.shape[1] * width)


def rank_in_map(at: Tensor, map_bytes: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """One level of a tier map: whether the bit at ``at`` is set, and the ones before it.

    Args:
        at: int64 (n,).
        map_bytes: uint8 (blocks, 32), the level's bit vector.
        ranks: int32 (blocks,), ones before each block.

    Returns:
        bool (n,), int64 (n,).
    """
    device = at.device
    block, inside = torch.bitwise_right_shift(at, 8), at & 255
    row = torch.index_select(map_bytes, 0, block)
    first = torch.arange(BLOCK_BYTES, device=device) * 8
    below = (inside[:, None] - first).clamp(0, 8)  # bits of each byte that lie below the id's own
    # Tables of a few bytes in place of shifts, which are many operators in ONNX.
    byte_masks = torch.tensor([(1 << n) - 1 for n in range(9)], dtype=torch.uint8, device=device)
    popcounts = torch.tensor([n.bit_count() for n in range(256)], dtype=torch.uint8, device=device)
    lower = row & take(byte_masks, below)
    ones = torch.index_select(ranks, 0, block).long() + take(popcounts, lower.long()).long().sum(1)
    single = torch.tensor([1 << n for n in range(8)], dtype=torch.uint8, device=device)
    own = torch.gather(row, 1, torch.bitwise_right_shift(inside, 3)[:, None]).squeeze(1)
    return (own & take(single, at & 7)) != 0, ones
