"""Freezing shard by shard: each rank packs its own rows, rank 0 writes what makes a table of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.checks.inference import outside_inference
from mgqe.codec.layout import TableLayout
from mgqe.codec.packing import pack
from mgqe.codec.tensors import lay_out_frame
from mgqe.codec.tiers import Tiers
from mgqe.files.atomic import write_aside
from mgqe.files.checksums import json_checksum
from mgqe.nn.rows.raw import SWEEP_ROWS
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

    Each rank sweeps the rows it holds, ``SWEEP_ROWS`` at a time, and writes their codes to its own files; rank 0 adds
    codebooks and tier maps, and at last the names. Tables still in their warm-up start their codebooks now. Where
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
    found = [module for module in model.modules() if isinstance(module, QuantizedRows)]
    if len(found) != 1:
        raise ValueError(f"expected one quantised collection in the model, got {len(found)}: freeze them one by one")
    collection, target = found[0], Path(folder)
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
            nbytes[name] = _write_parts(table, target / name, set_name, layout[name])
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
    everyone = ranks.gather(nbytes)
    return {name: sum(found[name] for found in everyone) for name in nbytes}


def _layout(table: QuantizedTable) -> list[tuple[int, int, int]]:
    """All ranks' parts of a table that hold rows, in order of ids: (first id, rows, rank). A part's place is its
    shard's number."""
    ranks, mine, error = table.source.ranks, [], None
    try:
        mine = [(first, rows.shape[0], ranks.rank) for first, rows in table.source.parts() if rows.shape[0]]
    except ValueError as wrong:
        error = wrong
    ranks.refuse_together(error)
    parts = sorted(part for parts in ranks.gather(mine) for part in parts)
    end = 0
    for first, size, rank in parts:
        if first != end:
            raise ValueError(f"table {table.name!r}: rank {rank} holds ids from {first}, but those before end at {end}")
        end = first + size
    if end != table.tiers.num_embeddings:
        raise ValueError(f"table {table.name!r}: the ranks hold {end} of {table.tiers.num_embeddings} rows")
    return parts


def _table_layout(table: QuantizedTable) -> TableLayout:
    return TableLayout.of(table.tiers, table.capacity, table.config.centroid_dtype, None)


def _tier_sizes(tiers: Tiers, first: int, size: int) -> list[int]:
    """How many of so many ids from ``first`` on each tier has."""
    if tiers.tier_of is None:
        bounds = [min(max(start, first), first + size) for start in tiers.starts]
        return [high - low for low, high in pairwise(bounds)]
    parts = torch.split(tiers.tier_of[first : first + size], SWEEP_ROWS)
    counted = torch.stack([torch.bincount(part, minlength=tiers.num_tiers) for part in parts]).sum(0)
    return [int(n) for n in counted]


def _members(tiers: Tiers, tier: int, first: int, size: int) -> Iterator[Tensor]:
    """A tier's ids among them, ascending, at most ``SWEEP_ROWS`` at a time."""
    for start in range(first, first + size, SWEEP_ROWS):
        ids = torch.arange(start, min(start + SWEEP_ROWS, first + size), device="cpu")
        mine = ids[tiers.of(ids) == tier]
        if len(mine):
            yield mine


def _write_parts(table: QuantizedTable, folder: Path, set_name: str, layout: list[tuple[int, int, int]]) -> int:
    """This rank's shards of a table; their bytes."""
    nbytes = 0
    held = {first: rows for first, rows in table.source.parts() if rows.shape[0]}
    for number, (first, size, rank) in enumerate(layout):
        if rank != table.source.ranks.rank:
            continue
        shapes = _table_layout(table).code_tensors(_tier_sizes(table.tiers, first, size))
        nbytes += write_shard(folder, set_name, number, shapes, _packed(table, held[first], first))
    return nbytes


def _packed(table: QuantizedTable, rows: Tensor, first: int) -> Iterator[Tensor]:
    """Packed codes of a part's rows, tier by tier, some at a time."""
    device = table.quantizer.codebooks[0].device
    for g in tier_order(table.tiers.num_tiers):
        for ids in _members(table.tiers, g, first, rows.shape[0]):
            chunk = rows[(ids - first).to(rows.device)].to(device)
            yield pack(table.codes(chunk, g).cpu(), table.capacity.tiers[g].bits)


def _publish(
    collection: QuantizedRows, target: Path, set_name: str, layout: dict[str, list[tuple[int, int, int]]]
) -> dict[str, int]:
    """Rank 0, when all shards are written: every index and the manifest under temporary names, then their own."""
    nbytes = {}
    with ExitStack() as stack:
        ready = []
        for name, table in collection.tables.items():
            whole = _table_layout(table)
            frame = lay_out_frame(whole, table.tiers, [book.cpu() for book in table.quantizer.frozen_codebooks()])
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
