"""The tasks by name, and a run's data prepared for its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mgqe.recsys.tasks import ctr, ranking, sequential
from mgqe.recsys.tasks.base import RunSettings

# Name -> the data that settings name, split and ready, and a digest of their rows.
TASKS: dict[str, Callable[[RunSettings], tuple[Any, str]]] = {
    "ranking": ranking.prepare,
    "sequential": sequential.prepare,
    "ctr": ctr.prepare,
}


@dataclass(frozen=True)
class RunData:
    """The data of a run; `fingerprint` is a digest of the rows themselves."""

    task: Any  # a Task; benchmarks reach for what a particular one has besides
    fingerprint: str

    @classmethod
    def load(cls, config: RunSettings) -> RunData:
        """Read, split and prepare the data that `config` names; ValueError says what is wrong with them."""
        task, fingerprint = TASKS[config.task](config)
        return cls(task, fingerprint)
