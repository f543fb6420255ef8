"""What a task brings: data split and ready, the tables that its models need, a loss, and a judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.data.settings import DataSettings
from mgqe.recsys.models.settings import ModelSettings


@dataclass(frozen=True)
class RunSettings(DataSettings, ModelSettings):
    """What a task reads of a run's configuration."""

    def __post_init__(self) -> None:
        DataSettings.__post_init__(self)
        ModelSettings.__post_init__(self)
        if self.context_columns.strip() and self.task != "ctr":
            raise ValueError(
                f"context_columns={self.context_columns} is for --task ctr, not {self.task}: leave it out, or say "
                "--task ctr"
            )


@dataclass(frozen=True)
class TableInfo:
    """One embedding table of a model.

    field: what its ids are ("user", "item", "city"); in a description `item.K=64` is for the tables of that field.
    counts: int64 (num_embeddings,), how often an id occurs in the training part.
    dim: None: the run's. fixed: a description that holds whatever the run's embedding is, as for small fields that
    stay full; not in a run of the plain full tables. full_dim: of the table in that run, where `dim` depends on the
    run; it counts the bytes that others are compared with. std: of the start, None: the run's.
    pairs: two int64 (n,), the training part's interactions as rows of this table and rows of the other side.
    """

    field: str
    num_embeddings: int
    counts: Tensor
    dim: int | None = None
    fixed: str | None = None
    std: float | None = None
    pairs: tuple[Tensor, Tensor] | None = None
    full_dim: int | None = None


class TrainingTask(Protocol):
    """What the loop needs to know of a task; `model` is whatever the task's own methods understand."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    def num_batches(self, batch_size: int) -> int:
        """Batches an epoch."""

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Any]:
        """An epoch's batches, fixed by seed, phase and epoch: an epoch that is run again is the same."""

    def loss(self, model: Any, batch: Any) -> Tensor:
        """A batch's loss."""

    def validate(self, model: Any) -> dict[str, float]:
        """The validation figures; of the one that selects, higher is better."""


class Task(TrainingTask, Protocol):
    """A data set split and ready for one kind of model."""

    @property
    def metric(self) -> str:
        """The leading figure, such as hr@10 or auc; higher is better. Validation selects by it."""

    @property
    def tables(self) -> Mapping[str, TableInfo]:
        """Path of a submodule of the model -> the embedding table that it is."""

    @property
    def ids(self) -> Mapping[str, FileIds]:
        """The file's ids of rows, by field; saved beside the tables."""

    @property
    def summary(self) -> dict[str, Any]:
        """Sizes of the data, for the results."""

    @property
    def split_summary(self) -> dict[str, Any]:
        """How the data were divided, and what each part holds, for the results."""

    def judge(self, model: Any) -> dict[str, float]:
        """All final figures: the test part's under plain names, the validation part's with `valid_` before them."""


def own_parameters(model: nn.Module, tables: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's state less its tables'."""
    prefixes = tuple(f"{path}." for path in tables)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}
