"""A study's pictures: size against quality, ablations, codebook usage, training curves.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; each method has a marker of its own as well.
Variants of a method have its look, with dashed lines and open markers.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mgqe.files.atomic import fill_file
from mgqe.recsys.study.analysis import NAMES, RELATIVE, Group, Interval, StudyResults
from mgqe.recsys.study.declaration import Ablation, method_of
from mgqe.recsys.study.tables import OURS, records_by_tier

# Name of an embedding method -> colour and marker.
LOOKS = {
    "mgqe": ("#D55E00", "o"),
    "dpq": ("#0072B2", "^"),
    "pq": ("#E69F00", "P"),
    "scalar": ("#CC79A7", "v"),
    "full": ("#000000", "s"),
    "lowrank": ("#009E73", "D"),
    "recjpq": ("#56B4E9", "X"),
    "hash": ("#7F7F7F", "h"),
    "qr": ("#7F7F7F", "*"),
    "svd": ("#7F7F7F", ">"),
    "cce": ("#7F7F7F", "<"),
    "additive": ("#7F7F7F", "p"),
}
OTHER_LOOK = ("#7F7F7F", "d")
TITLE_WIDTH = 48  # letters
# How far below the full tables a picture of size against quality reaches: in per cent, or in points.
DEPTHS = {"full_ndcg@10": 40.0, "hr@10": 6.0, "auc": 1.5}
_TIER_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def all_pictures(study: StudyResults, folder: Path) -> list[Path]:
    """Draw every picture that there are records for; returns the files written."""
    pictures: dict[str, Callable[[StudyResults], Any]] = {
        "study-size-quality": size_quality,
        "study-ablations": ablations,
        "study-codebooks": codebooks,
        "study-training": training,
    }
    drawn = [_save(draw(study), folder / f"{name}.png") for name, draw in pictures.items()]
    return [path for path in drawn if path is not None]


def comparison_picture(study: StudyResults, pair: str, path: Path, title: str) -> Path:
    """Draw the size against the quality of a pair's embeddings."""
    _save(comparison(study, pair, title), path)
    return path


def _save(figure: Any, path: Path) -> Path | None:
    from matplotlib import pyplot

    if figure is None:
        return None
    fill_file(path, partial(figure.savefig, format="png", dpi=130))
    pyplot.close(figure)
    return path


def _set_title(axes: Any, title: str) -> None:
    """Above a panel of the ordinary width, on two lines where it is wider."""
    axes.set_title(textwrap.fill(title, TITLE_WIDTH), loc="left", fontsize=10)


def _panels(
    number: int, columns: int = 3, width: float = 4.1, height: float = 3.4, below: float = 0.5
) -> tuple[Any, list[Any]]:
    """A figure and its panels, each `width` x `height` inches; below: inches for the legend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(columns, number)
    rows = -(-number // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows + below), layout="constrained", squeeze=False
    )
    flat = list(axes.flat)
    for spare in flat[number:]:
        spare.set_visible(False)
    for panel in flat[:number]:
        panel.grid(True, color="#E3E3E3", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, flat[:number]


def _share_axis(axes: Any, shares: Sequence[float], label: str) -> None:
    """Make the x axis a share of the full tables' bytes, on a logarithmic scale, with ticks at `shares` per cent."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(shares))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel(label, fontsize=9)


def _look(group: Group, method: str = "") -> tuple[str, str]:
    """Colour and marker of a study's method, as which an embedding of another name may count."""
    return LOOKS.get(method_of(method).lower()) or LOOKS.get(group.embedding_method, OTHER_LOOK)


def _line(axes: Any, points: Sequence[tuple[Group, Interval]], method: str = "") -> Any:
    """Draw a method's groups by their share of the full tables' bytes; MGQE's line stands out.

    Intervals are bars, and bands between neighbours of three seeds: those of two would cover other lines.
    """
    colour, marker = _look(points[0][0], method)
    is_mgqe, is_variant = points[0][0].embedding_method == "mgqe", method_of(method) != method
    shares = [100 * group.share for group, _ in points]
    means = [interval.mean for _, interval in points]
    widths = [0.0 if math.isnan(interval.half_width) else interval.half_width for _, interval in points]
    axes.fill_between(
        shares,
        [mean - width for mean, width in zip(means, widths, strict=True)],
        [mean + width for mean, width in zip(means, widths, strict=True)],
        where=[len(group.by_seed) > 2 for group, _ in points],
        color=colour,
        alpha=0.12,
        linewidth=0,
        zorder=1,
    )
    return axes.errorbar(
        shares,
        means,
        yerr=widths,
        color=colour,
        marker=marker,
        markersize=7 if is_mgqe else 5.5,
        markerfacecolor="white" if is_variant else colour,
        linestyle=(0, (3, 2)) if is_variant else "-",
        linewidth=2.2 if is_mgqe else 1.2,
        elinewidth=0.9,
        capsize=2.5,
        zorder=4 if is_mgqe else 3,
    )


