"""Centroids of mixed tables: weighted k-means by hand, nested codebooks, and fewer rows than centroids."""

from __future__ import annotations

import pytest
import torch

from mgqe import ops
from mgqe.codec import fit
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.fit import fit_codebooks, fit_levels, weighted_kmeans

NONE = torch.empty(0, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def column(*values):
    return torch.tensor(values).unsqueeze(1)


def test_weights_count():
    rows, weights = column(0.0, 1.0, 10.0), torch.tensor([3.0, 1.0, 1.0])
    assert weighted_kmeans(rows, weights, 2, generator(), NONE).flatten().sort().values.tolist() == [0.25, 10.0]
    assert weighted_kmeans(rows, weights, 1, generator(), NONE).tolist() == [[pytest.approx(2.2)]]


def test_a_row_of_weight_zero_draws_no_centroid():
    rows, weights = column(0.0, 1.0, 1000.0), torch.tensor([1.0, 1.0, 0.0])
    assert weighted_kmeans(rows, weights, 2, generator(), NONE).flatten().sort().values.tolist() == [0.0, 1.0]


def test_fixed_centroids_stay():
    rows = column(0.0, 1.0, 9.0, 11.0)
    result = weighted_kmeans(rows, torch.ones(4), 2, generator(), column(0.4))
    assert result.tolist() == [[pytest.approx(0.4)], [10.0]]
    assert weighted_kmeans(rows, torch.ones(4), 1, generator(), column(0.4)).tolist() == [[pytest.approx(0.4)]]


def test_fewer_rows_than_centroids():
    result = weighted_kmeans(column(3.0, 7.0), torch.ones(2), 8, generator(), NONE)
    assert result.shape == (8, 1)
    assert {3.0, 7.0} == set(result.flatten().tolist())


def test_rows_alike_or_none():
    assert weighted_kmeans(torch.full((5, 2), 4.0), torch.ones(5), 4, generator(), torch.empty(0, 2)).eq(4).all()
    assert weighted_kmeans(torch.empty(0, 1), torch.empty(0), 2, generator(), column(5.0)).tolist() == [[5.0], [0.0]]


def test_it_finds_clusters():
    rows = torch.cat([torch.randn(50, 3, generator=generator(k)) * 0.01 + 5 * k for k in range(8)])
    centroids = weighted_kmeans(rows, torch.ones(400), 8, generator(), torch.empty(0, 3))
    assert centroids.mean(1).sort().values.tolist() == pytest.approx([5 * k for k in range(8)], abs=0.02)


def test_a_tail_reads_the_first_centroids_of_a_shared_codebook():
    tiers = (TierShape.mixed(4, (2,)), TierShape.mixed(6, (1,)))
    capacity = Capacity(1, tiers, True, False, (1,), "int8")
    head, tail = column(100.0, 110.0, 300.0, 310.0), column(1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    (book,) = fit_codebooks([head, tail], [torch.ones(4), torch.ones(6)], capacity, generator())
    assert sorted(book[:2].tolist()) == [1.0, 2.0]  # by the tail alone
    assert sorted(book[2:].tolist()) == [105.0, 305.0]


def test_no_bits_are_the_mean_of_the_tier():
    tiers = (TierShape.mixed(2, (1, 0), 0), TierShape.mixed(2, (0, 1), 1))
    capacity = Capacity(2, tiers, False, False, (1, 1), "int8")
    head, tail = torch.tensor([[1.0, 5.0], [2.0, 9.0]]), torch.tensor([[0.0, 3.0], [4.0, 4.0]])
    books = fit_codebooks([head, tail], [torch.tensor([1.0, 3.0]), torch.ones(2)], capacity, generator())
    assert sorted(books[0][:2].tolist()) == [1.0, 2.0]
    assert books[0][2].item() == 8.0  # (5 + 3 * 9) / 4
    assert books[1][0].item() == 2.0
    assert sorted(books[1][1:].tolist()) == [3.0, 4.0]


def test_the_same_seed_gives_the_same_centroids():
    rows = torch.randn(300, 2, generator=generator())
    fits = [weighted_kmeans(rows, torch.ones(300), 16, generator(3), torch.empty(0, 2)) for _ in range(2)]
    assert torch.equal(*fits)


def test_a_row_of_most_weight_is_never_left_out():
    rows = torch.randn(20_000, 1, generator=generator())
    weights = torch.ones(20_000)
    rows[777], weights[777] = 50.0, 1e5
    for seed in range(5):
        assert weighted_kmeans(rows, weights, 4, generator(seed), NONE).max().item() == pytest.approx(50.0)
        mean = weighted_kmeans(rows, weights, 1, generator(seed), NONE).item()
        assert mean == pytest.approx(50 * 1e5 / (1e5 + 19_999), rel=2e-3)


def test_all_rows_are_fitted_after_a_sample(monkeypatch):
    rows = torch.distributions.StudentT(5.0).sample((30_000, 3))

    def lost() -> float:
        centroids = weighted_kmeans(rows, torch.ones(len(rows)), 64, generator(1), torch.empty(0, 3))
        codes = ops.assign(rows, centroids.unsqueeze(0).contiguous(), None)[:, 0].long()
        return float((rows - centroids[codes]).square().sum())

    refined = lost()
    monkeypatch.setattr(fit, "FINAL_ITERATIONS", 0)
    assert refined < 0.97 * lost()


def test_levels_weigh_coordinates_by_their_variances():
    # The second coordinate, a hundredth as long, has numbers of its own, which are not worth a level.
    values = torch.tensor([[-3.0, 0.7], [-1.0, 0.7], [1.0, 0.7], [3.0, 0.7]])
    capacity = Capacity(2, (TierShape.mixed(4, (2, 2)),), False, False, (1, 1), BY_COLUMNS)
    deviations = torch.tensor([1.0, 0.01])
    (book,) = fit_levels([values * deviations], [torch.ones(4)], capacity, deviations, generator())
    assert book[:4].tolist() == pytest.approx([-3.0, -1.0, 1.0, 3.0], abs=0.01)
    assert torch.allclose(book[4:], book[:4] * 0.01)
