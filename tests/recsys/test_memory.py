"""The peak of memory is of one run, and more sampled negatives take no more of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch import Tensor

from mgqe.recsys.data.sampling import SeenItems, evaluation_negatives
from mgqe.recsys.tasks import metrics
from mgqe.recsys.tasks.metrics import sampled_ranks
from mgqe.recsys.train import memory
from mgqe.recsys.train.memory import OF_PROCESS, OF_RUN, peak_memory, start_peak
from mgqe.recsys.train.run import train_run

LARGE = 2**28
linux = pytest.mark.skipif(not memory.CLEAR.exists(), reason="this system has one mark for all of a process's life")


@linux
def test_what_came_before_does_not_count() -> None:
    assert start_peak() == OF_RUN
    before = peak_memory()
    assert before is not None
    large = torch.ones(LARGE, dtype=torch.uint8)
    with_large = peak_memory()
    del large
    start_peak()
    after = peak_memory()
    assert with_large is not None
    assert after is not None
    assert with_large >= before + 0.9 * LARGE
    assert after < with_large - 0.9 * LARGE


def test_a_system_that_keeps_its_mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none/clear_refs")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none/status")
    assert start_peak() == OF_PROCESS
    peak = peak_memory()
    assert peak is None or peak > 2**20


@linux
def test_a_run_says_what_its_peak_is_of(tmp_path: Path) -> None:
    found = train_run(tiny_config(write_tiny(tmp_path), max_epochs=1, anneal_epochs=0), tmp_path / "out")
    assert found["peak_memory_of"] == OF_RUN
    assert found["peak_memory_bytes"] > 2**20


def test_scores_in_memory_do_not_depend_on_the_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    users, positives = torch.arange(50), torch.randint(200, (50,), generator=generator)
    negatives = torch.randint(200, (50, 30), generator=generator)
    scores, largest = torch.rand(50, 200, generator=generator), []

    def score(of: Tensor, items: Tensor) -> Tensor:
        largest.append(items.numel())
        return scores.gather(1, items) if len(of) == 50 else scores[of].gather(1, items)

    at_once = sampled_ranks(score, users, positives, negatives)
    monkeypatch.setattr(metrics, "SAMPLED_CELLS", 100)
    assert torch.equal(sampled_ranks(score, users, positives, negatives), at_once)
    assert largest[0] == 50 * 31
    assert max(largest[1:]) <= 100


def test_negatives_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = torch.arange(40).repeat_interleave(3), torch.arange(120) % 37
    seen = SeenItems(users, items, 40, 37)
    whole = evaluation_negatives(torch.arange(40), seen, 30, 5)
    monkeypatch.setattr("mgqe.recsys.data.sampling.SORTED_ROWS", 7)
    assert torch.equal(evaluation_negatives(torch.arange(40), seen, 30, 5), whole)