def _note(axes: Any, text: str, point: tuple[float, float], above: bool, colour: str) -> None:
    axes.annotate(
        text,
        point,
        xytext=(0, 7 if above else -13),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=colour,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        zorder=5,
    )


def comparison(study: StudyResults, pair: str, title: str) -> Any:
    """One panel: bytes in per cent of the full tables' against the figure on test, with each embedding's options."""
    groups = study.groups(pair)
    metric = groups[0].leading[0]
    figure, (axes,) = _panels(1, width=8.5, height=5.2, below=0.0)
    if pair in study.pairs():
        axes.axhline(study.full(pair).figure(metric).mean, color="#555555", linewidth=0.9, linestyle=(0, (4, 4)))
    by_method: dict[str, list[Group]] = {}
    for group in groups:
        by_method.setdefault(group.embedding_method, []).append(group)
    lines = [_line(axes, [(group, group.figure(metric)) for group in members]) for members in by_method.values()]
    for number, group in enumerate(groups):
        options = group.embedding.partition(":")[2] or group.embedding
        _note(axes, options, (100 * group.share, group.figure(metric).mean), number % 2 == 0, _look(group)[0])
    _share_axis(
        axes, [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100], "bytes of the tables' files, of the full tables' (log scale)"
    )
    axes.margins(x=0.14, y=0.12)
    axes.set_ylabel(f"{NAMES[metric].removesuffix(', %')} on test", fontsize=9)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(lines, list(by_method), loc="lower right", framealpha=0.95, fontsize=9)
    return figure


def _gap_label(name: str) -> str:
    return f"{NAMES[name]} to full" if name == RELATIVE else f"{NAMES[name]}, points to full"


