"""mgqe.ops.unique: order of first appearance, both native strategies, refused ids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe import ops
from mgqe.ops import reference

HUGE = 1 << 40  # far more ids than a mark array could hold: the native kernel hashes


def by_hand(ids):
    place, counts = {}, []
    inverse = []
    for one in ids:
        if one not in place:
            place[one] = len(place)
            counts.append(0)
        inverse.append(place[one])
        counts[place[one]] += 1
    return list(place), inverse, counts


def test_hand_worked():
    uniq, inverse, counts = ops.unique(torch.tensor([7, 3, 7, 7, 0, 3]), 8)
    assert uniq.tolist() == [7, 3, 0]
    assert inverse.tolist() == [0, 1, 0, 0, 2, 1]
    assert counts.tolist() == [3, 2, 1]
    assert {t.dtype for t in (uniq, inverse, counts)} == {torch.int64}


@pytest.mark.parametrize("num_embeddings", [50, 100_000, HUGE])
@pytest.mark.parametrize("n", [0, 1, 2, 1000, 5000])
def test_native_equals_twin(n, num_embeddings):
    ids = torch.randint(min(num_embeddings, 3000), (n,), generator=torch.manual_seed(n))
    ids = ids * (num_embeddings // 3000) if num_embeddings > 3000 else ids
    for got, expected in zip(ops.unique(ids, num_embeddings), reference.unique(ids)):
        assert torch.equal(got, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=80), st.sampled_from([61, 1000, HUGE]))
def test_agrees_with_a_dictionary(ids, num_embeddings):
    got = ops.unique(torch.tensor(ids, dtype=torch.int64), num_embeddings)
    assert tuple(t.tolist() for t in got) == by_hand(ids)


def test_ids_that_collide():
    # Multiples of 2^32 crowd the hash; the answer must not change.
    ids = (torch.arange(500) % 100) << 32
    assert ops.unique(ids, HUGE)[2].tolist() == [5] * 100


def test_any_integer_type_and_stride():
    ids = torch.tensor([[3, 9], [1, 9], [3, 9]], dtype=torch.int32)
    assert ops.unique(ids[:, 0], 10)[0].tolist() == [3, 1]


@pytest.mark.parametrize("num_embeddings", [10, 1 << 30])
@pytest.mark.parametrize("offset", [0, 1])
def test_out_of_range_names_the_first_bad_id(num_embeddings, offset):
    bad = num_embeddings if offset == 0 else -1
    ids = torch.tensor([1, 2, bad, 3, bad - 1])
    with pytest.raises(IndexError, match=rf"id {bad} is out of range \(valid ids: 0 to {num_embeddings - 1}\)"):
        ops.unique(ids, num_embeddings)


def test_table_without_rows():
    assert [t.numel() for t in ops.unique(torch.empty(0, dtype=torch.int64), 0)] == [0, 0, 0]
    with pytest.raises(IndexError, match="no rows"):
        ops.unique(torch.tensor([0]), 0)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="float32"):
        ops.unique(torch.zeros(3), 10)
    with pytest.raises(TypeError, match="bool"):
        ops.unique(torch.zeros(3, dtype=torch.bool), 10)
    with pytest.raises(TypeError, match="list"):
        ops.unique([1, 2], 10)
    with pytest.raises(ValueError, match="one axis"):
        ops.unique(torch.zeros(3, 2, dtype=torch.int64), 10)


def by_tier(native):
    """The function, or the torch that stands in for it."""
    return ops.unique_by_tier if native else lambda ids, *tiers: reference.sort_by_tier(*reference.unique(ids), *tiers)


@pytest.mark.parametrize("native", [True, False])
def test_by_tier_hand_worked(native):
    ids = torch.tensor([7, 3, 7, 0, 5, 3])
    uniq, inverse, counts, sizes = by_tier(native)(ids, (1, 4, 0, 3), None)  # tiers of ids 0 | 1 to 4 | none | 5 to 7
    assert uniq.tolist() == [0, 3, 7, 5]
    assert inverse.tolist() == [2, 1, 2, 0, 3, 1]
    assert counts.tolist() == [1, 2, 2, 1]
    assert sizes == [1, 1, 0, 2]
    tier_of = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0], dtype=torch.uint8)
    uniq, inverse, counts, sizes = by_tier(native)(ids, (6, 2), tier_of)
    assert uniq.tolist() == [7, 5, 3, 0]
    assert uniq[inverse].tolist() == ids.tolist()
    assert counts.tolist() == [2, 1, 2, 1]
    assert sizes == [2, 2]


@pytest.mark.parametrize("n", [0, 1, 5000])
@pytest.mark.parametrize("tiers", [1, 3])
def test_by_tier_native_equals_twin(n, tiers):
    made = torch.Generator().manual_seed(n + tiers)
    ids, tier_of = torch.randint(3000, (n,), generator=made), torch.randint(tiers, (3000,), generator=made)
    sizes = torch.bincount(tier_of, minlength=tiers).tolist()
    for map_ in (None, tier_of.to(torch.uint8)):
        got, expected = by_tier(True)(ids, sizes, map_), by_tier(False)(ids, sizes, map_)
        assert got[3] == expected[3]
        assert all(torch.equal(a, b) for a, b in zip(got[:3], expected[:3]))


def test_by_tier_refuses_what_unique_refuses():
    with pytest.raises(IndexError, match="id 8 is out of range"):
        ops.unique_by_tier(torch.tensor([0, 8]), (3, 5))
    with pytest.raises(TypeError, match="ids must have an integer dtype"):
        ops.unique_by_tier(torch.tensor([0.5]), (3, 5))
    with pytest.raises(ValueError, match="tier_of must be uint8"):
        ops.unique_by_tier(torch.tensor([0]), (3, 5), torch.zeros(7, dtype=torch.uint8))
