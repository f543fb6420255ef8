"""Rows that cannot be quantised."""

from __future__ import annotations

import math

from torch import Tensor

SWEEP_ROWS = 65_536  # rows worked on at a time in a sweep over the vocabulary


def first_bad_row(rows: Tensor, largest: float = math.inf, ignored: int | None = None) -> int | None:
    """The first of the rows (n, d), ``ignored`` apart, with a number that is not finite or larger than ``largest``."""
    for start in range(0, len(rows), SWEEP_ROWS):
        values = rows.detach()[start : start + SWEEP_ROWS]
        good = values.isfinite()
        if largest != math.inf:
            good &= values.abs() <= largest
        good = good.all(1)
        if ignored is not None and start <= ignored < start + SWEEP_ROWS:
            good[ignored - start] = True
        if not bool(good.all()):
            return start + int((~good).nonzero()[0])
    return None


def check_rows(rows: Tensor, largest: float, ignored: int | None, name: str, layer: str) -> None:
    """Raise ValueError naming the first of the rows (n, d) that cannot be quantised.

    Args:
        largest, ignored: see :func:`first_bad_row`.
        name: of the rows, and layer: what they belong to, for the message.
    """
    row = first_bad_row(rows, largest, ignored)
    if row is None:
        return
    if bool(rows.detach()[row].isfinite().all()):
        raise ValueError(
            f"row {row} of {name} holds numbers beyond {largest:g}, whose products with keys overflow float32: scale "
            'the rows down, or use quantizer="vq"'
        )
    raise ValueError(
        f"row {row} of {name} holds NaN or infinity and cannot be quantised ({layer}): the training diverged; lower "
        "the learning rate or go back to an earlier checkpoint"
    )
