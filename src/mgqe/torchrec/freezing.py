"""Freezing shard by shard: each rank packs its own rows, rank 0 writes what makes a table of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mgqe.checks.inference import outside_inference
from mgqe.codec.layout import TableLayout
from mgqe.codec.packing import pack
from mgqe.codec.tensors import lay_out_frame
from mgqe.codec.tiers import Tiers
from mgqe.files.atomic import write_aside
from mgqe.files.checksums import json_checksum
from mgqe.nn.rows.checks import SWEEP_ROWS
from mgqe.table.sharded import (
    new_set,
    prepared_index,
    publish_index,
    remove_other_shards,
    tier_order,
    withdraw,
    write_shard,
)
from mgqe.torchrec.collection import QuantizedEmbeddingBagCollection, QuantizedRows
from mgqe.torchrec.table import QuantizedTable

MANIFEST = "collection.json"
FORMAT, VERSION = "mgqe-collection", "2"
OLD_VERSION = "1"  # without a checksum


@outside_inference
@torch.no_grad()
def freeze(model: nn.Module, folder: str | os.PathLike[str]) -> dict[str, int]:
    """Write the frozen tables of a model that torchrec's ranks hold together. A collective.

    Each rank sweeps its rows, ``SWEEP_ROWS`` at a time, and writes their codes to its own files; rank 0 adds codebooks
    and tier maps, and at last the names. Tables still in their warm-up start their codebooks now. Where
    ranks have no disk in common, copy their files into one folder afterwards.

    Args:
        model: with one quantised collection in it, or the collection itself; bare or in DistributedModelParallel.
        folder: of a folder for each table, ``mgqe.load(folder / name)``, and of :data:`MANIFEST`, for
            :func:`mgqe.torchrec.load`. What was frozen there before is replaced, once all is written.

    Returns:
        bytes of each table's files, the same on every rank.

    Raises:
        ValueError: (on every rank) no collection or several, rows that are not finite or sharded by columns.
        OSError: (on every rank) a file cannot be written, and what was in the folder before is still there.
    """
    collections = [module for module in model.modules() if isinstance(module, QuantizedRows)]
    if len(collections) != 1:
        raise ValueError(
            f"expected one quantised collection in the model, got {len(collections)}: freeze them one by one"
        )
    collection, target = collections[0], Path(folder)
    ranks = collection.ranks
    for table in collection.tables.values():
        if table.quantizing:
            table.source.check_finite()
        table.start_quantizing()
    set_name = ranks.gather(new_set())[0]
    layout = {name: _layout(table) for name, table in collection.tables.items()}
    nbytes: dict[str, int] = {}
    error: Exception | None = None
    try:
        for name, table in collection.tables.items():
            (target / name).mkdir(parents=True, exist_ok=True)
            nbytes[name] = _write_shards(table, target / name, set_name, layout[name])
    except Exception as wrong:  # whatever it is, the other ranks must not wait
        error = wrong
    try:
        ranks.refuse_together(error)
        if ranks.rank == 0:
            try:
                for name, more in _publish(collection, target, set_name, layout).items():
                    nbytes[name] += more
            except Exception as wrong:
                error = wrong
        ranks.refuse_together(error)
    except BaseException:
        for name in collection.tables:
            withdraw(target / name, set_name)
        raise
    nbytes_of_ranks = ranks.gather(nbytes)
    return {name: sum(of_rank[name] for of_rank in nbytes_of_ranks) for name in nbytes}


class ShardRange(NamedTuple):
    """A shard: the ids from ``first`` on, ``size`` of them, whose rows a rank has."""

    first: int
    size: int
    rank: int


def _layout(table: QuantizedTable) -> list[ShardRange]:
    """The shards of a table, by number: all ranks' ranges that are not empty, in order of ids."""
    ranks, ranges, error = table.source.ranks, [], None
    try:
        ranges = [ShardRange(first, len(rows), ranks.rank) for first, rows in table.source.ranges() if len(rows)]
    except ValueError as wrong:
        error = wrong
    ranks.refuse_together(error)
    shards = sorted(shard for of_rank in ranks.gather(ranges) for shard in of_rank)
    end = 0
    for first, size, rank in shards:
        if first != end:
            raise ValueError(f"table {table.name!r}: rank {rank} holds ids from {first}, but those before end at {end}")
        end = first + size
    if end != table.tiers.num_embeddings:
        raise ValueError(f"table {table.name!r}: the ranks hold {end} of {table.tiers.num_embeddings} rows")
    return shards


