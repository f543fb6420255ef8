"""What users of NumPy try: lists and arrays in, table[ids], len(table), np.asarray(table)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from table_cases import CASES, build

import mgqe

TABLE = build(CASES[3]).table
N, D = TABLE.num_embeddings, TABLE.embedding_dim
ALL = [TABLE, mgqe.baselines.FullEmbedding(5, 3).freeze(), mgqe.baselines.HashEmbedding(50, 4, num_buckets=8).freeze()]


@pytest.mark.parametrize("table", ALL, ids=lambda table: type(table).__name__)
def test_ids_in_any_form(table):
    expected = table.lookup(torch.tensor([2, 0]))
    for ids in ([2, 0], (2, 0), np.array([2, 0]), np.array([2, 0], np.uint8)):
        assert torch.equal(table.lookup(ids), expected)
        assert torch.equal(table[ids], expected)
        assert torch.equal(table.bag([ids], mode="mean"), expected.mean(0, keepdim=True))
    assert torch.equal(table[2], expected[0])
    assert torch.equal(table[np.int64(2)], expected[0])
    assert torch.equal(table[[[2], [0]]], expected[:, None])
    assert table[[]].shape == (0, table.embedding_dim)
    assert torch.equal(table[-2:], table.to_dense()[-2:])
    assert torch.equal(table.bag([2, 0], offsets=[0, 1]), expected)
    assert [each in table for each in (0, np.int64(2), len(table) - 1, len(table), -1, 1.5, "a")] == [True] * 3 + [
        False
    ] * 4


@pytest.mark.parametrize("table", ALL, ids=lambda table: type(table).__name__)
def test_a_table_is_an_array_of_its_rows(table):
    assert len(table) == table.num_embeddings
    rows = np.asarray(table)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, table.to_dense().numpy())
    assert np.asarray(table, np.float64).dtype == np.float64
    assert np.array_equal(np.stack(list(table)), rows)
    with pytest.raises(ValueError, match="copy=False"):
        table.__array__(copy=False)


def test_searches_and_growth_in_any_form():
    query = np.linspace(-1, 1, D)
    expected = TABLE.topk(torch.from_numpy(query).float(), 3).ids
    for same in (query, query.tolist(), query.astype(np.float32)):
        assert torch.equal(TABLE.topk(same, 3).ids, expected)
    assert torch.equal(TABLE.topk([query.tolist()], 3).ids[0], expected)
    assert torch.equal(TABLE.assign([query.tolist()]), TABLE.assign(torch.from_numpy(query).float()[None]))
    grown = build(CASES[3]).table
    assert grown.append(query[None]).tolist() == [N]
    grown.update([N], [[0.0] * D])
    assert grown.codes([N]).shape == TABLE.codes([0]).shape
    assert int(grown.locate(N)[0]) == TABLE.num_tiers - 1


@pytest.mark.parametrize("ids", [[1.5], [True], ["a"], None, np.array([0.0]), {1, 2}])
def test_what_are_no_ids(ids):
    with pytest.raises(TypeError, match="ids must be integers"):
        TABLE.lookup(ids)


@pytest.mark.parametrize("queries", ["abc", [["a"] * D], None, [[1.0], [1.0, 2.0]]])
def test_what_are_no_queries(queries):
    with pytest.raises(TypeError, match="queries must be"):
        TABLE.topk(queries, 1)


def test_layers_start_from_arrays(recwarn):
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    rows.flags.writeable = False
    layer = mgqe.DPQEmbedding.from_pretrained(rows, num_subspaces=4, num_centroids=16)
    assert np.array_equal(layer.raw_weight.detach().numpy(), rows)
    assert not recwarn.list
    with pytest.raises(TypeError, match="embeddings must hold floats, got an array of int64"):
        mgqe.DPQEmbedding.from_pretrained(np.ones((3, 2), np.int64))
