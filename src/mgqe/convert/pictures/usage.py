"""plot_usage: a picture of how many centroids each tier uses in each subspace, and how evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgqe.codec.stats import subspace_use
from mgqe.convert.pictures.bits import cells_of
from mgqe.convert.pictures.figure import new_figure, plain_axes
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, PANEL_INCHES, REST_INCHES = 8.5, 1.5, 1.1
USED, EVEN = "#B9D7EA", "#0072B2"


def plot_usage(table_or_layer: Any) -> Figure:
    """Draw which share of its centroids each tier uses in each subspace, for a notebook or a file.

    Each tier is a panel and each subspace a bar over the coordinates that it has. The light bar is the share of the
    centroids within reach that at least one id has. The dark bar is the perplexity of the codes as a share of the
    same: 100% where all centroids are used equally often. Subspaces whose codes have no bits have no bars.

    Args:
        table_or_layer: a :class:`mgqe.CompactTable`, a module that holds one, or a layer that quantises.

    Returns:
        a matplotlib Figure, which ``figure.savefig(path)`` writes.

    Raises:
        ImportError: matplotlib is not installed: ``pip install 'mgqe[recsys]'``.
        TypeError: something else than a table or a layer with codes.
        RuntimeError: a layer that is still in its warm-up has no codes.
    """
    table = _table_of(table_or_layer)
    layout = table.config
    figure = new_figure("plot_usage", WIDE, PANEL_INCHES * len(layout.tiers) + REST_INCHES)
    panels = figure.subplots(len(layout.tiers), squeeze=False, sharex=True)[:, 0]
    for g, (tier, axes) in enumerate(zip(layout.tiers, panels, strict=True)):
        reachable, used, perplexity = subspace_use(table.snapshot.code_histogram(g), tier.ids, tier.code_bits)
        cells = cells_of(tier, layout.widths, layout.embedding_dim)
        drawn = [j for j, cell in enumerate(cells) if cell.bits and tier.ids]
        starts, widths = [cells[j].coordinate for j in drawn], [cells[j].width for j in drawn]
        for label, part, colour in (("used", used, USED), ("perplexity", perplexity, EVEN)):
            shares = (100 * part / reachable)[drawn].tolist()
            axes.bar(starts, shares, widths, align="edge", color=colour, edgecolor="white", linewidth=0.6, label=label)
        plain_axes(axes)
        axes.set_xlim(0, layout.embedding_dim)
        axes.set_ylim(0, 105)
        axes.set_ylabel("% of centroids", fontsize=9)
        axes.set_title(f"tier {g}: {tier.ids:,} id{'s' * (tier.ids != 1)}", loc="left", fontsize=10)
    panels[-1].set_xlabel("coordinate, by falling variance" if layout.matrix_dtype else "dimension")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _table_of(value: Any) -> CompactTable:
    if isinstance(value, CompactEmbedding | CompactEmbeddingBag):
        value = value.table
    if isinstance(value, QuantizedEmbedding):
        if not value.quantizing:
            raise RuntimeError(
                "a layer that is still in its warm-up has no codes: train on, or call mgqe.start_quantizing(model)"
            )
        value = value.freeze()
    if not isinstance(value, CompactTable):
        raise TypeError(f"expected a CompactTable or a layer with codes, got {type(value).__name__}")
    return value
