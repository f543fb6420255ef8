"""`budget=` of the layers: which arguments it stands for, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgqe.checks.scalars import is_sequence

# What a budget chooses, with the defaults of MGQEmbedding and CompressConfig, which stand for "not given".
CHOSEN: dict[str, Any] = {
    "fractions": (0.1, 0.9),
    "num_subspaces": None,
    "num_centroids": None,
    "capacity": "centroids",
    "share_codebook": True,
    "share_subspaces": False,
    "centroid_dtype": "float32",
}


def check_left_to_budget(given: Mapping[str, Any]) -> None:
    """ValueError if any of ``given`` (argument -> value) is not at its default though a budget chooses it."""
    set_too = [name for name, value in given.items() if name in CHOSEN and _plain(value) != CHOSEN[name]]
    if set_too:
        raise ValueError(
            f"budget= chooses {', '.join(set_too)}: leave {'it' if len(set_too) == 1 else 'them'} out, "
            "or leave budget= out"
        )


def _plain(value: Any) -> Any:
    return tuple(value) if is_sequence(value) else value
