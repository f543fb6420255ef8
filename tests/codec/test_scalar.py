"""Levels of single numbers: those of Max's table, means of their cells, and numbers far out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mgqe.codec.scalar import Numbers, best_step, in_steps

GAUSSIAN = np.random.default_rng(0).standard_normal(200_000)


def numbers(values, weights=None):
    values = np.asarray(values, dtype=np.float64)
    return Numbers.of(values, np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64))


def lost(values, levels):
    return float(np.min((values[:, None] - levels[None, :]) ** 2, axis=1).sum())


@pytest.mark.parametrize(("count", "loss"), [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497), (32, 0.002499)])
def test_gaussian_numbers_lose_what_the_table_of_max_says(count, loss):
    # Joel Max, "Quantizing for minimum distortion", 1960, table I
    levels = numbers(GAUSSIAN).levels(count)
    assert lost(GAUSSIAN, levels) / len(GAUSSIAN) == pytest.approx(loss, rel=0.015)


def test_by_hand():
    assert numbers([0, 1, 10], [3, 1, 1]).levels(2).tolist() == [0.25, 10.0]
    assert numbers([4, 2, 2]).levels(1).tolist() == [pytest.approx(8 / 3)]
    assert numbers([0, 1, 1000], [1, 1, 0]).levels(2).tolist() == [0.0, 1.0]


def test_fewer_numbers_than_levels():
    assert numbers([7, 3]).levels(4).tolist() == [3.0, 7.0, 7.0, 7.0]
    assert numbers([5, 5, 5]).levels(2).tolist() == [5.0, 5.0]
    assert numbers([]).levels(3).tolist() == [0.0, 0.0, 0.0]
    assert numbers([1, 2], [0, 0]).levels(2).shape == (2,)  # nothing counts, and nothing fails


@given(arrays(np.float64, st.integers(1, 40), elements=st.integers(-50, 50).map(float)), st.integers(1, 9))
def test_levels_are_the_means_of_what_is_nearest_to_them(values, count):
    mine = numbers(values)
    levels = mine.levels(count)
    assert levels.shape == (count,)
    assert (np.diff(levels) >= 0).all()
    assert mine.loss(levels) == pytest.approx(lost(values, levels), abs=1e-6)
    nearest = np.abs(values[:, None] - levels[None, :]).argmin(1)
    for cell in np.unique(nearest):
        assert levels[cell] == pytest.approx(values[nearest == cell].mean())


@pytest.mark.parametrize("count", [16, 32, 64, 128])
def test_a_number_far_out_costs_one_level(count):
    values = GAUSSIAN[:20_000].copy()
    alone = lost(values, numbers(values).levels(count - 1))
    values[0] = 100.0
    assert lost(values, numbers(values).levels(count)) < 1.05 * alone


def test_steps_are_cut_where_that_loses_less():
    heavy = numbers(np.random.default_rng(0).standard_t(5, 20_000))
    levels = heavy.levels(128)
    whole = np.abs(levels).max() / 120
    step = best_step([heavy], [levels], 120)
    assert step < whole
    assert heavy.loss(in_steps(levels, step, 120)) < 0.95 * heavy.loss(in_steps(levels, whole, 120))
    stored = in_steps(levels, step, 120) / step
    assert np.allclose(stored, stored.round())
    assert np.abs(stored).max() == pytest.approx(120)  # so that the largest level says the step


def test_no_levels_but_zeros_have_a_step():
    zeros = numbers([0.0, 0.0])
    assert best_step([zeros], [zeros.levels(4)], 127) == 1.0
