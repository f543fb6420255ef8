"""Comparisons: their runs, and the table and picture of their results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recsys_data import TINY
from rich.console import Console

from mgqe.recsys.study.analysis import Interval, StudyResults
from mgqe.recsys.study.comparison import PAIR, Comparison
from mgqe.recsys.study.pictures import LOOKS, _line, comparison_picture
from mgqe.recsys.study.records import run_key, write_results
from mgqe.recsys.study.runs import RESULTS, pending_runs
from mgqe.recsys.study.tables import comparison_table, head_and_tail_table, more_figures_table

STUDY = Comparison.of(TINY, ["mgqe:D=4", "full", "full:d=4"], [1, 2, 3])


def record(embedding: str, seed: int, size: int, hit_rate: float) -> dict[str, Any]:
    return {
        "key": run_key(PAIR, replace(TINY.with_embedding(embedding), seed=seed)),
        "pair": PAIR,
        "embedding": embedding,
        "seed": seed,
        "status": "done",
        "metric": "hr@10",
        "embedding_bytes": size,
        "full_embedding_bytes": 1000,
        "data_summary": {"users": 1200, "items": 80, "judged_users": 1100},
        "quality": {
            "hr@10": hit_rate,
            "ndcg@10": hit_rate / 2,
            "full_hr@10": hit_rate / 4,
            "full_ndcg@10": hit_rate / 5,
            "head_full_ndcg@10": hit_rate / 2,
            "tail_full_ndcg@10": hit_rate / 8,
            "head_full_hr@10": hit_rate,
            "popularity_full_hr@10": 0.03,
            "popularity_full_ndcg@10": 0.01,
        },
    }


RECORDS = [
    *(record("full", seed, 1000, value) for seed, value in ((1, 0.60), (2, 0.64), (3, 0.62))),
    *(record("mgqe:D=4", seed, 100, value) for seed, value in ((1, 0.59), (2, 0.64), (3, 0.60))),
    record("full:d=4", 1, 250, 0.5),
]


def test_interval_by_hand() -> None:
    # Student's t with two degrees of freedom: 4.303; standard deviation .02.
    interval = Interval.of([0.60, 0.64, 0.62])
    assert interval.mean == pytest.approx(0.62)
    assert interval.half_width == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert interval.text() == "0.6200 ± 0.0497"
    assert math.isnan(Interval.of([0.5]).half_width)
    assert Interval.of([0.5]).text(sign="+") == "+0.5000"
    assert Interval.of([0.0] * 49 + [1.0]).half_width == pytest.approx(1.96 * math.sqrt(0.02 / 50))


def test_groups_the_largest_first_and_differences_to_the_full_table() -> None:
    results = StudyResults(STUDY, RECORDS)
    assert [group.embedding for group in results.groups(PAIR)] == ["full", "full:d=4", "mgqe:D=4"]
    full, small, mgqe = results.groups(PAIR)
    assert (full.share, small.share, mgqe.share) == (1.0, 0.25, pytest.approx(0.1))
    rows = {row[0]: row for row in comparison_table(results, PAIR, "title").rows}
    assert rows["full"][-1] == ""
    gap = small.over(full, "hr@10")
    assert gap is not None
    assert gap.mean == pytest.approx(-10)  # points, against the full run of the same seed only
    gap = mgqe.over(full, "hr@10")
    assert gap is not None
    assert gap.mean == pytest.approx(-1)
    assert gap.half_width == pytest.approx(100 * 4.303 * 0.01 / math.sqrt(3))
    without = StudyResults(STUDY, RECORDS[3:])
    assert [row[-1] for row in comparison_table(without, PAIR, "title").rows] == ["", "", ""]


def test_table_and_picture(tmp_path: Path) -> None:
    results = StudyResults(STUDY, RECORDS)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(comparison_table(results, PAIR, "title").terminal(console.width))
    text = console.export_text()
    table = [line.split() for line in text.splitlines() if line.strip()]
    assert table[2:] == [
        ["embedding", "bytes", "of", "full", "NDCG@10", "HR@10", "sampled", "%", "to", "full"],
        ["full", "1,000", "100.0%", "0.1240", "0.1550", "0.6200"],
        ["full:d=4", "250", "25.0%", "0.1000", "0.1250", "0.5000", "-16.67"],
        ["mgqe:D=4", "100", "10.0%", "0.1220", "0.1525", "0.6100", "-1.63", "±", "4.01"],
        ["popularity", "0.0100", "0.0300"],
    ]
    assert max(map(len, text.splitlines())) <= 80
    for some in (results, StudyResults(STUDY, RECORDS[3:])):
        path = comparison_picture(some, PAIR, tmp_path / "deep" / "picture.png", "title")
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 10_000


def test_bands_are_where_seeds_say_how_wide_they_are() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # At 20% there are two seeds, and at 10% one: neither has a band.
    intervals = {0.2: (0.0, 9.0, 2), 0.1: (-1.0, math.nan, 1), 0.05: (-2.0, 1.0, 3), 0.02: (-3.0, 0.5, 3)}
    points: Any = [
        (SimpleNamespace(share=share, embedding_method="mgqe", by_seed=range(seeds)), Interval(mean, width))
        for share, (mean, width, seeds) in intervals.items()
    ]
    figure, axes = pyplot.subplots()
    plain, variant = _line(axes, points, "MGQE")[0], _line(axes, points, "MGQE, longer")[0]
    (band,) = [path.vertices for path in axes.collections[0].get_paths() if path.get_extents().width > 0]
    assert (band.min(axis=0).tolist(), band.max(axis=0).tolist()) == ([2.0, -3.5], [5.0, -1.0])  # none at 10%
    assert plain.get_color() == variant.get_color() == plain.get_markerfacecolor()
    assert (variant.get_marker(), variant.get_markerfacecolor()) == (plain.get_marker(), "white")
    assert len({marker for _, marker in LOOKS.values()}) == len(LOOKS)
    pyplot.close(figure)


def test_head_and_tail_of_the_catalogue() -> None:
    results = StudyResults(STUDY, RECORDS)
    table = head_and_tail_table(results, PAIR)
    assert table.header == ["embedding", "NDCG@10 head", "NDCG@10 tail", "HR@10 head", "HR@10 tail"]
    assert table.rows[0] == ["full", "0.3100", "0.0775", "0.6200", ""]  # the records have no tail_full_hr@10
    older = [{**each, "quality": {"hr@10": 0.5, "ndcg@10": 0.2}} for each in RECORDS]
    assert head_and_tail_table(StudyResults(STUDY, older), PAIR).rows == []


def test_figures_that_are_asked_for() -> None:
    study = Comparison.of(replace(TINY, metrics="recall@20", select_by="MRR@5"), ["full", "full:d=4"], [1, 2])
    values = {("full", 1): 0.3, ("full", 2): 0.5, ("full:d=4", 1): 0.2}
    records = []
    for pair, run in study.runs():
        if (value := values.get((run.config.name, run.config.seed))) is not None:
            plain = record(run.config.name, run.config.seed, 1, 0.5)
            quality = {**plain["quality"], "full_recall@20": value, "full_mrr@5": value / 2}
            quality["popularity_full_recall@20"] = 0.1 * run.config.seed  # of seed 1 it is in two records
            records.append({**plain, "key": run_key(pair.name, run.config), "quality": quality})
    table = more_figures_table(StudyResults(study, records), PAIR)
    assert table.header == ["embedding", "recall@20", "mrr@5"]
    assert sorted(table.rows[:2]) == [["full", "0.4000", "0.2000"], ["full:d=4", "0.2000", "0.1000"]]
    assert table.rows[2:] == [["popularity", "0.1500", ""]]


def test_figures_of_splits_with_several_test_items() -> None:
    assert more_figures_table(StudyResults(STUDY, RECORDS), PAIR).rows == []
    more = {"full_recall@20": 0.1, "full_ndcg@20": 0.2}
    several = [{**each, "quality": {**each["quality"], **more}} for each in RECORDS]
    table = more_figures_table(StudyResults(STUDY, several), PAIR)
    assert table.header == ["embedding", "recall@20", "ndcg@20"]
    assert table.rows[0] == ["full", "0.1000", "0.2000"]


def test_the_title_says_how_many_users_are_judged() -> None:
    results = StudyResults(STUDY, RECORDS)
    assert comparison_table(results, PAIR, "title").title.endswith("; 1,100 of 1,200 users judged")
    older = [{name: value for name, value in each.items() if name != "data_summary"} for each in RECORDS]
    assert "judged" not in comparison_table(StudyResults(STUDY, older), PAIR, "title").title


def test_earlier_rows_are_shown() -> None:
    other_data = Comparison.of(replace(TINY, data="ml-1m"), ["full"], [1])
    now = Comparison.of(TINY, ["full", "dpq:D=4"], [2])
    failed = {**record("qr", 1, 1, 0.5), "status": "failed"}
    shown = now.with_earlier([*RECORDS, failed])
    assert list(shown.embeddings(shown.pairs[PAIR], 0)) == ["full", "dpq:D=4", "mgqe:D=4", "full:d=4"]
    assert shown.pairs[PAIR].seeds == (2, 1, 3)
    assert len(StudyResults(shown, RECORDS).groups(PAIR)) == 3
    assert list(other_data.with_earlier(RECORDS).embeddings(other_data.pairs[PAIR], 0)) == ["full"]


def test_runs_that_share_a_warm_up_follow_the_one_that_makes_it() -> None:
    runs = [(run.config.name, run.config.seed, run.folder) for _, run in STUDY.runs()]
    firsts, others = runs[:6], runs[6:]
    assert {name for name, _, _ in firsts} == {"full", "full:d=4"}
    assert [(name, seed) for name, seed, _ in others] == [("mgqe:D=4", 1), ("mgqe:D=4", 2), ("mgqe:D=4", 3)]
    assert others[0][2] == "runs/mgqe_D=4-seed1"
    alone = Comparison.of(TINY, ["mgqe:D=4"], [1]).runs()
    assert [run.config.name for _, run in alone] == ["mgqe:D=4"]  # full is not trained where it is not listed


def test_a_recorded_run_is_pending_again_when_it_is_to_be_repeated(tmp_path: Path) -> None:
    write_results(tmp_path / RESULTS, RECORDS)
    runs = pending_runs(STUDY, tmp_path)
    assert [run.name for _, run in runs.pending] == ["full:d=4, seed 2", "full:d=4, seed 3"]
    assert len(runs.recorded) == 7
    runs = pending_runs(STUDY, tmp_path, repeat=lambda run: run.config.name == "full")  # such as one without its files
    assert len(runs.pending) == 5
    assert len(pending_runs(STUDY, tmp_path, repeat=lambda run: True).recorded) == 0
