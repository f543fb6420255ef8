"""What is printed of a run: the time that is left, and which figure is kept."""

from __future__ import annotations

import pytest

from mgqe.cli.experiments import RunBar
from mgqe.cli.terminal import make_progress
from mgqe.cli.time_left import EpochClock, in_words
from mgqe.recsys.train.loop import PLANNING, EpochReport


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_batches_so_far_say_what_is_left_of_the_epoch_and_of_the_phase() -> None:
    now = Clock()
    clock = EpochClock(now)
    assert clock.left(EpochReport("full", 1, 3, 20, 100)) is None  # there is no pace yet
    now.time += 60.0
    assert clock.left(EpochReport("full", 1, 3, 40, 100)) == (180.0, 180.0 + 2 * 300.0)  # 3 s per batch
    assert clock.left(EpochReport("full", 1, 3, 100, 100)) is None  # judging is not batches
    now.time += 1000.0
    assert clock.left(EpochReport("full", 2, 3, 20, 100)) is None  # a new epoch has a pace of its own
    now.time += 20.0
    assert clock.left(EpochReport("full", 2, 3, 40, 100)) == (60.0, 60.0 + 100.0)


def test_where_there_is_no_terminal_a_long_epoch_prints_a_line_each_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = Clock()
    bar = RunBar(make_progress(), "gmf", EpochClock(now))
    for batch in range(20, 1000, 20):  # 1 s per batch
        bar.show(EpochReport("full", 1, 2, batch, 1000))
        now.time += 20.0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 16
    assert lines[0] == (
        "gmf: first phase, epoch 1 of at most 2: 80 of 1,000 batches, about 15 min left, at most 32 min of this phase"
    )


def test_plans_are_counted_while_a_budget_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    now = Clock()
    bar = RunBar(make_progress(), "gmf", EpochClock(now))
    for plan in range(1, 13):  # 40 s per plan, for rows of two widths
        bar.show(EpochReport(PLANNING, 1, 2, plan, 12))
        now.time += 40.0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "gmf: planning: 3 of 12 plans judged, about 6 min left, at most 14 min of this phase"


def test_times_are_in_the_unit_that_reads_best() -> None:
    assert [in_words(seconds) for seconds in (40, 89, 90, 5399, 5400)] == ["40 s", "89 s", "2 min", "90 min", "1.5 h"]


def test_a_line_per_epoch_says_which_figure_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    bar = RunBar(make_progress(), "mgqe, seed 1")
    bar.show(EpochReport("quantised", 2, 30, 5, 9, 0.1742))  # in the middle of an epoch there is none
    assert capsys.readouterr().err == ""
    record = {"loss": 0.69519, "full_ndcg@10": 0.1744}
    bar.show(EpochReport("quantised", 2, 30, 9, 9, 0.1742, record))
    # No gain beyond chance: the start is kept, whose figure is lower.
    assert capsys.readouterr().err == (
        "mgqe, seed 1: through the codes, epoch 2 of at most 30: loss 0.6952, NDCG@10 0.1744, "
        "kept NDCG@10 0.1742 (validation)\n"
    )
