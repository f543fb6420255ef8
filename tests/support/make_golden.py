"""Writes the golden files: ``PYTHONPATH=src python tests/support/make_golden.py`` after a change of format.

Everything comes from formulas, not from a random generator, whose numbers may change with the version.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from paths import GOLDEN
from torch import Tensor

from mgqe.baselines import AdditiveTable, CCETable, FullTable, HashTable, LowRankTable, QRTable, ScalarTable
from mgqe.codec.packing import pack
from mgqe.codec.tiers import Tiers
from mgqe.ids import IdMap
from mgqe.table.appended import append
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable
from mgqe.table.io import save
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import prepared_index, publish_index, tier_order, write_shard

SHARD_SET = "00112233445566aa"


def golden_codes(n: int, num_subspaces: int, num_centroids: int) -> Tensor:
    """code[i, j] = (3 i + 5 j) mod K."""
    rows, subspaces = torch.arange(n)[:, None], torch.arange(num_subspaces)
    return (3 * rows + 5 * subspaces) % num_centroids


def golden_centroids(pieces: int, num_centroids: int, width: int) -> Tensor:
    """centroid[j, k, t] = ((7 j + 3 k + t) mod 17 - 8) / 4: exact in every format that holds centroids."""
    j, k, t = torch.arange(pieces)[:, None, None], torch.arange(num_centroids)[:, None], torch.arange(width)
    return ((7 * j + 3 * k + t) % 17 - 8) / 4


def golden_codebook(widths: Sequence[int], counts: Sequence[int], divisor: int = 1) -> Tensor:
    """Flat: the centroids of subspaces j = 0, 1, ...: ((7 j + 3 k + t) mod 17 - 8) / 4 / divisor."""
    subspaces = enumerate(zip(widths, counts, strict=True))
    return torch.cat([golden_centroids(j + 1, k, w)[j].reshape(-1) for j, (w, k) in subspaces]) / divisor


def golden_mixed_codes(n: int, code_bits: Sequence[int]) -> Tensor:
    """code[i, j] = (3 i + 5 j) mod 2^bits of j."""
    return torch.stack([golden_codes(n, j + 1, 1 << bits)[:, j] for j, bits in enumerate(code_bits)], dim=1)


def mixed_tables() -> dict[str, FrozenTable]:
    """Tables whose subspaces have widths and bits of their own; divisors make products and sums inexact."""
    separate_bits, three_bits = ((9, 3, 1), (4, 4, 0), (0, 6, 2)), ((5, 3, 2), (4, 0, 2), (1, 0, 0))
    return {
        # The worked example of docs/format.md.
        "mixed-small.safetensors": CompactTable.from_mixed_codes(
            Tiers.from_assignment([1, 0, 1, 1, 0]),
            [golden_mixed_codes(2, (2, 1)), golden_mixed_codes(3, (1, 0))],
            [golden_codebook((1, 2), (4, 2))],
            codebook_of=(0, 0),
            widths=(1, 2),
            code_bits=((2, 1), (1, 0)),
            padding_idx=2,
            mean=torch.tensor([0.5, -1.0, 0.0, 2.0]),
            matrix=golden_weight(3, 4),
        ),
        "mixed-separate-int8.safetensors": CompactTable.from_mixed_codes(
            Tiers.from_sizes((3, 0, 8)),
            [golden_mixed_codes(n, bits) for n, bits in zip((3, 0, 8), separate_bits, strict=True)],
            [golden_codebook((1, 2, 4), counts) for counts in ((512, 8, 2), (16, 16, 1), (1, 64, 4))],
            codebook_of=(0, 1, 2),
            widths=(1, 2, 4),
            code_bits=separate_bits,
            centroid_dtype="int8",
        ),
        "mixed-three-tiers-int8-matrix.safetensors": CompactTable.from_mixed_codes(
            Tiers.from_assignment([(i * i) % 7 % 3 for i in range(300)]),
            [golden_mixed_codes(n, bits) for n, bits in zip(golden_sizes(), three_bits, strict=True)],
            [golden_codebook((1, 1, 3), (32, 8, 4), 7)],
            codebook_of=(0, 0, 0),
            widths=(1, 1, 3),
            code_bits=three_bits,
            padding_idx=0,
            centroid_dtype="float16",
            mean=golden_weight(1, 6)[0] / 3,
            matrix=golden_weight(5, 6) / 3,
            matrix_dtype="int8",
        ),
        "mixed-float32-matrix.safetensors": CompactTable.from_mixed_codes(
            Tiers.from_sizes((4, 5)),
            [golden_mixed_codes(4, (10, 1)), golden_mixed_codes(5, (2, 3))],
            [golden_codebook((1, 2), (1024, 2), 7), golden_codebook((1, 2), (4, 8), 11)],
            codebook_of=(0, 1),
            widths=(1, 2),
            code_bits=((10, 1), (2, 3)),
            centroid_dtype="int8",
            mean=golden_weight(1, 5)[0] / 3,
            matrix=golden_weight(3, 5) / 3,
            matrix_dtype="float32",
        ).with_fallback(torch.tensor([0.5, -1.0, 0.0, 2.25, 1.0])),
        "mixed-column-scales.safetensors": CompactTable.from_mixed_codes(
            Tiers.from_assignment([i % 5 // 4 for i in range(30)]),
            [golden_mixed_codes(24, (3, 8, 1)), golden_mixed_codes(6, (0, 5, 2))],
            [golden_codebook((1, 2, 3), counts) * 4 for counts in ((8, 256, 2), (1, 32, 4))],
            codebook_of=(0, 1),
            widths=(1, 2, 3),
            code_bits=((3, 8, 1), (0, 5, 2)),
            padding_idx=1,
            centroid_dtype="int8",
            mean=golden_weight(1, 7)[0] / 3,
            matrix=golden_weight(6, 7) / 3,
            matrix_dtype="int8_columns",
        ),
    }


def golden_tables() -> dict[str, FrozenTable]:
    """File name -> table."""
    return mixed_tables() | {
        # The worked example of docs/format.md.
        "compact-small.safetensors": CompactTable.from_codes(
            Tiers.from_assignment([1, 0, 1, 1, 0]),
            [golden_codes(2, 2, 4), golden_codes(3, 2, 2)],
            [golden_centroids(2, 4, 1)],
            codebook_of=(0, 0),
            num_centroids=(4, 2),
            padding_idx=2,
        ),
        "compact-frequency-order.safetensors": CompactTable.from_codes(
            Tiers.from_sizes((3, 8)),
            [golden_codes(3, 3, 64), golden_codes(8, 3, 10)],
            [golden_centroids(3, 64, 2)],
            codebook_of=(0, 0),
            num_centroids=(64, 10),
        ),
        "compact-three-tiers-int8.safetensors": CompactTable.from_codes(
            Tiers.from_assignment([(i * i) % 7 % 3 for i in range(300)]),
            [golden_codes(n, d, 5) for n, d in zip(golden_sizes(), (4, 2, 1), strict=True)],
            [golden_centroids(4, 5, 1)],
            codebook_of=(0, 0, 0),
            num_centroids=(5, 5, 5),
            padding_idx=0,
            centroid_dtype="int8",
        ),
        "compact-own-codebooks-float16.safetensors": CompactTable.from_codes(
            Tiers.from_assignment([i % 4 // 3 for i in range(20)]),
            [golden_codes(15, 2, 300), golden_codes(5, 4, 7)],
            [golden_centroids(2, 300, 2), golden_centroids(1, 7, 1)],
            codebook_of=(0, 1),
            num_centroids=(300, 7),
            centroid_dtype="float16",
        ),
        "compact-fallback.safetensors": CompactTable.from_codes(
            Tiers.from_sizes((4,)), [golden_codes(4, 2, 4)], [golden_centroids(2, 4, 2)], (0,), (4,)
        ).with_fallback(torch.tensor([0.5, -1.0, 0.0, 2.25])),
        "full-bfloat16.safetensors": FullTable(golden_weight(5, 3).bfloat16(), padding_idx=4),
        "low-rank.safetensors": LowRankTable(golden_weight(6, 2), golden_weight(2, 4).half()),
        "scalar-row.safetensors": ScalarTable(
            pack(golden_codes(4, 5, 8), 3),
            torch.tensor([0.5, 0.1, 0.0, 3.0]).half(),
            torch.tensor([-1.0, -0.3, 0.7, 1e-3]).half(),
            dim=5,
            bits=3,
            granularity="row",
            padding_idx=None,
        ),
        "scalar-dimension.safetensors": ScalarTable(
            golden_codes(7, 3, 256).to(torch.uint8),
            torch.tensor([0.01, 0.1, 1.0]),
            torch.tensor([-1.0, 0.0, 1e6]),
            dim=3,
            bits=8,
            granularity="dimension",
            padding_idx=6,
        ),
        "hash.safetensors": HashTable(golden_weight(5, 2), num_embeddings=40, num_hashes=3, seed=7, padding_idx=1),
        "quotient-remainder.safetensors": QRTable(
            golden_weight(4, 2), golden_weight(3, 1), num_embeddings=11, operation="concat", padding_idx=None
        ),
        "cce.safetensors": CCETable(
            pack(golden_codes(9, 2, 5), 3),
            golden_weight(10, 3),
            golden_weight(10, 3).half().flip(0),
            num_columns=2,
            seed=7,
            clustered=4,
            padding_idx=None,
        ),
        "additive-int8.safetensors": AdditiveTable(
            pack(golden_codes(7, 3, 6), 3),
            (4 * golden_centroids(3, 6, 2)).to(torch.int8),
            torch.tensor([0.5, 0.1, 3.0])[:, None, None],
            padding_idx=2,
        ),
        "additive-float16.safetensors": AdditiveTable(
            pack(golden_codes(7, 2, 4), 2), golden_centroids(2, 4, 3).half(), None, padding_idx=None
        ),
    }


def golden_appended() -> tuple[str, list[tuple[Tensor, int]]]:
    """A file of golden_tables(), and what is appended to it in the folder of its own: vectors and tiers."""
    return "compact-small.safetensors", [(torch.tensor([[-1.5, 0.0], [-2.0, 1.0]]), 1), (torch.tensor([[0.0, 3.0]]), 0)]


def write_appended(folder: Path) -> list[Path]:
    """The golden file that is appended to and the files appended to it."""
    shutil.rmtree(folder, ignore_errors=True)  # else the base would be another one than the one with appended files
    folder.mkdir()
    name, steps = golden_appended()
    save(golden_tables()[name], folder / name)
    for vectors, tier in steps:
        append(folder / name, vectors, tier)
    return [folder / name, *all_segment_files(folder / name), *all_records(folder / name)]


def write_sharded(folder: Path) -> list[Path]:
    """The table of three tiers as two ranks would write it, with the ids below 100 and those from 100 on."""
    folder.mkdir(exist_ok=True)
    tensors, config = golden_tables()["compact-three-tiers-int8.safetensors"].to_tensors()
    tier_of = torch.tensor([(i * i) % 7 % 3 for i in range(300)])
    below = [int((tier_of[:100] == g).sum()) for g in range(3)]
    codes = [tensors.pop(f"codes.{g}") for g in range(3)]
    shards = [[c[:n] for c, n in zip(codes, below, strict=True)], [c[n:] for c, n in zip(codes, below, strict=True)]]
    for number, rows in enumerate(shards):
        shapes = {f"codes.{g}": (r.dtype, tuple(r.shape)) for g, r in enumerate(rows)}
        write_shard(folder, SHARD_SET, number, shapes, [rows[g] for g in tier_order(3)])
    with prepared_index(folder, SHARD_SET, tensors, config, [[len(r) for r in rows] for rows in shards]) as (path, _):
        publish_index(folder, path)
    return sorted(folder.iterdir())


def golden_id_maps() -> dict[str, tuple[Any, dict[str, Any]]]:
    """File name -> a log, as a frame with a column ``item``, and options of IdMap.from_log."""
    pl = import_module("polars")
    # 100 ids; id i occurs 1 + (i * i) mod 7 times.
    numbers = [i for i in range(100) for _ in range(1 + i * i % 7)]
    words = [f"item {i}" * (i % 4) + "é" * (i == 5) for i in numbers]
    logs = {
        # The worked example of docs/format.md.
        "int32.safetensors": pl.Series([7, -3, 7, 5, -3, 7, 9]),
        "int64.safetensors": pl.Series([i * i * 10**15 - 5 * 10**18 for i in numbers]),
        "uint64.safetensors": pl.Series([2**64 - 1 - i for i in numbers], dtype=pl.UInt64),
        "string.safetensors": pl.Series(words),
        "binary.safetensors": pl.Series([bytes([255, i]) * (i % 5) for i in numbers]),
        "hashes.safetensors": pl.Series(words),
    }
    options: dict[str, dict[str, Any]] = {"hashes.safetensors": {"keep_ids": False}}
    return {name: (pl.DataFrame({"item": log}), options.get(name, {})) for name, log in logs.items()}


def golden_weight(n: int, d: int) -> Tensor:
    """weight[i, t] = ((7 i + t) mod 17 - 8) / 4."""
    return golden_centroids(n, 1, d)[:, 0]


def golden_sizes() -> list[int]:
    """Tier sizes of the three-tier file."""
    tier_of = [(i * i) % 7 % 3 for i in range(300)]
    return [tier_of.count(g) for g in range(3)]


if __name__ == "__main__":
    for name, table in golden_tables().items():
        GOLDEN.mkdir(exist_ok=True)
        print(f"{name}: {save(table, GOLDEN / name)} bytes")
    (GOLDEN / "idmap").mkdir(exist_ok=True)
    for name, (log, options) in golden_id_maps().items():
        print(f"idmap/{name}: {IdMap.from_log(log, 'item', **options).save(GOLDEN / 'idmap' / name)} bytes")
    for path in write_appended(GOLDEN / "appended"):
        print(f"appended/{path.name}: {path.stat().st_size} bytes")
    for path in write_sharded(GOLDEN / "sharded"):
        print(f"sharded/{path.name}: {path.stat().st_size} bytes")
