"""Numbers of Python, NumPy or torch as plain Python numbers, which files, copies and compilers take."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import SymInt, Tensor

from mgqe.checks.names import brief


def as_int(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number as a plain int: an int, a NumPy integer, or an array or tensor of integers without an axis.

    Args:
        name: the argument's name, for the message.
        least, most: the range, both included.

    Raises:
        TypeError: something else, bools and floats included. ValueError: out of range.
    """
    # A SymInt is a size that torch.compile keeps variable: reading its value would make it a constant.
    number: Any = value if type(value) is int or isinstance(value, SymInt) else _index(name, value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} must be a whole number{_range(least, most)}, got {number}")
    return number  # type: ignore[no-any-return]


def optional_int(name: str, value: Any, least: int | None = None, most: int | None = None) -> int | None:
    """:func:`as_int`, or None as it is."""
    return None if value is None else as_int(name, value, least, most)


def as_ints(name: str, values: Any, least: int | None = None, most: int | None = None) -> tuple[int, ...]:
    """A list, a tuple, or an array or tensor of one axis, as plain ints; errors as those of :func:`as_int`."""
    if not is_sequence(values):
        raise TypeError(f"{name} must be a sequence of whole numbers, got {brief(values)} ({type(values).__name__})")
    return tuple(as_int(f"{name}[{i}]", value, least, most) for i, value in enumerate(values))


def as_float(name: str, value: Any) -> float:
    """A number as a plain float: Python's, NumPy's, or an array or tensor of numbers without an axis.

    Raises TypeError for something else, bools and strings included.
    """
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {brief(value)} ({type(value).__name__})")
    return float(value)


def optional_float(name: str, value: Any) -> float | None:
    """:func:`as_float`, or None as it is."""
    return None if value is None else as_float(name, value)


def as_floats(name: str, values: Any) -> tuple[float, ...]:
    """A list, a tuple, or an array or tensor of one axis, as plain floats; errors as those of :func:`as_float`."""
    if not is_sequence(values):
        raise TypeError(f"{name} must be a sequence of numbers, got {brief(values)} ({type(values).__name__})")
    return tuple(as_float(f"{name}[{i}]", value) for i, value in enumerate(values))


def is_sequence(value: Any) -> bool:
    """Whether this is a list, a tuple, or an array or tensor of one axis, and not a string."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _index(name: str, value: Any) -> int:
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    if not is_bool and getattr(value, "ndim", 0) == 0:
        try:
            return operator.index(value)
        except (TypeError, RuntimeError):  # RuntimeError: a tensor on the meta device, which has no value
            pass
    raise TypeError(f"{name} must be a whole number, got {brief(value)} ({type(value).__name__}): give an int")


def _range(least: int | None, most: int | None) -> str:
    if most is None:
        return f" of {least} or more"
    return f" of at most {most:,}" if least is None else f" from {least} to {most:,}"
