"""Losses of models that rank, against values worked out by hand, and matrix factorisation."""

from __future__ import annotations

import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch import nn

from mgqe.recsys.data.interactions import Interactions
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.models.mf import MF
from mgqe.recsys.models.neumf import NeuMF
from mgqe.recsys.tasks.losses import pairwise_loss, pointwise_loss
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import train_run


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def table(rows: list[list[float]]) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(rows))


def model() -> MF:
    return MF(table([[1.0, 0.0], [0.0, 2.0]]), table([[1.0, 1.0], [2.0, 0.0], [0.0, -1.0]]))


def test_scores_are_products_of_two_rows():
    scores = model()(torch.tensor([0, 1]), torch.tensor([[0, 1], [2, 0]]))
    assert scores.tolist() == [[1.0, 2.0], [-2.0, 2.0]]


def test_gmf_with_unit_weights_scores_as_plain_factorisation():
    plain = model()
    users, items = torch.tensor([0, 1]), torch.tensor([[0, 1, 2]] * 2)
    gmf = GMF(plain.user, plain.item, 2)
    assert torch.equal(gmf(users, items), plain(users, items))
    assert torch.equal(gmf.score_catalogue(users, gmf.catalogue(3)), plain.score_catalogue(users, plain.catalogue(3)))


def test_losses_of_pairs():
    scores = torch.tensor([[1.0, 3.0, 0.0]])
    pairs = -(math.log(sigmoid(-2)) + math.log(sigmoid(1))) / 2
    assert pairwise_loss(scores).item() == pytest.approx(pairs)
    points = -(math.log(sigmoid(1)) + math.log(sigmoid(-3)) + math.log(sigmoid(0))) / 3
    assert pointwise_loss(scores).item() == pytest.approx(points)


def task(loss: str, num_negatives: int = 2) -> RankingTask:
    taken = ([0, 1, 2, 3], [1, 2, 3, 4], [4, 0, 5, 1])
    rows = [(user, item) for user, items in enumerate(taken) for item in items]
    data = Interactions.from_frame(pl.DataFrame(rows, schema=["user", "item"], orient="row"))
    return RankingTask.prepare(data, 0, num_negatives, eval_negatives=1).with_loss(loss, None)


def test_the_softmax_of_the_catalogue():
    small = task("ce")
    users, items, shared = next(iter(small.batches(256, "full", 1)))
    assert items.shape == (users.numel(), 1)
    assert shared is None
    mf = MF(nn.Embedding(3, 2), nn.Embedding(6, 2))
    scores = mf.user(users) @ mf.item.weight.T
    expected = (scores.logsumexp(dim=1) - scores.gather(1, items).squeeze(1)).mean()
    torch.testing.assert_close(small.loss(mf, (users, items, shared)), expected)


def test_the_softmax_against_shared_negatives():
    small = task("softmax", num_negatives=7)
    users, items, shared = next(iter(small.batches(256, "full", 1)))
    assert items.shape == (users.numel(), 1)
    assert shared is not None
    assert shared.shape == (7,)
    mf = MF(table([[1.0], [1.0], [1.0]]), table([[0.0], [math.log(2)], [math.log(3)], [0.0], [0.0], [0.0]]))
    batch = (torch.tensor([0]), torch.tensor([[1]]), torch.tensor([2, 1, 0]))
    assert small.loss(mf, batch).item() == pytest.approx(math.log((2 + 3 + 1) / 2))  # item 1 does not rival itself


def test_bpr_has_negatives_of_each_positive():
    users, items, shared = next(iter(task("bpr").batches(256, "full", 1)))
    assert items.shape == (users.numel(), 3)
    assert shared is None


def test_a_network_has_no_softmax():
    neumf = NeuMF(*(nn.Embedding(6, 4) for _ in range(4)), 4, num_layers=1)
    small = task("softmax")
    with pytest.raises(
        ValueError, match=r"loss=softmax is for models whose score is a product .* not NeuMF: set loss="
    ):
        small.loss(neumf, next(iter(small.batches(256, "full", 1))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "mf", "loss": "hinge"}, "loss must be one of bce, bpr, softmax, ce for --task ranking, got 'hinge'"),
        (
            {"task": "sequential", "model": "sasrec", "loss": "bpr"},
            "loss must be one of bce, softmax, ce for --task sequential, got 'bpr'",
        ),
        (
            {"task": "ctr", "model": "deepfm", "quantised_loss": "ce"},
            "quantised_loss must be one of bce for --task ctr",
        ),
    ],
)
def test_a_loss_belongs_to_its_task(settings: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_chosen_figures_of_the_catalogue_select_and_are_reported(tmp_path):
    config = replace(tiny_config(write_tiny(tmp_path)), embedding="full", metrics="recall@3,mrr@5", select_by="mrr@4")
    metrics = train_run(config, tmp_path / "run")
    quality, history = metrics["quality"], metrics["history"]["full"]
    assert quality["full_recall@3"] <= quality["full_hr@10"]
    assert 0 < quality["full_mrr@5"] <= quality["full_ndcg@10"]
    best = max(record["full_mrr@4"] for record in history)
    assert history[metrics["best_epoch"]["full"]]["full_mrr@4"] == best


def test_figures_of_ranks_are_refused_where_nothing_is_ranked():
    with pytest.raises(ValueError, match="metrics=recall@20 is for models that rank: --task ctr has the AUC"):
        TrainConfig(task="ctr", model="deepfm", metrics="recall@20")
    with pytest.raises(ValueError, match=r"expected a figure such as .* got 'map@5'"):
        TrainConfig(select_by="map@5")
