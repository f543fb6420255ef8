"""Capacity: the paper's two ways to vary it, and what does not fit."""

from __future__ import annotations

import pytest

from mgqe.codec.capacity import Capacity, resolve_capacity


def resolve(embedding_dim=64, tier_sizes=(1000, 9000), **arguments):
    defaults = {
        "num_subspaces": None,
        "num_centroids": None,
        "capacity": "centroids",
        "share_codebook": True,
        "share_subspaces": False,
    }
    return resolve_capacity(embedding_dim, tier_sizes, **{**defaults, **arguments})


def test_defaults_are_the_papers():
    capacity = resolve()
    assert capacity.num_centroids == (256, 64)
    assert len(set(capacity.num_subspaces)) == 1
    assert capacity.codebook_of == (0, 0)


def test_defaults_are_cut_to_what_a_small_tier_can_use():
    assert resolve(tier_sizes=(100, 40)).num_centroids == (64, 32)


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ({"num_subspaces": 8}, ((8, 256, 8),)),
        ({"num_subspaces": 8, "share_codebook": False}, ((8, 256, 8), (8, 64, 8))),
        ({"num_subspaces": 8, "share_subspaces": True}, ((1, 256, 8),)),
        ({"num_subspaces": (8, 4), "capacity": "subspaces"}, ((8, 256, 8),)),
        ({"num_subspaces": (8, 4), "capacity": "subspaces", "share_codebook": False}, ((8, 256, 8), (4, 256, 16))),
        ({"num_subspaces": (8, 4), "num_centroids": (64, 16), "capacity": "both"}, ((8, 64, 8),)),
        (
            {"num_subspaces": (8, 2), "num_centroids": (64, 512), "capacity": "both", "share_codebook": False},
            ((8, 64, 8), (2, 512, 32)),
        ),
        ({"num_subspaces": 8, "share_subspaces": True, "share_codebook": False}, ((1, 256, 8), (1, 64, 8))),
    ],
)
def test_shapes_of_codebooks(arguments, shapes):
    assert resolve(**arguments).codebook_shapes == shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_subspaces": 7}, "not divisible into num_subspaces=7"),
        ({"num_subspaces": 0}, "not divisible"),
        ({"num_centroids": 1}, "from 2 to 65536, got 1"),
        ({"num_centroids": 65_537, "tier_sizes": (10**6, 10**6)}, "from 2 to 65536, got 65537"),
        ({"num_centroids": (1001, 64)}, "tier 0 has 1000 ids and cannot use num_centroids=1001"),
        ({"num_centroids": (256, 64, 16)}, "3 entries, but there are 2 tiers"),
        ({"num_subspaces": (8, 4)}, 'use capacity="subspaces"'),
        ({"num_centroids": (256, 64), "capacity": "subspaces"}, 'use capacity="centroids"'),
        ({"num_subspaces": (64, 48), "capacity": "subspaces", "embedding_dim": 192}, "must divide the largest"),
        ({"num_subspaces": (8, 4), "capacity": "subspaces", "share_subspaces": True}, "share_codebook=False"),
        ({"capacity": "bits"}, "capacity must be"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1"),
    ],
)
def test_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve(**arguments)


def test_both_by_default_halves_the_tails_subspaces_and_quarters_its_centroids():
    capacity = resolve(capacity="both")
    assert capacity.num_subspaces == (32, 16)
    assert capacity.num_centroids == (256, 64)


def test_whole_numbers_only():
    with pytest.raises(TypeError, match="whole number"):
        resolve(num_centroids=256.0)


def test_tiers_and_entries_must_agree():
    with pytest.raises(ValueError, match="one entry per tier"):
        Capacity.of(64, (10, 90), (8, 8), (256,))
