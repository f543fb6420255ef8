"""A study's tables: every pair in full, methods against each other, ablations, codebooks, cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from mgqe.recsys.study.analysis import NAMES, RELATIVE, SECOND, Cell, Group, Interval, StudyResults
from mgqe.recsys.study.declaration import FULL, method_of
from mgqe.recsys.study.records import Record
from mgqe.recsys.study.text_table import TextTable
from mgqe.recsys.tasks.account import judged_note
from mgqe.recsys.tasks.metrics import RankMetric
from mgqe.recsys.train.advice import advice

OURS = "MGQE"
T = TypeVar("T")


def all_tables(study: StudyResults) -> dict[str, TextTable]:
    """All tables by name; those of which there is nothing to say have no rows.

    Names: `doubted`, `processors`, `against-full`, `against-others`, `variants`, `leaderboard`, `pair-NAME`,
    `head-tail-NAME`, `more-NAME`, `ablation-NAME-PAIR`, `codebooks`, `cost`, `failed`.
    """
    tables = {"doubted": doubted_table(study), "processors": processors_table(study)}
    tables["against-full"] = against_full(study)
    tables["against-others"], tables["variants"] = against_others(study), variants(study)
    tables["leaderboard"] = leaderboard(study)
    for pair in study.pairs():
        tables[f"pair-{pair}"] = pair_table(study, pair)
        if study.full(pair).ranks:  # of others the table of the pair has the only figure
            tables[f"head-tail-{pair}"] = head_and_tail_table(study, pair)
            tables[f"more-{pair}"] = more_figures_table(study, pair)
    for ablation in study.declaration.ablations:
        for pair in ablation.pairs:
            if pair in study.pairs():
                tables[f"ablation-{ablation.name}-{pair}"] = ablation_table(study, ablation.name, pair)
    tables["codebooks"] = codebook_table(study)
    tables["cost"] = cost_table(study)
    tables["failed"] = failed_table(study)
    return tables


def points(interval: Interval | None) -> str:
    """Such as `-0.12 ± 0.30`, or without the interval where there is one seed."""
    return "" if interval is None or math.isnan(interval.mean) else interval.text(2, "+")


def comparison_table(study: StudyResults, pair: str, title: str) -> TextTable:
    """Every embedding of a pair on test, the largest first, in 80 columns.

    Rankings are of the whole catalogue, beside HR@10 among sampled items, if any, and what the most frequent items get.
    Where there is a full table, what differs from it is in the last column, with its interval. The title ends with how
    many users are judged.
    """
    groups = study.groups(pair)
    full = study.full(pair) if pair in study.pairs() else None
    columns = {NAMES[groups[0].metric]: groups[0].metric, NAMES[SECOND[groups[0].metric]]: SECOND[groups[0].metric]}
    if RELATIVE in groups[0].leading:
        columns = {"NDCG@10": RELATIVE, "HR@10": "full_hr@10"}
        title += "; NDCG@10 and HR@10 in the whole catalogue"
        if groups[0].metric == "hr@10":
            columns["sampled"] = "hr@10"
            title += ", and HR@10 among sampled items"
    title += _judged(groups[0])
    leading, *others = columns.values()
    gap = "% to full" if leading == RELATIVE else "points to full"
    table = TextTable(title, ["embedding", "bytes", "of full", *columns, gap])
    for group in groups:
        figure = group.figure(leading)
        row = [group.embedding, f"{group.nbytes:,.0f}", f"{100 * group.share:.1f}%"]
        row += [f"{figure.mean:.4f}" if full else figure.text(), *(f"{group.figure(name).mean:.4f}" for name in others)]
        table.rows.append([*row, points(group.over(full, leading)) if full and group is not full else ""])
    if any(popular := _popularity(groups, list(columns.values()))):
        table.rows.append(["popularity", "", "", *popular, ""])
    return table


def _judged(group: Group) -> str:
    """What a title says of how many users, or rows, were judged; nothing of runs of earlier versions."""
    judged = judged_note(next(iter(group.by_seed.values())).get("data_summary", {}))
    return f"; {judged} judged" if judged else ""


def _popularity(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """What a list of the most frequent items gets, the same whatever is trained, by every seed of which a run says so.

    Cells are empty for figures among sampled items, and where only runs of earlier versions are there.
    """
    cells = []
    for name in names:
        records = {seed: record["quality"] for group in groups for seed, record in group.by_seed.items()
                   if record["quality"].get(f"popularity_{name}") is not None}  # fmt: skip
        figures = [quality[f"popularity_{name}"] for quality in records.values()]
        cells.append(f"{statistics.fmean(figures):.4f}" if figures else "")
    return cells


def head_and_tail_table(study: StudyResults, pair: str) -> TextTable:
    """Every embedding of a pair on the frequent items of the test and on the others; without rows if none says so."""
    groups = study.groups(pair)
    names = {"AUC": "auc"} if groups[0].metric == "auc" else {"NDCG@10": RELATIVE, "HR@10": "full_hr@10"}
    columns = {f"{label} {part}": f"{part}_{name}" for label, name in names.items() for part in ("head", "tail")}
    within = "" if groups[0].metric == "auc" else " in the whole catalogue"
    table = TextTable(
        f"Of the 10% most frequent items (head) and of the others (tail){within}", ["embedding", *columns]
    )
    for group in groups:
        figures = [group.figure(name).mean for name in columns.values()]
        if not all(map(math.isnan, figures)):  # runs of earlier versions have none
            table.rows.append([group.embedding, *("" if math.isnan(each) else f"{each:.4f}" for each in figures)])
    return table


def more_figures_table(study: StudyResults, pair: str) -> TextTable:
    """More figures of the whole catalogue; without rows where there are none.

    They are those of --metrics and --select-by, and of splits that give users several test items also recall@20 and
    ndcg@20, which published studies of such data report.
    """
    groups, config = study.groups(pair), study.declaration.pairs[pair].config
    qualities = [record["quality"] for group in groups for record in group.by_seed.values()]
    asked = map(str, RankMetric.asked(config.metrics, config.select_by))
    several = ["recall@20", "ndcg@20"]
    if not all(f"full_{name}" in quality for name in several for quality in qualities):
        several = []
    columns = {name: f"full_{name}" for name in (*asked, *several)}
    table = TextTable("More figures of the whole catalogue", ["embedding", *columns])
    for group in groups if columns else []:
        figures = [group.figure(name).mean for name in columns.values()]
        table.rows.append([group.embedding, *("" if math.isnan(each) else f"{each:.4f}" for each in figures)])
    if any(popular := _popularity(groups, list(columns.values()))):
        table.rows.append(["popularity", *popular])
    return table


def against_full(study: StudyResults, method: str = OURS) -> TextTable:
    """The method less the full tables, one row per pair and figure, and one column per budget.

    Variants of the full tables follow them.
    """
    pairs = study.pairs()
    cells = {(pair, each.budget): each for pair in pairs for each in study.cells_of(pair, method)}
    budgets = sorted({budget for _, budget in cells}, reverse=True)
    table = TextTable(
        f"{method} less the full tables on test, in points or per cent, paired by seed",
        ["task and data", "figure", "full tables", *(f"≤ {budget:g}%" for budget in budgets)],
        left=2,
        keys=2,
    )
    for pair in pairs:
        fulls = {study.title(pair): study.full(pair)}
        for variant in study.declaration.method_names:
            if method_of(variant) == FULL:
                fulls |= {f"{study.title(pair)} ({variant})": each.group for each in study.cells_of(pair, variant)}
        for title, full in fulls.items():
            for name in full.leading:
                row = [title, NAMES.get(name, name), f"{full.figure(name).mean:.4f}"]
                of_pair = [cells.get((pair, budget)) for budget in budgets]
                table.rows.append([*row, *(points(cell.group.over(full, name)) if cell else "" for cell in of_pair)])
    return table


def against_others(study: StudyResults, method: str = OURS, near: str = "DPQ") -> TextTable:
    """The method less DPQ, and less the best of the others on validation, at each budget."""
    table = TextTable(
        f"{method} less {near}, and less the best of the other methods, in points or per cent, paired by seed",
        [
            "task and data",
            "figure",
            "budget",
            f"{method}, bytes",
            f"{near}, bytes",
            f"less {near}",
            "best other",
            "less it",
        ],
        left=2,
        keys=3,
    )
    for pair in study.pairs():
        for budget in study.budgets(pair):
            ours, theirs = study.cell(pair, method, budget), study.cell(pair, near, budget)
            rival = study.rival(pair, method, budget, besides=(near,))
            if ours is None or (theirs is None and rival is None):
                continue
            for name in ours.group.leading:
                table.rows.append(
                    [
                        study.title(pair),
                        NAMES.get(name, name),
                        f"{budget:g}%",
                        f"{100 * ours.group.share:.1f}%",
                        f"{100 * theirs.group.share:.1f}%" if theirs else "",
                        points(ours.group.over(theirs.group, name)) if theirs else "",
                        rival.method if rival else "",
                        points(ours.group.over(rival.group, name)) if rival else "",
                    ]
                )
    return table


def variants(study: StudyResults) -> TextTable:
    """Each variant of a method less the full tables, and less the method with the same seeds, at each budget."""
    table = TextTable(
        "Variants less the full tables, and less their methods, in points or per cent, paired by seed",
        ["task and data", "figure", "variant", "budget", "seeds", "less full", "less the method"],
        left=3,
        keys=4,
    )
    for pair in study.pairs():
        for name in study.declaration.method_names:
            for cell in study.cells_of(pair, name) if method_of(name) != name else []:
                plain = study.cell(pair, method_of(name), cell.budget)
                beside = study.full(pair) if method_of(name) == FULL else plain.group if plain else None
                if beside is None:
                    continue
                for figure in cell.group.leading:
                    gaps = [points(cell.group.over(group, figure)) for group in (study.full(pair), beside)]
                    row = [study.title(pair), NAMES.get(figure, figure), name, f"{cell.budget:g}%"]
                    table.rows.append([*row, f"{len(cell.group.by_seed)}", *gaps])
    return table


def leaderboard(study: StudyResults) -> TextTable:
    """Every method less the full tables by the first figure of each pair, best mean rank first, budget by budget.

    The mean rank, from 1, is over the pairs that a method has been run on, among the methods that were run there.
    """
    pairs = study.pairs()
    table = TextTable(
        "Leaderboard: NDCG@10 over the whole catalogue less that of the full tables in per cent, or AUC in points",
        ["budget", "method", *(study.title(pair) for pair in pairs), "mean rank", "pairs"],
        left=2,
        keys=2,
    )
    for budget in sorted({budget for pair in pairs for budget in study.budgets(pair)}, reverse=True):
        gaps: dict[str, dict[str, Interval]] = {}
        for pair in pairs:
            full = study.full(pair)
            for method in study.declaration.method_names:
                cell = study.cell(pair, method, budget)
                if cell is not None and (gap := cell.group.over(full, full.leading[0])) is not None:
                    gaps.setdefault(method, {})[pair] = gap
        ranks = {method: statistics.fmean(_rank(gaps, method, pair) for pair in own) for method, own in gaps.items()}
        for method, own in sorted(gaps.items(), key=lambda entry: ranks[entry[0]]):
            cells = [points(own.get(pair)) for pair in pairs]
            table.rows.append([f"{budget:g}%", method, *cells, f"{ranks[method]:.1f}", str(len(own))])
    return table


def _rank(gaps: dict[str, dict[str, Interval]], method: str, pair: str) -> int:
    """1 + the number of methods that are ahead of this one on a pair."""
    return 1 + sum(own[pair].mean > gaps[method][pair].mean for own in gaps.values() if pair in own)


def pair_table(study: StudyResults, pair: str) -> TextTable:
    """Every method at every budget.

    Times of their tables, as shares of the full ones', are shown where they were measured. Of rankings the whole
    catalogue comes first, then figures among sampled items. What the most frequent items get there is the last row.
    """
    full = study.full(pair)
    metric, second = NAMES.get(full.metric, full.metric), _second(full)
    table = TextTable(
        study.title(pair) + _judged(full),
        [
            "budget", "method", "embedding", "bytes", *study.speeds.measured(pair),
            *(["NDCG@10, whole catalogue", "% to full"] if full.ranks else []), "valid, at the start",
            f"valid {metric}", metric, *(NAMES.get(name, name) for name in second), "points to full", "head", "tail",
            "seeds",
        ],
        left=3,
        keys=2,
    )  # fmt: skip
    table.rows.append(_row(study, "", "full", full, None))
    for cell in study.cells(pair):
        table.rows.append(_row(study, f"{cell.budget:g}%", cell.method, cell.group, cell))
    if full.ranks and any(popular := _popularity(study.groups(pair), [RELATIVE])):
        row = ["", "popularity", *[""] * (len(table.header) - 2)]
        row[table.header.index("% to full") - 1] = popular[0]
        table.rows.append(row)
    return table


def _row(study: StudyResults, budget: str, method: str, group: Group, cell: Cell | None) -> list[str]:
    metric, full = group.metric, study.full(group.pair)
    ranked = full.ranks

    def gap(name: str) -> str:
        return "" if cell is None else points(group.over(full, name))

    return [
        budget,
        method,
        f"`{group.embedding}`",
        f"{100 * group.share:.2f}%",
        *(study.speeds.text(group.pair, group.embedding, what) for what in study.speeds.measured(group.pair)),
        *([group.figure(RELATIVE).text() if group.ranks else "", gap(RELATIVE)] if ranked else []),
        at_start(group),
        f"{group.figure(f'valid_{metric}').mean:.4f}",
        group.figure(metric).text(),
        *(f"{group.figure(name).mean:.4f}" for name in _second(full)),
        gap(metric),
        gap(f"head_{metric}"),
        gap(f"tail_{metric}"),
        str(len(group.by_seed)),
    ]


def _second(full: Group) -> list[str]:
    """The second figure of a pair's table, if it is not among the first."""
    second = SECOND.get(full.metric, full.metric)
    return [] if second in full.leading else [second]


