"""Top-K on a GPU: the first rows set a threshold for each query, and of later rows only what beats it is kept.

What is kept are keys: numbers of 64 bits that rise with the score and, among equal scores, fall with the id. The k
highest keys are the answer, whatever order they are found in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mgqe.ops._descriptor import TableBuffers
from mgqe.ops._topk_job import TopKJob
from mgqe.ops.reference_topk import LEAST_KEY, allowed_ids, cosines, keys_of, of_keys, squared_lengths, tables_of

FIRST_ROWS = 1 << 16  # whose scores are all written
GROWTH = 8  # so many times the rows so far are read next: of these about GROWTH * k beat the threshold
MOST_ROWS = 1 << 22  # at a time
MOST_KEPT = 1 << 16  # keys of a query; more are not worth a threshold
QUERIES = 256  # at a time


def topk_on_gpu(table: TableBuffers, job: TopKJob, gpu_table: Any) -> tuple[Tensor, Tensor, int]:
    """See :func:`mgqe.ops.topk`. Waits for the device once in every part of the table that it reads."""
    queries = job.queries
    parts = [_Search(table, job, first, gpu_table).keys() for first in range(0, queries.shape[0], QUERIES)]
    keys = torch.cat(parts) if parts else queries.new_empty((0, job.k), dtype=torch.int64)
    return *of_keys(keys), table.num_embeddings * queries.shape[0]


class _Search:
    """That of the queries from ``first`` on."""

    def __init__(self, table: TableBuffers, job: TopKJob, first: int, gpu_table: Any) -> None:
        self.table, self.job, self.first = table, job, first
        self.queries = job.queries[first : first + QUERIES]
        tables, norms = tables_of(table, self.queries, job.cosine)
        self.scorer = gpu_table.scorer(tables)
        self.norm_of: Callable[[Tensor], Tensor] = (
            gpu_table.scorer(norms) if norms else lambda rows: squared_lengths(gpu_table(rows))
        )
        self.room = 2 * GROWTH * job.k + 256

    def keys(self) -> Tensor:
        """The k highest keys (B, k), falling."""
        keys = torch.full((len(self.queries), self.job.k), LEAST_KEY, dtype=torch.int64, device=self.queries.device)
        done, total = 0, self.table.num_embeddings
        while done < total:
            size = min(FIRST_ROWS if done == 0 else GROWTH * done, MOST_ROWS, total - done)
            found = self._above(keys[:, -1].contiguous(), done, size) if done else None
            if found is None:
                for start in range(done, done + size, FIRST_ROWS):
                    keys = self._best(keys, self._all(start, min(FIRST_ROWS, done + size - start)))
            else:
                keys = self._best(keys, found)
            done += size
        return keys

    def _best(self, keys: Tensor, more: Tensor) -> Tensor:
        return torch.topk(torch.cat([keys, more], 1), self.job.k, dim=1).values

    def _above(self, thresholds: Tensor, start: int, size: int) -> Tensor | None:
        """The keys above the thresholds (B, room); None where there was no room for some."""
        from mgqe.ops import triton_kernels  # it is there: there is a gpu_table

        if self.room > MOST_KEPT:
            return None
        rows = torch.arange(start, start + size, device=thresholds.device)
        roots = None
        if self.job.cosine:
            roots = self.norm_of(rows).reshape(-1).double().sqrt().float()
        bias = None if self.job.bias is None else self.job.bias.bias
        kept, counts = triton_kernels.keep_above(
            self.scorer, start, rows, thresholds, self.room, self.table.padding_idx, roots, bias, self._allowed(rows)
        )
        return None if bool((counts > self.room).any()) else kept

    def _all(self, start: int, size: int) -> Tensor:
        """The keys of all rows (B, size)."""
        rows = torch.arange(start, start + size, device=self.queries.device)
        scores: Tensor = self.scorer(rows)
        if self.job.cosine:
            scores = cosines(scores, self.norm_of(rows))
        scores = scores.masked_fill(rows == self.table.padding_idx, 0.0)
        if self.job.bias is not None:
            scores = scores + self.job.bias.bias[rows]
        keys, allowed = keys_of(scores, rows), self._allowed(rows)
        eligible = ~scores.isnan() if allowed is None else ~scores.isnan() & allowed
        return torch.where(eligible, keys, LEAST_KEY)

    def _allowed(self, rows: Tensor) -> Tensor | None:
        """Which of the ids (n,) each query may get: bool (1, n) or (B, n); None for all of them."""
        job = self.job
        if job.excluded is None and job.candidates is None:
            if job.hidden is None:
                return None
            if job.hidden.dim() == 1:
                return ~job.hidden[rows].unsqueeze(0)
        return allowed_ids(job, rows, self.first, len(self.queries))
