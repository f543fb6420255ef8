"""Results -> a table in the terminal, a picture of size against quality."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mgqe.files.atomic import fill_file

# Student's t, two-sided 95%, by degrees of freedom; beyond 30 the normal distribution's 1.96 is near enough.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

SECOND = {"hr@10": "ndcg@10", "auc": "logloss"}  # a task's leading figure -> the one shown beside it
NAMES = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "auc": "AUC", "logloss": "log loss"}

# Okabe and Ito's palette, told apart by the colour-blind; the shape says the same once more.
_LOOKS = {
    "full": ("#000000", "s"),
    "mgqe": ("#D55E00", "o"),
    "dpq": ("#0072B2", "^"),
    "lowrank": ("#009E73", "D"),
    "scalar": ("#CC79A7", "v"),
    "pq": ("#E69F00", "P"),
    "recjpq": ("#56B4E9", "p"),
    "hash": ("#56B4E9", "X"),
    "qr": ("#7F7F7F", "*"),
}
_OTHER_LOOK = ("#7F7F7F", "h")
# Where a point's label may stand: offset in points, and which of its sides faces the point.
_PLACES = tuple(
    (dx * reach, dy * reach, ha, va)
    for reach in (1, 2, 3)
    for dx, dy, ha, va in (
        (0, 8, "center", "bottom"), (0, -8, "center", "top"), (8, 0, "left", "center"), (-8, 0, "right", "center"),
        (6, 6, "left", "bottom"), (6, -6, "left", "top"), (-6, 6, "right", "bottom"), (-6, -6, "right", "top"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the half width of its 95% interval (Student's t), NaN for a single seed."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, math.nan)
        t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
        return cls(mean, t * statistics.stdev(values) / math.sqrt(len(values)))

    def text(self, digits: int = 4, signed: bool = False) -> str:
        """Such as `.6712 ±.0021`: no leading zeros, since six columns have to fit a terminal."""
        mean = f"{self.mean:+.{digits}f}" if signed else f"{self.mean:.{digits}f}"
        whole = mean if math.isnan(self.half_width) else f"{mean} ±{self.half_width:.{digits}f}"
        return re.sub(r"\b0\.", ".", whole)


@dataclass(frozen=True)
class Row:
    """One embedding over its seeds.

    embedding_bytes: mean over seeds, counted from the files; share: of the full tables' bytes.
    quality: the task's leading figure, `metric`, on test; second: the figure that goes with it (SECOND).
    difference: quality less that of `full` with the same seeds, pair by pair; None without it.
    """

    embedding: str
    seeds: tuple[int, ...]
    embedding_bytes: float
    share: float
    metric: str
    quality: Interval
    second: Interval
    difference: Interval | None

    @property
    def family(self) -> str:
        return self.embedding.partition(":")[0]


def summarise(runs: Iterable[dict[str, Any]], baseline: str = "full") -> list[Row]:
    """Metrics of runs -> a row an embedding, largest first."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["embedding"], {})[run["seed"]] = run
    reference = {seed: run["quality"][run.get("metric", "hr@10")] for seed, run in groups.get(baseline, {}).items()}
    rows = []
    for embedding, by_seed in groups.items():
        seeds = tuple(sorted(by_seed))
        members = [by_seed[seed] for seed in seeds]
        metric = members[0].get("metric", "hr@10")

        def over(key: str, members: list[dict[str, Any]] = members) -> Interval:
            return Interval.of([run["quality"][key] for run in members])

        paired = [by_seed[seed]["quality"][metric] - reference[seed] for seed in seeds if seed in reference]
        rows.append(
            Row(
                embedding=embedding,
                seeds=seeds,
                embedding_bytes=statistics.fmean(run["embedding_bytes"] for run in members),
                share=statistics.fmean(run["embedding_bytes"] / run["full_embedding_bytes"] for run in members),
                metric=metric,
                quality=over(metric),
                second=over(SECOND[metric]),
                difference=Interval.of(paired) if paired and embedding != baseline else None,
            )
        )
    return sorted(rows, key=lambda row: (-row.embedding_bytes, row.embedding))


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """A rich table of the rows."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("embedding", overflow="fold", min_width=14)
    metric = rows[0].metric if rows else "hr@10"
    for name in ("bytes", "of full", NAMES[metric], NAMES[SECOND[metric]], f"{NAMES[metric]}-full"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.embedding,
            f"{row.embedding_bytes:,.0f}",
            f"{100 * row.share:.1f}%",
            row.quality.text(),
            row.second.text(),
            row.difference.text(signed=True) if row.difference else "",
        )
    return table


def picture(rows: Sequence[Row], path: Path, title: str) -> Path:
    """Size against quality, as a PNG: bytes in percent of the full tables on a log axis, quality with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = pyplot.subplots(figsize=(8.5, 5.2), dpi=150)
    families = sorted({row.family for row in rows}, key=lambda name: (name != "mgqe", name != "full", name))
    for family in families:
        colour, marker = _LOOKS.get(family, _OTHER_LOOK)
        members = sorted((row for row in rows if row.family == family), key=lambda row: row.share)
        axes.errorbar(
            [100 * row.share for row in members],
            [row.quality.mean for row in members],
            yerr=[0.0 if math.isnan(row.quality.half_width) else row.quality.half_width for row in members],
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=1.5,
            elinewidth=1.0,
            capsize=3,
            label=family,
            zorder=3 if family == "mgqe" else 2,
        )
    reference = max((row for row in rows if row.family == "full"), key=lambda row: row.share, default=None)
    if reference is not None:
        axes.axhline(reference.quality.mean, color="#555555", linewidth=0.9, linestyle=(0, (4, 4)), zorder=1)
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.12)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("bytes of the embedding tables' files, in percent of the full tables (log scale)")
    axes.set_ylabel(f"{NAMES[rows[0].metric]} on test" if rows else "")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", framealpha=0.95)
    figure.tight_layout()
    _label(axes, rows)
    fill_file(path, lambda file: figure.savefig(file, format=path.suffix[1:] or None))
    pyplot.close(figure)
    return path


