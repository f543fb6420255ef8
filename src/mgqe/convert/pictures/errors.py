"""plot_errors: a picture of what tables lose of frequent and of rare rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgqe.checks.rows import as_rows
from mgqe.convert.pictures.figure import COLOURS, new_figure, plain_axes
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 65_536  # rows at a time
LEAST = 10  # ids of a part: the error of a single id says little


def rank_edges(n: int, parts: int) -> list[int]:
    """0 and then ranks up to n that grow by about the same factor; each part but the last has ten ids or more."""
    ranks = torch.logspace(math.log10(min(LEAST, n)), math.log10(n), parts, dtype=torch.float64).round().long().tolist()
    edges = [0]
    for rank in ranks:
        if rank - edges[-1] >= LEAST or rank == n > edges[-1]:
            edges.append(rank)
    return edges


@torch.no_grad()
def lost_shares(rows: Any, table: FrozenTable, order: Tensor, edges: list[int]) -> Tensor:
    """The share of the squares of the rows order[edges[i]:edges[i + 1]] that the table loses, float64 (parts,)."""
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    lost, whole = torch.zeros(2, len(edges) - 1, dtype=torch.float64)
    for start in range(0, len(order), BLOCK):
        block = rows[start : start + BLOCK].float()
        ids = torch.arange(start, start + len(block))
        part = torch.bucketize(place[ids], torch.tensor(edges), right=True) - 1
        lost.index_add_(0, part, (table.lookup(ids) - block).double().square().sum(1))
        whole.index_add_(0, part, block.double().square().sum(1))
    shares: Tensor = lost / whole.clamp(min=1e-300)
    return shares


def plot_errors(weight: Any, tables: Any, counts: Any, *, parts: int = 30) -> Figure:
    """Draw which share of their rows' squares tables lose, from the most frequent ids to the rarest.

    Ids are sorted by falling count, and neighbours in this order are taken together. Dotted lines show where a tier
    ends.

    Args:
        weight: the matrix (N, d) that the tables were made of, as for :func:`mgqe.compress_table`.
        tables: one table, or a dict of names and tables.
        counts: how often each id is looked up, (N,).
        parts: into how many groups of ids the order is divided, at most.

    Returns:
        a matplotlib Figure, which ``figure.savefig(path)`` writes.

    Raises:
        ImportError: matplotlib is not installed: ``pip install 'mgqe[recsys]'``.
        TypeError: something else than tables. ValueError: a table or counts of another shape than the matrix.
    """
    rows = as_rows(weight)
    n, d = rows.shape
    named: Mapping[str, Any] = tables if isinstance(tables, Mapping) else {"": tables}
    frequencies = torch.as_tensor(counts)
    if tuple(frequencies.shape) != (n,):
        raise ValueError(f"expected counts of shape ({n},), one per row, got {tuple(frequencies.shape)}")
    for name, table in named.items():
        if not isinstance(table, FrozenTable):
            raise TypeError(f"expected tables, got {type(table).__name__}{f' as {name!r}' * bool(name)}")
        if (table.num_embeddings, table.embedding_dim) != (n, d):
            raise ValueError(f"the table is {table.num_embeddings} x {table.embedding_dim}, the matrix {n} x {d}")
    order, edges = frequencies.argsort(descending=True, stable=True), rank_edges(n, parts)

    figure = new_figure("plot_errors", 7.0, 4.0)
    axes = figure.add_subplot()
    for number, (name, table) in enumerate(named.items()):
        colour = COLOURS[number % len(COLOURS)]
        shares = (100 * lost_shares(rows, table, order, edges)).tolist()
        axes.stairs(shares, [max(edge, 1) for edge in edges], baseline=None, color=colour, linewidth=1.8, label=name)
        for end in table.tiers.starts[1:-1] if isinstance(table, CompactTable) else ():
            axes.axvline(max(end, 1), color=colour, linewidth=1.0, linestyle=":")
    plain_axes(axes)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ids by falling frequency (log scale)")
    axes.set_ylabel("lost, % of the rows' squares")
    if all(named):
        axes.legend(fontsize=9)
    return figure
