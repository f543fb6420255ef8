"""plot_bits: a picture of the bits that each tier spends on each coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mgqe.codec.capacity import Capacity, TierShape
from mgqe.codec.layout import TableLayout
from mgqe.convert.pictures.figure import new_figure
from mgqe.nn.codebook_layer import CodebookLayer
from mgqe.nn.compact import CompactEmbedding, CompactEmbeddingBag
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_INCHES, LEAST_INCHES = 14.0, 6.5  # wide
COORDINATE_INCHES = 0.21
DIGIT_INCHES = 0.11  # what a digit needs beside its neighbours
TIER_INCHES = 0.62
NOTE_INCHES = 1.3  # what the note on coordinates without codes needs
CUT_OFF = "#D55E00"
DARK = 0.55  # of the colours' range, beyond which numbers are white


class Cell(NamedTuple):
    """A subspace of a tier: its first coordinate, how many it has, and the bits of its code."""

    coordinate: int
    width: int
    bits: int


def cells_of(tier: TierShape, widths: tuple[int, ...], embedding_dim: int) -> list[Cell]:
    """The subspaces of a tier. widths: of a mixed table; empty where all subspaces have as many coordinates."""
    widths = widths or (embedding_dim // tier.num_subspaces,) * tier.num_subspaces
    bits = tier.code_bits or (tier.bits,) * tier.num_subspaces
    starts = [sum(widths[:j]) for j in range(len(widths))]
    return [Cell(*each) for each in zip(starts, widths, bits, strict=True)]


def plot_bits(table_or_layer: Any) -> Figure:
    """Draw the bits of each tier and coordinate of a table, for a notebook or a file.

    Each tier is a row and each coordinate a column. A cell is a subspace: its number is the bits of the code, its
    width the coordinates that are joined, and its colour the bits per coordinate. Coordinates without codes are
    hatched: all rows have the mean there. In tables without a matrix, coordinates are the dimensions themselves.

    Args:
        table_or_layer: a :class:`mgqe.CompactTable`, a module that holds one, or a layer that trains.

    Returns:
        a matplotlib Figure, which ``figure.savefig(path)`` writes.

    Raises:
        ImportError: matplotlib is not installed: ``pip install 'mgqe[recsys]'``.
        TypeError: something else than a table or a layer with codes.
        RuntimeError: a layer with a budget that is still in its warm-up: its bits are chosen when that ends.
    """
    shape = _shape_of(table_or_layer)
    d, rows = shape.embedding_dim, [cells_of(tier, shape.widths, shape.embedding_dim) for tier in shape.tiers]
    wide = min(MOST_INCHES, max(LEAST_INCHES, COORDINATE_INCHES * d + 2.5))
    figure = new_figure("plot_bits", wide, TIER_INCHES * len(rows) + 1.6)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    most = max(1.0, *(cell.bits / cell.width for row in rows for cell in row))
    colours = ScalarMappable(Normalize(0.0, most), "Blues")
    inches = (wide - 2.5) / d  # of a coordinate
    for g, row in enumerate(rows):
        for cell in row:
            _draw_cell(axes, cell, g, colours, inches)
    if (covered := shape.num_coordinates) < d:
        _draw_cut_off(axes, covered, d, len(rows), inches)
    axes.set_xlim(0, d)
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([g + 0.5 for g in range(len(rows))], labels=list(map(_label, range(len(rows)), shape.tiers)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("coordinate, by falling variance" if shape.matrix_dtype else "dimension")
    axes.set_title(_title(shape), loc="left", fontsize=10)
    figure.colorbar(colours, ax=axes, label="bits per coordinate", fraction=0.04, pad=0.01)
    return figure


def _shape_of(value: Any) -> TableLayout | Capacity:
    if isinstance(value, CompactEmbedding | CompactEmbeddingBag):
        value = value.table
    if isinstance(value, CompactTable):
        return value.config
    if not isinstance(value, CodebookLayer):
        raise TypeError(f"expected a CompactTable or a layer with codes, got {type(value).__name__}")
    if getattr(value, "planner", None) is not None and not value.capacity.widths:
        raise RuntimeError(
            "a layer with a budget chooses its bits when its warm-up ends: train on, or call "
            "mgqe.start_quantizing(model)"
        )
    return value.capacity


def _draw_cell(axes: Any, cell: Cell, tier: int, colours: Any, inches: float) -> None:
    """inches: of one coordinate."""
    from matplotlib.patches import Rectangle

    share = cell.bits / cell.width
    face = colours.to_rgba(share) if cell.bits else "#F2F2F2"
    axes.add_patch(Rectangle((cell.coordinate, tier + 0.06), cell.width, 0.88, facecolor=face, edgecolor="white"))
    text = str(cell.bits)
    if cell.width * inches >= DIGIT_INCHES * len(text):
        dark = share > DARK * colours.norm.vmax
        middle = (cell.coordinate + cell.width / 2, tier + 0.5)
        axes.text(*middle, text, ha="center", va="center", fontsize=8, color="white" if dark else "#333333")


def _draw_cut_off(axes: Any, covered: int, d: int, tiers: int, inches: float) -> None:
    from matplotlib.patches import Rectangle

    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "#C8C8C8", "hatch": "////", "linewidth": 0.0}
    axes.add_patch(Rectangle((covered, 0.06), d - covered, tiers - 0.12, **box))
    axes.axvline(covered, color=CUT_OFF, linewidth=1.5)
    if (d - covered) * inches > NOTE_INCHES:
        around = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none"}
        text = "no codes: all rows\nhave the mean here"
        middle = ((covered + d) / 2, tiers / 2)
        axes.text(*middle, text, ha="center", va="center", fontsize=8, color=CUT_OFF, bbox=around)


def _label(number: int, tier: TierShape) -> str:
    bits = sum(tier.code_bits) if tier.code_bits else tier.num_subspaces * tier.bits
    return f"tier {number}: {tier.ids:,} id{'s' * (tier.ids != 1)}\n{bits} bits, {tier.row_bytes} bytes per row"


def _title(shape: TableLayout | Capacity) -> str:
    size = f"{sum(shape.sizes):,} ids x {shape.embedding_dim}: bits of the code of each subspace"
    return f"{size}; {shape.num_coordinates} of {shape.embedding_dim} coordinates have codes" if shape.widths else size
