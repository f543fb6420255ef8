"""plot_sizes: a picture of size against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mgqe.convert.pictures.figure import COLOURS, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "o^sDvP"


def plot_sizes(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    quality: str = "quality",
    full: tuple[float, float] | None = None,
) -> Figure:
    """Draw what tables of several sizes are worth, one line per way of making them.

    Args:
        lines: a name, and (bytes, quality) of each table.
        quality: the name of the figure, such as "recall@10".
        full: (bytes, quality) of the full table. Sizes are then shares of its bytes, and its quality is a dashed line.

    Returns:
        a matplotlib Figure, which ``figure.savefig(path)`` writes.

    Raises:
        ImportError: matplotlib is not installed: ``pip install 'mgqe[recsys]'``.
        ValueError: no line, an empty one, or a size that is not above 0, which a logarithmic scale does not have.
    """
    if not lines or not all(map(len, lines.values())):
        raise ValueError("expected at least one line, each of at least one (bytes, quality)")
    for size, _ in (*(point for points in lines.values() for point in points), *([full] if full else [])):
        if not size > 0:
            raise ValueError(f"expected bytes above 0, got {size}")
    figure = new_figure("plot_sizes", 7.0, 4.0)
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes = figure.add_subplot()
    unit = 1.0 if full is None else full[0] / 100
    for number, (name, points) in enumerate(lines.items()):
        sizes, values = zip(*sorted(points), strict=True)
        shares, colour = [size / unit for size in sizes], COLOURS[number % len(COLOURS)]
        axes.plot(shares, values, color=colour, marker=MARKERS[number % len(MARKERS)], linewidth=1.8, label=name)
    plain_axes(axes)
    axes.set_xscale("log")
    if full is None:
        axes.set_xlabel("bytes (log scale)")
    else:
        axes.axhline(full[1], color="#333333", linewidth=1.0, linestyle=(0, (5, 4)), label="full table")
        ticks = sorted({round(size / unit, 1 if size < 10 * unit else 0) for p in lines.values() for size, _ in p})
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}%"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bytes, of the full table's (log scale)")
    axes.set_ylabel(quality)
    axes.legend(fontsize=9)
    return figure
