"""What a user may write as a budget -> bytes."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

EXPECTED = 'a budget is "5%", a share such as 0.05, or a whole number of bytes such as 200_000'
NO_LIMIT = 2**62  # bytes, of a table of any size


def budget_bytes(budget: object, full_nbytes: int) -> int:
    """A budget in bytes, for what takes ``full_nbytes`` uncompressed.

    Args:
        budget: "5%" or 0.05: that share of ``full_nbytes``, rounded down; a whole number of 1 or more (or a string of
            digits): bytes.

    Raises:
        TypeError: something else. ValueError: no such share or number, or no less than ``full_nbytes``.
    """
    wanted = _bytes(budget, full_nbytes)
    if wanted < 1:
        raise ValueError(f"budget={budget!r} is {wanted} bytes of {full_nbytes:,}: {EXPECTED}")
    if wanted >= full_nbytes:
        raise ValueError(
            f"budget={budget!r} is {wanted:,} bytes, but uncompressed it takes {full_nbytes:,}: "
            "give less, or leave it uncompressed"
        )
    return wanted


def check_budget(budget: object, name: str = "budget=") -> None:
    """Refuse what is no budget of any table, before there is one.

    Args:
        name: of the argument or option, as messages have it before the value.

    Raises:
        TypeError: neither text nor a number. ValueError: neither a share between nothing and all nor a whole number of
            bytes.
    """
    try:
        budget_bytes(budget, NO_LIMIT)
    except ValueError:
        raise ValueError(f"{name}{budget}: {EXPECTED}, more than nothing and less than all") from None


def too_small(budget: int, num_embeddings: int, embedding_dim: int, least: int, full_nbytes: int) -> ValueError:
    """The error of a budget that no table of this size fits."""
    return ValueError(
        f"a budget of {budget:,} bytes is too small for {num_embeddings:,} ids x {embedding_dim}: the least is "
        f"{least:,} bytes ({100 * least / full_nbytes:.2f}% of {full_nbytes:,}), header included"
    )


def too_small_for_all(wanted: object, budget: int, sizes: Sequence[int], least: int) -> ValueError:
    """The error of a budget, as it was given and in bytes, that tables of these bytes do not fit together."""
    return ValueError(
        f"budget={wanted!r} is {budget:,} bytes, too few for {len(sizes)} tables of {sum(sizes):,}: the "
        f"least is {least:,} bytes ({100 * least / sum(sizes):.2f}%)"
    )


def plain_budget(budget: Any) -> Any:
    """A NumPy number, or an array or tensor of one without an axis, as a plain number; all else as it is."""
    if isinstance(budget, (np.generic, np.ndarray, Tensor)) and budget.ndim == 0:
        return budget.item()
    return budget


def _bytes(budget: object, full_nbytes: int) -> int:
    budget = plain_budget(budget)
    if isinstance(budget, str):
        return _of_text(budget, full_nbytes)
    if isinstance(budget, bool):
        raise TypeError(f"got budget={budget!r}: {EXPECTED}")
    if isinstance(budget, numbers.Integral):
        return int(budget)
    if isinstance(budget, numbers.Real):
        share = float(budget)
        if not 0 < share < 1:
            raise ValueError(f"budget={budget!r} is no share, which lies between 0 and 1: {EXPECTED}")
        return int(share * full_nbytes)
    raise TypeError(f"got budget={budget!r} ({type(budget).__name__}): {EXPECTED}")


def _of_text(text: str, full_nbytes: int) -> int:
    bare = text.strip()
    number = bare.removesuffix("%").strip().replace("_", "")
    try:
        if not bare.endswith("%"):
            return int(number) if number.isdigit() else _bytes(float(number), full_nbytes)
        percent = float(number)
    except ValueError:
        raise ValueError(f"got budget={text!r}: {EXPECTED}") from None
    if not 0 < percent < 100:
        raise ValueError(f"budget={text!r} must be between 0% and 100%")
    return int(percent * full_nbytes / 100)
