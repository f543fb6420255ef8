"""Training steps on another device than the CPU, on which the checkpoints and the judging stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.checks.devices import memory_for, named_device, usable_device
from mgqe.recsys.data.moving import CPU
from mgqe.recsys.tasks.base import TrainingTask


def check_device(name: str) -> torch.device:
    """The device; ValueError for one that torch does not know, or does not find here."""
    device = parse_device(name)
    try:
        torch.zeros(1, device=usable_device(device))
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name}: torch cannot use it here ({reason}): leave it out, or say cpu") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # so that no launch has to change it
    return device


def parse_device(name: str) -> torch.device:
    """The device; ValueError for a name that torch does not know."""
    try:
        return named_device(name)
    except ValueError:
        raise ValueError(f"--device {name}: expected a device of torch such as cpu, cuda or cuda:1, or auto") from None


STEP_REMEDY = (
    "Take smaller batches (--set batch_size=...) or fewer dimensions (--set dim=...), or train with --device cpu"
)
ADAM = 4  # of a parameter's bytes: itself, its gradient and two moments


def check_room(device: torch.device, models: Sequence[nn.Module], task: TrainingTask) -> None:
    """ValueError if the largest of the models, Adam's state and the task's data are more than a GPU's free memory.

    Called before training, so that it does not fail an hour later. What a step needs besides follows from the model and
    the batch, and is not counted: vectors, their gradients and the task's activations. Quantising adds two copies of
    the batch's vectors and a tenth of their bytes in codes, and no tensor of distances. :func:`moved` says if a step
    finds no room.
    """
    if device.type != "cuda":
        return
    tables = max(
        sum(ADAM * p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers()) for model in models
    )
    free, total = torch.cuda.mem_get_info(device)
    if tables + task.nbytes <= free:
        return
    raise ValueError(
        f"--device {device}: training takes {_gigabytes(tables)} for the tables, their gradients and Adam's state, and "
        f"{_gigabytes(task.nbytes)} for the data, and the activations of a step on top of that, but "
        f"{_gigabytes(free)} of the GPU's {_gigabytes(total)} are free: "
        "train with --device cpu, with fewer dimensions (--set dim=...), or on a larger GPU"
    )


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"


@contextmanager
def moved(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Have the model and its optimiser's state on the device, and on the CPU again afterwards.

    OutOfMemoryError within says what to do.
    """
    if device == CPU:
        yield
        return
    _move(model, optimizer, device)
    try:
        with memory_for("a step of training, beside the tables,", STEP_REMEDY):
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
