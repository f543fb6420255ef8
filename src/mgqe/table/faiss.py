"""A compact table as a faiss index: the same codes and centroids set directly, nothing trained; ``table.to_faiss``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.equations import tier_codebook
from mgqe.codec.layout import TableLayout
from mgqe.codec.packing import bits_for, pack, row_bytes, unpack
from mgqe.codec.tiers import Tiers
from mgqe.ops.layout.packed_format import MAX_BITS, MAX_CENTROIDS
from mgqe.table.snapshot import Snapshot

# faiss has a kernel for subspaces of 2 dimensions that takes 8 centroids at a time, and refuses fewer.
PAIRS, PAIRS_BITS = 2, 3


@dataclass(frozen=True)
class IndexGroup:
    """Tiers that one IndexPQ holds: they read the same codebook in as many subspaces.

    Attributes:
        tiers: ascending.
        members: the ids of each tier, int64, ascending.
        ids: int64 (n,), ascending, of all of them.
        num_subspaces: D.
        num_centroids: K, the largest of the tiers; they choose among the first of the same centroids.
        padding: the row of ``padding_idx``, which gets code K in every subspace, a centroid of zeros; or None.
        bits: of a code, enough for K centroids and the one of zeros, and for faiss.
    """

    tiers: tuple[int, ...]
    members: tuple[Tensor, ...]
    ids: Tensor
    num_subspaces: int
    num_centroids: int
    padding: int | None
    bits: int


def to_faiss(snapshot: Snapshot) -> Any:
    """The index of a table; see :meth:`CompactTable.to_faiss`."""
    faiss = import_faiss("table.to_faiss()")
    if snapshot.layout.widths:
        raise ValueError(
            "faiss has one width and one number of bits for all codes of an index, and this table is mixed: search it "
            "with table.topk, or add table.to_dense() to a faiss.IndexFlatIP"
        )
    groups = _groups(snapshot)
    if len(groups) == 1:
        index = _empty(faiss, snapshot.layout, groups[0])
        _fill(faiss, index, snapshot, groups[0])
        return index
    # Ids that run through the groups one after the other need no list: faiss counts along.
    every_id = torch.arange(snapshot.layout.num_embeddings, device="cpu")
    successive = torch.equal(torch.cat([group.ids for group in groups]), every_id)
    # threaded=False: a search of one index uses all of faiss's threads anyway.
    whole = faiss.IndexShards(snapshot.layout.embedding_dim, False, successive)
    for group in groups:
        index = _empty(faiss, snapshot.layout, group)
        named = None if successive else faiss.IndexIDMap(index)  # takes empty indexes only
        _fill(faiss, index, snapshot, group)
        if named is not None:
            faiss.copy_array_to_vector(group.ids.numpy(), named.id_map)
            named.ntotal = index.ntotal
        whole.add_shard(index if named is None else named)  # its Python wrapper keeps a reference to each
    return whole


def import_faiss(what: str) -> Any:
    """faiss. ImportError, which says what needs it: it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(f"{what} needs faiss: run pip install 'mgqe[faiss]'") from error


def _groups(snapshot: Snapshot) -> list[IndexGroup]:
    """Tiers with ids by what one IndexPQ can hold; one group without ids for a table without."""
    numbers: dict[tuple[int, int], list[int]] = {}
    for g, tier in enumerate(snapshot.layout.tiers):
        if tier.ids:
            numbers.setdefault((tier.codebook, tier.num_subspaces), []).append(g)
    tiers = snapshot.tiers()
    return [_group(snapshot.layout, tiers, tuple(group)) for group in numbers.values() or [[0]]]


def _group(layout: TableLayout, tiers: Tiers, numbers: tuple[int, ...]) -> IndexGroup:
    members = tuple(tiers.members(g) for g in numbers)
    ids = members[0] if len(numbers) == 1 else torch.cat(members).sort().values
    k, padding = max(layout.num_centroids[g] for g in numbers), None
    if layout.padding_idx is not None:
        row = int(torch.searchsorted(ids, layout.padding_idx))
        padding = row if row < len(ids) and int(ids[row]) == layout.padding_idx else None
    if padding is not None and k == MAX_CENTROIDS:
        raise ValueError(
            f"faiss gets padding_idx={layout.padding_idx} as one more centroid, of zeros, which codes of {MAX_BITS} "
            f"bits cannot name beside num_centroids={k}: expected at most {k - 1}; make the table with fewer centroids "
            "or without padding_idx"
        )
    subspaces, bits = layout.num_subspaces[numbers[0]], bits_for(k if padding is None else k + 1)
    if layout.embedding_dim == PAIRS * subspaces:
        bits = max(bits, PAIRS_BITS)
    return IndexGroup(numbers, members, ids, subspaces, k, padding, bits)


def _empty(faiss: Any, layout: TableLayout, group: IndexGroup) -> Any:
    return faiss.IndexPQ(layout.embedding_dim, group.num_subspaces, group.bits, faiss.METRIC_INNER_PRODUCT)


def _fill(faiss: Any, index: Any, snapshot: Snapshot, group: IndexGroup) -> None:
    faiss.copy_array_to_vector(_centroids(snapshot, group).reshape(-1), index.pq.centroids)
    index.is_trained = True
    if len(group.ids):
        faiss.copy_array_to_vector(_rows(snapshot, group).reshape(-1), index.codes)
        index.ntotal = len(group.ids)


def _centroids(snapshot: Snapshot, group: IndexGroup) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (D, 2**bits, s). Codes that no row uses name the last centroid again: vectors added to the index later
    then get codes of the table."""
    codebook = snapshot.layout.codebook_of[group.tiers[0]]
    book = tier_codebook(snapshot.lookup.table.values(codebook), group.num_subspaces, group.num_centroids)
    spare = book[:, -1:].expand(-1, (1 << group.bits) - group.num_centroids, -1)
    book = torch.cat([book, spare], dim=1).cpu()
    if group.padding is not None:
        book[:, group.num_centroids] = 0
    return book.numpy()


def _rows(snapshot: Snapshot, group: IndexGroup) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Packed rows in order of ids: uint8 (n, row_bytes). faiss packs codes as :mod:`mgqe.codec.packing` does."""
    subspaces, bits = group.num_subspaces, group.bits
    rows = torch.empty((len(group.ids), row_bytes(subspaces, bits)), dtype=torch.uint8, device="cpu")
    for g, members in zip(group.tiers, group.members, strict=True):
        targets = None if len(group.tiers) == 1 else torch.searchsorted(group.ids, members)
        start, tier_bits = 0, snapshot.layout.tiers[g].bits
        for chunk in snapshot.chunks(g):
            packed, end = chunk.cpu(), start + len(chunk)
            if tier_bits != bits:
                packed = pack(unpack(packed, subspaces, tier_bits), bits)
            if targets is None:
                rows[start:end] = packed
            else:
                rows[targets[start:end]] = packed
            start = end
    if group.padding is not None:
        rows[group.padding] = pack(torch.full((1, subspaces), group.num_centroids, device="cpu"), bits)[0]
    return rows.numpy()
