"""TensorBoard: :func:`mgqe.table_metrics` as scalars of a SummaryWriter."""

from __future__ import annotations

from typing import Any

from torch import nn

from mgqe.nn.monitor import table_metrics


def add_table_metrics(writer: Any, model: nn.Module, step: int, *, usage: bool = False) -> None:
    """Write :func:`mgqe.table_metrics` of a step.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar(name, value, step)``.
        model, usage: as for :func:`mgqe.table_metrics`.
        step: of the optimiser.
    """
    for name, value in table_metrics(model, usage=usage).items():
        writer.add_scalar(name, value, step)
