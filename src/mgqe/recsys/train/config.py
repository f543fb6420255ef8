"""The configuration of a run."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from mgqe.checks.scalars import as_float, as_int
from mgqe.recsys.data.datasets import check_clicks, check_split
from mgqe.recsys.models.embeddings import Spec
from mgqe.recsys.models.registry import choose_model
from mgqe.recsys.models.settings import check_loss
from mgqe.recsys.tasks.base import RunSettings
from mgqe.recsys.train.device import parse_device
from mgqe.recsys.train.loop import PhaseConfig
from mgqe.recsys.train.tuned import tuned_settings

# Raised when the phases or a default change, so that no result of an older schedule is taken for a newer one.
SCHEDULE = 5
QUANTISED_RATE = 3e-4  # of the third phase
PLANNED_RATES = (1e-3, 1.7e-3)  # with a budget: of rows, and of centroids in units of their standard deviations
THIRD_PATIENCE = 10  # epochs of the third phase without a better one before it stops
PLANNED_LOSS = ("softmax", 1024)  # with a budget: of sequential models, and its negatives
LEAST_DIM = 16  # of rows that are tried for being narrow
OF_PHASE_2 = ("anneal_epochs", "anneal_learning_rate")
OF_PHASE_3 = (
    "quantised_epochs", "quantised_learning_rate", "centroid_learning_rate", "quantised_loss", "quantised_negatives",
)  # fmt: skip


# Settings that the prepared data do not depend on.
OF_TRAINING = (
    "embedding", "dim", "label", "batch_size", "learning_rate", "weight_decay", "dropout", "init_std", "max_epochs",
    "patience", "warm_up_epochs", "threads", "device", "num_blocks", "num_heads", "mlp_layers", "hidden",
    "cross_layers", "graph_layers", *OF_PHASE_2, *OF_PHASE_3,
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig(RunSettings):
    """Everything that decides a run's result. The defaults are tuned on the validation items of ml-1m.

    label: a name for the run in tables; it decides nothing.
    batch_size: positives per step; fewer where the data set would otherwise have under 64 steps per epoch.
    warm_up_epochs: exactly so many epochs of the first phase; None: until validation stops improving.
    anneal_epochs: of the second phase, in which the learning rate falls from anneal_learning_rate to zero.
    quantised_epochs: at most, of the third phase, through the codes, for the embeddings that have one, from
        quantised_learning_rate to zero; ten epochs without a better one than those before end it, whatever the start
        was. None stands for 3e-4, and with a budget for 1e-3. centroid_learning_rate: None stands for
        quantised_learning_rate, and with a budget for 1.7e-3 standard deviations.
    quantised_loss, quantised_negatives: in the third phase. None stands for those of the other phases, and for
        sequential models with a budget for softmax with 1,024 negatives, since the top of the catalogue suffers first,
        unless their own loss is "ce", over the whole catalogue.
    threads: how many torch may use; the last bits of a result depend on it. device: that training steps are made on;
        judging, planning and freezing are on the CPU.
    """

    label: str = ""
    batch_size: int = 8192
    learning_rate: float = 2e-3
    weight_decay: float = 5e-6
    init_std: float = 0.1
    max_epochs: int = 100
    patience: int = 5
    warm_up_epochs: int | None = None
    anneal_epochs: int = 10
    anneal_learning_rate: float = 1e-3
    quantised_epochs: int = 30
    quantised_learning_rate: float | None = None
    centroid_learning_rate: float | None = None
    quantised_loss: str | None = None
    quantised_negatives: int | None = None
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            object.__setattr__(self, name, _plain(name, getattr(self, name), kind))
        choose_model(self.task, self.model)
        super().__post_init__()
        check_split(self)
        check_clicks(self)
        parse_device(self.device)
        for name in ("batch_size", "patience", "threads"):
            as_int(name, getattr(self, name), 1)
        for name in ("learning_rate", "anneal_learning_rate", "quantised_learning_rate", "init_std"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.centroid_learning_rate is not None and not 0 <= self.centroid_learning_rate < math.inf:
            raise ValueError(f"centroid_learning_rate must be 0 or more, got {self.centroid_learning_rate}")
        if self.quantised_loss is not None:
            check_loss("quantised_loss", self.quantised_loss, self.task)
        if self.quantised_negatives is not None:
            as_int("quantised_negatives", self.quantised_negatives, 1)
        for name in ("max_epochs", "warm_up_epochs", "anneal_epochs", "quantised_epochs"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")

    @property
    def name(self) -> str:
        """What tables call the run: its label, else its embedding."""
        return self.label or str(self.spec)

    def warm_up(self) -> TrainConfig:
        """The configuration of phase 1 alone: what it does not depend on is set to the default.

        Runs that differ only in how they compress have equal ones, and may share what phase 1 leaves.
        """
        warm_up = self.spec.warm_up()
        defaults = {name: getattr(TrainConfig, name) for name in (*OF_PHASE_2, *OF_PHASE_3)}
        return replace(self, **defaults, dim=self.embedding_dim, embedding=str(replace(warm_up, dim=None)), label="")

    def of_width(self, embedding_dim: int) -> TrainConfig:
        """This configuration with tables of so many dimensions."""
        return replace(self, embedding=str(replace(self.spec, dim=embedding_dim)))

    def narrow(self) -> TrainConfig | None:
        """The configuration with rows of half the dimensions, for models that are little but their tables; else None.

        What a budget cannot keep of a wide row need not be trained. Where the description says how many there are, they
        stay as many.
        """
        if self.task != "ranking" or self.spec.dim is not None or self.dim < 2 * LEAST_DIM:
            return None
        return self.of_width(self.dim // 2)

    def of_data(self) -> TrainConfig:
        """Equal for configurations whose data are prepared in the same way; it may differ more often than it must."""
        return replace(self.warm_up(), embedding="full", dim=TrainConfig.dim, threads=1, device="cpu")

    def of_checks(self) -> TrainConfig:
        """Equal for configurations whose checks before training, with one seed, need the data only once."""
        return replace(self, **{name: getattr(TrainConfig, name) for name in (*OF_TRAINING, "seed")})

    def with_third_phase(self, planned: bool) -> TrainConfig:
        """This configuration with every setting of the third phase in numbers.

        planned: whether tables are planned for a budget.
        """
        rates = PLANNED_RATES if planned else (QUANTISED_RATE, self.quantised_learning_rate or QUANTISED_RATE)
        sampled = planned and self.task == "sequential" and self.loss != "ce"
        loss = PLANNED_LOSS if sampled else (None, None)
        return replace(
            self,
            quantised_learning_rate=self.quantised_learning_rate or rates[0],
            centroid_learning_rate=rates[1] if self.centroid_learning_rate is None else self.centroid_learning_rate,
            quantised_loss=self.quantised_loss or loss[0],
            quantised_negatives=self.quantised_negatives or (loss[1] if self.quantised_loss is None else None),
        )

    def third_loss(self, planned: bool) -> str | None:
        """The loss that codes are trained by; None if they are not. planned: as of :meth:`with_third_phase`."""
        if not (self.spec.trains_codes and self.quantised_epochs):
            return None
        return self.with_third_phase(planned).quantised_loss or self.loss

    def phase(self, name: str, metric: str = "full_ndcg@10") -> PhaseConfig:
        """The loop's settings for phase "full", the first, "annealed", the second, or "quantised", the third.

        metric: the validation figure that chooses the best epoch.
        """
        rate, fixed = {
            "full": (self.learning_rate, self.warm_up_epochs),
            "annealed": (self.anneal_learning_rate, self.anneal_epochs),
            "quantised": (
                self.quantised_learning_rate or QUANTISED_RATE,
                self.quantised_epochs if self.spec.trains_codes else 0,
            ),
        }[name]
        if fixed is None:
            epochs, patience = self.max_epochs, self.patience
        else:
            epochs, patience = fixed, THIRD_PATIENCE if name == "quantised" else fixed + 1
        centroids = self.centroid_learning_rate
        return PhaseConfig(
            name=name,
            batch_size=self.batch_size,
            learning_rate=rate,
            weight_decay=self.weight_decay,
            max_epochs=epochs,
            patience=patience,
            centroid_learning_rate=rate if name != "quantised" or centroids is None else centroids,
            anneal=name != "full",
            select_by=metric,
            beyond_error=name == "quantised",
        )

    def with_settings(self, settings: Sequence[str]) -> TrainConfig:
        """This configuration with each `NAME=VALUE` set, read as the field's type; ValueError for an unknown one."""
        kinds = _kinds()
        changes: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = (part.strip() or part for part in setting.partition("="))  # a separator may be blank
            if not equals or name not in kinds:
                known = ", ".join(field.name for field in fields(self))
                raise ValueError(f"expected NAME=VALUE with NAME one of {known}, got {setting!r}")
            changes[name] = _read(name, text, kinds[name])
        return replace(self, **changes)

    def with_embedding(self, text: str) -> TrainConfig:
        """For `EMBEDDING` or `EMBEDDING@NAME=VALUE,NAME=VALUE`: that embedding, trained with those settings."""
        embedding, _, settings = text.partition("@")
        spec = str(Spec.parse(embedding))
        listed = [part for part in settings.split(",") if part.strip()]
        for name in ("seed", "embedding", "label"):
            if any(part.partition("=")[0].strip() == name for part in listed):
                raise ValueError(f"{text}: {name} cannot be set for one embedding: use --seeds and --embedding")
        label = f"{spec}@{','.join(listed)}" if listed else ""
        described = replace(self, embedding=spec, label=label, negatives=self._negatives_beside(listed))
        return described.with_settings(listed)

    def _negatives_beside(self, settings: Sequence[str]) -> int:
        """The negatives of an embedding with these settings: a tuned number is left where they have another loss."""
        is_tuned = f"negatives={self.negatives}" in tuned_settings(self.model, self.data)
        stays = f"negatives={self.negatives}" in tuned_settings(self.model, self.data, settings)
        return TrainConfig.negatives if is_tuned and not stays else self.negatives


