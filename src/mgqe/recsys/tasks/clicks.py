"""Click prediction: the probability of a click, from a log with a label in each row, streamed from Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from mgqe.recsys.data.clicks.encode import Encoding, encode
from mgqe.recsys.data.clicks.encoded import EncodedLog
from mgqe.recsys.data.clicks.generated import generate
from mgqe.recsys.data.clicks.parts import RowParts
from mgqe.recsys.data.clicks.sources import ClickSource, find_log
from mgqe.recsys.data.clicks.vocabulary import MISSING, OTHER
from mgqe.recsys.data.datasets import CLICK_LOGS, encoded_home
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.data.moving import CPU, on_device
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.models.wide_deep import PREFIX, WideDeep, field_order, item_field
from mgqe.recsys.tasks.base import JudgedByAuc, RunSettings, TableInfo, Validation
from mgqe.recsys.tasks.ctr import field_table, probability_figures
from mgqe.recsys.tasks.metrics import auc, auc_placements, log_loss
from mgqe.recsys.tasks.ranking import positives_per_step

Batch = tuple[Tensor, Tensor, Tensor]
MOST_VALID, MOST_TEST = 500_000, 5_000_000  # rows that are judged, spread over the part
EVAL_BATCH = 8192
SPLIT_SEED = 0  # not the run's: runs of several seeds have one encoded log and one test part


@dataclass(frozen=True)
class ClickTask(JudgedByAuc):
    """A log of clicks, encoded and divided.

    device: of batches. Logs are larger than the memory of devices: rows are read from files, and copied batch by batch.
    ids: field -> the log's values of its rows as text; fields whose values are hashed have none.
    """

    log: EncodedLog
    ids: Mapping[str, FileIds]
    seed: int
    summary: dict[str, Any] = field(default_factory=dict)
    split_summary: dict[str, Any] = field(default_factory=dict)
    device: torch.device = CPU

    @cached_property
    def tables(self) -> dict[str, TableInfo]:
        """The table of each field, at `fields.NAME`."""
        vocabularies = self.log.vocabularies
        return {
            f"{PREFIX}{name}": field_table(name, vocabularies[name].tensor)
            for name in (*field_order(vocabularies), item_field(vocabularies))
        }

    @cached_property
    def _columns(self) -> tuple[list[int], int]:
        """The columns of the context's fields, in the models' order, and that of the item field."""
        fields = self.log.fields
        return [fields.index(name) for name in field_order(fields)], fields.index(item_field(fields))

    def on(self, device: torch.device) -> ClickTask:
        """As TrainingTask.on, but that steps copy rows, without a wait."""
        return replace(self, device=device)

    @property
    def nbytes(self) -> int:
        """As TrainingTask.nbytes."""
        return 0

    def num_batches(self, batch_size: int) -> int:
        """The number of batches per epoch."""
        num = self.log.num_rows("train")
        return -(-num // positives_per_step(num, batch_size))

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        """Batches (context (b, f - 1), items (b, 1), labels (b, 1)); seed, phase and epoch determine them."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, phase, epoch))
        size = positives_per_step(self.log.num_rows("train"), batch_size)
        for rows, labels in self.log.shuffled("train", size, generator):
            yield on_device((*self._inputs(rows), labels[:, None]), self.device)

    def loss(self, model: WideDeep, batch: Batch) -> Tensor:
        """Mean binary cross-entropy."""
        context, items, labels = batch
        return F.binary_cross_entropy_with_logits(model(context, items), labels)

    def validation(self, model: WideDeep) -> Validation:
        """auc and logloss of at most MOST_VALID rows of the validation part, spread over it."""
        labels, logits = self._logits(model, "valid", MOST_VALID)
        figures = {"auc": auc(labels, logits), "logloss": log_loss(labels, logits)}
        return Validation(figures, auc_placements(labels, logits))

    def evaluate(self, model: WideDeep) -> dict[str, float]:
        """All final figures: auc, logloss, ece (calibration_error) and calibration (calibration_ratio).

        Plain names are of the test part, of at most MOST_TEST rows spread over it; `valid_NAME` of the validation part.
        """
        valid = probability_figures(*self._logits(model, "valid", MOST_VALID))
        return {
            **probability_figures(*self._logits(model, "test", MOST_TEST)),
            **{f"valid_{name}": value for name, value in valid.items()},
        }

    def _inputs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows, (context, item) = rows.long(), self._columns
        return rows[:, context], rows[:, [item]]

    @torch.no_grad()
    def _logits(self, model: WideDeep, part: str, most: int) -> tuple[Tensor, Tensor]:
        """Labels and logits, both (n,)."""
        labels: list[Tensor] = []
        logits: list[Tensor] = []
        for rows, of_rows in self.log.spread(part, most):
            labels.append(of_rows)
            logits.extend(model(*self._inputs(chunk))[:, 0] for chunk in torch.split(rows, EVAL_BATCH) if len(chunk))
        return torch.cat(labels), torch.cat(logits)


def prepare(config: RunSettings) -> tuple[ClickTask, str]:
    """The log of a configuration, encoded and divided, and a digest of its content and of how it is encoded."""
    known = CLICK_LOGS[config.data]
    parts = RowParts.parse(config.split, SPLIT_SEED)
    encoding = Encoding(known.min_count if config.min_count is None else config.min_count, config.hash_size, parts)
    if config.data == "criteo-like":
        home = encoded_home(config.data, config.data_dir, made_up=True)
        source: ClickSource = generate(home, config.log_rows)
    else:
        source = find_log(config.data, config.data_dir)
        home = encoded_home(config.data, config.data_dir)
    log = encode(source, home, encoding)
    sizes = {part: log.num_rows(part) for part in log.sizes}
    summary = {
        "interactions": sum(sizes.values()),
        "clicks": dict(log.clicks),
        "fields": {name: len(vocabulary) for name, vocabulary in log.vocabularies.items()},
        "hashed": [name for name, vocabulary in log.vocabularies.items() if vocabulary.values is None],
        "min_count": encoding.min_count,
        "files": [path.name for path in source.files],
        "encoded": str(log.folder),
    }
    split = {"rule": log.split, "interactions": sizes}
    ids = _ids(source, log)
    return ClickTask(log, ids, config.seed, summary, split_summary=split), log.digest


def _ids(source: ClickSource, log: EncodedLog) -> dict[str, FileIds]:
    """Field -> its values as text; `(missing)` and `(other)` for the rows that stand for no value and for rare ones."""
    named = {MISSING: "(missing)", OTHER: "(other)"}
    ids = {}
    for name, vocabulary in log.vocabularies.items():
        if vocabulary.values is not None:
            values = vocabulary.values.tolist()
            texts = source.texts(name, values)
            ids[name] = FileIds(pl.Series("id", [named.get(value, text) for value, text in zip(values, texts)]))
    return ids
