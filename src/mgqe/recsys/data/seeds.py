"""Derives a seed for each use of random numbers in a run, so that no two uses share them."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *use: str | int) -> int:
    """A 63-bit seed that `seed` and the name of the use, such as ("train", 3), determine."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
