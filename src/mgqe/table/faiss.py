"""A compact table as a faiss index: the same codes and centroids set directly, nothing trained; ``table.to_faiss``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.equations import tier_codebook
from mgqe.codec.layout import CompactConfig
from mgqe.codec.packing import bits_for, pack, row_bytes, unpack
from mgqe.codec.tiers import Tiers
from mgqe.ops.packed_format import MAX_BITS
from mgqe.table.snapshot import Snapshot

# faiss has a kernel for subspaces of 2 dimensions that takes 8 centroids at a time, and refuses fewer.
PAIRS, PAIRS_BITS = 2, 3


@dataclass(frozen=True)
class IndexGroup:
    """Tiers that one IndexPQ holds: they read the same codebook in as many subspaces.

    Attributes:
        tiers: ascending.
        members: a tier: its ids, int64, ascending.
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


def to_faiss(state: Snapshot) -> Any:
    """The index of a table; see :meth:`CompactTable.to_faiss`."""
    faiss = _import_faiss()
    shards = _shards(state)
    if len(shards) == 1:
        index = _empty(faiss, state.config, shards[0])
        _fill(faiss, index, state, shards[0])
        return index
    # Ids that run through the shards one after the other need no list: faiss counts along.
    every = torch.arange(state.config.num_embeddings, device="cpu")
    successive = torch.equal(torch.cat([shard.ids for shard in shards]), every)
    # threaded=False: a search of a shard uses all of faiss's threads anyway.
    whole = faiss.IndexShards(state.config.embedding_dim, False, successive)
    for shard in shards:
        index = _empty(faiss, state.config, shard)
        named = None if successive else faiss.IndexIDMap(index)  # takes empty indexes only
        _fill(faiss, index, state, shard)
        if named is not None:
            faiss.copy_array_to_vector(shard.ids.numpy(), named.id_map)
            named.ntotal = index.ntotal
        whole.add_shard(index if named is None else named)  # its Python wrapper keeps a reference to each
    return whole


def _import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError("table.to_faiss() needs faiss: run pip install 'mgqe[faiss]'") from error


def _shards(state: Snapshot) -> list[IndexGroup]:
    """Tiers with ids by what one IndexPQ can hold; one shard without ids for a table without."""
    cfg = state.config
    groups: dict[tuple[int, int], list[int]] = {}
    for g, n in enumerate(cfg.sizes):
        if n:
            groups.setdefault((cfg.codebook_of[g], cfg.num_subspaces[g]), []).append(g)
    tiers = state.tiers()
    return [_shard(cfg, tiers, tuple(group)) for group in groups.values() or [[0]]]


def _shard(cfg: CompactConfig, tiers: Tiers, group: tuple[int, ...]) -> IndexGroup:
    members = tuple(tiers.members(g) for g in group)
    ids = members[0] if len(group) == 1 else torch.cat(members).sort().values
    k, padding = max(cfg.num_centroids[g] for g in group), None
    if cfg.padding_idx is not None:
        row = int(torch.searchsorted(ids, cfg.padding_idx))
        padding = row if row < len(ids) and int(ids[row]) == cfg.padding_idx else None
    if padding is not None and k == 1 << MAX_BITS:
        raise ValueError(
            f"faiss gets padding_idx={cfg.padding_idx} as one more centroid, of zeros, which codes of {MAX_BITS} bits "
            f"cannot name beside num_centroids={k}: expected at most {k - 1}; make the table with fewer centroids or "
            "without padding_idx"
        )
    subspaces, bits = cfg.num_subspaces[group[0]], bits_for(k if padding is None else k + 1)
    if cfg.embedding_dim == PAIRS * subspaces:
        bits = max(bits, PAIRS_BITS)
    return IndexGroup(group, members, ids, subspaces, k, padding, bits)


def _empty(faiss: Any, cfg: CompactConfig, shard: IndexGroup) -> Any:
    return faiss.IndexPQ(cfg.embedding_dim, shard.num_subspaces, shard.bits, faiss.METRIC_INNER_PRODUCT)


def _fill(faiss: Any, index: Any, state: Snapshot, shard: IndexGroup) -> None:
    faiss.copy_array_to_vector(_centroids(state, shard).reshape(-1), index.pq.centroids)
    index.is_trained = True
    if len(shard.ids):
        faiss.copy_array_to_vector(_rows(state, shard).reshape(-1), index.codes)
        index.ntotal = len(shard.ids)


def _centroids(state: Snapshot, shard: IndexGroup) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (D, 2**bits, s). Codes that no row uses name the last centroid again: vectors added to the index later
    then get codes of the table."""
    codebook = state.config.codebook_of[shard.tiers[0]]
    book = tier_codebook(state.values(codebook), shard.num_subspaces, shard.num_centroids)
    spare = book[:, -1:].expand(-1, (1 << shard.bits) - shard.num_centroids, -1)
    book = torch.cat([book, spare], dim=1).cpu()
    if shard.padding is not None:
        book[:, shard.num_centroids] = 0
    return book.numpy()


def _rows(state: Snapshot, shard: IndexGroup) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Packed rows in order of ids: uint8 (n, row_bytes). faiss packs codes as :mod:`mgqe.codec.packing` does."""
    cfg, subspaces, bits = state.config, shard.num_subspaces, shard.bits
    rows = torch.empty((len(shard.ids), row_bytes(subspaces, bits)), dtype=torch.uint8, device="cpu")
    for g, members in zip(shard.tiers, shard.members, strict=True):
        places = None if len(shard.tiers) == 1 else torch.searchsorted(shard.ids, members)
        start = 0
        for chunk in state.chunks(g):
            packed, end = chunk.cpu(), start + len(chunk)
            if cfg.bits[g] != bits:
                packed = pack(unpack(packed, subspaces, cfg.bits[g]), bits)
            if places is None:
                rows[start:end] = packed
            else:
                rows[places[start:end]] = packed
            start = end
    if shard.padding is not None:
        rows[shard.padding] = pack(torch.full((1, subspaces), shard.num_centroids, device="cpu"), bits)[0]
    return rows.numpy()
