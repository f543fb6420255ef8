"""A hash of ids that is the same on every machine and under every version."""

from __future__ import annotations

from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def bucket_of(ids: Tensor, num_buckets: int, seed: int, which: int | Tensor) -> Tensor:
    """Hash number ``which`` of ids: int64 (...) -> int64 (...) in [0, num_buckets).

    SplitMix64's mixing of ``id + (which + 1) * gamma + (seed << 32)``, its top 63 bits modulo num_buckets. All in
    arithmetic modulo 2**64, which int64 does; only right shifts need care, to be logical. ``which`` may be a tensor
    that broadcasts with ids.
    """
    if isinstance(which, Tensor):
        x = ids + ((which + 1) * _signed(GOLDEN_GAMMA) + _signed(seed << 32))
    else:
        x = ids + _signed((which + 1) * GOLDEN_GAMMA + (seed << 32))
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 1) % num_buckets


def _shift_right(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
