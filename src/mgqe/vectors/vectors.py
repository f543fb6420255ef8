"""Vectors: rows and, where a file has them, their ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a file holds.

    Attributes:
        rows: (N, d) floats, mapped from the file where its format lets them be.
        ids: (N,) a list or an array, or None where the file has rows alone.
        name: what they are called there, such as a tensor's name; empty where there is nothing else.
        notes: what a user is told of how they were found there.
    """

    rows: np.ndarray | Tensor
    ids: Any = None
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rows.ndim != 2:
            raise ValueError(f"expected rows of numbers (N, d), got shape {tuple(self.rows.shape)}")
        if self.ids is not None and len(self.ids) != len(self.rows):
            raise ValueError(f"{len(self.ids):,} ids and {len(self.rows):,} rows: give one id per row")


def choose(names: list[str], shapes: dict[str, tuple[int, ...]], wanted: str | None, what: str) -> str:
    """The name of the matrix to read, of several.

    Args:
        names: of the matrices, in order; shapes: of all that the file holds.
        wanted: what the user asked for, or None.
        what: what they are, such as "tensor".

    Raises ValueError that lists them where none, or no single one, is meant.
    """
    listed = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items()) or "nothing"
    if wanted is not None:
        if wanted not in shapes:
            raise ValueError(f"there is no {what} {wanted!r}: it holds {listed}")
        return wanted
    if len(names) != 1:
        problem = "several matrices" if names else "no matrix of floats"
        raise ValueError(f"it holds {problem} ({listed}): name one with tensor= (--tensor)")
    return names[0]