def size_quality(study: StudyResults) -> Any:
    """One panel per pair: bytes in per cent of the full tables' against the distance to these, with bands of seeds."""
    pairs = study.pairs()
    if not pairs:
        return None
    figure, panels = _panels(len(pairs))
    handles: dict[str, Any] = {}
    for pair, axes in zip(pairs, panels, strict=True):
        full = study.full(pair)
        leading = full.leading[0]
        lowest = highest = 0.0
        for method in study.declaration.method_names:
            gaps = [(cell.group, cell.group.over(full, leading)) for cell in study.cells_of(pair, method)]
            points = [(group, gap) for group, gap in gaps if gap is not None]
            if not points:
                continue
            handles.setdefault(method, _line(axes, points, method))
            lowest = min([lowest, *(gap.mean for _, gap in points)])
            highest = max([highest, *(gap.mean for _, gap in points)])
        depth = DEPTHS[leading]
        axes.axhline(0.0, color="#333333", linewidth=1.0, linestyle=(0, (5, 4)), zorder=2)
        _share_axis(axes, [2, 5, 10, 20], "bytes of the tables' files, of the full tables'")
        axes.set_xlim(1.2, 26)
        axes.set_ylim(max(1.15 * lowest, -depth) - 0.05 * depth, max(0.22 * depth, 1.3 * highest))
        mean = full.figure(leading).mean
        _set_title(axes, f"{study.title(pair)} (full:\u00a0{mean:.3g})")
        axes.set_ylabel(_gap_label(leading), fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=-(-len(handles) // 2), fontsize=9)
    return figure


def ablations(study: StudyResults) -> Any:
    """One panel per ablation: points to the full tables, validation, with each embedding's share of bytes."""
    drawn = []
    for entry in study.declaration.ablations:
        pairs = [pair for pair in entry.pairs if pair in study.pairs()]
        if len(entry.listed) > 1 and any(study.group(pair, text) for pair in pairs for text in entry.listed):
            drawn.append((entry, pairs))
    if not drawn:
        return None
    figure, panels = _panels(len(drawn), columns=2, height=3.0)
    names = list(dict.fromkeys(pair for _, pairs in drawn for pair in pairs))
    handles: dict[str, Any] = {}
    for (entry, pairs), axes in zip(drawn, panels, strict=True):
        for pair in pairs:
            line = _ablation_line(study, entry, pair, axes, names.index(pair))
            if line is not None:
                handles.setdefault(study.title(pair), line)
        axes.set_xticks(range(len(entry.embeddings)), labels=list(entry.embeddings), fontsize=8)
        axes.margins(x=0.1, y=0.22)
        axes.set_xlabel(entry.axis, fontsize=9)
        axes.set_ylabel("points to full, validation", fontsize=9)
        _set_title(axes, entry.name)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _ablation_line(study: StudyResults, entry: Ablation, pair: str, axes: Any, number: int) -> Any:
    """Draw a pair's embeddings of an ablation; None where it has none of them. number: the pair's, for its look."""
    listed = enumerate(study.group(pair, embedding) for embedding in entry.listed)
    groups = {x: group for x, group in listed if group is not None}
    if not groups:
        return None
    means = [_mean_gap(group, study.full(pair)) for group in groups.values()]
    colour = _TIER_COLOURS[number % len(_TIER_COLOURS)]
    (line,) = axes.plot(
        list(groups),
        means,
        color=colour,
        marker="os^Dv"[number % 5],
        linewidth=1.6 if all(label.rstrip("%").isdigit() for label in entry.embeddings) else 0.0,
    )
    for (x, group), mean in zip(groups.items(), means, strict=True):
        _note(axes, f"{100 * group.share:.1f}%", (x, mean), number % 2 == 0, colour)
    return line


def _mean_gap(group: Group, full: Group) -> float:
    interval = group.over(full, f"valid_{group.metric}")
    return math.nan if interval is None else interval.mean


def codebooks(study: StudyResults) -> Any:
    """One panel per pair: perplexity of each tier's codes, as a share of its centroids, by budget."""
    pairs = [pair for pair in study.pairs() if study.cells_of(pair, OURS)]
    if not pairs:
        return None
    figure, panels = _panels(len(pairs), height=2.7)
    handles: dict[str, Any] = {}
    for pair, axes in zip(pairs, panels, strict=True):
        cells = study.cells_of(pair, OURS)
        for number, cell in enumerate(cells):
            tiers = records_by_tier(list(cell.group.by_seed.values()))
            width = 0.8 / max(1, len(tiers))
            for tier, stats in tiers.items():
                share = statistics.fmean(entry["perplexity"] / entry["num_centroids"] for entry in stats)
                most = round(statistics.fmean(entry["num_centroids"] for entry in stats))
                x = number + (tier - (len(tiers) - 1) / 2) * width
                bar = axes.bar(x, 100 * share, 0.92 * width, color=_TIER_COLOURS[tier % 4])
                axes.annotate(str(most), (x, 100 * share), xytext=(0, 2), textcoords="offset points",
                              ha="center", fontsize=7.5)  # fmt: skip
                handles.setdefault("head" if tier == 0 else "tail" if len(tiers) == 2 else f"tier {tier}", bar)
        axes.set_xticks(range(len(cells)), labels=[f"≤ {cell.budget:g}%" for cell in cells], fontsize=8)
        axes.set_ylim(0, 112)
        axes.set_ylabel("perplexity, % of centroids", fontsize=9)
        _set_title(axes, study.title(pair))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def training(study: StudyResults) -> Any:
    """One panel per pair: validation by epoch, full tables first, then through the codes at each budget; one seed."""
    pairs = [pair for pair in study.pairs() if _curves(study, pair)]
    if not pairs:
        return None
    figure, panels = _panels(len(pairs))
    budgets = sorted({budget for pair in pairs for budget in study.budgets(pair)}, reverse=True)
    labels = ["full tables", *(f"{OURS} ≤ {budget:g}%" for budget in budgets)]
    colours = ("#333333", "#009E73", "#E69F00", "#D55E00", "#0072B2", "#CC79A7", "#56B4E9")
    colour_of = {label: colours[at % len(colours)] for at, label in enumerate(labels)}
    handles: dict[str, Any] = {}
    for pair, axes in zip(pairs, panels, strict=True):
        curves = _curves(study, pair)
        top = -math.inf
        for name, (start, values) in curves.items():
            (line,) = axes.plot(
                range(start, start + len(values)),
                values,
                color=colour_of[name],
                linewidth=1.6,
                marker=".",
                markersize=4,
            )
            handles.setdefault(name, line)
            top = max(top, *values)
        axes.set_ylim(top - 0.1 * min(1.0, top), top + 0.01)
        axes.set_xlabel("epoch", fontsize=9)
        full = study.full(pair)
        axes.set_ylabel(f"{NAMES.get(full.metric, full.metric)} on validation", fontsize=9)
        _set_title(axes, study.title(pair))
    drawn = [label for label in labels if label in handles]
    figure.legend([handles[label] for label in drawn], drawn, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def _curves(study: StudyResults, pair: str) -> dict[str, tuple[int, list[float]]]:
    """Label -> (first epoch, validation figures): the full tables' two phases, then each budget's third phase.

    Each phase starts at the best epoch of the one before, whose later epochs are left out.
    """
    full = study.full(pair)
    seed = min(full.by_seed)
    record = full.by_seed[seed]
    if not record["history"]:
        return {}
    metric, best = full.metric, record["best_epoch"]
    first = record["history"]["full"][metric][: best["full"] + 1]
    second = record["history"]["annealed"][metric][1 : best["annealed"] + 1]
    curves = {"full tables": (0, [*first, *second])}
    for cell in study.cells_of(pair, OURS):
        history = cell.group.by_seed[seed]["history"] if seed in cell.group.by_seed else {}
        if "quantised" in history:
            curves[f"{OURS} ≤ {cell.budget:g}%"] = (len(first) + len(second) - 1, history["quantised"][metric])
    return curves
