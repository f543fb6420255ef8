"""WarmUp: which training pass this is, when the warm-up ends, when plans are made anew, and when centroids revive."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

AGAIN_FROM = 100  # passes: the first hundred of a shorter warm-up, or of none, are too few to plan by


class Event(Enum):
    """What is due before a training pass."""

    NONE = auto()
    START = auto()
    PLAN = auto()
    REVIVE = auto()


class WarmUp:
    """Counts the training passes of a layer and says what is due.

    The counts are buffers of the layer, so that its checkpoints have them and broadcasts between processes reach them.
    Here they are Python values as well, which are read once, so that a training pass never waits for a device.

    Args:
        buffers: the layer's, which stay this mapping wherever the layer moves; with those of :meth:`buffers`.
        warmup_steps: training passes before the codebooks start.
        revive_every: training passes between two looks for dead centroids.
    """

    def __init__(self, buffers: Mapping[str, Any], warmup_steps: int, revive_every: int) -> None:
        self.warmup_steps = warmup_steps
        self.revive_every = revive_every
        self._buffers = buffers
        self._revival_due = self._plan_due = False
        # Two attributes, not a pair: a compiled graph depends on the second alone, and the first changes in each pass.
        self._passes: int | None = 0
        self._over: bool | None = False
        self._version = buffers["started"]._version

    @staticmethod
    def buffers(device: torch.device) -> dict[str, Tensor]:
        """What a layer registers: training passes so far, and whether the warm-up is over."""
        return {
            "steps": torch.zeros((), dtype=torch.int64, device=device),
            "started": torch.zeros((), dtype=torch.bool, device=device),
        }

    @property
    def is_over(self) -> bool:
        """Whether the codebooks have started."""
        started = self._buffers["started"]
        if started.is_meta:
            return bool(self._over)
        # Averaged copies of models and broadcasts between processes write into the buffer itself.
        if self._over is None or (not torch.compiler.is_compiling() and started._version != self._version):
            self._over, self._passes = bool(started), None
            self._version = started._version
        return self._over

    @property
    def passes(self) -> int:
        """Training passes so far."""
        if self._passes is None:
            self._passes = int(self._buffers["steps"])
        return self._passes

    def set(self, passes: int, over: bool) -> None:
        """Go to another point: so many passes were counted, and the warm-up is over or not."""
        self._buffers["steps"].fill_(passes)
        self._buffers["started"].fill_(over)
        self._passes, self._over = passes, over
        self._version = self._buffers["started"]._version

    def end(self) -> None:
        """The codebooks have started."""
        self.set(self.passes, True)

    def reload(self) -> None:
        """Other buffers were loaded."""
        self._passes = self._over = None

    def count_pass(self, stepped: bool = True, may_revive: bool = True) -> Event:
        """Count a training pass, and say what is due before it.

        Plans and revival wait for a pass before which an optimiser has ``stepped``: between two passes of one step the
        graph of the first still needs the codebooks.
        """
        over, passes = self.is_over, self.passes + 1
        self._passes = passes
        self._buffers["steps"].add_(1)
        if not over:
            return Event.START if passes > self.warmup_steps else Event.NONE
        self._revival_due = may_revive and (self._revival_due or passes % self.revive_every == 0)
        self._plan_due = self._plan_due or is_planned_again(passes, self.warmup_steps)
        if not stepped or not (self._plan_due or self._revival_due):
            return Event.NONE
        if self._plan_due:  # which makes new centroids; a revival that is due comes a step later
            self._plan_due = False
            return Event.PLAN
        self._revival_due = False
        return Event.REVIVE

    def __getstate__(self) -> dict[str, Any]:
        """For copies, whose buffers are others."""
        return {**self.__dict__, "_passes": None, "_over": None}


def is_planned_again(passes: int, warmup_steps: int) -> bool:
    """Whether a plan that was made when the warm-up ended is made anew at this pass.

    It is each time the passes have grown by half, because rows go on to learn in directions that the plan left out. So
    the last plan of a training comes after two thirds of it, whatever its length, and there are few of them.
    """
    passed = start = max(warmup_steps, AGAIN_FROM)
    while passed < passes:
        passed += passed // 2
    return passed == passes > start
