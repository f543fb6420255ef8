"""The kernels for GPUs: whether they are there, and a frozen table as they read it.

Environment, read at each use:
    ``MGQE_TRITON=0``: do without them (no warning: it was asked for).
    ``TRITON_INTERPRET=1``: Triton's own, before its first import: kernels run on the CPU, one program after another.
"""

from __future__ import annotations

import functools
import os
import warnings
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.waiting import reads_wait
from mgqe.ops._descriptor import TableBuffers


def triton_on(device: torch.device) -> Any:
    """The module :mod:`mgqe.ops.triton_kernels` for tensors on a GPU; None elsewhere, or without it."""
    if not reads_wait(device) or os.environ.get("MGQE_TRITON", "1") == "0":
        return None
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    return _kernels()


@functools.cache
def _kernels() -> Any:
    try:
        from mgqe.ops import triton_kernels
    except ImportError as error:
        warnings.warn(
            f"mgqe runs on the GPU without its kernels: {error}. Everything works, with the same results, slowly: "
            "pip install 'mgqe[triton]'. MGQE_TRITON=0 silences this.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return triton_kernels


def gpu_table(table: TableBuffers) -> Any:
    """A table as the kernels for GPUs read it; None where there are none. Raises nothing for a table that checks."""
    kernels = triton_on(table.device)
    if kernels is None:
        return None
    starts = list(accumulate(table.sizes, initial=0))[:-1]
    whole = table.column_scales is not None
    books = [(table.centroids[c] if whole else table.values(c)).reshape(-1) for c in range(len(table.centroids))]
    book_starts = list(accumulate(map(len, books), initial=0))
    levels = []
    for words, ranks, tier in zip(table.map_bits, table.map_ranks, table.order, strict=False):
        if words.numel() == 0:  # the tier of every id is known
            break
        levels.append((words, ranks, tier))
    mapped = table.mapped_ids if table.map_bits else 0
    return kernels.GpuTable(
        codes=table.codes,
        starts=starts,
        coordinates=[_coordinates(table, g, book_starts[table.codebook_of[g]]) for g in range(len(table.sizes))],
        subspaces=[_codes(table, g) for g in range(len(table.sizes))],
        book=books[0] if len(books) == 1 else torch.cat(books),  # one of float32 is not copied
        levels=levels,
        first_entry=[starts[of_tier[0]] for of_tier in table.entries] if mapped else [],
        last_tier=table.order[-1] if mapped else 0,
        mapped_ids=mapped,
        padding_idx=table.padding_idx,
        mean=table.mean,
        matrix=table.matrix if whole else _contiguous(table.matrix_values()),
        column_scales=table.column_scales,
    )


def _codes(table: TableBuffers, tier: int) -> list[tuple[int, int]]:
    """Of each code of a tier's rows: bit, bits."""
    if table.is_mixed:
        return [(piece.bit, piece.bits) for piece in table.pieces(tier)]
    bits = table.bits[tier]
    return [(j * bits, bits) for j in range(table.num_subspaces[tier])]


def _contiguous(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.contiguous()


def _coordinates(table: TableBuffers, tier: int, start: int) -> list[tuple[int, int, int, int, int]]:
    """Of each coordinate of a tier: bit, bits, width, place in the codebooks, last centroid."""
    if table.is_mixed:
        return [
            (piece.bit, piece.bits, piece.width, start + piece.entry + t, (1 << piece.bits) - 1)
            for piece in table.pieces(tier)
            for t in range(piece.width)
        ]
    pieces, centroids, width = table.centroids[table.codebook_of[tier]].shape
    bits, subspaces = table.bits[tier], table.num_subspaces[tier]
    shared = pieces == 1
    of_code = 1 if shared else pieces // subspaces  # pieces that a code names
    return [
        (p // of_code * bits, bits, width, start + (0 if shared else p * centroids * width) + t, centroids - 1)
        for p in range(subspaces * of_code)
        for t in range(width)
    ]
