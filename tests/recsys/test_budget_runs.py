"""Runs with a budget for all tables: what is planned, what is tried, and that it survives a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recsys_data import tiny_config, write_tiny

import mgqe
from mgqe.cli.train import _figures
from mgqe.codec.planning import problem
from mgqe.codec.planning.head_tail import head_and_tail
from mgqe.files.atomic import read_json
from mgqe.recsys.tasks.base import Validation
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train import budget, run
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.budget import Spent, best_of, planned_layers
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import PLANNING, EpochReport
from mgqe.recsys.train.run import build_tables, train_run

BUDGET = "mgqe:budget=7%"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    data = write_tiny(tmp_path_factory.mktemp("data"), num_users=300, num_items=300)
    return tiny_config(data, embedding=BUDGET, dim=64, max_epochs=2, quantised_epochs=2)


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "SHAPES", problem.SHAPES[:2])


def test_a_budget_counts_files_and_says_what_it_chose(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[tuple[tuple[float, float], list[int]]] = []

    def spy(plan, rows, counts, padding_idx):  # type: ignore[no-untyped-def]
        predicted.append((head_and_tail(plan, rows, counts, padding_idx), counts.tolist()))
        return predicted[-1][0]

    monkeypatch.setattr(budget, "head_and_tail", spy)
    reports: list[EpochReport] = []
    metrics = train_run(config, tmp_path / "out", on_epoch=reports.append)
    planning = [(each.epoch, each.batch, each.batches) for each in reports if each.phase == PLANNING]
    plans = planning[0][2]  # users' rows with their own and with equal lengths
    assert planning == [(width, plan, plans) for width in (1, 2) for plan in range(1, plans + 1)]
    assert plans % 2 == 0
    # Rows of 64 dimensions are planned first, then those of 32; of each the user's table, then the item's.
    spied = dict(zip(["user", "item"], predicted[-2:] if metrics["plan"]["embedding_dim"] == 32 else predicted[:2]))
    assert metrics["embedding_bytes"] <= 0.07 * metrics["full_embedding_bytes"]
    assert metrics["full_embedding_bytes"] == 4 * 64 * sum(len(ids) for ids in RunData.load(config).task.ids.values())
    assert metrics["plan"] == read_json(tmp_path / "out" / "plan.json")
    assert metrics["plan"]["candidate"].startswith(("gradients, ", "identity, "))
    assert metrics["plan"]["prefer"] == {"user": "speed", "item": "speed"}
    assert metrics["plan"]["lookup_shares"].keys() == {"user", "item"}
    assert all(0 < share < 10 for share in metrics["plan"]["lookup_shares"].values())
    task = RunData.load(config).task
    assert task.evaluate(load_run(tmp_path / "out")) == metrics["quality"]
    assert metrics["plan"]["head_and_tail"].keys() == {"user", "item"}
    for path, lost in metrics["plan"]["head_and_tail"].items():
        assert spied[path][1] == task.tables[path].counts.tolist()
        assert lost == [round(each, 4) for each in spied[path][0]]
        assert all(0 < each < 1 for each in lost)
    metrics["plan"]["head_and_tail"] = {"user": [0.0123, 0.5], "item": [0.02, 1.0]}
    rows = dict(_figures(metrics).rows)
    title = "squares expected to be lost of the 10% most frequent ids, of the others"
    assert rows[title] == "user 1.2% and 50.0%, item 2.0% and 100.0%"
    metrics["plan"]["lookup_shares"] = {f"C{n}": n / 10 for n in range(1, 8)}
    rows = dict(_figures(metrics).rows)
    shares = rows["look-up, share of nn.Embedding's time, estimated"]
    assert shares == "C7 0.7, C6 0.6, C5 0.5, C4 0.4, and less in 3 more (metrics.json)"


def test_a_run_may_prefer_the_tail(config: TrainConfig, tmp_path: Path) -> None:
    metrics = train_run(replace(config, embedding=f"{BUDGET},prefer_tail=true", max_epochs=1), tmp_path / "out")
    assert metrics["plan"]["prefer_tail"] == {"user": True, "item": True}
    assert metrics["plan"]["candidate"].removesuffix(", user rows of equal length").endswith("counts^0")


def test_pq_within_a_budget_is_the_plan_without_training_through_codes(config: TrainConfig, tmp_path: Path) -> None:
    same = replace(config, max_epochs=1, anneal_epochs=1)
    found = train_run(replace(same, embedding="pq:budget=10%"), tmp_path / "pq")
    written_out = train_run(replace(same, embedding="dpq:budget=10%", quantised_epochs=0), tmp_path / "dpq")
    assert found["epochs"]["quantised"] == 0
    assert found["quality"] == written_out["quality"]
    assert found["embedding_bytes"] <= 0.1 * found["full_embedding_bytes"]
    for name in ("user", "item"):
        tables = [mgqe.load(tmp_path / each / f"{name}.mgqe.safetensors") for each in ("pq", "dpq")]
        assert tables[0].equal(tables[1])
    with pytest.raises(ValueError, match="embedding pq:D=4,budget=10%"):
        build_tables(replace(same, embedding="pq:D=4,budget=10%"), RunData.load(config))


@pytest.mark.parametrize("width", [64, 32])
def test_the_width_with_the_better_figure_is_taken(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    seen: dict[int, int] = {}  # dimensions -> bytes

    def spend(full, model, task, budget, batch_size, judges_by, on_plan):  # type: ignore[no-untyped-def]
        seen[full.item.embedding_dim] = budget
        return Spent(Validation({"full_ndcg": float(full.item.embedding_dim == width)}, ()), "by hand")

    monkeypatch.setattr(run, "spend_budget", spend)
    train_run(config, tmp_path / "out")
    assert list(seen) == [64, 32]
    assert seen[64] == seen[32]
    for name in ("user", "item"):
        assert mgqe.load(tmp_path / "out" / f"{name}.mgqe.safetensors").embedding_dim == width
    assert load_run(tmp_path / "out").item.embedding_dim == width


@pytest.mark.parametrize("embedding", ["mgqe:budget=20%", "mgqe:d=64,budget=7%"])
def test_half_the_dimensions_are_not_tried(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding: str
) -> None:
    seen = []

    def spend(full, *_, on_plan):  # type: ignore[no-untyped-def]
        seen.append(full)
        return Spent(Validation({"full_ndcg": 0.0}, ()), "by hand")

    monkeypatch.setattr(run, "spend_budget", spend)
    train_run(replace(config, embedding=embedding), tmp_path / "out")
    assert len(seen) == 1


def test_the_third_phase_of_a_budget_has_settings_of_its_own() -> None:
    ranking, sequential = TrainConfig(), TrainConfig(task="sequential", model="sasrec")

    def third(config: TrainConfig, planned: bool) -> tuple[object, ...]:
        filled = config.with_third_phase(planned)
        phase = filled.phase("quantised")
        return (
            phase.learning_rate, phase.centroid_learning_rate, filled.quantised_loss, filled.quantised_negatives,
        )  # fmt: skip

    assert third(ranking, False) == (3e-4, 3e-4, None, None)
    assert third(ranking, True) == (1e-3, 1.7e-3, None, None)
    assert third(sequential, True) == (1e-3, 1.7e-3, "softmax", 1024)
    assert third(replace(sequential, quantised_loss="ce"), True) == (1e-3, 1.7e-3, "ce", None)
    assert third(replace(sequential, quantised_negatives=64), True)[2:] == ("softmax", 64)
    assert third(replace(sequential, loss="ce"), True)[2:] == (None, None)  # its own loss has the whole catalogue
    assert third(replace(ranking, quantised_learning_rate=0.1), False)[:2] == (0.1, 0.1)
    assert third(replace(ranking, quantised_learning_rate=0.1), True)[:2] == (0.1, 1.7e-3)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_run_that_was_killed_in_its_third_phase_ends_alike(config: TrainConfig, tmp_path: Path) -> None:
    whole = train_run(config, tmp_path / "whole")

    def die(report: EpochReport) -> None:
        if report.phase == "quantised" and report.record is not None:
            raise Killed

    with pytest.raises(Killed):
        train_run(config, tmp_path / "killed", on_epoch=die)
    torch.manual_seed(5)
    resumed = train_run(config, tmp_path / "killed")
    assert {name: resumed[name] for name in ("quality", "plan", "embedding_bytes")} == {
        name: whole[name] for name in ("quality", "plan", "embedding_bytes")
    }


def test_lengths_of_users_do_not_change_the_order_of_their_items(config: TrainConfig) -> None:
    data = RunData.load(config)
    model = build_tables(replace(config, embedding="full"), data).eval()
    before = data.task.evaluate(model)
    scale = torch.rand(model.user.num_embeddings, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    model.user.weight.data *= scale
    assert data.task.evaluate(model) == before
    assert model.scale_free == ("user",)


@pytest.mark.parametrize(
    ("embedding", "planned"),
    [
        ("mgqe", {"user", "item"}),
        ("dpq", {"user"}),  # 256 centroids for 279 items save nothing: the even shape
        ("mgqe:item.K=16/64", {"user"}),
    ],
)
def test_tables_without_a_budget_are_planned_with_the_bytes_of_the_even_shape(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding: str, planned: set[str]
) -> None:
    seen: dict[str, str] = {}  # path -> the source of the metric
    set_metrics = run.set_metrics

    def watched(full, model, task, batch_size):  # type: ignore[no-untyped-def]
        set_metrics(full, model, task, batch_size)
        seen.update({path: layer.given_metric.source for path, layer in planned_layers(model, task).items()})

    monkeypatch.setattr(run, "set_metrics", watched)
    config = replace(config, embedding=embedding)
    metrics = train_run(config, tmp_path / "out")
    assert seen == dict.fromkeys(planned, "gradients")
    assert metrics["cut"] == {}
    layers = planned_layers(build_tables(config, RunData.load(config)), RunData.load(config).task)
    for name in ("user", "item"):
        table = mgqe.load(tmp_path / "out" / f"{name}.mgqe.safetensors")
        assert bool(table.config.widths) == (name in planned)
        if name in planned:
            assert metrics["embedding_bytes_by_table"][name] <= layers[name].planner.nbytes < 256 * table.num_embeddings
    assert RunData.load(config).task.evaluate(load_run(tmp_path / "out")) == metrics["quality"]


def test_ranks_decide_between_plans_that_the_judge_cannot_tell_apart() -> None:
    def found(gains: list[float], log_ranks: list[float], sampled: float) -> Validation:
        judged = {"full_ndcg": torch.tensor(gains).double(), "full_log_rank": -torch.tensor(log_ranks).double()}
        return Validation({"hr@10": sampled, **{name: float(of.mean()) for name, of in judged.items()}}, (), judged)

    best = found([1.0, 0.5, 0.5, 0.6], [2.0, 1.0, 3.0, 2.0], 0.5)
    near, far = found([0.9, 0.6, 0.5, 0.5], [1.8, 1.0, 2.9, 2.1], 0.4), found([0.4] * 4, [1.0] * 4, 0.3)
    # In gains near is behind by .025 where the standard error is .048, far by .25 where it is .119.
    assert best_of([far, best, near], "full_ndcg") == 2
    assert best_of([far, best], "full_ndcg") == 1
    # In logarithms best is behind near by .05 where the standard error is .065, and ahead of it in sampled HR@10;
    # both are behind far by .95 and more, where it is .4.
    assert best_of([near, best], "full_log_rank") == 1
    assert best_of([best, near, far], "full_log_rank") == 2
    auc = [Validation({"auc": value}, ()) for value in (0.7, 0.8, 0.75)]
    assert best_of(auc, "auc") == 1


def test_no_plan_is_taken_that_the_figure_which_selects_epochs_tells_from_the_best() -> None:
    def found(selects: list[float], log_ranks: list[float]) -> Validation:
        values = torch.tensor(selects).double()
        judged = {"full_ndcg": torch.tensor([0.2, 0.3, 0.4]).double(), "full_log_rank": -torch.tensor(log_ranks)}
        return Validation({name: float(of.mean()) for name, of in judged.items()}, (values,), judged)

    # All agree in the gains of the whole list. In the first ranks the second is behind by .2, where the standard
    # error is .058; the third by .033, where it is .067, so that its
    # better ranks decide.
    best, behind = found([0.5, 0.4, 0.6], [3.0] * 3), found([0.2, 0.3, 0.4], [1.0] * 3)
    level = found([0.6, 0.3, 0.5], [2.0] * 3)
    assert best_of([best, behind], "full_ndcg") == 0
    assert best_of([best, behind, level], "full_ndcg") == 2


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"task": "sequential", "model": "sasrec"}, "softmax"),
        ({"task": "sequential", "model": "sasrec", "loss": "ce"}, "ce"),
        ({"task": "sequential", "model": "sasrec", "quantised_loss": "bce"}, "bce"),
        ({"task": "sequential", "model": "sasrec", "quantised_epochs": 0}, None),
        ({"task": "sequential", "model": "sasrec", "embedding": "pq:D=4"}, None),
        ({}, "bce"),
    ],
)
def test_the_loss_that_trains_the_codes(settings: dict[str, Any], loss: str | None) -> None:
    assert TrainConfig(**{"embedding": "mgqe:budget=5%", **settings}).third_loss(planned=True) == loss


def test_the_third_phase_stops_where_it_gains_nothing() -> None:
    phase = TrainConfig(embedding="mgqe:budget=5%").phase("quantised")
    assert (phase.max_epochs, phase.patience) == (30, 10)
    assert TrainConfig().phase("annealed").patience == 11  # which ends with a learning rate of zero
