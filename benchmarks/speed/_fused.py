"""Loops that do all the work that no look-up, bag or search of a table does without, as calls to be timed.

A kernel hardly takes less: nothing is left to be located or put in order. Ids are looked up as if all rows were of the
tier with the most, with codes drawn at random. Each function returns None where there is no such loop: they are for
rows of 64 numbers, made of 64 coordinates with a code each, or of centroids of at most 64 coordinates.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from benchmarks._common import Contender
from benchmarks.speed import _limits
from benchmarks.speed._bound_parts import has_levels, largest_codes, turned
from mgqe import CompactTable

COORDINATES = 64
MOST_COPIES, COPIED = 24, 8
BEHIND = 64  # bytes that loops may read after a row
NEVER = 255  # a sum of bytes that no row reaches
UNREACHED = 2**31 - 1  # a sum of products
NONE = 0


def bags(table: CompactTable, ids: Sequence[Tensor], length: int, avx2: bool = False) -> Contender | None:
    """Sums of ``length`` rows each."""
    if not _fits(table) or not (avx2 or _limits.has_vbmi()) or (avx2 and not has_levels(table)):
        return None
    codes, out = _random_codes(table), torch.empty(len(ids[0]) // length * COORDINATES)
    row_bytes, bits = largest_codes(table).shape[1], _bits(table)
    if has_levels(table):
        matrix = _matrix() if turned(table) else NONE
        layout, number = _eights_avx2(bits) if avx2 else (_eights(bits), _kinds(bits))
        name, numbers = "sum_levels_avx2" if avx2 else "sum_levels", _numbers()
        return lambda i: _limits.run(
            name, codes, row_bytes, ids[i], len(ids[i]), length, layout, number, matrix, numbers, out
        )
    return _centroid_bags(table, codes, ids, length, out)


def _centroid_bags(
    table: CompactTable, codes: Tensor, ids: Sequence[Tensor], length: int, out: Tensor
) -> Contender | None:
    bits, widths = _bits(table), table.snapshot.layout.widths
    begins = zip(_starts(bits), bits, _starts(widths), widths, strict=True)
    copies = [(bit, b, first + ahead) for bit, b, first, width in begins for ahead in range(0, width, COPIED)]
    sizes = [2 * COPIED << b for _, b, _ in copies]  # bytes of centroids of 16-bit numbers
    if len(copies) > MOST_COPIES or sum(sizes) > 1 << 16:
        return None
    layout = torch.zeros(4, 32, dtype=torch.int32)
    for at, ((bit, b, _), start) in enumerate(zip(copies, _starts(sizes), strict=True)):
        byte = bit // 8
        layout[:, at] = torch.tensor([byte + 256 * (byte + 1), bit % 8, (1 << b) - 1, start])
    coordinates = torch.tensor([first for _, _, first in copies] + [sum(widths) // 2], dtype=torch.int32)
    book = torch.randint(256, (sum(sizes) // 2,), dtype=torch.int16)
    tensors = layout.to(torch.int16), book, len(copies), _matrix(), coordinates, _numbers(), out
    row_bytes = largest_codes(table).shape[1]
    return lambda i: _limits.run("sum_centroids", codes, row_bytes, ids[i], len(ids[i]), length, *tensors)


def lookups_avx2(table: CompactTable, ids: Sequence[Tensor]) -> Contender | None:
    """Rows; of ids that come again once where they are multiplied with a matrix, as such rows may be kept."""
    if not _fits(table) or not has_levels(table):
        return None
    if turned(table):
        distinct = (each.unique() for each in ids)
        ids = [each[torch.randperm(len(each))] for each in distinct]
    codes, row_bytes = _random_codes(table), largest_codes(table).shape[1]
    layout, shuffles = _eights_avx2(_bits(table))
    matrix, numbers = _matrix() if turned(table) else NONE, _numbers()
    out = torch.empty(max(map(len, ids)) * COORDINATES)
    return lambda i: _limits.run(
        "lookup_avx2", codes, row_bytes, ids[i], len(ids[i]), layout, shuffles, matrix, numbers, out
    )


def search(table: CompactTable, avx2: bool = False) -> Contender | None:
    """One query, over all codes of the table with as many threads as torch has; no row is kept."""
    if not _fits(table) or not (avx2 or _limits.has_vbmi()):
        return None
    threads, levels, scans = torch.get_num_threads(), has_levels(table), []
    for codes, tier in zip(table.snapshot.lookup.table.codes, table.snapshot.layout.tiers, strict=True):
        bits = tier.code_bits or (tier.bits,) * tier.num_subspaces
        scans += [_scan(part, bits, levels, avx2) for part in codes.chunk(threads)]
    if threads == 1:
        return lambda i: [scan() for scan in scans]
    pool = ThreadPoolExecutor(threads)
    return lambda i: list(pool.map(lambda scan: scan(), scans))


def _scan(codes: Tensor, bits: Sequence[int], levels: bool, avx2: bool) -> Callable[[], int]:
    """One of the loops over codes of so many bits, the fastest here where there are two."""
    # Loops read a little behind the rows that they take: the last ones are left out.
    n, row_bytes = max(0, len(codes) // 64 - 4) * 64, codes.shape[1]
    if levels:
        query = torch.randint(-128, 128, (COORDINATES,), dtype=torch.int8)
        if avx2:
            return partial(_limits.run, "scan_levels_avx2", codes, n, row_bytes, *_eights_avx2(bits), query, UNREACHED)
        layout, kinds, rest = _eights(bits), _kinds(bits), NONE
        if 2 * row_bytes <= 64:
            layout, rest = _pairs(bits, row_bytes), _kinds(bits[32:])
        return partial(_limits.run, "scan_levels", codes, n, row_bytes, layout, kinds, rest, query, UNREACHED)
    tables = torch.randint(NEVER // len(bits), (len(bits) * 256,), dtype=torch.uint8)
    by_columns = (row_bytes, torch.tensor(bits, dtype=torch.int32), len(bits), tables, NEVER)
    if not avx2:
        return partial(_limits.run, "scan_bytes", codes, n, *by_columns)
    scans = [partial(_limits.run, "scan_bytes_avx2", codes, n, *by_columns)]
    if list(bits) == 5 * [8]:
        scans.append(partial(_limits.run, "scan_five", codes, n, tables, NEVER))
    return min(scans, key=lambda scan: min(timeit.repeat(scan, number=1, repeat=3)))


def _fits(table: CompactTable) -> bool:
    layout = table.snapshot.layout
    fewest = COORDINATES if has_levels(table) else 0
    return layout.embedding_dim == COORDINATES and fewest <= layout.num_coordinates <= COORDINATES


def _bits(table: CompactTable) -> Sequence[int]:
    layout = table.snapshot.layout
    return layout.tiers[layout.sizes.index(max(layout.sizes))].code_bits


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:j]) for j in range(len(sizes))]


def _bytes(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.uint8)


def _random_codes(table: CompactTable) -> Tensor:
    number = table.num_embeddings * largest_codes(table).shape[1] + BEHIND
    return torch.randint(256, (number,), dtype=torch.uint8)


def _numbers() -> Tensor:
    """What is added to 64 columns, and what these are multiplied with."""
    return torch.rand(2, COORDINATES)


def _matrix() -> Tensor:
    return torch.randint(-128, 128, (COORDINATES // 2, COORDINATES, 2), dtype=torch.int16)


def _kinds(bits: Sequence[int]) -> int:
    """1 where codes have at most five bits, 2: six, 4: seven."""
    return (min(bits) <= 5) * 1 + (6 in bits) * 2 + (7 in bits) * 4


def _pairs(bits: Sequence[int], row_bytes: int) -> Tensor:
    """The layouts of the first 32 codes of two rows, and of their last 32."""
    starts = _starts(bits)
    return torch.cat([
        _eights(2 * tuple(bits[half]), [start + 8 * row * row_bytes for row in (0, 1) for start in starts[half]])
        for half in (slice(32), slice(32, 64))
    ])  # fmt: skip


def _eights(bits: Sequence[int], starts: Sequence[int] | None = None) -> Tensor:
    """The layout of 64 codes, eight in eight bytes, and 256 levels, those of b bits from 2^b on.

    ``starts``: where each code begins, if not where the one before it ends.
    """
    starts = starts or _starts(bits)
    begins = [starts[at // 8 * 8] // 8 for at in range(len(bits))]
    return torch.cat([
        _bytes([begin + at % 8 for at, begin in enumerate(begins)]),
        _bytes([start - 8 * begin for start, begin in zip(starts, begins, strict=True)]),
        _bytes([(1 << b) - 1 for b in bits]),
        _bytes([1 << b for b in bits]),
        torch.randint(256, (256,), dtype=torch.uint8),
    ])  # fmt: skip


def _eights_avx2(bits: Sequence[int]) -> tuple[Tensor, int]:
    """What unpacks codes and finds levels, at random, and how many shuffles of 16 levels a row of 64 takes at least."""
    shuffles = -(-sum(max(1, 1 << b >> 4) for b in bits) // 32)
    return torch.randint(128, (192 + 16 * shuffles,), dtype=torch.uint8), shuffles