def _label(axes: Any, rows: Sequence[Row]) -> None:
    """Write each point's options beside it, where they cover no other label, point or line, if there is such a place.

    Places are tried in a fixed order for one label after the other; the one that covers least is taken.
    """
    renderer = axes.figure.canvas.get_renderer()
    points = [axes.transData.transform((100 * row.share, row.quality.mean)) for row in rows]
    occupied = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for family in {row.family for row in rows}:
        line = sorted((tuple(at) for at, row in zip(points, rows, strict=True) if row.family == family))
        for (x0, y0), (x1, y1) in itertools.pairwise(line):
            for step in range(1, 40):
                x, y = x0 + (x1 - x0) * step / 40, y0 + (y1 - y0) * step / 40
                occupied.append((x - 1, y - 1, x + 1, y + 1))
    for row, (x, _) in zip(rows, points, strict=True):
        if not math.isnan(row.quality.half_width):
            ends = (row.quality.mean - row.quality.half_width, row.quality.mean + row.quality.half_width)
            low, high = (axes.transData.transform((1, end))[1] for end in ends)
            occupied.append((x - 4, low, x + 4, high))
    frame, legend = axes.get_window_extent(renderer), axes.get_legend().get_window_extent(renderer)
    occupied += [legend.extents]
    for row in sorted(rows, key=lambda row: row.share):
        best = None
        for dx, dy, ha, va in _PLACES:
            note = axes.annotate(
                row.embedding.partition(":")[2] or row.embedding,
                (100 * row.share, row.quality.mean),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=7.5,
                color=_LOOKS.get(row.family, _OTHER_LOOK)[0],
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
                zorder=4,
            )
            x0, y0, x1, y1 = box = note.get_window_extent(renderer).extents
            cost = sum(_overlap(box, other) for other in occupied)
            inside = x0 > frame.x0 and x1 < frame.x1 and y0 > frame.y0 and y1 < frame.y1
            cost += 0 if inside else 10_000
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, note, box)
            else:
                note.remove()
        if best is not None:
            occupied.append(best[2])


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
