"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mgqe.recsys.data.datasets import CLICK_LOGS
from mgqe.recsys.tasks import clicks, ctr, ranking, sequential
from mgqe.recsys.tasks.base import RunSettings

# Name -> function from a run's settings to its data, split and prepared, and a digest of their rows.
TASKS: dict[str, Callable[[RunSettings], tuple[Any, str]]] = {
    "ranking": ranking.prepare,
    "sequential": sequential.prepare,
    "ctr": ctr.prepare,
}


@dataclass(frozen=True)
class RunData:
    """The data of a run; `fingerprint` is a digest of the rows themselves."""

    task: Any  # a Task; not annotated as one, since callers use attributes of the concrete classes
    fingerprint: str

    @classmethod
    def load(cls, config: RunSettings) -> RunData:
        """Read, split and prepare the data of a configuration; ValueError says what is wrong with them."""
        prepare = clicks.prepare if config.task == "ctr" and config.data in CLICK_LOGS else TASKS[config.task]
        task, fingerprint = prepare(config)
        return cls(task, fingerprint)
