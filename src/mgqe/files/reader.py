"""Reads the tensors and the configuration of a file: each is checked, and none may be left over."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.names import brief

Config = dict[str, Any]

_DIGITS = re.compile("[0-9a-f]{16}")
MAX_ROWS = 2**48
MAX_DIM = 2**31 - 1


class Reader:
    """Hands out a file's tensors and configuration entries one by one, each checked.

    Every method raises ValueError with the name, what was expected and what the file has. :meth:`finish` raises it for
    tensors and entries that were not read, since an unknown one may change what the others mean.
    """

    def __init__(self, tensors: dict[str, Tensor], config: Config) -> None:
        if not isinstance(config, dict):
            raise ValueError(f"config must be an object, got {type(config).__name__}")
        self._tensors: dict[str, Tensor] = dict(tensors)
        self._config: Config = dict(config)
        self._device: torch.device | None = None

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this name, for optional ones."""
        return name in self._tensors

    def has(self, name: str) -> bool:
        """Whether there is a configuration entry of this name, for optional ones."""
        return name in self._config

    def value(self, name: str) -> Any:
        """A configuration entry of any type."""
        if name not in self._config:
            raise ValueError(f"config has no entry {name!r}")
        return self._config.pop(name)

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return _integer(self.value(name), f"config entry {name!r}", low, high)

    def hexadecimal(self, name: str) -> str:
        """The 16 hexadecimal digits of a checksum, or of the name of a set of files."""
        value = self.value(name)
        if not isinstance(value, str) or not _DIGITS.fullmatch(value):
            raise ValueError(f"config entry {name!r} must be 16 hexadecimal digits, got {brief(value)}")
        return value

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in [low, high], or null."""
        value = self.value(name)
        return None if value is None else _integer(value, f"config entry {name!r}", low, high)

    def integers(self, name: str, low: int, high: int, length: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers in [low, high]."""
        values = self.value(name)
        if not isinstance(values, list):
            raise ValueError(f"config entry {name!r} must be a list, got {brief(values)}")
        if length is not None and len(values) != length:
            raise ValueError(f"config entry {name!r} must have {length} entries, got {len(values)}")
        return tuple(_integer(v, f"config entry {name!r}[{i}]", low, high) for i, v in enumerate(values))

    def choice(self, name: str, choices: Collection[str]) -> str:
        """One of a few words."""
        value = self.value(name)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"config entry {name!r} must be one of {sorted(choices)}, got {brief(value)}")
        return value

    def optional_choice(self, name: str, choices: Collection[str]) -> str | None:
        """One of a few words, or null."""
        if self._config.get(name, 0) is None:
            return self.value(name)  # type: ignore[no-any-return]
        return self.choice(name, choices)

    def tensor(self, name: str, dtype: torch.dtype | tuple[torch.dtype, ...], shape: tuple[int | None, ...]) -> Tensor:
        """A tensor of this type, or of one of these types, and of this shape; None is any size of 1 or more."""
        if name not in self._tensors:
            raise ValueError(f"tensor {name!r} is missing")
        tensor: object = self._tensors.pop(name)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            actual = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"tensor {name!r} must be a dense torch.Tensor, got {actual}")
        self._check_device(name, tensor.device)
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
        if tensor.dtype not in dtypes:
            raise ValueError(f"tensor {name!r} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
        actual_shape = tuple(tensor.shape)
        fits = len(actual_shape) == len(shape) and all(
            size >= 1 if expected is None else size == expected
            for size, expected in zip(actual_shape, shape, strict=True)
        )
        if not fits:
            expected_shape = str(shape).replace("None", "any")
            raise ValueError(f"tensor {name!r} must have shape {expected_shape}, got {actual_shape}")
        return tensor

    def _check_device(self, name: str, device: torch.device) -> None:
        """ValueError unless the tensor is on the device of the first one, where the kernels read all of them."""
        self._device = self._device or device
        if device != self._device:
            raise ValueError(
                f"tensor {name!r} is on {device}, the table's other tensors on {self._device}: move all to one device"
            )

    def finish(self) -> None:
        """Raise ValueError for tensors and configuration entries that were not read."""
        if self._tensors:
            raise ValueError(f"unexpected tensors {sorted(self._tensors)[:5]}")
        if self._config:
            raise ValueError(f"unexpected config entries {sorted(map(str, self._config))[:5]}")


def require_finite(name: str, values: Tensor) -> None:
    """Raise ValueError if a float tensor holds NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"tensor {name!r} holds NaN or infinity")


def _integer(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number in {low} .. {high}, got {brief(value)}")
    return value
