"""The sequential task: windows, losses worked out by hand, evaluation, and a whole run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from recsys_data import tiny_config, write_tiny
from torch import Tensor, nn

from mgqe.recsys.data.interactions import Interactions
from mgqe.recsys.tasks.losses import shared_softmax_loss
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.tasks.sequential import Batch, SequentialTask
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import train_run
from mgqe.recsys.train.tuned import tuned_settings

SEQUENTIAL = {"task": "sequential", "model": "sasrec", "max_length": 5}


class LastItem(nn.Module):
    """A model whose h is the vector of the last item."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.item = nn.Embedding.from_pretrained(vectors)

    def encode(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        return vectors

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        hidden: Tensor = self.item(items)[lengths.cumsum(0) - 1]
        return hidden


def make(lengths: list[int], num_negatives: int = 1, eval_negatives: int = 3, **changes: object) -> SequentialTask:
    """A task in which each user takes items 0, 1, 2, ..."""
    rows = [(user, item) for user, length in enumerate(lengths) for item in range(length)]
    rows += [(len(lengths), item) for item in range(30, 32)]  # a user of two: training only
    rows += [(len(lengths) + 1, 29)]  # a user of one: nothing to learn from
    data = Interactions.from_frame(pl.DataFrame(rows, schema=["user", "item"], orient="row"))
    base = RankingTask.prepare(data, seed=3, num_negatives=num_negatives, eval_negatives=eval_negatives)
    return replace(SequentialTask(base, max_length=4), **changes)  # type: ignore[arg-type]


def windows_of(task: SequentialTask, epoch: int = 1, batch_size: int = 6) -> list[list[int]]:
    """The items of each window."""
    return [
        window.tolist()
        for batch in task.batches(batch_size, "full", epoch)
        for window in batch.items.split(batch.sizes.tolist())
    ]


def rows(task: SequentialTask, items: list[int]) -> list[int]:
    """The rows of ids of the file."""
    return [task.ids["item"].row(item) for item in items]


def test_last_windows() -> None:
    task = make([9, 4])  # training parts 0..6 and 0, 1, and the short user's 30, 31
    assert sorted(windows_of(task)) == sorted([[2, 3, 4, 5, 6], [0, 1], rows(task, [30, 31])])
    assert task.num_batches(3) == 2
    assert len(list(task.batches(3, "full", 1))) == 2


def test_random_windows() -> None:
    task = make([9, 4], windows="random")
    found = {tuple(window) for epoch in range(1, 40) for window in windows_of(task, epoch) if len(window) == 5}
    assert found == {(0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (2, 3, 4, 5, 6)}


def test_all_windows_take_every_target_once() -> None:
    task = make([20, 9, 7, 6, 4], windows="all")
    starts = set()
    for epoch in range(1, 30):
        windows = windows_of(task, epoch)
        assert all(2 <= len(window) <= 5 for window in windows)
        targets = sorted(item for window in windows for item in window[1:])
        expected = [item for length in (18, 7, 5, 4, 2) for item in range(1, length)] + rows(task, [31])
        assert targets == sorted(expected)
        starts.add(len(windows))
        # Without cuts: a history that fits is one window.
        assert [0, 1, 2, 3] in windows
    assert len(starts) > 1


@pytest.mark.parametrize("loss", ["bce", "softmax", "ce"])
def test_batches_are_fixed_by_seed_phase_and_epoch(loss: str) -> None:
    task = make([9, 4, 8, 12], loss_name=loss, windows="all", num_negatives=2)

    def drawn(phase: str, epoch: int) -> list[tuple[object, ...]]:
        return [
            (batch.items.tolist(), batch.sizes.tolist(), None if batch.negatives is None else batch.negatives.tolist())
            for batch in task.batches(4, phase, epoch)
        ]

    assert drawn("full", 1) == drawn("full", 1)
    assert drawn("full", 1) != drawn("full", 2) != drawn("annealed", 2)


def test_negatives_are_what_the_user_has_not() -> None:
    task = make([25, 4], num_negatives=3, windows="all")
    for batch in task.batches(5, "full", 1):
        assert batch.negatives is not None
        assert batch.negatives.shape == (int((batch.sizes - 1).sum()), 3)
    (batch,) = make([25], num_negatives=50).batches(1000, "full", 1)
    assert batch.negatives is not None
    long = int(batch.sizes.argmax())
    at = int((batch.sizes - 1)[:long].sum())
    assert set(batch.negatives[at : at + 4].flatten().tolist()).isdisjoint(range(23))


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def losses(task: SequentialTask, negatives: Tensor | None) -> float:
    """The loss of the windows (0, 1, 2) and (3, 1) with vectors 1, 2, 3, 4, if h is the input's vector."""
    model = LastItem(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    task = replace(task, base=replace(task.base, split=replace(task.split, num_items=4)))
    return float(task.loss(model, Batch(torch.tensor([0, 1, 2, 3, 1]), torch.tensor([3, 2]), negatives)))  # type: ignore[arg-type]


def test_binary_cross_entropy_by_hand() -> None:
    # Inputs 1, 2, 4; targets 2, 3, 2; negatives 4 and 1; 1 and 1; 3 and 1: scores 2, 6, 8 and 4, 1; 2, 2; 12, 4.
    found = losses(make([9]), torch.tensor([[3, 0], [0, 0], [2, 0]]))
    expected = sum(map(softplus, (-2, 4, 1, -6, 2, 2, -8, 12, 4))) / 3
    assert found == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_by_hand() -> None:
    found = losses(make([9], loss_name="ce"), None)
    positive, inputs = (2, 6, 8), (1, 2, 4)
    expected = sum(math.log(sum(math.exp(h * e - p) for e in (1, 2, 3, 4))) for p, h in zip(positive, inputs)) / 3
    assert found == pytest.approx(expected, rel=1e-6)


def test_sampled_softmax_by_hand() -> None:
    # The second negative, item 1, is the target of the first and third positions and does not count there.
    found = losses(make([9], loss_name="softmax"), torch.tensor([3, 1]))
    expected = (softplus(4 - 2) + math.log(math.exp(8 - 6) + math.exp(4 - 6) + 1) + softplus(16 - 8)) / 3
    assert found == pytest.approx(expected, rel=1e-6)


def test_sampled_softmax_with_nothing_but_the_target() -> None:
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = shared_softmax_loss(hidden, hidden[:, 0], torch.ones(1, 1), torch.tensor([5]), torch.tensor([5]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.isnan().any()


@pytest.mark.parametrize(("test", "expected"), [(False, [6, 1]), (True, [7, 2])])
def test_histories_end_before_the_held_out_item(test: bool, expected: list[int]) -> None:
    task = make([9, 4])
    model = LastItem(torch.arange(32.0)[:, None])
    assert task.queries(model, test).flatten().tolist() == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("test", [False, True])
def test_histories_are_cut_at_the_front(test: bool) -> None:
    task = make([9, 4])
    seen: list[tuple[list[int], list[int]]] = []

    class Recorder(LastItem):
        def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
            seen.append((items.tolist(), lengths.tolist()))
            return super().forward(items, lengths)

    task.queries(Recorder(torch.zeros(32, 1)), test)  # type: ignore[arg-type]
    assert seen == [([0, 1, 2, 4, 5, 6, 7], [3, 4])] if test else [([0, 1, 3, 4, 5, 6], [2, 4])]


def test_a_model_that_cannot_tell_items_apart_has_no_hits() -> None:
    task = make([9, 4, 12])
    task = replace(task, base=replace(task.base, split=replace(task.split, num_items=60)))
    found = task.evaluate(LastItem(torch.ones(60, 1)))  # type: ignore[arg-type]
    assert found["full_hr@10"] == found["valid_full_hr@10"] == 0.0
    assert task.validation(LastItem(torch.ones(60, 1))).figures["ndcg@10"] == 1 / math.log2(5)  # type: ignore[arg-type]


def test_judging_by_hand() -> None:
    # h of the last item is one-hot at the next one: the next item is always first.
    task = make([9, 4, 12])
    num_items = task.split.num_items

    class Next(LastItem):
        def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
            return self.item(items[lengths.cumsum(0) - 1] + 1)  # type: ignore[no-any-return]

    found = task.evaluate(Next(torch.eye(num_items)))  # type: ignore[arg-type]
    parts = ("", "full_", "valid_", "valid_full_", "tail_")
    assert all(found[f"{part}{name}@10"] == 1.0 for part in parts for name in ("hr", "ndcg"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("embedding", "loss"), [("full", "bce"), ("mgqe:D=4,K=4/2", "ce"), ("mgqe:D=4,K=4/2", "softmax"), ("qr", "ce")]
)
def test_a_run(tiny: Path, tmp_path: Path, embedding: str, loss: str) -> None:
    config = tiny_config(tiny, embedding=embedding, loss=loss, windows="all", **SEQUENTIAL)
    out = tmp_path / "out"
    metrics = train_run(config, out)
    assert metrics == json.loads((out / "metrics.json").read_text())
    parts = ("", "full_", "valid_", "valid_full_", "head_", "tail_", "head_full_", "tail_full_")
    parts += ("popularity_full_", "popularity_valid_full_")
    assert set(metrics["quality"]) == {f"{part}{name}@10" for part in parts for name in ("hr", "ndcg")}
    assert set(metrics["embedding_bytes_by_table"]) == {"item"}
    assert RunData.load(config).task.evaluate(load_run(out)) == metrics["quality"]


@pytest.mark.parametrize("data", ["ml-1m", "amazon-games", "mine.csv"])
def test_tuned_settings(data: str) -> None:
    config = TrainConfig(data=data, task="sequential", model="sasrec").with_settings(tuned_settings("sasrec", data))
    assert (config.eval_negatives, config.weight_decay) == (100, 0.0)
    if data != "ml-1m":
        assert (config.loss, config.negatives, config.dropout, config.init_std) == ("softmax", 256, 0.5, 0.05)


def test_settings_of_data_of_ones_own_train_on_few_items(tiny: Path, tmp_path: Path) -> None:
    """There are more negatives than the 80 items."""
    settings = [*tuned_settings("sasrec", str(tiny)), "max_epochs=3", "anneal_epochs=0", "eval_negatives=20", "dim=8"]
    config = TrainConfig(data=str(tiny), task="sequential", model="sasrec", embedding="full").with_settings(settings)
    metrics = train_run(config, tmp_path / "out")
    assert metrics["history"]["full"][-1]["loss"] == pytest.approx(math.log(257), rel=0.05)  # of scores near zero


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of bce, softmax, ce for --task sequential, got 'hinge'"),
        ({"windows": "first"}, "windows must be one of last, random, all, got 'first'"),
        ({"max_length": 0}, "max_length must be a whole number of 1 or more, got 0"),
    ],
)
def test_bad_settings(tiny: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(tiny, **{**SEQUENTIAL, **changes})
