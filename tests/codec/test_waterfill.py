"""Bits from variances: values worked by hand, whole bytes, and never more bytes than there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe.codec.planning.rate import limit
from mgqe.codec.planning.waterfill import Spectrum, distortion, give_bits, joined, water_level

MANY = 10**9


# ---- the water level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "level"),
    [
        (2.0, 0.5),  # log2(4 / .5) / 2 + log2(1 / .5) / 2 = 1.5 + 0.5
        (1.0, 1.0),  # the second coordinate is about to get some
        (0.5, 2.0),  # log2(4 / 2) / 2, and nothing for the second
        (0.0, 4.0),
    ],
)
def test_two_coordinates_by_hand(rate, level):
    assert water_level(np.array([4.0, 1.0]), rate) == pytest.approx(level)
    assert water_level(np.array([1.0, 0.0, 4.0]), rate) == pytest.approx(level)  # order and zeros do not matter


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.floats(0.01, 60))
def test_the_bits_at_the_water_level_are_the_rate(variances, rate):
    values = np.array(variances)
    level = water_level(values, rate)
    assert np.maximum(0, 0.5 * np.log2(values / level)).sum() == pytest.approx(rate, abs=1e-6)


def test_no_variance_and_no_end_of_bits():
    assert water_level(np.zeros(3), 5.0) == 1.0
    assert water_level(np.ones(1), 1e6) > 0


# ---- joined coordinates ------------------------------------------------------------------------------------


def test_neighbours_are_joined_up_to_the_bits_of_a_code():
    # The level is 1: coordinates get 4, 2, 1, 1 bits. 2 + 1 + 1 make a code of 4.
    assert joined(np.array([256.0, 16.0, 4.0, 4.0]), 8.0, 4.0) == (1, 3)


def test_coordinates_under_the_water_are_left_out():
    assert joined(np.array([16.0, 1e-9, 0.0]), 2.0, 8.0) == (1,)
    assert joined(np.zeros(4), 8.0, 4.0) == (1,)


def test_wide_subspaces_have_an_end():
    assert max(joined(np.full(128, 1.0), 10.0, 8.0)) == 32


# ---- the error of a subspace -------------------------------------------------------------------------------


def test_error_by_hand():
    assert distortion(np.array([9.0]), 0, MANY) == 9.0
    assert distortion(np.array([9.0]), 1, MANY) == pytest.approx(9 * limit(1, 2), rel=1e-6)
    # One bit lowers both coordinates of (4, 1) to 1 at best; k-means of width 2 loses limit(2, 2) * 2 times as much.
    assert distortion(np.array([4.0, 1.0]), 1, MANY) == pytest.approx(2 * limit(2, 2) * 2, rel=1e-6)
    # Of (16, 1) it lowers the first alone: to 4 at best.
    assert distortion(np.array([16.0, 1.0]), 1, MANY) == pytest.approx(16 * limit(1, 2) + 1, rel=1e-6)
    assert distortion(np.zeros(2), 3, MANY) == 0.0


def test_as_many_centroids_as_rows_lose_nothing_but_by_rounding():
    assert distortion(np.array([1.0, 1.0]), 4, 16) == 0.0
    largest = 1 + 0.4 * 4
    assert distortion(np.array([4.0, 1.0]), 4, 16, "int8") == pytest.approx(2 * 4 * (largest / 127) ** 2 / 12)


def test_rows_of_unequal_weight_are_like_fewer_rows():
    equal = distortion(np.ones(1), 4, 256)
    assert distortion(np.ones(1), 4, 256, concentration=(1.0, 1.0)) == equal
    halved = distortion(np.ones(1), 4, 128)
    assert distortion(np.ones(1), 4, 256, concentration=(1.0, 2.0)) == pytest.approx((equal + halved) / 2)


# ---- bits --------------------------------------------------------------------------------------------------


def test_a_tier_that_weighs_sixteen_times_as_much_gets_two_more_bits():
    spectrum = Spectrum(np.ones((2, 4)), np.array([16.0, 1.0]), (10**6, 10**6))
    room = 5 * 10**6 + 100_000  # 3 + 2 bytes per row, and more centroids than are needed
    assert give_bits(spectrum, [1] * 4, room, 1, False, 8) == [[6] * 4, [4] * 4]


def test_a_coordinate_of_sixteen_times_the_variance_gets_two_more_bits():
    spectrum = Spectrum(np.array([[16.0, 1.0]]), np.ones(1), (10**6,))
    assert give_bits(spectrum, [1, 1], 10**6 + 1000, 1, True, 8) == [[5, 3]]


def test_a_tier_without_ids_gets_nothing():
    spectrum = Spectrum(np.array([[1.0], [0.0]]), np.array([1.0, 0.0]), (1000, 0))
    bits = give_bits(spectrum, [1], 2000, 1, False, 8)
    assert bits[0] == [8]
    assert bits[1] == [0]


def test_no_more_centroids_than_rows():
    spectrum = Spectrum(np.ones((1, 1)), np.ones(1), (5,))
    assert give_bits(spectrum, [1], 10**6, 1, True, 8) == [[2]]


tables = st.tuples(
    st.lists(st.integers(0, 4000), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)


def spectrum_of(sizes, widths, seed):
    random = np.random.default_rng(seed)
    variances = np.sort(random.exponential(size=(len(sizes), sum(widths))) ** 3)[:, ::-1]
    return Spectrum(variances, random.exponential(size=len(sizes)), tuple(sizes))


def used_bytes(bits, sizes, widths, shared):
    codes = sum(size * -(-sum(row) // 8) for size, row in zip(sizes, bits, strict=True))
    books = [[max(each) for each in zip(*bits, strict=True)]] if shared else bits
    return codes + sum(width << b for book in books for width, b in zip(widths, book, strict=True))


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 40_000), st.booleans())
def test_never_more_bytes_than_there_are_and_never_a_larger_loss(table, extra, shared):
    sizes, widths, seed = table
    spectrum = spectrum_of(sizes, widths, seed)
    least = sum(widths) * (1 if shared else len(sizes))
    bits = give_bits(spectrum, widths, least + extra, 1, shared, 8)
    assert used_bytes(bits, sizes, widths, shared) <= least + extra
    assert all(b == 0 or 1 << b <= size for row, size in zip(bits, sizes, strict=True) for b in row)
    assert spectrum.loss(spectrum.lost(widths, bits)) <= 1 + 1e-9


def plain_bits(spectrum, widths, room, max_bits):
    """What give_bits says with a codebook per tier: all gains worked out anew for each bit, the largest first."""
    sizes, starts = spectrum.sizes, np.cumsum([0, *widths])
    bits, full = [[0] * len(widths) for _ in sizes], [False] * len(sizes)
    used, refused = sum(widths) * len(sizes), set()

    def gain(g, j):
        errors = [spectrum.error(g, starts[j], starts[j + 1], bits[g][j] + more) for more in (0, 1)]
        mass = float(spectrum.weights[g] * sizes[g])
        return (mass * errors[0] - mass * errors[1]) / (sizes[g] / 8 + (widths[j] << bits[g][j]))

    while True:
        able = [
            (gain(g, j), -g, -j)
            for g, size in enumerate(sizes)
            for j in range(len(widths))
            if not full[g] and (g, j) not in refused and bits[g][j] < min(max_bits, int(np.log2(max(1, size))))
        ]
        best, g, j = max(able, default=(0.0, 0, 0))
        if best <= 0:
            return bits
        g, j = -g, -j
        opens = sizes[g] if sum(bits[g]) % 8 == 0 else 0
        if used + opens + (widths[j] << bits[g][j]) > room:
            full[g] = opens > 0
            refused.add((g, j))
            continue
        used += opens + (widths[j] << bits[g][j])
        bits[g][j] += 1


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 40_000))
def test_bits_go_one_by_one_where_they_take_off_most(table, extra):
    sizes, widths, seed = table
    spectrum = spectrum_of(sizes, widths, seed)
    room = sum(widths) * len(sizes) + extra
    assert give_bits(spectrum, widths, room, 1, False, 8) == plain_bits(spectrum, widths, room, 8)


@given(st.integers(1, 6), st.integers(3, 12))
@settings(max_examples=20, deadline=None)
def test_rows_fill_whole_bytes(wanted, subspaces):
    spectrum = Spectrum(np.ones((1, subspaces)), np.ones(1), (10**6,))
    bits = give_bits(spectrum, [1] * subspaces, wanted * 10**6 + 10_000, 1, True, 8)
    assert sum(bits[0]) == min(8 * wanted, 8 * subspaces)


def test_the_loss_by_hand():
    # Tier 0: 10 ids that count 3, all of whose squares of 2 are lost; tier 1: 30 that count 1, of whose 4 + 1 the 1 is.
    spectrum = Spectrum(np.array([[2.0, 0.0], [4.0, 1.0]]), np.array([3.0, 1.0]), (10, 30))
    assert spectrum.lost([1], [[0], [0]]).tolist() == [2.0, 5.0]
    assert spectrum.loss(spectrum.lost([1], [[0], [0]])) == pytest.approx(1.0)
    coded = distortion(np.array([4.0]), 2, 30)
    lost = spectrum.lost([1], [[0], [2]])
    assert lost == pytest.approx([2.0, coded + 1])
    assert spectrum.loss(lost) == pytest.approx((30 * 2 + 30 * (coded + 1)) / (30 * 2 + 30 * 5))
