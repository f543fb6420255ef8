"""Negative samples are never items that the user has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe.recsys.data.sampling import SeenItems, evaluation_negatives, sample_negatives

PAIRS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 18)), min_size=1, max_size=80)


def seen_of(pairs: set[tuple[int, int]], limit: int = 2**20, num_items: int = 19) -> SeenItems:
    users, items = torch.tensor(sorted(pairs)).reshape(-1, 2).T
    return SeenItems(users, items, 6, num_items, limit)


@settings(deadline=None)
@given(PAIRS, st.sampled_from([0, 2**20]))
def test_has(pairs: set[tuple[int, int]], limit: int) -> None:
    seen = seen_of(pairs, limit)
    users, items = torch.cartesian_prod(torch.arange(6), torch.arange(19)).T
    assert seen.has(users, items).tolist() == [pair in pairs for pair in zip(users.tolist(), items.tolist())]
    assert seen.counts.tolist() == [sum(user == u for u, _ in pairs) for user in range(6)]
    for user in range(6):
        assert seen.unseen(user).tolist() == [item for item in range(19) if (user, item) not in pairs]


@settings(deadline=None)
@given(PAIRS, st.sampled_from([0, 2**20]), st.integers(0, 3))
def test_samples_are_never_seen(pairs: set[tuple[int, int]], limit: int, seed: int) -> None:
    seen = seen_of(pairs, limit)
    users = torch.tensor([user for user in range(6) if seen.counts[user] < 19] * 3, dtype=torch.int64)
    drawn = sample_negatives(users, seen, 4, torch.Generator().manual_seed(seed))
    assert drawn.shape == (len(users), 4)
    assert not seen.has(users[:, None], drawn).any()
    few = torch.tensor([user for user in range(6) if seen.counts[user] <= 14], dtype=torch.int64)
    drawn = evaluation_negatives(few, seen, 5, seed)
    assert not seen.has(few[:, None], drawn).any()
    assert (drawn.diff(dim=1) > 0).all()
    assert torch.equal(drawn, evaluation_negatives(few, seen, 5, seed))


def test_a_user_with_nearly_everything() -> None:
    seen = seen_of({(0, item) for item in range(1999)}, num_items=2000)
    users = torch.zeros(50, dtype=torch.int64)
    drawn = sample_negatives(users, seen, 4, torch.Generator().manual_seed(0))
    assert (drawn == 1999).all()
    seen = seen_of({(0, item) for item in range(1900)}, num_items=2000)
    assert evaluation_negatives(users[:1], seen, 100, 0).tolist() == [list(range(1900, 2000))]


def test_a_user_with_everything_is_an_error() -> None:
    seen = seen_of({(2, item) for item in range(19)})
    with pytest.raises(ValueError, match="user row 2 lacks only 0 of 19 items: expected at least 1"):
        sample_negatives(torch.tensor([1, 2]), seen, 4, torch.Generator())
    with pytest.raises(ValueError, match="expected at least 99"):
        evaluation_negatives(torch.tensor([1]), seen, 99, 0)


def test_samples_are_uniform() -> None:
    seen = seen_of({(0, 0), (0, 1)}, num_items=12)
    drawn = sample_negatives(torch.zeros(50_000, dtype=torch.int64), seen, 4, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=12) / drawn.numel()
    assert shares[:2].tolist() == [0, 0]
    assert torch.allclose(shares[2:], torch.tensor(0.1), atol=0.004)


def test_empty_batch() -> None:
    seen = seen_of({(0, 0)})
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_negatives(none, seen, 4, torch.Generator()).shape == (0, 4)
    assert evaluation_negatives(none, seen, 9, 0).shape == (0, 9)