def at_start(group: Group) -> str:
    """The validation figure right after the codebooks' start, before training goes on; empty without codebooks."""
    curves = [record["history"].get("quantised") for record in group.by_seed.values()]
    return "" if None in curves else f"{statistics.fmean(curve[group.metric][0] for curve in curves):.4f}"


def ablation_table(study: StudyResults, name: str, pair: str) -> TextTable:
    """Embeddings that differ in one thing, on a pair."""
    ablation = next(entry for entry in study.declaration.ablations if entry.name == name)
    full = study.full(pair)
    metric = full.metric
    label = NAMES.get(metric, metric)
    table = TextTable(
        f"{name}: {study.title(pair)}",
        [ablation.axis, "embedding", "bytes", f"valid {label}", label, "points to full", "seeds"],
        left=2,
        keys=2,
    )
    for key, embedding in ablation.embeddings.items():
        group = study.group(pair, embedding)
        if group is not None:
            table.rows.append(
                [
                    key,
                    f"`{group.embedding}`",
                    f"{100 * group.share:.2f}%",
                    f"{group.figure(f'valid_{metric}').mean:.4f}",
                    f"{group.figure(metric).mean:.4f}",
                    points(group.over(full, metric)),
                    str(len(group.by_seed)),
                ]
            )
    return table


