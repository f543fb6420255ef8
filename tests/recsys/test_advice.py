"""What a finished run is doubted for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recsys_data import tiny_config, write_tiny

from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.advice import advice


def metrics(ndcg: float, popular: float | None, best: int, epochs: int) -> dict[str, Any]:
    quality = {"valid_full_ndcg@10": ndcg}
    if popular is not None:
        quality["popularity_valid_full_ndcg@10"] = popular
    return {"quality": quality, "best_epoch": {"full": best}, "epochs": {"full": epochs}}


@pytest.mark.parametrize("run", [metrics(0.2, 0.1, 9, 14), metrics(0.2, None, 3, 8), metrics(0.2, 0.1, 2, 2)])
def test_good_runs_are_not_doubted(run: dict[str, Any]):
    assert advice(run) == []


def test_popularity_and_early_epochs_are_said():
    (weak,) = advice(metrics(0.1, 0.1, 9, 14))
    assert weak.startswith("the model ranks no better than the most frequent items do (0.1000 and 0.1000 of NDCG@10")
    run = metrics(0.2, 0.1, 9, 14)  # by the test it is as weak, though not on the part that chose the epoch
    run["quality"].update({"full_ndcg@10": 0.1, "popularity_full_ndcg@10": 0.11})
    (weak,) = advice(run)
    assert "(0.1000 and 0.1100 of NDCG@10 in the whole catalogue, on test)" in weak
    assert "try another learning_rate" in weak
    for model, loss, is_said in (("gmf", "bce", True), ("gmf", "softmax", False), ("neumf", "bce", False)):
        (weak,) = advice({**run, "config": {"model": model, "loss": loss}})
        assert ("loss=softmax" in weak) == is_said
    (early,) = advice(metrics(0.2, 0.1, 1, 6))
    assert early.startswith("validation was best after epoch 1 of 6, and fell from then on")
    (short,) = advice(metrics(0.2, 0.1, 20, 20))
    assert short.startswith("validation was best after the last epoch, 20: full tables that train longer may be better")
    assert short.endswith("try --set max_epochs=40")


def test_popularity_ranks_items_by_their_counts(tmp_path):
    task = RunData.load(tiny_config(write_tiny(tmp_path))).task
    counts, split = task.split.item_counts, task.split
    order = sorted(range(split.num_items), key=lambda item: (-int(counts[item]), item))
    hits = 0
    for user, item in zip(task.valid.users.tolist(), task.valid.items.tolist(), strict=True):
        seen = set(split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]].tolist())
        listed = [other for other in order if other not in seen][:10]
        hits += item in listed
    found = task.popularity_figures["popularity_valid_full_hr@10"]
    assert found == pytest.approx(hits / task.valid.users.numel())
    assert torch.equal(counts, torch.bincount(split.train_items, minlength=split.num_items))
