"""Batches on their way to a device."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch of a task, tensors in tuples and dataclasses, on the device."""
    if device == CPU:
        return batch
    if isinstance(batch, Tensor):
        return moved(batch, device)
    if isinstance(batch, tuple):
        return tuple(on_device(part, device) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: on_device(getattr(batch, field.name), device) for field in fields(batch)})
    return batch


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; to a GPU from memory that the copy can be made from without a wait."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
