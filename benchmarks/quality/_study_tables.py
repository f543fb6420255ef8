"""Tables of the shapes that a study's records have, with random values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.lookup_model import table as random_table
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.tiers import Tiers
from mgqe.recsys.models.embeddings import Spec, build
from mgqe.recsys.study.records import Record
from mgqe.table.base import FrozenTable

ITEMS = "item"  # the table that is searched
BENDS = np.geomspace(0.1, 30.0, 49)  # of the curves along which bits fall


def measured_table(full: Record) -> str:
    """The table of a pair that is measured: that of the items, and where rows are not ranked the largest.

    full: the record of the pair's full tables.
    """
    sizes: dict[str, int] = full["embedding_bytes_by_table"]
    return ITEMS if ITEMS in sizes else max(sizes, key=lambda path: sizes[path])


def rows_of(full: Record, path: str, dim: int) -> int:
    """N of a table, by the bytes of its full one."""
    return int(full["embedding_bytes_by_part"][path]["weight"]) // (4 * dim)


def table_like(record: Record, path: str, num_embeddings: int, dim: int, frequent: Tensor, seed: int) -> FrozenTable:
    """A table like that at ``path`` in the run of a record.

    num_embeddings, dim: N, and d where the record has no other. frequent: the ids (N,), the most frequent first.
    """
    spec = Spec.parse((record.get("chosen") or record["embedding"]).partition("@")[0])
    parts, stats = record["embedding_bytes_by_part"][path], record["codebooks"].get(path)
    if stats is None or spec.method.kind == "trained":
        return built(spec, path, num_embeddings, spec.dim or dim, frequent, seed)
    width = spec.dim or (record.get("plan") or {}).get("embedding_dim") or dim
    capacity = planned_capacity(parts, stats, width)
    tier_of = torch.empty(num_embeddings, dtype=torch.uint8)
    tier_of[frequent] = torch.repeat_interleave(torch.arange(len(stats)), torch.tensor(capacity.sizes)).to(torch.uint8)
    dtype = "int8" if parts.get("scales") or capacity.matrix_dtype == BY_COLUMNS else "float32"
    return random_table(capacity, True, seed, Tiers(capacity.sizes, tier_of), dtype)


def built(spec: Spec, path: str, num_embeddings: int, dim: int, frequent: Tensor, seed: int) -> FrozenTable:
    """What a method freezes that is described by its options, before any training."""
    counts = torch.empty(num_embeddings, dtype=torch.int64)
    counts[frequent] = torch.arange(num_embeddings, 0, -1)
    ids = torch.arange(num_embeddings)
    torch.manual_seed(seed)
    pairs = (ids, torch.randint(num_embeddings, ids.shape))
    layer: Any = build(spec, path.rpartition(".")[2], num_embeddings, dim, counts, 0.1, seed, pairs)
    table: FrozenTable = layer.eval().freeze()
    return table


def planned_capacity(parts: dict[str, int], stats: Sequence[dict[str, Any]], dim: int) -> Capacity:
    """The shape of a planned table, by the bytes of its parts and what is known of its tiers.

    A record has the number of codes, the most bits of one, how many centroids a code chooses from on average, and the
    bytes of all codes: bits fall along a curve that fits these, and coordinates are divided evenly among the codes.
    Tables without a matrix have equal codes.
    """
    sizes, codes, centroids = zip(*((s["num_ids"], s["num_subspaces"], s["num_centroids"]) for s in stats), strict=True)
    if not parts.get("matrix"):
        number = parts["centroids"] // (1 if parts.get("scales") else 4)  # of int8, or of float32
        return Capacity.of(dim, sizes, codes, centroids, number == max(centroids) * dim)
    curves = [
        tuple(TierShape.mixed(s["num_ids"], bits_like(s, bend), g) for g, s in enumerate(stats)) for bend in BENDS
    ]
    tiers = min(curves, key=lambda tiers: abs(sum(tier.ids * tier.row_bytes for tier in tiers) - parts["codes"]))
    coordinates = parts["matrix"] // dim  # whose numbers are int8
    small, more = divmod(coordinates, codes[0])
    widths = tuple(small + (j < more) for j in range(codes[0]))
    return Capacity(dim, tiers, False, False, widths, BY_COLUMNS if "column_scales" in parts else "int8")


def bits_like(stats: dict[str, Any], bend: float) -> list[int]:
    """Bits of each code of a tier, falling from the most to the last code's, which fits the centroids best."""
    top, ids, codes = stats["num_centroids"].bit_length() - 1, stats["num_ids"], stats["num_subspaces"]
    falling = np.linspace(1.0, 0.0, codes) ** bend if codes > 1 else np.ones(1)
    curves = [(low + (top - low) * falling).round().astype(int).tolist() for low in np.linspace(0, top, 8 * top + 1)]
    return min(curves, key=lambda bits: abs(np.minimum(np.exp2(bits), ids).mean() - stats["reachable"]))
