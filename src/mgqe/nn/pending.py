"""PendingLosses: the quantisation losses of training passes, each to be counted in the step of its own pass, once."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PENDING_LOSSES = 1024  # of one layer; each holds the graph of its pass in memory


class Clock:
    """Numbers the training passes of all layers, so that it can be said which came after a reading."""

    def __init__(self) -> None:
        self.now = 0

    def tick(self) -> int:
        """The number of a pass that begins."""
        self.now += 1
        return self.now


CLOCK = Clock()


@dataclass(eq=False)
class PendingLoss:
    """A loss, with what has become of it.

    Attributes:
        loss: a scalar with its graph.
        pass_number: of the pass that it comes from.
        read_at: the clock when it was last read; None if it has not been.
        counted: whether a backward pass has gone through it.
    """

    loss: Tensor
    pass_number: int
    read_at: int | None = None
    counted: bool = False


class PendingLosses:
    """The losses of one layer, from the passes that made them to the backward pass that counts them.

    A loss leaves when a backward pass has gone through it, when it was read and a further pass has begun since, or
    when the layer says that its step is over (:meth:`clear`, :meth:`end_step`).

    Attributes:
        latest_pass: the number of the layer's latest training pass.
        ended_pass: the number of the layer's last training pass of the step before: what other layers of the model did
            up to that pass belongs to that step or an earlier one.
        in_graph: losses of passes within :func:`mgqe.one_graph`, until they are read there.
    """

    def __init__(self) -> None:
        self.latest_pass = self.ended_pass = 0
        self._losses: list[PendingLoss] = []
        self.in_graph: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._losses)

    def begin_pass(self) -> None:
        """A training pass of the layer begins."""
        self.latest_pass = CLOCK.tick()
        self._drop_counted(self.latest_pass)

    def clear(self) -> None:
        """The step is over."""
        self._losses.clear()

    def end_step(self) -> None:
        """The step is over, and a pass of the next one begins."""
        self.clear()
        self.ended_pass = self.latest_pass

    def add(self, loss: Tensor) -> None:
        """The loss of the pass that has begun; warns and starts again where a loop never reads any."""
        if len(self._losses) >= MAX_PENDING_LOSSES:
            warnings.warn(
                f"{MAX_PENDING_LOSSES:,} training passes of a layer went by without an optimiser's step and without "
                "mgqe.quantization_loss(model), and their losses are dropped: add it to the task's loss, or look "
                "vectors up under torch.no_grad() or after model.eval() where nothing is trained",
                RuntimeWarning,
                stacklevel=2,
            )
            self._losses.clear()
        if not loss.requires_grad:  # frozen parameters: nothing to count, the latest value is there to be read
            self._losses = [entry for entry in self._losses if entry.loss.requires_grad]
        # A node of its own: a hook on one of a function's outputs is also called for the others' backward passes.
        entry = PendingLoss(loss.view_as(loss), self.latest_pass)
        if loss.requires_grad:
            hook = _counter(weakref.ref(entry))  # weak, since the entry holds the graph that holds the hook
            entry.loss.register_hook(hook)  # type: ignore[no-untyped-call]
        self._losses.append(entry)

    def read(self, latest_pass: int | None = None, ended_pass: int = 0) -> Tensor | None:
        """The sum of the losses that wait, None if there are none; this sum again until a further pass begins.

        Without gradients, as for a log, nothing counts as read.

        Args:
            latest_pass: of all layers that are read together; default: of this one alone.
            ended_pass: the latest of all layers that are read together.
        """
        self._losses = [entry for entry in self._losses if entry.pass_number > ended_pass]
        self._drop_counted(self.latest_pass if latest_pass is None else latest_pass)
        if torch.is_grad_enabled():
            for entry in self._losses:
                entry.read_at = CLOCK.now
        if len(self._losses) == 1:
            return self._losses[0].loss
        return torch.stack([entry.loss for entry in self._losses]).sum() if self._losses else None

    def __reduce__(self) -> tuple[type[PendingLosses], tuple[()]]:
        """For copies: without the losses, which hang on the graphs of their passes."""
        return PendingLosses, ()

    def _drop_counted(self, latest_pass: int) -> None:
        self._losses = [
            entry
            for entry in self._losses
            if not entry.counted and (entry.read_at is None or entry.read_at >= latest_pass)
        ]


def _counter(reference: weakref.ref[PendingLoss]) -> Callable[[Tensor], None]:
    def count(_: Tensor) -> None:
        entry = reference()
        if entry is not None:
            entry.counted = True

    return count
