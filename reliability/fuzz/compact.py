"""Small compact tables of every layout: in one file, with appended segments, and in shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from mgqe import CompactTable, Tiers, append, save
from mgqe.table.sharded import new_set, prepared_index, publish_index, tier_order, write_shard

CENTROID_DTYPES = ("float32", "float16", "int8")
SIZES = ((9, 31), (40,), (9, 0, 270), (5, 20, 60, 7))  # of tiers


def compact_table(bits: int) -> CompactTable:
    """A table with codes of ``bits`` bits in its last tier. The other properties of its layout vary with ``bits``."""
    generator = torch.Generator().manual_seed(bits)
    sizes = (0,) if bits == 2 else SIZES[bits % 4]
    centroids = [max(2, 1 << (bits - 1))] * (len(sizes) - 1) + [(1 << (bits - 1)) + 1]
    per_tier, shared = bits % 5 == 1, bits % 5 == 3 or bits > 9  # a codebook per tier, one for all subspaces
    width, subspaces = (1 if bits > 9 else 2), 4
    shape = (1 if shared else subspaces, max(centroids), width)
    codebooks = [torch.randn(shape, generator=generator) for _ in (sizes if per_tier else [0])]
    n = sum(sizes)
    tier_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tiers = Tiers.from_sizes(sizes)
    if bits % 4 < 2:
        tiers = Tiers.from_assignment(tier_of[torch.randperm(n, generator=generator)], len(sizes))
    codes = [torch.randint(k, (size, subspaces), generator=generator) for size, k in zip(sizes, centroids, strict=True)]
    table = CompactTable.from_codes(
        tiers,
        codes,
        codebooks,
        list(range(len(sizes))) if per_tier else [0] * len(sizes),
        centroids,
        padding_idx=n // 2 if bits % 3 == 0 and n else None,
        centroid_dtype=CENTROID_DTYPES[bits % 3],
    )
    return table.with_fallback(torch.arange(float(table.embedding_dim))) if bits % 4 == 1 else table


def write_compact(folder: Path) -> None:
    """One table per number of bits, each in a separate folder."""
    for bits in range(1, 17):
        _write(compact_table(bits), folder / f"bits-{bits}")


def write_appended(folder: Path) -> None:
    """Tables with three segments, in frequency order and with a tier map."""
    for bits in (4, 6):
        path = _write(compact_table(bits), folder / f"bits-{bits}")
        table = compact_table(bits)
        for number in (1, 2, 3):
            append(path, table.lookup(torch.arange(number)), tier=0 if number == 2 else None)


def write_sharded(folder: Path) -> None:
    """Tables in three shards, the second of which has no rows."""
    for bits in (3, 5, 8):
        table = compact_table(bits)
        target = folder / f"bits-{bits}"
        target.mkdir(parents=True)
        tensors, config = table.to_tensors()
        names = sorted(name for name in tensors if name.startswith("codes."))
        codes = [tensors.pop(name) for name in names]
        cuts = [[0, len(rows) // 3, len(rows) // 3, len(rows)] for rows in codes]
        set_name, sizes = new_set(), []
        for number in range(3):
            rows = [c[cut[number] : cut[number + 1]] for c, cut in zip(codes, cuts, strict=True)]
            sizes.append([len(r) for r in rows])
            shapes = table.snapshot.layout.code_tensors(sizes[-1])
            write_shard(target, set_name, number, shapes, [rows[g] for g in tier_order(len(rows))])
        with prepared_index(target, set_name, tensors, config, sizes) as (path, _):
            publish_index(target, path)


def _write(table: CompactTable, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(table, folder / "table.safetensors")
    return folder / "table.safetensors"
