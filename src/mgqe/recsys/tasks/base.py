"""The protocol of a task: prepared data, the tables that its models need, a loss, and an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mgqe.recsys.data.datasets import CLICK_LOGS
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.data.settings import DataSettings
from mgqe.recsys.data.splits import RANDOM
from mgqe.recsys.models.settings import ModelSettings
from mgqe.recsys.tasks.metrics import RankMetric


@dataclass(frozen=True)
class RunSettings(DataSettings, ModelSettings):
    """The settings of a run that a task reads.

    metrics: more figures of the whole catalogue, such as `recall@20,mrr@10`. select_by: the one of validation by which
    epochs are chosen. App-install models have neither: they are judged by the AUC.
    """

    metrics: str = ""
    select_by: str = "ndcg@10"

    def __post_init__(self) -> None:
        DataSettings.__post_init__(self)
        ModelSettings.__post_init__(self)
        for name in ("metrics", "select_by"):
            if self.task == "ctr" and getattr(self, name) != getattr(RunSettings, name):
                raise ValueError(f"{name}={getattr(self, name)} is for models that rank: --task ctr has the AUC")
        min_count = 1 if self.min_count is None or self.data in CLICK_LOGS else self.min_count
        for option, number in (("--k-core", self.k_core), ("--min-count", min_count)):
            if self.task == "ctr" and number > 1:
                raise ValueError(f"{option} {number} is for models that rank, not for --task ctr: leave it out")
        for option, value in (("--session-column", self.session_column), ("--repeats", self.repeats)):
            if self.task != "sequential" and value not in (None, "drop"):
                raise ValueError(
                    f"{option} {value} is for models that read a sequence (--model sasrec): in --task {self.task} an "
                    "item counts once"
                )
        if self.split == RANDOM and self.task != "ranking":
            raise ValueError(
                f"--split {RANDOM} holds out any item of a user, and is for models that rank, not for --task "
                f"{self.task}: leave it out"
            )
        if self.data in CLICK_LOGS and self.spec.name == "recjpq":
            raise ValueError(
                f"recjpq makes its codes from who took what, and the rows of {self.data} are no interactions of two "
                "sides: give another embedding, such as dpq or hash, or data with users and items"
            )
        RankMetric.parse_list(self.metrics)
        RankMetric.parse(self.select_by)
        if self.context_columns.strip() and self.task != "ctr":
            raise ValueError(
                f"context_columns={self.context_columns} is for --task ctr, not {self.task}: leave it out, or say "
                "--task ctr"
            )


@dataclass(frozen=True)
class TableInfo:
    """One embedding table of a model.

    field: the meaning of its ids ("user", "item", "city"), by which a description such as `item.K=64` selects tables.
    counts: int64 (num_embeddings,), how often each id occurs in the training part.
    most_dim: its dimensions are those of the run, but no more than this. std: the standard deviation of the initial
    vectors; None means that of the run.
    fixed: a description that replaces the run's, as for small fields that stay full; not used in runs of full tables.
    pairs: two int64 (n,), the training interactions as rows of this table and as rows of the other side.
    """

    field: str
    num_embeddings: int
    counts: Tensor
    most_dim: int | None = None
    fixed: str | None = None
    std: float | None = None
    pairs: tuple[Tensor, Tensor] | None = None

    def dim_of(self, dim: int) -> int:
        """Its dimensions in a run of `dim`."""
        return dim if self.most_dim is None else min(dim, self.most_dim)


@dataclass(frozen=True, eq=False)
class Validation:
    """How a model does on the validation part.

    figures: by name. values: float64, of the examples, whose mean is the figure that selects; several for an AUC.
    judged: figures that plans are judged by -> float64 values of the examples, whose mean each is; empty for an AUC.
    """

    figures: dict[str, float]
    values: tuple[Tensor, ...]
    judged: Mapping[str, Tensor] = field(default_factory=dict)


class TrainingTask(Protocol):
    """The methods of a task that the training loop calls, with the models that the task is for."""

    def on(self, device: torch.device) -> TrainingTask:
        """The same task for training alone, its batches on a device: the same ones, since draws are made on the CPU.

        An epoch's draws go there before its first step, and no step copies anything.
        """

    @property
    def nbytes(self) -> int:
        """About the bytes that the data of an epoch take on a device."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    def num_batches(self, batch_size: int) -> int:
        """The number of batches per epoch."""

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Any]:
        """The batches of an epoch, which seed, phase and epoch determine, so that an epoch can be repeated."""

    def loss(self, model: Any, batch: Any) -> Tensor:
        """The loss of a batch."""

    def validation(self, model: Any) -> Validation:
        """The validation figures, and the values of the examples that the figure which selects is the mean of."""


class JudgedByAuc:
    """What tasks of labels have in common: the AUC chooses epochs and plans, and leads their tables."""

    metric: str = "auc"
    selects_by: str = "auc"
    judges_by: str = "auc"


class Task(TrainingTask, Protocol):
    """A data set, split and prepared for one kind of model."""

    @property
    def metric(self) -> str:
        """The figure that tables show first, such as hr@10 or auc; higher is better."""

    @property
    def selects_by(self) -> str:
        """The validation figure by which epochs are chosen; higher is better."""

    @property
    def judges_by(self) -> str:
        """The validation figure by which plans of one model's tables are compared; higher is better."""

    @property
    def tables(self) -> Mapping[str, TableInfo]:
        """Path of a submodule of the model -> its embedding table."""

    @property
    def ids(self) -> Mapping[str, FileIds]:
        """Field -> the file's ids of its rows, which are saved beside the tables."""

    @property
    def summary(self) -> dict[str, Any]:
        """Sizes of the data, for the results."""

    @property
    def split_summary(self) -> dict[str, Any]:
        """How the data were split and the size of each part, for the results."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """All final figures: those of the test part under plain names, those of the validation part as `valid_NAME`."""


def state_without_tables(model: nn.Module, tables: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's state without that of its tables."""
    prefixes = tuple(f"{path}." for path in tables)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}
