"""What the pictures share: a figure, the colours, and the error where matplotlib is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def new_figure(function: str, wide: float, high: float) -> Figure:
    """An empty figure, in inches. Raises ImportError, which names the function, without matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{function} needs matplotlib: run pip install 'mgqe[recsys]'") from error
    figure = pyplot.figure(figsize=(wide, high), layout="constrained")
    pyplot.close(figure)  # a notebook shows what is returned, and would show an open figure a second time
    return figure


def plain_axes(axes: Any) -> None:
    """A light grid behind the data, and no frame above and on the right."""
    axes.grid(True, color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