def _table_layout(table: QuantizedTable) -> TableLayout:
    return TableLayout.of(table.tiers, table.capacity, table.quantizer.centroid_dtype, None)


def _tier_sizes(tiers: Tiers, first: int, size: int) -> list[int]:
    """How many of the ``size`` ids from ``first`` on each tier has."""
    if tiers.tier_of is None:
        bounds = [min(max(start, first), first + size) for start in tiers.starts]
        return [high - low for low, high in pairwise(bounds)]
    chunks = torch.split(tiers.tier_of[first : first + size], SWEEP_ROWS)
    counts = torch.stack([torch.bincount(chunk, minlength=tiers.num_tiers) for chunk in chunks]).sum(0)
    return [int(n) for n in counts]


def _members(tiers: Tiers, tier: int, first: int, size: int) -> Iterator[Tensor]:
    """A tier's ids among the ``size`` ids from ``first`` on, ascending, at most ``SWEEP_ROWS`` at a time."""
    for start in range(first, first + size, SWEEP_ROWS):
        ids = torch.arange(start, min(start + SWEEP_ROWS, first + size), device="cpu")
        ids = ids[tiers.of(ids) == tier]
        if len(ids):
            yield ids


def _write_shards(table: QuantizedTable, folder: Path, set_name: str, layout: list[ShardRange]) -> int:
    """Write this rank's shards of a table; returns their bytes."""
    nbytes = 0
    rows_from = {first: rows for first, rows in table.source.ranges() if rows.shape[0]}
    for number, (first, size, rank) in enumerate(layout):
        if rank != table.source.ranks.rank:
            continue
        shapes = _table_layout(table).code_tensors(_tier_sizes(table.tiers, first, size))
        nbytes += write_shard(folder, set_name, number, shapes, _packed(table, rows_from[first], first))
    return nbytes


def _packed(table: QuantizedTable, rows: Tensor, first: int) -> Iterator[Tensor]:
    """Packed codes of a shard's rows, tier by tier, some at a time."""
    device = table.tier_sizes.device
    for g in tier_order(table.tiers.num_tiers):
        for ids in _members(table.tiers, g, first, rows.shape[0]):
            chunk = rows[(ids - first).to(rows.device)].to(device)
            yield pack(table.codes(chunk, g).cpu(), table.capacity.tiers[g].packing)


def _publish(
    collection: QuantizedRows, target: Path, set_name: str, layout: dict[str, list[ShardRange]]
) -> dict[str, int]:
    """On rank 0, when all shards are written: write every index and the manifest aside, then rename them."""
    nbytes = {}
    with ExitStack() as stack:
        ready = []
        for name, table in collection.tables.items():
            whole, transform = _table_layout(table), table.quantizer.transform
            books = [book.cpu() for book in table.quantizer.frozen_codebooks()]
            frame = lay_out_frame(whole, table.tiers, books, transform)
            shards = [_tier_sizes(table.tiers, first, size) for first, size, _ in layout[name]]
            index = prepared_index(target / name, set_name, frame, whole.to_json(), shards)
            temporary, nbytes[name] = stack.enter_context(index)
            ready.append((target / name, temporary))
        about = _manifest(collection, set_name)
        manifest = json.dumps({**about, "checksum": json_checksum(about)}, indent=1).encode()
        named = stack.enter_context(write_aside(target / MANIFEST, [manifest]))
        for folder, temporary in ready:
            publish_index(folder, temporary)
        os.replace(named, target / MANIFEST)
    for folder, _ in ready:
        remove_other_shards(folder, set_name)
    return nbytes


def _manifest(collection: QuantizedRows, set_name: str) -> dict[str, Any]:
    bags = isinstance(collection, QuantizedEmbeddingBagCollection)
    tables = [
        {"name": name, "features": list(table.source.config.feature_names)}
        | ({"pooling": collection.pooling(name)} if isinstance(collection, QuantizedEmbeddingBagCollection) else {})
        for name, table in collection.tables.items()
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "set": set_name,
        "kind": "bags" if bags else "vectors",
        "is_weighted": bool(getattr(collection, "is_weighted", False)),
        "tables": tables,
    }
