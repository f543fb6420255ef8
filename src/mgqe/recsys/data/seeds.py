"""One seed for a run -> a seed for each of its uses, so that no two of them share random numbers."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *use: str | int) -> int:
    """A 63-bit seed fixed by `seed` and the name of its use, such as ("train", 3)."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
