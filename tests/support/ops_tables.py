"""Tables of every layout as the operators take them, and their rows decoded without packing or tier map."""

from __future__ import annotations

import torch

from mgqe import ops
from mgqe.codec.packing import bits_for, pack
from mgqe.codec.tier_map import build_tier_map
from mgqe.codec.tiers import Tiers
from mgqe.ops import reference

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def make_book(shape, dtype, made):
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=made, dtype=torch.int8), torch.rand(shape[0]) + 0.1
    return torch.randn(shape, generator=made).to(dtype), torch.empty(0)


def table(
    sizes=(30, 300),
    counts=(256, 64),
    subspaces=(4, 4),
    pieces=4,
    width=8,
    dtype=torch.float32,
    shuffled=False,
    padding_idx=-1,
    own_books=False,
    seed=0,
):
    """Parts of a table, its unpacked codes and its tiers. ``pieces`` 1 is a codebook shared by all subspaces."""
    made = torch.Generator().manual_seed(seed)
    m = len(sizes)
    unpacked = [torch.randint(k, (n, d), generator=made) for n, k, d in zip(sizes, counts, subspaces, strict=True)]
    books = [make_book((pieces, max(counts), width), dtype, made) for _ in range(m if own_books else 1)]
    tiers = Tiers.from_sizes(sizes)
    bits, ranks, order = [], [], []
    if shuffled:
        tier_of = torch.repeat_interleave(torch.arange(m), torch.tensor(sizes))
        tiers = Tiers.from_assignment(tier_of[torch.randperm(sum(sizes), generator=made)], num_tiers=m)
        tier_map = build_tier_map(tiers)
        bits, ranks, order = list(tier_map.bits), list(tier_map.ranks), list(tier_map.order)
    dim = width * (subspaces[0] if pieces == 1 else pieces)
    widths = [bits_for(k) for k in counts]
    parts = ops.TableBuffers(
        codes=[pack(c, b) for c, b in zip(unpacked, widths, strict=True)],
        centroids=[book for book, _ in books],
        scales=[scale for _, scale in books],
        map_bits=bits,
        map_ranks=ranks,
        order=order,
        sizes=list(sizes),
        bits=widths,
        num_subspaces=list(subspaces),
        codebook_of=list(range(m)) if own_books else [0] * m,
        embedding_dim=dim,
        padding_idx=padding_idx,
    )
    return parts, unpacked, tiers


def dense(parts, unpacked, tiers):
    """Every row, decoded without any packing or tier map."""
    rows = torch.zeros(parts.num_embeddings, parts.embedding_dim)
    for g, codes in enumerate(unpacked):
        book = parts.centroids[parts.codebook_of[g]].float()
        if parts.centroids[0].dtype == torch.int8:
            book = book * parts.scales[parts.codebook_of[g]][:, None, None]
        rows[tiers.members(g)] = reference.gather(codes, book)
    if parts.padding_idx >= 0:
        rows[parts.padding_idx] = 0
    return rows


def hand_worked():
    """Rows 0 to 3 are [0, 0], [1, 10], [2, 20], [3, 30]; row 2 is padding."""
    book = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[0.0], [10.0], [20.0], [30.0]]])
    codes = torch.tensor([[0x00], [0x11], [0x22], [0x33]], dtype=torch.uint8)
    return ops.PreparedLookup(ops.TableBuffers([codes], [book], [torch.empty(0)], [], [], [], [4], [4], [2], [0], 2, 2))