@functools.cache
def _kinds() -> dict[str, Any]:
    """Setting -> its type."""
    return typing.get_type_hints(TrainConfig)


def _plain(name: str, value: Any, kind: Any) -> Any:
    """A setting as JSON takes it: NumPy's and torch's numbers as Python's, a path as text. TypeError for no number."""
    options = typing.get_args(kind) or (kind,)
    if value is None and type(None) in options:
        return None
    if int in options:
        return as_int(name, value)
    if float in options:
        return value if type(value) in (int, float) else as_float(name, value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _read(name: str, text: str, kind: Any) -> Any:
    options = typing.get_args(kind) or (kind,)
    if text.lower() == "none" and type(None) in options:
        return None
    target = next(option for option in options if option is not type(None))
    if target is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if target is bool:
            raise ValueError
        return target(text)
    except ValueError:
        raise ValueError(f"setting {name}: expected {target.__name__}, got {text!r}") from None


def warm_up_key(config: TrainConfig, fingerprint: str, annealed: bool = False) -> str:
    """A name for the result of phase 1, or of phases 1 and 2.

    It differs where anything does that the result depends on; where the data lies does not. Settings at their
    defaults do not enter, so that a setting that a later version adds does not make what is trained worthless.
    """
    values = asdict(config.warm_up())
    if annealed:
        values.update({name: getattr(config, name) for name in OF_PHASE_2})
    idle = (
        "data", "data_dir", "format", "user_column", "item_column", "time_column", "separator", "quote",
        "header", "session_column", "repeats", "label", "metrics",
    )  # fmt: skip
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    changed = {
        name: value
        for name, value in values.items()
        if name not in (*idle, "valid", "test") and value != defaults[name]
    }
    text = json.dumps(
        {**changed, "schedule": SCHEDULE, "fingerprint": fingerprint, "torch": torch.__version__}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
