"""Tables of every layout as the operators take them, and their rows decoded without packing or tier map."""

from __future__ import annotations

import torch

from mgqe import ops
from mgqe.codec.packing import bits_for, pack
from mgqe.codec.tier_map import build_tier_map
from mgqe.codec.tiers import Tiers
from mgqe.ops import reference

# Layouts of mixed tables, as mixed_table takes them.
MIXED = {
    "unequal": {},
    "bytes": {"bits": ((8, 8, 8, 8), (8, 8, 8, 8)), "widths": (1, 3, 8, 20)},
    "every number of bits": {"sizes": (60,), "bits": (tuple(range(17)),), "widths": tuple(range(17, 0, -1))},
    "a tier without bits": {"sizes": (40, 90), "bits": ((4, 1, 6), (0, 0, 0)), "widths": (3, 4, 6)},
    "rows of one byte": {"sizes": (90, 40), "bits": ((3, 0, 2), (5, 1, 2)), "widths": (7, 2, 1)},
    "rows of three bytes": {"sizes": (130,), "bits": ((16, 1, 6),), "widths": (2, 5, 4)},
    "wide codes": {"bits": ((12, 9, 3), (10, 0, 11)), "widths": (2, 1, 6)},
    "wide subspaces": {"bits": ((8, 4, 6), (3, 8, 2)), "widths": (33, 1, 47)},
    "many subspaces": {
        "sizes": (400, 700),
        "bits": ((1, 8, 3, 5, 7, 2, 6, 4, 8, 8, 0, 8) * 3, (1, 4, 3, 0, 5, 2, 6, 1, 8, 3, 0, 2) * 3),
        "widths": (1, 2, 3, 2) * 9,
    },
    "an empty tier": {"sizes": (70, 0, 300), "bits": ((4, 4), (8, 2), (3, 1)), "widths": (2, 3)},
    "one subspace": {"sizes": (300,), "bits": ((7,),), "widths": (5,)},
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def make_book(shape, dtype, made):
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=made, dtype=torch.int8), torch.rand(shape[0]) + 0.1
    return torch.randn(shape, generator=made).to(dtype), torch.empty(0)


def tiers_and_map(sizes, shuffled, made):
    """Tiers in order of ids, or shuffled ones with the bits, ranks and order of their map."""
    if not shuffled:
        return Tiers.from_sizes(sizes), [], [], []
    tier_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tiers = Tiers.from_assignment(tier_of[torch.randperm(sum(sizes), generator=made)], num_tiers=len(sizes))
    tier_map = build_tier_map(tiers)
    return tiers, list(tier_map.bits), list(tier_map.ranks), list(tier_map.order)


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
    tiers, bits, ranks, order = tiers_and_map(sizes, shuffled, made)
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
    if parts.is_mixed:
        return mixed_dense(parts, unpacked, tiers)
    rows = torch.zeros(parts.num_embeddings, parts.embedding_dim)
    for g, codes in enumerate(unpacked):
        book = parts.centroids[parts.codebook_of[g]].float()
        if parts.centroids[0].dtype == torch.int8:
            book = book * parts.scales[parts.codebook_of[g]][:, None, None]
        rows[tiers.members(g)] = reference.gather(codes, book)
    if parts.padding_idx >= 0:
        rows[parts.padding_idx] = 0
    return rows


