"""A study's pictures: size against quality, ablations, codebook usage, training curves.

Colours are Okabe and Ito's, which the colour-blind can tell apart; markers say the same once more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mgqe.files.atomic import fill_file
from mgqe.recsys.study.analysis import NAMES, Group, StudyResults
from mgqe.recsys.study.tables import OURS, records_by_tier

# Method -> colour and marker. Methods that the list lacks take the rest in turn.
LOOKS = {
    "MGQE": ("#D55E00", "o"),
    "DPQ": ("#0072B2", "^"),
    "PQ after training": ("#E69F00", "P"),
    "scalar": ("#CC79A7", "v"),
    "small d": ("#000000", "s"),
    "low rank": ("#009E73", "D"),
    "RecJPQ": ("#56B4E9", "X"),
    "hashing": ("#7F7F7F", "h"),
    "quotient-remainder": ("#7F7F7F", "*"),
}
DEPTH = 6.0  # points below the full tables that a picture of size against quality reaches
_TIER_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def all_pictures(study: StudyResults, folder: Path) -> list[Path]:
    """Draw what there are records for; the files written."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[StudyResults], Any]] = {
        "study-size-quality": size_quality,
        "study-ablations": ablations,
        "study-codebooks": codebooks,
        "study-training": training,
    }
    written = []
    for name, draw in pictures.items():
        figure = draw(study)
        if figure is not None:
            written.append(folder / f"{name}.png")
            fill_file(written[-1], partial(figure.savefig, format="png", dpi=130))
            _close(figure)
    return written


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _panels(number: int, columns: int = 3, height: float = 3.4) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    columns = min(columns, number)
    rows = -(-number // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.1 * columns, height * rows + 0.5), layout="constrained", squeeze=False
    )
    flat = list(axes.flat)
    for spare in flat[number:]:
        spare.set_visible(False)
    for panel in flat[:number]:
        panel.grid(True, color="#E3E3E3", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, flat[:number]


def size_quality(study: StudyResults) -> Any:
    """A panel a pair: bytes in per cent of the full tables' against points to the full tables, with intervals."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    pairs = study.pairs()
    if not pairs:
        return None
    figure, panels = _panels(len(pairs))
    handles: dict[str, Any] = {}
    for pair, axes in zip(pairs, panels, strict=True):
        full = study.full(pair)
        assert full is not None
        lowest = highest = 0.0
        for method in study.grid.method_names:
            cells = [cell for budget in study.budgets(pair) if (cell := study.cell(pair, method, budget)) is not None]
            found = [(100 * cell.group.share, cell.group.over(full, full.metric)) for cell in cells]
            at = [(share, gap) for share, gap in found if gap is not None]
            if not at:
                continue
            colour, marker = LOOKS.get(method, ("#7F7F7F", "d"))
            line = axes.errorbar(
                [share for share, _ in at],
                [gap.mean for _, gap in at],
                yerr=[0.0 if math.isnan(gap.half_width) else gap.half_width for _, gap in at],
                color=colour,
                marker=marker,
                markersize=7 if method == OURS else 5.5,
                linewidth=2.2 if method == OURS else 1.2,
                elinewidth=0.9,
                capsize=2.5,
                zorder=4 if method == OURS else 3,
            )
            handles.setdefault(method, line)
            lowest = min([lowest, *(gap.mean for _, gap in at)])
            highest = max([highest, *(gap.mean for _, gap in at)])
        depth = DEPTH if full.metric == "hr@10" else 0.25 * DEPTH
        axes.axhline(0.0, color="#333333", linewidth=1.0, linestyle=(0, (5, 4)), zorder=2)
        axes.set_xscale("log")
        axes.set_xlim(1.2, 26)
        axes.set_ylim(max(1.15 * lowest, -depth) - 0.05 * depth, max(0.22 * depth, 1.3 * highest))
        axes.xaxis.set_major_locator(FixedLocator([2, 5, 10, 20]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        name = NAMES.get(full.metric, full.metric)
        axes.set_title(
            f"{study.grid.pairs[pair].title} (full: {full.figure(full.metric).mean:.3f})", loc="left", fontsize=10
        )
        axes.set_ylabel(f"{name} on test, points to full", fontsize=9)
    for axes in panels:
        axes.set_xlabel("bytes of the tables' files, of the full tables'", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=-(-len(handles) // 2), fontsize=9)
    return figure


def ablations(study: StudyResults) -> Any:
    """A panel an ablation: points to the full tables, validation, with each embedding's bytes written beside."""
    shown = [
        (entry, [pair for pair in entry.pairs if pair in study.pairs()])
        for entry in study.grid.ablations
        if len(entry.embeddings) > 1
    ]
    shown = [
        (entry, pairs)
        for entry, pairs in shown
        if any(study.group(pair, embedding) for pair in pairs for embedding in entry.embeddings.values())
    ]
    if not shown:
        return None
    figure, panels = _panels(len(shown), columns=2, height=3.0)
    colours = list(_TIER_COLOURS)
    names = list(dict.fromkeys(pair for _, pairs in shown for pair in pairs))
    handles: dict[str, Any] = {}
    for (entry, pairs), axes in zip(shown, panels, strict=True):
        for pair in pairs:
            full = study.full(pair)
            groups = [study.group(pair, embedding) for embedding in entry.embeddings.values()]
            at = [(place, group) for place, group in enumerate(groups) if group is not None]
            if full is None or not at:
                continue
            index = names.index(pair)
            gaps = [_gap(group, full) for _, group in at]
            (line,) = axes.plot(
                [place for place, _ in at],
                [mean for mean, _ in gaps],
                color=colours[index % len(colours)],
                marker="os^Dv"[index % 5],
                linewidth=1.6 if all(label.rstrip("%").isdigit() for label in entry.embeddings) else 0.0,
            )
            handles.setdefault(study.grid.pairs[pair].title, line)
            for (place, group), (mean, _) in zip(at, gaps, strict=True):
                axes.annotate(
                    f"{100 * group.share:.1f}%",
                    (place, mean),
                    xytext=(0, 7 if index % 2 == 0 else -13),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7.5,
                    color=colours[index % len(colours)],
                    bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
                )
        axes.set_xticks(range(len(entry.embeddings)), labels=list(entry.embeddings), fontsize=8)
        axes.margins(x=0.1, y=0.22)
        axes.set_xlabel(entry.axis, fontsize=9)
        axes.set_ylabel("points to full, validation", fontsize=9)
        axes.set_title(entry.name, loc="left", fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _gap(group: Group, full: Group) -> tuple[float, float]:
    interval = group.over(full, f"valid_{group.metric}")
    return (math.nan, math.nan) if interval is None else (interval.mean, interval.half_width)


def codebooks(study: StudyResults) -> Any:
    """A panel a pair: perplexity of each tier's codes, as a share of its centroids, by budget."""
    pairs = [
        pair
        for pair in study.pairs()
        if any(study.cell(pair, OURS, budget) is not None for budget in study.budgets(pair))
    ]
    if not pairs:
        return None
    figure, panels = _panels(len(pairs), height=2.7)
    handles: dict[str, Any] = {}
    for pair, axes in zip(pairs, panels, strict=True):
        cells = [cell for budget in study.budgets(pair) if (cell := study.cell(pair, OURS, budget)) is not None]
        for place, cell in enumerate(cells):
            tiers = records_by_tier(list(cell.group.by_seed.values()))
            width = 0.8 / max(1, len(tiers))
            for tier, stats in tiers.items():
                share = statistics.fmean(entry["perplexity"] / entry["num_centroids"] for entry in stats)
                most = round(statistics.fmean(entry["num_centroids"] for entry in stats))
                x = place + (tier - (len(tiers) - 1) / 2) * width
                bar = axes.bar(x, 100 * share, 0.92 * width, color=_TIER_COLOURS[tier % 4])
                axes.annotate(str(most), (x, 100 * share), xytext=(0, 2), textcoords="offset points",
                              ha="center", fontsize=7.5)  # fmt: skip
                handles.setdefault("head" if tier == 0 else "tail" if len(tiers) == 2 else f"tier {tier}", bar)
        axes.set_xticks(range(len(cells)), labels=[f"≤ {cell.budget:g}%" for cell in cells], fontsize=8)
        axes.set_ylim(0, 112)
        axes.set_ylabel("perplexity, % of centroids", fontsize=9)
        axes.set_title(study.grid.pairs[pair].title, loc="left", fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def training(study: StudyResults) -> Any:
    """A panel a pair: validation by epoch, full tables first, then through the codes at each budget; one seed."""
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
        assert full is not None
        axes.set_ylabel(f"{NAMES.get(full.metric, full.metric)} on validation", fontsize=9)
        axes.set_title(study.grid.pairs[pair].title, loc="left", fontsize=10)
    drawn = [label for label in labels if label in handles]
    figure.legend([handles[label] for label in drawn], drawn, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def _curves(study: StudyResults, pair: str) -> dict[str, tuple[int, list[float]]]:
    """Label -> (first epoch, validation figures): the full tables' two phases, then each budget's third phase.

    A phase starts at the best epoch of the one before; where it is drawn, the epochs after that one are left out.
    """
    full = study.full(pair)
    if full is None:
        return {}
    seed = min(full.by_seed)
    record = full.by_seed[seed]
    if not record["history"]:
        return {}
    metric, best = full.metric, record["best_epoch"]
    first = record["history"]["full"][metric][: best["full"] + 1]
    second = record["history"]["annealed"][metric][1 : best["annealed"] + 1]
    found = {"full tables": (0, [*first, *second])}
    for budget in study.budgets(pair):
        cell = study.cell(pair, OURS, budget)
        mine = cell.group.by_seed.get(seed) if cell else None
        if mine is not None and "quantised" in mine["history"]:
            found[f"{OURS} ≤ {budget:g}%"] = (len(first) + len(second) - 1, mine["history"]["quantised"][metric])
    return found
