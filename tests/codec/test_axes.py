"""Axes: uncorrelated coordinates in which errors cost alike, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgqe.codec.axes import Axes, flatness
from mgqe.codec.metric import Metric

RANDOM = np.random.default_rng(0)


def problem(d=6, n=400):
    mixing = RANDOM.normal(size=(d, d))
    rows = RANDOM.normal(size=(n, d)) @ mixing + 5.0
    root = RANDOM.normal(size=(d, d)) + 3.0 * np.eye(d)
    return rows, RANDOM.exponential(size=n), Metric(torch.from_numpy(root @ root.T), "gradients")


def test_coordinates_are_uncorrelated_and_fall_in_the_weighted_covariance():
    rows, weights, metric = problem()
    z = Axes.of(rows, weights, metric).coordinates(rows)
    assert weights @ z == pytest.approx(np.zeros(6), abs=1e-9 * weights.sum())
    covariance = (z * weights[:, None]).T @ z / weights.sum()
    variances = np.diag(covariance)
    assert covariance == pytest.approx(np.diag(variances), abs=1e-9 * variances[0])
    assert (np.diff(variances) <= 0).all()


def test_the_decoder_inverts_the_encoder():
    rows, weights, metric = problem()
    axes = Axes.of(rows, weights, metric)
    assert axes.encoder @ axes.decoder == pytest.approx(np.eye(6), abs=1e-9)
    assert axes.mean + axes.coordinates(rows) @ axes.decoder == pytest.approx(rows)
    assert (axes.decoder**2).sum() == pytest.approx(6)  # rows of a mean square of 1 / d


def test_an_error_costs_the_same_in_the_metric_and_in_coordinates():
    rows, weights, metric = problem()
    axes = Axes.of(rows, weights, metric)
    error = RANDOM.normal(size=6)
    m = metric.matrix.numpy()
    m = metric.root() @ metric.root().T if np.linalg.cond(m) > 100 else m
    assert axes.cost * ((error @ axes.encoder) ** 2).sum() == pytest.approx(error @ m @ error)


def test_what_costs_more_comes_first():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])  # variances 1/2 and 2
    plain = Axes.of(rows, np.ones(4), Metric.identity(2))
    assert np.abs(plain.coordinates(rows)[:, 0]) == pytest.approx([0, 0, 2, 2])
    costly = Axes.of(rows, np.ones(4), Metric(torch.diag(torch.tensor([16.0, 1.0])), "queries"))  # now 8 and 2
    z = costly.coordinates(rows) * costly.cost**0.5
    assert np.abs(z) == pytest.approx(np.array([[4, 0], [4, 0], [0, 2], [0, 2]]))


@pytest.mark.parametrize("rows", [np.zeros((5, 3)), np.ones((1, 3)), np.full((4, 1), 2.0)])
def test_rows_without_any_spread(rows):
    axes = Axes.of(rows, np.ones(len(rows)), Metric.identity(rows.shape[1]))
    assert axes.coordinates(rows) == pytest.approx(np.zeros(rows.shape))
    assert np.isfinite(axes.decoder).all()
    assert axes.mean == pytest.approx(rows[0])


def test_errors_in_a_rows_own_axes_cost_what_they_cost_in_the_metric():
    """Errors that have nothing to do with each other, times a metric whose directions have much to do."""
    generator = np.random.default_rng(0)
    root = generator.normal(size=(6, 6))
    rows = generator.normal(size=(50, 6))
    axes = Axes.own(rows, np.ones(50), Metric(torch.from_numpy(root @ root.T), "queries"))
    errors = generator.choice([-1.0, 1.0], size=(200_000, 6)) * np.array([0.1, 1.0, 2.0, 0.5, 3.0, 1.0])
    costs = np.einsum("ni,ij,nj->n", errors, root @ root.T, errors)
    assert axes.cost * ((errors @ axes.encoder) ** 2).sum(1).mean() == pytest.approx(costs.mean(), rel=0.01)
    np.testing.assert_allclose(axes.coordinates(rows) @ axes.decoder + axes.mean, rows, atol=1e-12)


def test_flatness_is_the_geometric_mean_of_the_variances_over_their_mean():
    rows = np.array([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]]) + 5.0  # variances 4 and 1
    assert flatness(rows, np.ones(4)) == pytest.approx(np.sqrt(4.0) / 2.5)
    turned = rows @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert flatness(turned, np.ones(4)) == pytest.approx(0.8)
    assert flatness(rows, np.array([1.0, 1.0, 0.0, 0.0])) == 0.0  # all in one direction
    assert flatness(rows, np.zeros(4)) == 0.0
    assert 0.97 < flatness(np.random.default_rng(0).standard_normal((4096, 64)), np.ones(4096)) < 1.0