def codebook_table(study: StudyResults, method: str = OURS) -> TextTable:
    """How much of its codebooks each tier uses, in the tables that the method ships."""
    table = TextTable(
        f"Codebooks of {method}: centroids of a tier in use, and their perplexity, mean over tables and seeds",
        ["task and data", "embedding", "tier", "centroids", "in use", "perplexity"],
        left=2,
        keys=3,
    )
    for pair in study.pairs():
        for cell in study.cells_of(pair, method):
            for tier, stats in records_by_tier(list(cell.group.by_seed.values())).items():
                used = statistics.fmean(entry["used"] for entry in stats)
                most = statistics.fmean(entry["num_centroids"] for entry in stats)
                table.rows.append(
                    [
                        study.title(pair),
                        f"`{cell.group.embedding}`",
                        str(tier),
                        f"{most:.0f}",
                        f"{used:.1f} = {100 * used / most:.0f}%",
                        f"{statistics.fmean(entry['perplexity'] for entry in stats):.1f}",
                    ]
                )
    return table


def records_by_tier(records: list[Record]) -> dict[int, list[Record]]:
    """Tier -> its codebook statistics in every table of every record."""
    by_tier: dict[int, list[Record]] = {}
    for record in records:
        for stats in record["codebooks"].values():
            for entry in stats:
                by_tier.setdefault(entry["tier"], []).append(entry)
    return by_tier


