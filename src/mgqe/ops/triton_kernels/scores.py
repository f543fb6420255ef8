"""Scores of rows with queries from packed codes: partial scores that codes name, summed in the order of subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgqe.ops.triton_kernels.codes import read_codes
from mgqe.ops.triton_kernels.on_device import on_its_gpu

IDS = 256  # of a program
FIELDS = tl.constexpr(4)  # of each code of an entry: bit, bits, where its partial scores begin, last


@triton.jit(do_not_specialize=["num_ids", "num_subspaces", "num_partial"])
def _score(
    entries, places, addresses, row_bytes, fields, partial, out, num_ids, num_subspaces, num_partial, IDS: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    query = tl.program_id(1).to(tl.int64)
    inside = at < num_ids
    entry = tl.load(entries + at, mask=inside, other=0).to(tl.int64)
    size = tl.load(row_bytes + entry, mask=inside, other=0)
    row = tl.load(addresses + entry, mask=inside, other=0)
    row += tl.load(places + at, mask=inside, other=0) * size
    total = tl.zeros((IDS,), tl.float32)
    for j in range(0, num_subspaces):
        field = fields + (entry * num_subspaces + j) * FIELDS
        bits = tl.load(field + 1, mask=inside, other=-1)
        there = bits >= 0  # entries may have fewer codes than others
        bit = tl.load(field, mask=there, other=0)
        code = tl.minimum(
            read_codes(row, size, bit, tl.maximum(bits, 0), there), tl.load(field + 3, mask=there, other=0)
        )
        start = tl.load(field + 2, mask=there, other=0)
        total += tl.load(partial + query * num_partial + start + code, mask=there, other=0.0)
    tl.store(out + query * num_ids + at, total, mask=inside)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores of a table's rows with some queries: calling it takes ids int64 (n,) to float32 (B, n).

    Attributes:
        table: a GpuTable.
        fields: of each entry, of each code: where it begins, its bits (-1 for none), where its partial scores begin,
            and the last centroid.
        partial: (B, P) float32.
    """

    table: Any
    fields: Tensor
    partial: Tensor
    _blocks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Any, tables: Sequence[Tensor]) -> Scorer:
        """Of partial scores (B, D, K) for each entry."""
        most = max(each.shape[1] for each in tables)
        starts = accumulate((each.shape[1] * each.shape[2] for each in tables), initial=0)
        fields = []
        for start, each, codes in zip(starts, tables, table.subspaces, strict=False):
            count = each.shape[2]
            of_entry = [(bit, bits, start + j * count, count - 1) for j, (bit, bits) in enumerate(codes)]
            fields.append(of_entry + [(0, -1, 0, 0)] * (most - len(of_entry)))
        partial = torch.cat([each.flatten(1) for each in tables], 1)
        return cls(table, torch.tensor(fields, dtype=torch.int64, device=partial.device), partial)

    def by_block(self, queries: int) -> Tensor:
        """The partial scores (B / queries, P, queries): those of a code with a block of queries lie together.

        Where there are fewer queries than blocks have, scores of the rest are 0. Laid out once for one size of blocks.
        """
        if queries not in self._blocks:
            rest = (0, 0, 0, -self.partial.shape[0] % queries)
            blocks = torch.nn.functional.pad(self.partial, rest).view(-1, queries, self.partial.shape[1])
            self._blocks[queries] = blocks.transpose(1, 2).contiguous()
        return self._blocks[queries]

    @on_its_gpu
    def __call__(self, ids: Tensor) -> Tensor:
        n, (queries, length) = ids.shape[0], self.partial.shape
        out = torch.empty((queries, n), dtype=torch.float32, device=ids.device)
        if n and queries:
            grid = (triton.cdiv(n, IDS), queries)
            place = self.table.place(ids)
            _score[grid](*place, self.fields, self.partial, out, n, self.fields.shape[1], length, IDS=IDS)
        return out
