"""How a frozen table compares with the matrix that it was made of: errors by tier, and recall of top-K on a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.rows import as_rows
from mgqe.codec.metric import queries_of_other_width
from mgqe.convert.progress import Progress, shown
from mgqe.table.compact import CompactTable

BLOCK = 65_536  # rows at a time
SAMPLE = 200  # queries
KS = (10, 100)


@dataclass(frozen=True)
class TableCheck:
    """A table against its matrix.

    Attributes:
        errors: for each tier, the share of its rows' squares that is lost.
        error: the same of all rows.
        recall: k -> the share of the k best rows of each query that the table's top-K finds too, on average.
        queries: how many were asked.
        asked: "queries", or "rows" where rows of the matrix were asked for others like them.
    """

    errors: tuple[float, ...]
    error: float
    recall: dict[int, float]
    queries: int
    asked: str


@torch.no_grad()
def check_table(
    weight: Any,
    table: CompactTable,
    *,
    queries: Any = None,
    ks: Sequence[int] = KS,
    sample: int = SAMPLE,
    padding_idx: int | None = None,
    progress: Progress | bool | None = None,
) -> TableCheck:
    """Compare a table with the matrix (N, d) that it was made of, which is read once, in blocks.

    Args:
        weight: as for :func:`mgqe.compress_table`.
        table: made of it.
        queries: floats (n, d); at most ``sample`` of them are asked by inner product. Without them rows of the matrix
            are, by cosine.
        ks: of the recall; those of N and more are left out.
        sample: how many queries, drawn evenly.
        padding_idx: a row that is not compared.
        progress: as for :func:`mgqe.compress_table`.

    Raises ValueError where the table is not of the matrix's shape, or queries are of another width.
    """
    rows = as_rows(weight)
    n, d = rows.shape
    if (table.num_embeddings, table.embedding_dim) != (n, d):
        raise ValueError(f"the table is {table.num_embeddings} x {table.embedding_dim}, the matrix {n} x {d}")
    source = rows if queries is None else as_rows(queries, "queries")
    if source.shape[1] != d:
        raise queries_of_other_width(source.shape[1], d)
    places = torch.linspace(0, len(source) - 1, min(sample, len(source))).round().long()
    asked = source[places].float()
    if queries is None:
        asked = _unit(asked)
    ks = [k for k in ks if k < n] or [1]
    best = _Best(len(asked), max(ks))
    lost, whole = torch.zeros(2, table.num_tiers, dtype=torch.float64)
    with shown(progress, "comparing") as step:
        for start in range(0, n, BLOCK):
            block = rows[start : start + BLOCK].float()
            ids = torch.arange(start, start + len(block))
            if padding_idx is not None and start <= padding_idx < start + len(block):
                block = block.clone()  # which may be the caller's matrix, or a mapped file
                block[padding_idx - start] = 0.0
            tiers = table.locate(ids)[0].long()
            lost.index_add_(0, tiers, (table.lookup(ids) - block).double().square().sum(1))
            whole.index_add_(0, tiers, block.double().square().sum(1))
            best.add(asked @ (_unit(block) if queries is None else block).T, start)
            step(start + len(block), n)
    found = table.topk(asked, max(ks), score="cosine" if queries is None else "dot").ids
    recall = {k: _overlap(found[:, :k], best.ids[:, :k]) for k in ks}
    errors = tuple((lost / whole.clamp(min=1e-300)).tolist())
    total = float(lost.sum() / whole.sum().clamp(min=1e-300))
    return TableCheck(errors, total, recall, len(asked), "rows" if queries is None else "queries")


class _Best:
    """The rows with the highest scores so far, of each query."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores, self.ids = torch.empty(queries, 0), torch.empty(queries, 0, dtype=torch.int64)

    def add(self, scores: Tensor, first: int) -> None:
        """Scores (B, n) of the rows ``first`` and following."""
        top = scores.topk(min(self.k, scores.shape[1]), 1)
        together = torch.cat([self.scores, top.values], 1)
        ids = torch.cat([self.ids, top.indices + first], 1)
        kept = together.topk(min(self.k, together.shape[1]), 1)
        self.scores, self.ids = kept.values, ids.gather(1, kept.indices)


def _overlap(found: Tensor, best: Tensor) -> float:
    return float((found.unsqueeze(2) == best.unsqueeze(1)).any(2).float().mean())


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
