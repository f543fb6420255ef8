"""Budgets of baselines, settled before training: what each table gets, what is kept, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recsys_data import tiny_config, write_tiny
from typer.testing import CliRunner

from mgqe.cli.app import app
from mgqe.recsys.models.embeddings import Spec
from mgqe.recsys.study.records import read_results
from mgqe.recsys.tasks.base import TableInfo
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import train_run
from mgqe.recsys.train.settle import ImpossibleBudgetError, settle, shares

METHODS = ("full", "scalar", "svd", "lowrank", "hash", "qr", "recjpq", "cce", "additive")


def task_of(**sizes: int) -> Any:
    """Fields with so many ids; those of "small" ones stay full with 16 dimensions or fewer."""

    def info(field: str, size: int) -> TableInfo:
        small = field.startswith("small")
        return TableInfo(field, size, torch.ones(size), 16 if small else None, fixed="full" if small else None)

    return SimpleNamespace(tables={f"fields.{field}": info(field, size) for field, size in sizes.items()})


def settled(embedding: str, data: Any, **changes: Any) -> str:
    return settle(TrainConfig(embedding=embedding, **changes), data).embedding


ML_1M = {"user": 6040, "item": 3416}


@pytest.mark.parametrize(
    ("embedding", "expected"),
    [
        ("full:budget=10%", "full:d=6"),
        ("full:budget=10%,stored=float16", "full:d=12,stored=float16"),
        ("scalar:budget=10%", "scalar:bits=3"),
        ("lowrank:budget=5%", "lowrank:r=3"),
        ("svd:budget=20%", "svd:r=12"),
        ("svd:budget=20%,stored=float16", "svd:r=25,stored=float16"),
        ("hash:budget=10%", "hash:item.buckets=340,item.hashes=2,user.buckets=602,user.hashes=2"),
        ("hash:budget=10%,hashes=1", "hash:hashes=1,item.buckets=340,user.buckets=602"),
        ("qr:budget=10%", "qr:item.remainders=328,user.remainders=591"),
        ("recjpq:budget=10%", "recjpq:D=32,K=64,centroids=int8"),
        ("cce:budget=5%,columns=16", "cce:K=16,columns=16"),
        ("cce:budget=10%", "cce:K=8,columns=64"),
        ("additive:budget=10%,centroids=float16,K=16", "additive:K=16,centroids=float16,item.M=22,user.M=30"),
        ("lowrank:item.r=2,budget=10%", "lowrank:item.r=2,user.r=6"),
        ("lowrank:item.budget=20%,user.budget=5%", "lowrank:item.r=12,user.r=3"),
        ("lowrank:item.budget=20%,user.r=9", "lowrank:item.r=12,user.r=9"),
        ("lowrank:budget=242_000", "lowrank:r=6"),
        ("lowrank:d=32,budget=10%", "lowrank:d=32,r=6"),  # of the full tables, which have 64
        ("scalar:bits=2,budget=10%", "scalar:bits=2"),
        ("lowrank:r=8", "lowrank:r=8"),
        ("mgqe:budget=5%", "mgqe:budget=5%"),
        ("pq:budget=5%", "pq:budget=5%"),
    ],
)
def test_a_budget_becomes_a_description(embedding: str, expected: str) -> None:
    found = settled(embedding, task_of(**ML_1M))
    assert found == expected
    assert settled(found, task_of(**ML_1M)) == found
    Spec.parse(found)


def test_tables_that_stay_full_are_paid_first() -> None:
    # 4 x (1,000 x 64 + 100 x 16) = 262,400 bytes, of which 20% are 52,480. The small table's file takes 6,400 and its
    # header; 46,080 less that buys 10 columns of 4,000 bytes and 10 x 256 of the projection.
    with_small = settled("lowrank:budget=20%", task_of(city=1000, small=100))
    assert with_small == "lowrank:r=10"
    assert settled("lowrank:budget=52480", task_of(city=1000)) == "lowrank:r=12"


def test_small_d_counts_all_tables_together() -> None:
    # 10% are 26,240 bytes: 6 x 4,400 are 26,400, and so 5.
    assert settled("full:budget=10%", task_of(city=1000, small=100)) == "full:d=5"
    # Above 16 dimensions, the small table keeps its 16: 4 x (20 x 1,000 + 1,600) are 86,400 bytes, 21 are 90,400.
    assert settled("full:budget=89000", task_of(city=1000, small=100)) == "full:d=20"
    heads = {"task": "sequential", "model": "sasrec", "num_heads": 4}
    assert settled("full:budget=10%", task_of(item=5000), **heads) == "full:d=4"
    assert settled("full:budget=10%", task_of(item=5000)) == "full:d=6"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**4)), min_size=1), st.integers(0, 10**6))
def test_shares_are_proportional_but_for_the_least(tables: list[tuple[int, int]], spare: int) -> None:
    sizes, least = ({str(at): each[part] for at, each in enumerate(tables)} for part in (0, 1))
    nbytes = sum(least.values()) + spare
    found = shares(nbytes, sizes, least)
    assert nbytes - len(tables) < sum(found.values()) <= nbytes
    assert all(found[path] >= least[path] for path in sizes)
    free = {path: found[path] / sizes[path] for path in sizes if found[path] > least[path]}
    for one, rate in free.items():
        assert all(abs(rate - other) * min(sizes[one], sizes[two]) <= 1 + 1e-6 for two, other in free.items())


IMPOSSIBLE = {
    "scalar:budget=2%": r"48,414 bytes are left for fields.user, fields.item, of which the least is 77,760",
    "lowrank:budget=1%,item.r=9": r"24,207 bytes are left for .* of which the least is",
    "full:budget=1%": r"24,207 bytes are left for fields.user, fields.item, of which the least is 38,496",
    "lowrank:item.budget=1%": r"fields.item table: 8,744 bytes are too few for 3,416 ids x 64: the least is 14,392",
    "full:d=8,budget=10%": r"the least is 30",
}


@pytest.mark.parametrize("embedding", IMPOSSIBLE)
def test_an_impossible_budget_names_the_least(embedding: str) -> None:
    with pytest.raises(ImpossibleBudgetError, match=IMPOSSIBLE[embedding]):
        settled(embedding, task_of(**ML_1M))


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ("lowrank:budget=lots", "a budget is"),
        ("lowrank:budget=100%", "more than nothing and less than all"),
        ("qr:budget=50%,operation=concatenate", "operation must be one of"),
        ("scalar:budget=10%,granularity=cell", "granularity must be one of"),
        ("recjpq:budget=10%,D=7", "not divisible into num_subspaces=7"),
        ("cce:budget=10%,columns=7", "not divisible by num_columns=7"),
        ("full:item.budget=10%", "expected one budget="),
    ],
)
def test_mistakes_are_refused_before_training(embedding: str, message: str, tmp_path: Path) -> None:
    data = write_tiny(tmp_path, num_users=300, num_items=300)
    with pytest.raises(ValueError, match=message):
        train_run(tiny_config(data, embedding=embedding, dim=16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_baseline_is_compared_by_its_bytes_alone(tmp_path: Path) -> None:
    data, out = write_tiny(tmp_path, num_users=1000, num_items=800), tmp_path / "out"
    fast = ("max_epochs=1", "anneal_epochs=0", "quantised_epochs=1", "dim=64", "eval_negatives=20")
    command = ["compare", "--data", str(data), "--out", str(out), "--seeds", "1", "--embedding", "full"]
    command += [word for name in METHODS for word in ("--embedding", f"{name}:budget=10%")]
    result = CliRunner().invoke(app, [*command, *(word for each in fast for word in ("--set", each))])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    records = {record["embedding"]: record for record in read_results(out / "results.jsonl").records}
    for name in METHODS:
        record = records[f"{name}:budget=10%"]
        share = record["embedding_bytes"] / record["full_embedding_bytes"]
        assert 0.07 < share <= 0.1, (name, share)
        metrics = json.loads(next(out.glob(f"runs/{name}_*/metrics.json")).read_text())
        assert metrics["config"]["embedding"] == metrics["embedding"] == f"{name}:budget=10%"
        assert metrics["chosen"] == record["chosen"]
        assert Spec.parse(metrics["chosen"]).name == name
        assert f"{name}:budget=10%: the budget is spent on {metrics['chosen']}" in said
    assert records["full"]["chosen"] is None
    dim = Spec.parse(records["full:budget=10%"]["chosen"]).dim
    model = load_run(next(out.glob("runs/full_budget*")))
    assert (model.user.embedding_dim, model.item.embedding_dim) == (dim, dim)


def test_a_settled_run_is_the_run_of_what_was_chosen(tmp_path: Path) -> None:
    config = tiny_config(write_tiny(tmp_path, 300, 300), embedding="lowrank:budget=20%", dim=16, max_epochs=1)
    by_budget = train_run(config, tmp_path / "budget")
    assert by_budget["chosen"].startswith("lowrank:")
    by_hand = train_run(replace(config, embedding=by_budget["chosen"]), tmp_path / "hand")
    assert by_hand["quality"] == by_budget["quality"]
    assert by_hand["embedding_bytes_by_table"] == by_budget["embedding_bytes_by_table"]
    assert train_run(config, tmp_path / "budget") == json.loads((tmp_path / "budget" / "metrics.json").read_text())
