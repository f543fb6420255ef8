"""Training steps on another device than the CPU, on which the data, the checkpoints and the judging stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.checks.devices import named_device, usable_device

CPU = torch.device("cpu")


def check_device(name: str) -> torch.device:
    """The device; ValueError for one that torch does not know, or does not find here."""
    device = parse_device(name)
    try:
        torch.zeros(1, device=usable_device(device))
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name}: torch cannot use it here ({reason}): leave it out, or say cpu") from None
    return device


def parse_device(name: str) -> torch.device:
    """The device; ValueError for a name that torch does not know."""
    try:
        return named_device(name)
    except ValueError:
        raise ValueError(f"--device {name}: expected a device of torch such as cpu, cuda or cuda:1, or auto") from None


@contextmanager
def moved(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Have the model and its optimiser's state on the device, and on the CPU again afterwards."""
    if device == CPU:
        yield
        return
    _move(model, optimizer, device)
    try:
        yield
    finally:
        _move(model, optimizer, CPU)


def _move(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    model.to(device)  # parameters stay the same objects, which the optimiser knows
    for state in optimizer.state.values():
        state.update({name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)})


def made_on(device: torch.device) -> AbstractContextManager[Any]:
    """In it, new tensors are made on the device."""
    return nullcontext() if device == CPU else device


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch of a task, tensors in tuples and dataclasses, on the device."""
    if device == CPU:
        return batch
    if isinstance(batch, Tensor) and device.type == "cuda":  # from memory that the copy can be made from without a wait
        return batch.pin_memory().to(device, non_blocking=True)
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple):
        return tuple(on_device(part, device) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: on_device(getattr(batch, field.name), device) for field in fields(batch)})
    return batch
