"""A callback for Lightning: the end of the warm-up, numbers for the loggers, and freezing when training is over."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from mgqe.checks.scalars import as_float
from mgqe.convert.freeze import freeze_
from mgqe.nn.codebook_layer import CodebookLayer
from mgqe.nn.model import start_quantizing
from mgqe.nn.monitor import table_metrics
from mgqe.table.base import FrozenTable

NEVER = sys.maxsize


class QuantizedTables(Callback):  # type: ignore[misc]
    """Starts quantising, logs :func:`mgqe.table_metrics`, and freezes the module when ``fit`` ends.

    The module's ``training_step`` adds ``mgqe.quantization_loss(self)`` to its loss, which a callback cannot do.

    Args:
        start: the share of all steps after which tables are quantised, 0 to 1, in place of the layers' own
            ``warmup_steps``; None leaves those.
        every: steps between two logs; None for the trainer's ``log_every_n_steps``. Codebook usage is logged at the
            end of each epoch.
        freeze: whether to call :func:`mgqe.freeze_` when ``fit`` has ended, after the last checkpoint is written. False
            where ``trainer.test(ckpt_path=...)`` follows, since checkpoints hold the tables as they trained.

    Attributes:
        tables: the frozen tables by their paths; empty before.
    """

    def __init__(self, start: float | None = None, *, every: int | None = None, freeze: bool = True) -> None:
        super().__init__()
        self.start = None if start is None else as_float("start", start)
        if self.start is not None and not 0 <= self.start <= 1:
            raise ValueError(f"start must be a share of all steps, 0 to 1, got {start}")
        self.every, self.freeze = every, freeze
        self.tables: dict[str, FrozenTable] = {}
        self._start_step: float | None = None
        self._logged = -1  # the last step, which several batches have where gradients accumulate

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Find the step at which quantising starts."""
        if self.start is None:
            return
        self._start_step = self.start * trainer.estimated_stepping_batches  # infinite where training has no end
        if self._start_step == float("inf"):
            raise ValueError("start is a share of all steps: give the Trainer max_epochs or max_steps, or leave it out")
        for layer in pl_module.modules():
            if isinstance(layer, CodebookLayer):
                layer.warmup_steps = NEVER

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Start quantising when the step has come."""
        if self._start_step is not None and trainer.global_step >= self._start_step:
            start_quantizing(pl_module)

    def on_before_backward(self, trainer: Any, pl_module: nn.Module, loss: Any) -> None:
        """Log losses, which are there until the backward pass."""
        step = trainer.global_step
        if step != self._logged and step % (self.every or trainer.log_every_n_steps) == 0:
            self._logged = step
            self._log(trainer, pl_module, usage=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Log how much of the codebooks is in use."""
        self._log(trainer, pl_module, usage=True)

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Freeze."""
        if self.freeze:
            self.tables = freeze_(pl_module)

    def _log(self, trainer: Any, pl_module: nn.Module, usage: bool) -> None:
        if trainer.loggers and trainer.is_global_zero:
            metrics = table_metrics(pl_module, usage=usage)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