def pack_codes(codes, bits):
    """Codes ``(n, D)`` of so many bits each, one after another, low bits first: uint8 ``(n, row_bytes)``."""
    flags = [(codes[:, j, None] >> torch.arange(b)) & 1 for j, b in enumerate(bits)]
    flat = torch.cat(flags, dim=1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-(-sum(bits) // 8), 8))
    return (flat << torch.arange(8)).sum(2).to(torch.uint8)


def flat_book(widths, counts, dtype, made):
    """A codebook of a mixed table, of so many centroids for each subspace, and its scales."""
    size = sum(w * k for w, k in zip(widths, counts, strict=True))
    if dtype == torch.int8:
        return torch.randint(-127, 128, (size,), generator=made, dtype=torch.int8), torch.rand(len(widths)) + 0.1
    return torch.randn(size, generator=made).to(dtype), torch.empty(0)


def mixed_table(
    sizes=(30, 300),
    bits=((8, 8, 8, 8), (8, 5, 3, 0)),
    widths=(1, 2, 5, 9),
    dtype=torch.float32,
    matrix=None,
    dim=None,
    shuffled=False,
    padding_idx=-1,
    own_books=False,
    seed=0,
):
    """Parts of a mixed table, its unpacked codes and its tiers. ``matrix``: its type; ``dim`` its columns."""
    made = torch.Generator().manual_seed(seed)
    m = len(sizes)
    unpacked = [
        torch.stack([torch.randint(1 << b, (n,), generator=made) for b in of_tier], dim=1)
        for n, of_tier in zip(sizes, bits, strict=True)
    ]
    readers = [[of_tier] for of_tier in bits] if own_books else [bits]
    books = [flat_book(widths, [1 << max(b) for b in zip(*r, strict=True)], dtype, made) for r in readers]
    tiers, map_bits, ranks, order = tiers_and_map(sizes, shuffled, made)
    length = sum(widths)
    dim = length if matrix is None else dim or length + 3
    scales = torch.rand(length, generator=made) + 0.1 if matrix == torch.int8 else None
    values = torch.randn(length, dim, generator=made)
    parts = ops.TableBuffers(
        codes=[pack_codes(c, b) for c, b in zip(unpacked, bits, strict=True)],
        centroids=[book for book, _ in books],
        scales=[scale for _, scale in books],
        map_bits=map_bits,
        map_ranks=ranks,
        order=order,
        sizes=list(sizes),
        bits=[max(1, *of_tier) for of_tier in bits],
        num_subspaces=[len(widths)] * m,
        codebook_of=list(range(m)) if own_books else [0] * m,
        embedding_dim=dim,
        padding_idx=padding_idx,
        widths=list(widths),
        code_bits=[b for of_tier in bits for b in of_tier],
        mean=None if matrix is None else torch.randn(dim, generator=made),
        matrix=None if matrix is None else (values * 40).to(matrix) if matrix == torch.int8 else values.to(matrix),
        matrix_scales=scales,
    )
    return parts, unpacked, tiers


def mixed_dense(parts, unpacked, tiers):
    """Every row of a mixed table, decoded without any packing, pieces or tier map."""
    coordinates = torch.zeros(parts.num_embeddings, parts.num_coordinates)
    for g, codes in enumerate(unpacked):
        number = parts.codebook_of[g]
        readers = [parts.bits_of(h) for h, read in enumerate(parts.codebook_of) if read == number]
        book, entry, decoded = parts.centroids[number].float(), 0, []
        for j, width in enumerate(parts.widths):
            count = 1 << max(b[j] for b in readers)
            centroids = book[entry : entry + count * width].view(count, width)
            if parts.centroids[number].dtype == torch.int8:
                centroids = centroids * parts.scales[number][j]
            decoded.append(centroids[codes[:, j]])
            entry += count * width
        coordinates[tiers.members(g)] = torch.cat(decoded, dim=1)
    rows = coordinates
    if parts.matrix is not None:
        scales = 1.0 if parts.matrix_scales is None else parts.matrix_scales[:, None]
        rows = reference.transform(coordinates, parts.mean, parts.matrix.float() * scales)
    if parts.padding_idx >= 0:
        rows[parts.padding_idx] = 0
    return rows


def hand_worked():
    """Rows 0 to 3 are [0, 0], [1, 10], [2, 20], [3, 30]; row 2 is padding."""
    book = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[0.0], [10.0], [20.0], [30.0]]])
    codes = torch.tensor([[0x00], [0x11], [0x22], [0x33]], dtype=torch.uint8)
    return ops.PreparedLookup(ops.TableBuffers([codes], [book], [torch.empty(0)], [], [], [], [4], [4], [2], [0], 2, 2))
