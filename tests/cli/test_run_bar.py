"""What is printed of a run where standard error is no terminal."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from mgqe.cli.experiments import RunBar
from mgqe.recsys.train.loop import EpochReport


def test_a_line_per_epoch_says_which_figure_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    bar = RunBar(Progress(disable=True), "mgqe, seed 1")
    bar.show(EpochReport("quantised", 2, 30, 5, 9, 0.1742))  # in the middle of an epoch there is none
    assert capsys.readouterr().err == ""
    record = {"loss": 0.69519, "full_ndcg@10": 0.1744}
    bar.show(EpochReport("quantised", 2, 30, 9, 9, 0.1742, record))
    # No gain beyond chance: the start is kept, whose figure is lower.
    assert capsys.readouterr().err == (
        "mgqe, seed 1: through the codes, epoch 2 of at most 30: loss 0.6952, NDCG@10 0.1744, "
        "kept NDCG@10 0.1742 (validation)\n"
    )
