"""Metric: its two sources by hand, its root, and every matrix that is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgqe.codec.metric import Metric


def test_queries_by_hand():
    metric = Metric.of_queries(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert metric.matrix.tolist() == [[5.0, 1.0], [1.0, 2.0]]  # ((1, 2; 2, 4) + (9, 0; 0, 0)) / 2
    assert metric.matrix.dtype == torch.float64
    assert (metric.source, metric.embedding_dim) == ("queries", 2)


def test_the_root_squares_to_the_matrix():
    matrix = Metric.of_queries(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    root = matrix.root()
    assert root @ root.T == pytest.approx(matrix.matrix.numpy())


def test_directions_that_no_query_has_cost_a_hundredth_of_the_largest():
    root = Metric.of_queries(torch.tensor([[2.0, 0.0, 0.0]])).root()
    assert root @ root.T == pytest.approx(np.diag([4.0, 0.04, 0.04]))


def test_rows_of_equal_costs_by_hand():
    metric = Metric(torch.diag(torch.tensor([1.0, 4.0])), "gradients")
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.5], [0.0, 0.0]])  # they cost 4, 36, 1 and 0
    expected = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert torch.equal(metric.equal_costs(rows), expected)
    assert torch.equal(metric.equal_costs(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_a_matrix_becomes_exactly_symmetric():
    metric = Metric(torch.tensor([[1.0, 0.1], [0.1 + 1e-6, 1.0]]), "gradients")
    assert torch.equal(metric.matrix, metric.matrix.T)


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (torch.ones(2, 3), r"shape \(d, d\), got \(2, 3\)"),
        (torch.ones(4), r"shape \(d, d\)"),
        (torch.zeros(0, 0), r"shape \(d, d\)"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "NaN or infinity"),
        (torch.tensor([[float("inf")]]), "NaN or infinity"),
        (torch.zeros(3, 3), "zero"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.diag(torch.tensor([1.0, -0.1])), "negative eigenvalues"),
    ],
)
def test_what_is_no_metric(matrix, text):
    with pytest.raises(ValueError, match=text):
        Metric(matrix, "gradients")


@pytest.mark.parametrize("form", [lambda rows: rows[::-1].copy()[::-1], lambda rows: rows.tolist(), torch.tensor])
def test_queries_come_in_any_form(form):
    rows = np.array([[1.0, 2.0], [3.0, 0.0]], dtype=np.float32)
    assert Metric.of_queries(form(rows)).matrix.tolist() == [[5.0, 1.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("queries", "error", "text"),
    [
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "float"),
        (torch.ones(3), ValueError, r"shape \(n, d\)"),
        (torch.ones(0, 3), ValueError, "at least 1"),
        (torch.tensor([[1.0], [float("nan")]]), ValueError, "query 1"),
        (torch.zeros(3, 2), ValueError, "zeros"),
    ],
)
def test_what_is_no_sample_of_queries(queries, error, text):
    with pytest.raises(error, match=text):
        Metric.of_queries(queries)
