"""App-install prediction: rows with context, their split, negatives, the two models, and runs."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recsys_data import tiny_config
from torch import Tensor, nn
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app
from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.context_rows import ContextRows, load_rows, split_rows
from mgqe.recsys.data.datasets import DATA_DIR_VARIABLE, DATASETS
from mgqe.recsys.models.dcn_v2 import DCNV2
from mgqe.recsys.models.deepfm import DeepFM
from mgqe.recsys.models.wide_deep import WideDeep
from mgqe.recsys.tasks.account import split_note
from mgqe.recsys.tasks.ctr import CtrTask, field_table
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import build_tables, train_run
from mgqe.recsys.train.tuned import tuned_settings

CONTEXT = Columns(context=("weekday", "city"))


def write_log(path: Path, time: bool = False, users: int = 130, items: int = 120, per_user: int = 8) -> Path:
    """A log in which the cities, like users and items, are too many for a small field."""
    generator = torch.Generator().manual_seed(1)
    lines = ["user,item,cnt,weekday,city" + ",at" * time]
    for user in range(users):
        taken = torch.randperm(items, generator=generator)[:per_user].tolist()
        for number, item in enumerate(taken):
            lines.append(f"{user},{item},0.5,{(user + item) % 7},c{(7 * user + item) % 110}" + f",{-number}" * time)
    path.write_text("\n".join([*lines, *lines[1:6]]) + "\n")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("data") / "log.csv")


def ctr_config(path: Path, **changes: object) -> TrainConfig:
    settings = {"task": "ctr", "model": "wide_deep", "context_columns": "weekday,city", "negatives": 2}
    return tiny_config(path, **{**settings, **changes})


def rows_of(rows: ContextRows, part: Tensor) -> set[tuple[int, ...]]:
    return set(map(tuple, torch.cat([rows.context, rows.items[:, None]], dim=1)[part].tolist()))


def test_rows_by_hand(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("user,item,cnt,wet\n7,b,1,yes\n5,a,2,no\n7,b,3,yes\n7,b,3,no\n")
    rows = load_rows(str(tmp_path / "d.csv"), None, None, Columns(context=("wet",)))
    assert rows.fields == ("user", "wet")
    assert rows.context.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert rows.items.tolist() == [0, 1, 1]
    assert rows.ids["wet"].ids.to_list() == ["no", "yes"]
    assert (rows.num_repeats, rows.ordered) == (1, False)


def test_the_order_of_a_file_without_time_decides_nothing(log: Path, tmp_path: Path) -> None:
    header, *lines = log.read_text().splitlines()
    (tmp_path / "turned.csv").write_text("\n".join([header, *reversed(lines)]) + "\n")
    found = [load_rows(str(path), None, None, CONTEXT) for path in (log, tmp_path / "turned.csv")]
    assert found[0].fingerprint == found[1].fingerprint


def test_split_at_random(log: Path) -> None:
    rows = load_rows(str(log), None, None, CONTEXT)
    assert (len(rows), rows.num_repeats) == (130 * 8, 5)
    parts = split_rows(rows, 3)
    assert [part.numel() for part in (parts.train, parts.valid, parts.test)] == [832, 104, 104]
    held = [rows_of(rows, part) for part in (parts.train, parts.valid, parts.test)]
    assert len(set.union(*held)) == sum(map(len, held)) == len(rows)
    assert torch.equal(split_rows(rows, 3).test, parts.test)
    assert not torch.equal(split_rows(rows, 4).test, parts.test)


def test_split_by_time(tmp_path: Path) -> None:
    text = "user,item,time,wet\n1,a,9,0\n1,b,5,1\n1,c,7,1\n1,d,6,0\n2,a,2,0\n2,b,1,1\n"
    (tmp_path / "d.csv").write_text(text)
    rows = load_rows(str(tmp_path / "d.csv"), None, None, Columns(context=("wet",)))
    assert rows.items.tolist() == [1, 3, 2, 0, 1, 0]
    parts = split_rows(rows, 0)  # user 2 has too few rows to be evaluated
    assert (parts.train.tolist(), parts.valid.tolist(), parts.test.tolist()) == ([0, 1, 4, 5], [2], [3])


def test_too_few_rows(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("user,item,wet,time\n1,a,0,1\n1,b,0,2\n")
    with pytest.raises(ValueError, match="no user has 3 interactions"):
        split_rows(load_rows(str(tmp_path / "d.csv"), None, None, Columns(context=("wet",))), 0)
    (tmp_path / "d.csv").write_text("user,item,wet\n1,a,0\n1,b,0\n")
    with pytest.raises(ValueError, match="2 different rows: expected 10 or more"):
        split_rows(load_rows(str(tmp_path / "d.csv"), None, None, Columns(context=("wet",))), 0)


def pairs(context: Tensor, items: Tensor) -> set[tuple[int, int]]:
    users = context[:, :1].expand_as(items)
    return set(zip(users.reshape(-1).tolist(), items.reshape(-1).tolist(), strict=True))


@pytest.mark.parametrize("time", [False, True])
def test_negatives(tmp_path: Path, time: bool) -> None:
    path = write_log(tmp_path / "log.csv", time, users=12, items=20)
    columns = Columns(time="at" if time else None, context=("weekday", "city"))
    task = CtrTask.prepare(load_rows(str(path), None, None, columns), 5, num_negatives=2)
    assert task.summary["split"] == ("by time" if time else "at random")
    trained = pairs(task.context, task.items[:, None])
    held = pairs(task.valid.context, task.valid.items[:, :1]) | pairs(task.test.context, task.test.items[:, :1])
    for part in (task.valid, task.test):
        assert not pairs(part.context, part.items[:, 1:]) & (trained | held)
        assert (part.items[:, 1] != part.items[:, 2]).all()
    drawn: set[tuple[int, int]] = set()
    for epoch in range(10):
        batches = list(task.batches(32, "full", epoch))
        assert sum(len(context) for context, _ in batches) == len(task.items)
        context, items = (torch.cat(part) for part in zip(*batches, strict=True))
        assert pairs(context, items[:, :1]) == trained
        assert not pairs(context, items[:, 1:]) & trained
        drawn |= pairs(context, items[:, 1:])
    assert held - trained <= drawn  # what is held out is drawn like any other item
    again = list(task.batches(32, "full", 9))
    assert all(torch.equal(a, b) for x, y in zip(batches, again, strict=True) for a, b in zip(x, y, strict=True))


def test_evaluated_positives_are_capped(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgqe.recsys.tasks.ctr.MAX_JUDGED", 50)
    rows = load_rows(str(log), None, None, CONTEXT)
    task = CtrTask.prepare(rows, 5)
    assert task.valid.items.shape == task.test.items.shape == (50, 3)
    whole = split_rows(rows, 0)  # any seed: the training part is not capped
    assert task.items.numel() == whole.train.numel()
    assert split_note(task.summary, task.split_summary).endswith("; 50 positive rows are judged")


def test_small_fields_stay_full() -> None:
    small = field_table("weekday", torch.tensor([2, 0, 1] + [0] * 97))
    assert (small.dim_of(64), small.dim_of(8), small.fixed) == (16, 8, "full")
    assert small.num_embeddings == 100
    large = field_table("city", torch.ones(101, dtype=torch.int64))
    assert (large.dim_of(64), large.dim_of(8), large.fixed) == (64, 8, None)


@pytest.mark.parametrize(("embedding", "dims"), [("full", (64, 16)), ("full:d=8", (8, 8)), ("mgqe:K=4", (64, 16))])
def test_tables_of_a_run(log: Path, embedding: str, dims: tuple[int, int]) -> None:
    config = ctr_config(log, embedding=embedding, dim=64)
    data = RunData.load(config)
    model = build_tables(config, data)
    assert list(data.task.tables) == [f"fields.{name}" for name in ("user", "city", "weekday", "item")]
    found = {name: model.get_submodule(f"fields.{name}").embedding_dim for name in ("user", "item", "city", "weekday")}
    assert found == {"user": dims[0], "item": dims[0], "city": dims[0], "weekday": dims[1]}
    assert type(model.fields["weekday"]).__name__ == "FullEmbedding"


def rows(values: list[list[float]]) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(values))


def by_hand(kind: Callable[..., WideDeep], **more: Any) -> WideDeep:
    """Two dimensions for users and items, one for the weather; layers 5 -> 2 -> 1."""
    tables = {
        "item": rows([[1.0, 1.0], [-1.0, 0.0], [9.0, 9.0]]),
        "wet": rows([[2.0], [-1.0]]),
        "user": rows([[1.0, 2.0], [0.0, 1.0]]),
    }
    model = kind(tables, hidden=(2, 1))
    values = {
        "context_layer.weight": [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
        "context_layer.bias": [0.0, -1.0],
        "item_layer.weight": [[1.0, 0.0], [0.0, 2.0]],
        "wide_context.weight": [[0.5, 0.0, 1.0]],
        "wide_context.bias": [0.25],
        "wide_item.weight": [[2.0, 0.0]],
        "layers.0.weight": [[1.0, 1.0]],
        "layers.0.bias": [-1.0],
        "last.weight": [[10.0]],
        **more,
    }
    missing = model.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=False)
    assert not missing.unexpected_keys
    assert {name.split(".")[0] for name in missing.missing_keys} == {"fields"}
    return model.eval()


# User 0, dry (2), items 0 and 1; user 1, wet (-1), item 1 twice.
PAIRS = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [1, 1]])


def test_wide_deep_by_hand() -> None:
    # User 0, item 0: wide .5*1 + 2 + .25 + 2*1 = 4.75; first layer relu([1+2+1, 2-1+2]) = [4, 3]; relu(4+3-1) = 6;
    # 64.75. Item 1: .5 + 2 + .25 - 2 = .75; relu([3-1, 1+0]) = [2, 1]; relu(2) = 2; 20.75.
    # User 1: wide 0 - 1 + .25 - 2 = -2.75; relu([-1-1, 0]) = [0, 0]; relu(-1) = 0; -2.75.
    assert by_hand(WideDeep)(*PAIRS).tolist() == [[64.75, 20.75], [-2.75, -2.75]]


def test_deepfm_by_hand() -> None:
    # The weather's vector becomes [w, -w]. User 0: [1, 2], [2, -2], item [1, 1]: -2 + 3 + 0 = 1. Item [-1, 0]:
    # -2 - 1 - 2 = -5. User 1: [0, 1], [-1, 1], [-1, 0]: 1 + 0 + 1 = 2.
    model = by_hand(DeepFM, **{"projections.wet.weight": [[1.0], [-1.0]]})
    assert model(*PAIRS).tolist() == [[65.75, 15.75], [-0.75, -0.75]]


def test_dcn_v2_by_hand() -> None:
    # x_0 = [user; weather; item]. W_0 adds the weather to the first coordinate, b_0 is 1 there; W_1 takes the last
    # coordinate into the second. User 0, item 0: x_0 = [1, 2, 2, 1, 1]; W_0 x_0 + b_0 = [3, 0, 0, 0, 0], so that
    # x_1 = [4, 2, 2, 1, 1]; W_1 x_1 = [0, 1, 0, 0, 0], x_2 = [4, 4, 2, 1, 1]. <w, x_2> = .5*4 + 2 + .25 + 2 = 6.25,
    # and the network has 60. Item 1: x_0 = [1, 2, 2, -1, 0], x_2 = [4, 2, 2, -1, 0]: 2 + 2 + .25 - 2 = 2.25, and 20.
    # User 1: x_0 = [0, 1, -1, -1, 0] = x_2: 0 - 1 + .25 - 2 = -2.75.
    first, second = torch.zeros(5, 5), torch.zeros(5, 5)
    first[0, 2] = second[1, 4] = 1.0
    model = by_hand(
        lambda tables, hidden: DCNV2(tables, hidden, cross_layers=2),
        **{
            "cross.0.weight": first.tolist(),
            "cross.0.bias": [1.0, 0.0, 0.0, 0.0, 0.0],
            "cross.1.weight": second.tolist(),
            "cross.1.bias": [0.0] * 5,
        },
    )
    assert model(*PAIRS).tolist() == [[66.25, 22.25], [-2.75, -2.75]]


def test_dcn_v2_without_crosses_is_wide_and_deep() -> None:
    model = random_model(functools.partial(DCNV2, cross_layers=1))
    assert isinstance(model, DCNV2)
    context, items = torch.tensor([[0, 1, 2], [4, 1, 0]]), torch.tensor([[1, 1], [8, 1]])
    wide_deep = random_model(WideDeep)
    state = model.state_dict()
    wide_deep.load_state_dict({name: state[name] for name in wide_deep.state_dict()})
    for parameter in model.cross.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(model(context, items), wide_deep(context, items))


def random_model(kind: Callable[..., WideDeep], with_context: bool = True) -> WideDeep:
    torch.manual_seed(0)
    sizes = {"item": (9, 6), "user": (5, 6), "wet": (3, 2), "city": (4, 6)}
    names = list(sizes) if with_context else ["item", "user"]
    return kind({name: nn.Embedding(*sizes[name]) for name in names}, hidden=(8, 4)).eval()


@pytest.mark.parametrize("with_context", [True, False])
def test_the_models_are_their_equations(with_context: bool) -> None:
    model = random_model(DeepFM, with_context)
    assert isinstance(model, DeepFM)
    context = torch.stack([torch.randint(high, (6,)) for high in ((5, 4, 3) if with_context else (5,))], dim=1)
    items = torch.randint(9, (6, 3))
    found = model(context, items)
    for row, place in itertools.product(range(6), range(3)):
        names = ("user", "city", "wet") if with_context else ("user",)
        vectors = {name: model.fields[name](context[row, at]) for at, name in enumerate(names)}
        vectors["item"] = model.fields["item"](items[row, place])
        x = torch.cat(list(vectors.values()))
        first = torch.cat([model.context_layer.weight, model.item_layer.weight], dim=1)
        z = torch.relu(first @ x + model.context_layer.bias)
        z = torch.relu(model.layers[0](z))
        wide = torch.cat([model.wide_context.weight, model.wide_item.weight], dim=1) @ x + model.wide_context.bias
        like = [model.projections[name](v) if name in model.projections else v for name, v in vectors.items()]
        double_sum = sum(((a * b).sum() for a, b in itertools.combinations(like, 2)), torch.zeros(()))
        torch.testing.assert_close(found[row, place], (wide + model.last(z)).squeeze() + double_sum)


@pytest.mark.parametrize("kind", [WideDeep, DeepFM, DCNV2])
def test_gradients(kind: Callable[..., WideDeep]) -> None:
    model = random_model(kind).double()
    context, items = torch.tensor([[0, 1, 2], [4, 1, 0]]), torch.tensor([[1, 1], [8, 1]])
    parameters = dict(model.named_parameters())

    def total(*values: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (context, items))
        return found.square().sum()

    assert torch.autograd.gradcheck(total, tuple(parameters.values()))


@pytest.mark.parametrize("model", ["wide_deep", "deepfm"])
@pytest.mark.parametrize("embedding", ["full", "mgqe:D=4,K=4/2", "scalar:bits=4", "full:d=4"])
def test_a_run(log: Path, tmp_path: Path, model: str, embedding: str) -> None:
    config = ctr_config(log, model=model, embedding=embedding, dim=32, dropout=0.1)
    out = tmp_path / "out"
    metrics = train_run(config, out)
    assert metrics == json.loads((out / "metrics.json").read_text())
    names = ("auc", "logloss", "ece", "calibration")
    assert set(metrics["quality"]) == {*names, "head_auc", "tail_auc", *(f"valid_{name}" for name in names)}
    assert metrics["full_embedding_bytes"] == 4 * (32 * (130 + 120 + 110) + 16 * 7)
    assert set(metrics["embedding_bytes_by_table"]) == {
        f"fields.{name}" for name in ("user", "item", "city", "weekday")
    }
    small = mgqe.load(out / "fields.weekday.mgqe.safetensors")
    assert (small.num_embeddings, small.embedding_dim) == (7, 4 if embedding == "full:d=4" else 16)
    assert RunData.load(config).task.evaluate(load_run(out)) == metrics["quality"]
    assert (out / "city_ids.parquet").is_file()


def test_dcn_v2_on_a_budget(log: Path, tmp_path: Path) -> None:
    config = ctr_config(log, model="dcn_v2", embedding="mgqe:budget=20%", dim=32, hidden="16/8", cross_layers=2)
    metrics = train_run(config, tmp_path / "out")
    assert metrics["embedding_bytes"] <= 0.2 * metrics["full_embedding_bytes"]
    model = load_run(tmp_path / "out")
    assert [layer.in_features for layer in model.cross] == [3 * 32 + 16] * 2
    assert [layer.out_features for layer in (model.context_layer, *model.layers)] == [16, 8]
    assert RunData.load(config).task.evaluate(model) == metrics["quality"]


@pytest.mark.parametrize("hidden", ["", "128/", "128,64", "0", "-5"])
def test_units_that_are_none(hidden: str) -> None:
    with pytest.raises(ValueError, match="hidden must be the units of each layer, as in 128/64"):
        TrainConfig(hidden=hidden)


def test_the_command(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command = f"train --model deepfm --data {log} --embedding full --out {tmp_path / 'out'} --set context_columns=city"
    more = ["--set=max_epochs=1", "--set=anneal_epochs=1", "--set=dim=8"]
    result = CliRunner().invoke(app, [*command.split(), *more])
    assert result.exit_code == 0, result.output
    assert "AUC, log loss (2 sampled negatives per positive)" in result.output
    assert "AUC of frequent items, of the others" in result.output


@pytest.mark.parametrize("model", ["wide_deep", "deepfm", "dcn_v2"])
@pytest.mark.parametrize("data", ["frappe", "amazon-apps", "mine.csv"])
def test_tuned_settings(model: str, data: str) -> None:
    config = TrainConfig(data=data, task="ctr", model=model).with_settings(tuned_settings(model, data))
    assert config.negatives == 2


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("user,item,wet\n1,2,0\n", "wet,city", "no context column 'city'; it has user, item, wet"),
        ("user,item,wet\n1,2,0\n1,3,\n", "wet", "line 3: expected a wet in column 'wet', got nothing"),
        ("user,item,wet\n1,2,0\n1,3,NaN\n", "wet", "line 3: expected a category in column 'wet', got 'NaN'"),
        ("user,item,wet\n1,2,0\n", "wet,item", "column 'item' cannot be context: it is the user, the item or the time"),
        ("user,item,wet\n1,2,0\n", "wet,wet", "expected different names"),
        ("user,item,type\n1,2,0\n", "type", "'type' cannot be the name of a table: rename it in the file"),
        ("1 2\n1 3\n", "wet", "context columns .wet. need a file whose columns have names"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, columns: str, message: str) -> None:
    (tmp_path / "d.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunData.load(ctr_config(tmp_path / "d.txt", context_columns=columns))


def test_frappe_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    config = TrainConfig(data="frappe", data_dir=str(tmp_path), task="ctr", model="deepfm", negatives=2)
    with pytest.raises(ValueError, match=r"frappe/frappe.csv; to obtain it: .*sha256 3a1560b7.*baltrunas.info"):
        RunData.load(config)
    (tmp_path / "frappe").mkdir()
    (tmp_path / "frappe/frappe.csv").write_text("user,item,cnt\n1,2,3\n")
    with pytest.raises(ValueError, match="another edition of frappe"):
        RunData.load(config)
    assert "cnt" not in DATASETS["frappe"].context
    with pytest.raises(ValueError, match="context_columns are for a file of your own, got data 'frappe'"):
        RunData.load(TrainConfig(data="frappe", task="ctr", model="deepfm", context_columns="city"))


@pytest.mark.skipif(DATA_DIR_VARIABLE not in os.environ, reason=f"{DATA_DIR_VARIABLE} names no folder of data sets")
def test_real_frappe() -> None:
    if not (Path(os.environ[DATA_DIR_VARIABLE]) / DATASETS["frappe"].file).is_file():
        pytest.skip(f"{DATASETS['frappe'].file} is not in {DATA_DIR_VARIABLE}")
    rows = load_rows("frappe", None, None, Columns())
    assert (len(rows), rows.num_repeats) == (94_708, 8)  # equal but for cnt
    assert {name: len(known) for name, known in rows.ids.items()} == {
        "user": 585, "item": 3923, "daytime": 7, "weekday": 7, "isweekend": 2, "homework": 3, "weather": 8,
        "country": 73, "city": 201,
    }  # fmt: skip