def cost_table(study: StudyResults) -> TextTable:
    """Training time and memory by pair: an epoch of the full tables, an epoch through the codes."""
    table = TextTable(
        "Cost: seconds of an epoch and most memory of a run's process, medians",
        ["task and data", "full table", "through the codes", "ratio", "epochs, full", "memory"],
    )
    for pair in study.pairs():
        full = study.full(pair)
        ours = [record for cell in study.cells_of(pair, OURS) for record in cell.group.by_seed.values()]
        first = _median([record["seconds_per_epoch"].get("full") for record in full.by_seed.values()])
        coded = _median([record["seconds_per_epoch"].get("quantised") for record in ours])
        epochs = _median([record["epochs"]["full"] + record["epochs"]["annealed"] for record in full.by_seed.values()])
        memory = _median([record["peak_memory_bytes"] for record in (*full.by_seed.values(), *ours)])
        table.rows.append(
            [
                study.title(pair),
                f"{first:.1f}",
                f"{coded:.1f}",
                f"{coded / first:.2f}" if first else "",
                f"{epochs:.0f}",
                f"{memory / 2**20:,.0f} MiB",
            ]
        )
    return table


def doubted_table(study: StudyResults) -> TextTable:
    """What the full tables' runs are doubted for (:func:`advice`); without rows where all is well.

    A compact table that is level with a weak full one proves nothing, so that these come before any comparison.
    """
    table = TextTable("Full tables whose training should be doubted", ["task and data", "seeds", "why"], left=3)
    for pair in study.pairs():
        seeds = _seeds_by((note, seed) for seed, record in study.full(pair).by_seed.items() for note in advice(record))
        table.rows.extend([study.title(pair), listed, note] for note, listed in seeds.items())
    return table


