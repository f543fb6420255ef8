"""Tiers and tier maps: hand-worked cuts and bit vectors, properties, refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe.codec.tier_map import build_tier_map, peel_order, unpack_bits
from mgqe.codec.tiers import Tiers
from mgqe.ops.layout.packed_format import level_lengths
from mgqe.ops.reference import popcount


def test_ties_break_by_id():
    tiers = Tiers.from_counts([1, 5, 1, 1, 9, 1, 1, 1, 1, 1], fractions=(0.3, 0.7))
    assert tiers.sizes == (3, 7)
    assert tiers.members(0).tolist() == [0, 1, 4]  # 9, 5, then the first of the ones
    assert tiers.tier_of.tolist() == [0, 0, 1, 1, 0, 1, 1, 1, 1, 1]


def test_flat_tail_does_not_flood_the_head():
    assert Tiers.from_counts(torch.ones(1000)).sizes == (100, 900)


def test_frequency_order_drops_the_assignment():
    assert Tiers.from_counts([9, 8, 7, 7, 7, 0, 0, 0, 0, 0]).tier_of is None
    assert Tiers.from_assignment([0, 0, 1, 2]).tier_of is None
    assert Tiers.from_assignment([0, 1, 0, 2]).tier_of is not None


@pytest.mark.parametrize(
    ("n", "fractions", "sizes"),
    [
        (10, (0.1, 0.9), (1, 9)),
        (15, (0.1, 0.9), (2, 13)),
        (4, (0.1, 0.9), (1, 3)),
        (1, (0.1, 0.9), (1, 0)),
        (0, (0.1, 0.9), (0, 0)),
        (10, (1.0,), (10,)),
        (10, (0.1, 0.2, 0.7), (1, 2, 7)),
        (3, (0.98, 0.01, 0.01), (1, 1, 1)),
        (2, (0.2, 0.2, 0.6), (1, 1, 0)),
    ],
)
def test_fractions(n, fractions, sizes):
    assert Tiers.from_fractions(n, fractions).sizes == sizes


def test_boundaries():
    counts = torch.arange(10, 0, -1)
    assert Tiers.from_counts(counts, boundaries=(2, 5)).sizes == (2, 3, 5)
    assert Tiers.from_counts(counts, boundaries=(2, 5, 10)).sizes == (2, 3, 5)
    assert Tiers.from_counts(counts, boundaries=()).sizes == (10,)


def test_starts():
    assert Tiers.from_sizes((2, 0, 3)).starts == (0, 2, 2, 5)


@pytest.mark.parametrize(
    "counts", [[3, 1, 2], np.array([3, 1, 2], dtype=np.uint16), torch.tensor([3.5, 0.25, 1.0], dtype=torch.bfloat16)]
)
def test_counts_of_any_kind(counts):
    assert Tiers.from_counts(counts, boundaries=(2,)).members(0).tolist() == [0, 2]


def test_large_integer_counts_keep_their_order():
    assert Tiers.from_counts([2**53, 2**53 + 1], boundaries=(1,)).members(0).tolist() == [1]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Tiers.from_counts([1, 2], num_embeddings=3), ValueError, "2 entries, but num_embeddings is 3"),
        (lambda: Tiers.from_counts([1, -2, 3]), ValueError, r"counts\[1\] is -2"),
        (lambda: Tiers.from_counts([0, 0]), ValueError, "all zero"),
        (lambda: Tiers.from_counts([1.0, float("nan")]), ValueError, "finite"),
        (lambda: Tiers.from_counts([1.0, float("inf")]), ValueError, "finite"),
        (lambda: Tiers.from_counts([[1, 2]]), ValueError, "shape"),
        (lambda: Tiers.from_counts(["a"]), TypeError, "number"),
        (lambda: Tiers.from_counts([True, False]), TypeError, "bool"),
        (lambda: Tiers.from_counts([1, 2], fractions=(0.5, 0.4)), ValueError, "sum to 1"),
        (lambda: Tiers.from_counts([1, 2], fractions=(1.5, -0.5)), ValueError, "positive"),
        (lambda: Tiers.from_counts([1, 2], fractions=()), ValueError, "fractions"),
        (lambda: Tiers.from_counts([1, 2, 3], boundaries=(2, 1)), ValueError, "increase"),
        (lambda: Tiers.from_counts([1, 2, 3], boundaries=(0,)), ValueError, "increase"),
        (lambda: Tiers.from_counts([1, 2, 3], boundaries=(4,)), ValueError, "increase"),
        (lambda: Tiers.from_fractions(-1), ValueError, "negative"),
        (lambda: Tiers.from_sizes(()), ValueError, "tiers"),
        (lambda: Tiers.from_sizes((1, -1)), ValueError, "negative"),
        (lambda: Tiers.from_assignment([0, 3], num_tiers=2), ValueError, "0 .. 1"),
        (lambda: Tiers.from_assignment([0, -1]), ValueError, "tiers must be"),
        (lambda: Tiers.from_assignment([0.5, 1]), ValueError, "integer"),
        (lambda: Tiers((2, 1), torch.tensor([0, 1, 1], dtype=torch.uint8)), ValueError, "sizes say"),
        (lambda: Tiers((2, 1), torch.tensor([0, 1], dtype=torch.uint8)), ValueError, "shape"),
        (lambda: Tiers((2, 1), torch.tensor([0, 1, 0])), TypeError, "uint8"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("tiers", [Tiers.from_sizes((2, 3)), Tiers.from_assignment([1, 0, 1, 1, 0])])
def test_ids_are_checked(tiers):
    for bad in (-1, 5):
        with pytest.raises(IndexError, match=f"id {bad} is out of range: valid ids are 0 to 4"):
            tiers.of(torch.tensor([0, bad]))
    with pytest.raises(TypeError, match="integer"):
        tiers.of(torch.tensor([0.0]))
    with pytest.raises(IndexError, match="tier 2"):
        tiers.members(2)
    assert tiers.of(torch.tensor([], dtype=torch.int32)).shape == (0,)
    assert tiers.of(torch.zeros(2, 3, dtype=torch.uint8)).shape == (2, 3)


def test_equality_copies():
    tiers = Tiers.from_assignment([1, 0, 1])
    assert tiers == copy.deepcopy(tiers) == pickle.loads(pickle.dumps(tiers))
    assert tiers != Tiers.from_assignment([1, 1, 0])
    assert tiers != Tiers.from_sizes((1, 2))
    assert Tiers.from_sizes((1, 2)) == Tiers.from_sizes([1, 2])


def test_map_by_hand():
    # Tier 1 is the largest, then 0, then 2. Level 0: is it tier 1? Level 1, over ids 0, 3, 5: is it tier 0?
    tiers = Tiers.from_assignment([0, 1, 1, 2, 1, 0, 1])
    found = build_tier_map(tiers)
    assert found.order == (1, 0, 2) == peel_order(tiers.sizes)
    assert level_lengths(tiers.sizes, found.order) == (7, 3)
    assert [t.tolist() for t in found.bits] == [[0b1010110, 0, 0, 0], [0b101, 0, 0, 0]]
    assert [t.tolist() for t in found.ranks] == [[0], [0]]
    tier, rank = found.locate(torch.arange(7))
    assert tier.tolist() == [0, 1, 1, 2, 1, 0, 1]
    assert rank.tolist() == [0, 0, 1, 0, 2, 1, 3]


def test_equal_sizes_peel_the_higher_tier_first():
    assert peel_order((2, 3, 3, 2)) == (2, 1, 3, 0)


def test_ranks_count_ones_before_each_block():
    tier_of = torch.ones(600, dtype=torch.uint8)
    tier_of[[3, 255, 256, 599]] = 0
    ranks = build_tier_map(Tiers.from_assignment(tier_of)).ranks
    assert ranks[0].dtype == torch.int32
    assert ranks[0].tolist() == [0, 254, 254 + 255]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(0, 900), st.integers(0, 2**31))
def test_map_agrees_with_tiers(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    skew = torch.rand(m, generator=generator).cumsum(0)
    tier_of = torch.bucketize(torch.rand(n, generator=generator) * skew[-1], skew).clamp(max=m - 1)
    tiers = Tiers.from_assignment(tier_of, num_tiers=m)
    ids = torch.arange(n)
    tier, rank = tiers.locate(ids)
    assert torch.equal(tier, tier_of.to(torch.uint8))
    for g in range(m):
        assert torch.equal(rank[tiers.members(g)], torch.arange(tiers.sizes[g]))
    found = build_tier_map(tiers)
    for got, expected in zip(found.locate(ids), (tier, rank), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9))
def test_popcount(words):
    assert popcount(torch.tensor(words, dtype=torch.int64)).tolist() == [(w % 2**64).bit_count() for w in words]


@given(st.integers(0, 700), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_unpack_bits_inverts(n, seed):
    tier_of = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed))
    words = build_tier_map(Tiers.from_assignment(tier_of, num_tiers=2))
    target = words.order[0]
    assert torch.equal(unpack_bits(words.bits[0], n), tier_of == target)


@pytest.mark.parametrize(
    ("fractions", "bits_an_id"), [((0.1, 0.9), 1.125), ((0.05, 0.15, 0.8), 1.35), ((0.1, 0.3, 0.6), 1.575)]
)
def test_map_size(fractions, bits_an_id):
    n = 102_400
    counts = torch.randperm(n, generator=torch.Generator().manual_seed(1)) + 1
    nbytes = build_tier_map(Tiers.from_counts(counts, fractions)).nbytes
    assert 8 * nbytes / n == pytest.approx(bits_an_id, abs=0.01)


def test_repr_is_plain():
    assert repr(Tiers.from_sizes((1, 2))) == "Tiers(sizes=(1, 2), ids in frequency order)"
