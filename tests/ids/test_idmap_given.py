"""Maps of ids that are given one by one."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from mgqe import IdMap


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "ü", ""],
        [b"b", b"a\0", b""],
        [7, -3, 2**62],
        [2**64 - 1, 0, 5],
        [np.uint64(2**64 - 1), np.uint64(0)],
        np.array([3, 1, 2], np.int32),
        np.array([2**63, 1], np.uint64),
        np.array(["x", "yy"]),
        np.array(["x", "yy"], dtype=object),
        torch.tensor([4, 9, 2]),
        ("a", "b"),
        (each for each in ["a", "b"]),
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_rows_are_in_the_order_given(ids):
    ids = list(ids) if not hasattr(ids, "__len__") else ids
    made = IdMap.from_ids(ids)
    n = len(ids)
    assert made.rows(ids if not isinstance(ids, tuple) else list(ids)).tolist() == list(range(n))
    back = made.ids(torch.arange(n))
    assert list(back) == [each.item() if hasattr(each, "item") else each for each in ids]
    assert made.counts.tolist() == [1] * n


def test_columns_of_frames():
    polars = pytest.importorskip("polars")
    assert IdMap.from_ids(polars.Series(["b", "a"])).ids([0, 1]) == ["b", "a"]
    assert IdMap.from_ids(polars.Series([5, 3])).ids([0, 1]).tolist() == [5, 3]


def test_columns_of_arrow_tables():
    pyarrow = pytest.importorskip("pyarrow")
    for column in (pyarrow.array(["b", "a"]), pyarrow.chunked_array([["b"], ["a"]])):
        assert IdMap.from_ids(column).ids([0, 1]) == ["b", "a"]


def test_a_map_of_given_ids_is_saved_and_loaded(tmp_path):
    made = IdMap.from_ids([f"item-{i}" for i in range(10_000)])
    made.save(tmp_path / "ids.safetensors")
    loaded = IdMap.load(tmp_path / "ids.safetensors")
    loaded.validate()
    assert loaded.rows(["item-9999", "item-0"]).tolist() == [9999, 0]


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (["a", "b", "a"], ValueError, r"1 ids are there more than once: 'a' \(rows 0 and 2\). Keep one row of each"),
        ([3, 3, 4], ValueError, "more than once: 3"),
        ([], ValueError, "there are no ids"),
        (["a", None], ValueError, "position 1 is missing"),
        (["a", 3], TypeError, "position 1 is 3, int"),
        ([1.5], TypeError, "integers, text or bytes, got float"),
        (np.zeros(3), TypeError, "got an array of float64"),
        ([True], TypeError, "got bool"),
        ("abc", TypeError, "got one: 'abc'"),
        ([[1, 2]], ValueError, "one per row"),
        ([2**64], ValueError, "must fit 64 bits"),
        (5, TypeError, "got int"),
    ],
)
def test_what_is_no_list_of_different_ids(ids, error, text):
    with pytest.raises(error, match=text):
        IdMap.from_ids(ids)


def test_one_long_id_takes_no_room_in_the_others():
    tracemalloc.start()
    IdMap.from_ids([*map(str, range(2_000)), "x" * 20_000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # an array of text would have 160 MB