def processors_table(study: StudyResults) -> TextTable:
    """Runs of another processor than their full tables', whose differences have the noise of both trainings.

    Sums are made in another order there, so that equal seeds give other rows.
    """
    title = "Runs of another processor than their full tables'"
    table = TextTable(title, ["task and data", "embedding", "seeds", "processor", "full tables'"], left=5)
    for pair in study.pairs():
        full = study.full(pair).by_seed
        for group in study.groups(pair):
            made = {s: (_processor(record), _processor(full[s])) for s, record in group.by_seed.items() if s in full}
            seeds = _seeds_by((names, seed) for seed, names in made.items() if len(set(names)) > 1)
            table.rows.extend(
                [study.title(pair), f"`{group.embedding}`", listed, *names] for names, listed in seeds.items()
            )
    return table


def _processor(record: Record) -> str:
    return str(record["machine"]["processor"])


def _seeds_by(found: Iterable[tuple[T, int]]) -> dict[T, str]:
    """What was found -> the seeds of which it was, such as `1, 3`."""
    seeds: dict[T, list[int]] = {}
    for what, seed in found:
        seeds.setdefault(what, []).append(seed)
    return {what: ", ".join(map(str, sorted(listed))) for what, listed in seeds.items()}


def failed_table(study: StudyResults) -> TextTable:
    """Runs that failed, and why."""
    table = TextTable("Runs that failed", ["task and data", "embedding", "seed", "reason"], left=4)
    for record in study.failed:
        table.rows.append([record["pair"], f"`{record['embedding']}`", str(record["seed"]), record["reason"]])
    return table


def _median(values: list[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else math.nan
