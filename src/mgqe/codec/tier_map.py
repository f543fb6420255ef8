"""The tier map: where each id lives when ids are in any order, in 1.125 bits per id for two tiers.

A level has one bit per id and a 32-bit count for every 256 bits, which is far less than a row index of 32 bits per id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.tiers import Tiers
from mgqe.ops.layout.packed_format import BLOCK_BITS, WORDS_PER_BLOCK
from mgqe.ops.reference import locate_in_map, popcount

MAX_MAPPED_IDS = 2**31 - 1  # ranks are int32


@dataclass(frozen=True, eq=False)
class TierMap:
    """Where each id lives, when ids are in any order: a bit vector with ranks for each tier split off.

    Level l decides, over the n_l ids that are still left, in ascending id order, which belong to tier
    ``order[l]`` (bit 1); the others go on to level l + 1. After the last level only tier ``order[-1]`` is
    left. Splitting the largest tier off first makes the later levels short.

    Attributes:
        order: the tiers as they are split off: largest first, of equal ones the higher number first.
        bits: of each level: int64 (4 * ceil(n_l / 256),), 64-bit words, least significant bit first, zero padded.
        ranks: of each level: int32 (ceil(n_l / 256),), ones before each block of 256 bits.
    """

    order: tuple[int, ...]
    bits: tuple[Tensor, ...]
    ranks: tuple[Tensor, ...]

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 (...), already known to be in range -> tier uint8 (...), rank in the tier int64 (...)."""
        tier, rank = locate_in_map(ids, self.order, self.bits, self.ranks)
        return tier.to(torch.uint8), rank

    @property
    def nbytes(self) -> int:
        """Bytes of all bit vectors and ranks."""
        return sum(t.nbytes for t in (*self.bits, *self.ranks))

    def to(self, device: torch.device | str) -> TierMap:
        """This map on another device."""
        return TierMap(self.order, tuple(t.to(device) for t in self.bits), tuple(t.to(device) for t in self.ranks))


def peel_order(sizes: Sequence[int]) -> tuple[int, ...]:
    """Tiers by falling size, of equal ones the higher number first: the order a map splits them off."""
    return tuple(sorted(range(len(sizes)), key=lambda g: (-sizes[g], -g)))


def map_order(tiers: Tiers) -> tuple[int, ...] | None:
    """The order in which a map of ``tiers`` splits them off; None for ids in frequency order, which need no map."""
    return None if tiers.tier_of is None else peel_order(tiers.sizes)


def build_tier_map(tiers: Tiers) -> TierMap:
    """The map of ``tiers``: m - 1 levels, built even for ids in frequency order (which do not need one)."""
    n = tiers.num_embeddings
    if n > MAX_MAPPED_IDS:
        raise ValueError(f"a tier map holds at most {MAX_MAPPED_IDS} ids, got {n}: sort the ids by frequency")
    order = peel_order(tiers.sizes)
    left = tiers.of(torch.arange(n, device="cpu")) if tiers.tier_of is None else tiers.tier_of
    bits, ranks = [], []
    for tier in order[:-1]:
        mine = left == tier
        words = _pack_bits(mine)
        bits.append(words)
        ranks.append(block_ranks(words))
        left = left[~mine]
    return TierMap(order, tuple(bits), tuple(ranks))


def unpack_bits(words: Tensor, length: int) -> Tensor:
    """The first ``length`` bits of int64 ``words``, least significant first, as bool (length,)."""
    as_bytes = words.cpu().numpy().astype("<i8").view(np.uint8)
    return torch.from_numpy(np.unpackbits(as_bytes, count=length, bitorder="little").astype(np.bool_))


def block_counts(words: Tensor) -> Tensor:
    """Ones in each block of 256 bits: int64 words (4 b,) -> int64 (b,)."""
    return popcount(words).reshape(-1, WORDS_PER_BLOCK).sum(dim=1)


def ranks_of(counts: Tensor) -> Tensor:
    """Ones before each block: int64 (b,) -> int32 (b,)."""
    return (torch.cumsum(counts, dim=0) - counts).to(torch.int32)


def block_ranks(words: Tensor) -> Tensor:
    """Ones before each block of 256 bits: int64 words (4 b,) -> int32 (b,)."""
    return ranks_of(block_counts(words))


def _pack_bits(flags: Tensor) -> Tensor:
    """Bool (n,) -> int64 (4 * ceil(n / 256),), least significant bit first, zero padded."""
    packed = np.packbits(flags.numpy(), bitorder="little")
    size = -(-flags.numel() // BLOCK_BITS) * BLOCK_BITS // 8
    padded = np.zeros(size, dtype=np.uint8)
    padded[: packed.size] = packed
    return torch.from_numpy(padded.view("<i8").astype(np.int64))
