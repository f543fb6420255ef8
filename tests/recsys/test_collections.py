"""The collections of a run: its tables in the data's own ids, without a second copy of them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pytest
import torch
from recsys_data import tiny_config, write_tiny

import mgqe
from mgqe import Collection
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.models.registry import choose_model
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.collections import plain_column
from mgqe.recsys.train.run import train_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users u0, u1, ... and items i0, i1, ..., in a CSV file."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [line.split() for line in write_tiny(folder).read_text().splitlines()]
    (folder / "log.csv").write_text("user,item\n" + "".join(f"u{user},i{item}\n" for user, item in pairs))
    return folder / "log.csv"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    train_run(tiny_config(data, embedding="mgqe:D=4,K=4/2", max_epochs=5, patience=5, learning_rate=0.03), out)
    return out


def test_the_best_items_of_a_user_are_those_of_the_model(run: Path) -> None:
    items, users = Collection.load(run / "item"), Collection.load(run / "user")
    model, user = load_run(run), FileIds.load(run / "user_ids.parquet").row("u7")
    assert not torch.equal(model.weight, torch.ones(8))  # else it would not matter that queries are weighted
    with torch.no_grad():
        best = model(torch.tensor([user]), torch.arange(len(items))[None])[0].topk(5)
    hits = items.topk(users.lookup("u7"), 5)
    item_ids = FileIds.load(run / "item_ids.parquet")
    torch.testing.assert_close(hits.scores, best.values - model.bias.detach(), rtol=1e-5, atol=1e-6)
    rows = torch.tensor([[item_ids.row(one) for one in hits.ids]])  # rows of the same codes tie
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([user]), rows)[0], best.values)


def test_tables_are_not_copied(run: Path) -> None:
    for path in ("user", "item"):
        (table,) = (run / path).glob("table.*")
        assert table.samefile(run / f"{path}.mgqe.safetensors")
    assert mgqe.verify(run).damage == ()


def test_a_collection_that_grows_leaves_the_run_as_it_was(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_run(tiny_config(data, embedding="mgqe:D=4,K=4/2"), out)
    before = (out / "item.mgqe.safetensors").read_bytes()
    items = Collection.load(out / "item")
    items.append(["i-new"], torch.ones(1, 8))
    items.save(out / "item")
    again = Collection.load(out / "item")
    assert "i-new" in again
    assert torch.equal(again.query_weight, items.query_weight)
    assert (out / "item.mgqe.safetensors").read_bytes() == before
    load_run(out)
    train_run(tiny_config(data, embedding="mgqe:D=2,K=4/2"), out, overwrite=True)
    assert "i-new" not in Collection.load(out / "item")


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        ("neumf", {"gmf_user", "gmf_item", "mlp_user", "mlp_item"}),
        ("sasrec", {"item"}),
        ("wide_deep", {"fields.user", "fields.item"}),
    ],
)
def test_other_models_write_one_for_each_table(data: Path, tmp_path: Path, model: str, paths: set[str]) -> None:
    task, model = choose_model(None, model)
    settings = {"task": task, "model": model, "max_epochs": 1, "anneal_epochs": 0, "quantised_epochs": 1}
    train_run(tiny_config(data, embedding="full", **settings), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == paths
    for path in paths:
        collection = Collection.load(tmp_path / "out" / path)
        field = path.split("_")[-1].split(".")[-1]
        assert collection.query_weight is None
        assert collection.ids.ids([0]) == [FileIds.load(tmp_path / "out" / f"{field}_ids.parquet").id(0)]
        assert torch.equal(
            collection.table.to_dense(), mgqe.load(tmp_path / "out" / f"{path}.mgqe.safetensors").to_dense()
        )


def test_ids_of_other_types_become_text() -> None:
    assert plain_column(pl.Series([date(2020, 1, 2)])).to_list() == ["2020-01-02"]
    assert plain_column(pl.Series([1.5, 2.0])).to_list() == ["1.5", "2.0"]
    assert plain_column(pl.Series([True])).to_list() == ["true"]
    for column in (pl.Series([3, 4], dtype=pl.UInt16), pl.Series(["a"]), pl.Series([b"a"])):
        assert plain_column(column) is column
