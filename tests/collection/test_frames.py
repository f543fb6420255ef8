"""Collections take columns of polars, pandas and Arrow frames, and give polars frames."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mgqe
from mgqe import Collection

pl = pytest.importorskip("polars")
N, D = 60, 8
NAMES = [f"item-{i}" for i in range(N)]
ROWS = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def pandas_column(values: list[Any]) -> Any:
    return pytest.importorskip("pandas").Series(values, index=range(100, 100 + len(values)))


def arrow_column(values: list[Any]) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.chunked_array([values[:1], values[1:]])


KINDS = {"polars": lambda values: pl.Series(values), "pandas": pandas_column, "arrow": arrow_column}


@pytest.fixture(params=KINDS)
def column(request: pytest.FixtureRequest) -> Callable[[list[Any]], Any]:
    return KINDS[request.param]


@pytest.fixture
def items() -> Collection:
    return Collection(mgqe.compress_table(ROWS, "60%"), NAMES)


def test_columns_of_ids(items: Collection, column: Callable[[list[Any]], Any]) -> None:
    assert torch.equal(items.lookup(column(NAMES[3:5])), items.lookup(NAMES[3:5]))
    assert Collection(items.table, column(NAMES)).topk(ROWS[0], 3).ids == items.topk(ROWS[0], 3).ids
    numbered = Collection(items.table, column(list(range(100, 100 + N))))
    assert torch.equal(numbered.lookup(column([103, 104])), items.lookup(NAMES[3:5]))
    for option in ("exclude", "candidates"):
        expected = items.topk(ROWS[:2], 3, **{option: NAMES[:9]}).ids
        assert items.topk(ROWS[:2], 3, **{option: column(NAMES[:9])}).ids == expected
        each = [NAMES[:4], NAMES[2:8]]
        assert items.topk(ROWS[:2], 3, **{option: column(each)}).ids == items.topk(ROWS[:2], 3, **{option: each}).ids
    with pytest.raises(ValueError, match="missing"):
        items.lookup(column(["item-1", None]))


def test_columns_of_vectors(items: Collection, column: Callable[[list[Any]], Any]) -> None:
    vectors = column(ROWS[:2].tolist())
    assert items.topk(vectors, 3).ids == items.topk(ROWS[:2], 3).ids
    other = Collection(mgqe.compress_table(ROWS, "60%"), NAMES)
    items.append(column(["a", "b"]), vectors)
    other.append(["a", "b"], ROWS[:2])
    assert torch.equal(items.lookup(["b", "a"]), other.lookup(["b", "a"]))
    with pytest.raises(TypeError, match="one length"):
        items.append(column(["c", "d"]), column([[1.0] * D, [1.0]]))


def test_hits_as_a_frame(items: Collection) -> None:
    hits = items.topk(ROWS[:2], 2)
    frame = hits.to_frame()
    assert frame.columns == ["query", "rank", "id", "score"]
    assert frame["query"].to_list() == [0, 0, 1, 1]
    assert frame["rank"].to_list() == [1, 2, 1, 2]
    assert frame["id"].to_list() == [*hits.ids[0], *hits.ids[1]]
    assert frame["score"].to_list() == hits.scores.flatten().tolist()
    assert hits.to_frame(["x", "y"])["query"].to_list() == ["x", "x", "y", "y"]
    few = items.topk(ROWS[:2], 2, candidates=["item-7"]).to_frame(pl.Series(["x", "y"]))
    assert few.select("query", "rank", "id").rows() == [("x", 1, "item-7"), ("y", 1, "item-7")]
    assert items.topk(ROWS[0], 2).to_frame()["id"].to_list() == hits.ids[0]
    with pytest.raises(ValueError, match="1 names for 2 queries"):
        hits.to_frame(["x"])


def test_vectors_as_a_frame(items: Collection) -> None:
    frame = items.to_frame()
    assert frame["id"].to_list() == NAMES
    assert frame.schema["vector"] == pl.Array(pl.Float32, D)
    assert np.array_equal(frame["vector"].to_numpy(), items.table.to_dense().numpy())
    some = items.to_frame(pl.Series(["item-5", "x"]), unknown="zeros")
    assert some["id"].to_list() == ["item-5", "x"]
    assert np.array_equal(some["vector"].to_numpy(), items.lookup(["item-5", "x"], unknown="zeros").numpy())
    assert Collection(items.table).to_frame(torch.tensor([4]))["id"].to_list() == [4]
    assert Collection(items.table).to_frame()["id"].to_list() == list(range(N))
    with pytest.raises(KeyError, match="'x'"):
        items.to_frame(["x"])


def test_polars_is_asked_for_by_name(items: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    for make in (items.to_frame, items.topk(ROWS[0], 2).to_frame):
        with pytest.raises(ImportError, match=r"to_frame needs polars: pip install 'mgqe\[recsys\]'"):
            make()
