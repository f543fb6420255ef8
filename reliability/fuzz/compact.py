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


def mixed_table(number: int) -> CompactTable:
    """A table whose subspaces have widths and bits of their own; the other properties vary with its number."""
    generator = torch.Generator().manual_seed(number)
    sizes, widths = SIZES[number % 4], ((1, 2, 4), (3,), (1, 1))[number % 3]
    per_tier = number % 2 == 1
    bits = [[max(0, 12 - 5 * j - 3 * g - number) for j in range(len(widths))] for g in range(len(sizes))]
    n, coordinates = sum(sizes), sum(widths)
    tier_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tiers = Tiers.from_sizes(sizes)
    if number % 4 > 1:
        tiers = Tiers.from_assignment(tier_of[torch.randperm(n, generator=generator)], len(sizes))
    codes = [
        torch.stack([torch.randint(1 << b, (size,), generator=generator) for b in of_tier], dim=1)
        for size, of_tier in zip(sizes, bits, strict=True)
    ]
    # Bits fall from tier to tier, so that the first one has the most.
    books = [sum(w << b for w, b in zip(widths, of_tier, strict=True)) for of_tier in (bits if per_tier else bits[:1])]
    transform = {}
    if number != 2:
        d = coordinates + number % 3
        transform = {
            "mean": torch.randn(d, generator=generator),
            "matrix": torch.randn(coordinates, d, generator=generator),
            "matrix_dtype": CENTROID_DTYPES[number % 3],
        }
    table = CompactTable.from_mixed_codes(
        tiers,
        codes,
        [torch.randn(size, generator=generator) for size in books],
        list(range(len(sizes))) if per_tier else [0] * len(sizes),
        widths,
        bits,
        padding_idx=n // 2 if number % 3 == 0 else None,
        centroid_dtype=CENTROID_DTYPES[(number + 1) % 3],
        **transform,
    )
    return table.with_fallback(torch.arange(float(table.embedding_dim))) if number == 4 else table


def write_compact(folder: Path) -> None:
    """One table per number of bits, and mixed ones, each in a separate folder."""
    for bits in range(1, 17):
        _write(compact_table(bits), folder / f"bits-{bits}")
    for number in range(6):
        _write(mixed_table(number), folder / f"mixed-{number}")


def write_appended(folder: Path) -> None:
    """Tables with three segments, in frequency order and with a tier map."""
    tables = {f"bits-{bits}": compact_table(bits) for bits in (4, 6)}
    tables |= {f"mixed-{number}": mixed_table(number) for number in (0, 3)}
    for name, table in tables.items():
        path = _write(table, folder / name)
        for number in (1, 2, 3):
            append(path, table.lookup(torch.arange(number)), tier=0 if number == 2 else None)


def write_sharded(folder: Path) -> None:
    """Tables in three shards, the second of which has no rows."""
    tables = {f"bits-{bits}": compact_table(bits) for bits in (3, 5, 8)}
    tables |= {f"mixed-{number}": mixed_table(number) for number in (2, 3)}
    for name, table in tables.items():
        target = folder / name
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
