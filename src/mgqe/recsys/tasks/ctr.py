"""App-install prediction: the probability that a user installs an item in a context."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.context_rows import AT_RANDOM, ContextRows, RowSplit, load_rows, split_by_rule, split_row_parts
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.data.sampling import LEAVE_OUT, SeenItems, evaluation_negatives, sample_negatives
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.data.splits import LEAVE_ONE_OUT
from mgqe.recsys.models.wide_deep import PREFIX, WideDeep
from mgqe.recsys.tasks.base import JudgedByAuc, RunSettings, TableInfo, Validation
from mgqe.recsys.tasks.metrics import auc, auc_placements, calibration_error, calibration_ratio, head_items, log_loss
from mgqe.recsys.tasks.ranking import positives_per_step

Batch = tuple[Tensor, Tensor]
SMALL_FIELD, SMALL_DIM = 100, 16
MAX_JUDGED = 30_000
EVAL_BATCH = 4096  # positives per batch of the evaluation


@dataclass(frozen=True)
class EvalRows:
    """A part to evaluate on: context int64 (n, f - 1); items int64 (n, 1 + c), the positive first."""

    context: Tensor
    items: Tensor


@dataclass(frozen=True)
class CtrTask(JudgedByAuc):
    """A data set, split and prepared for training and evaluation.

    A positive is a row of the data; a negative has its user and context and another item. In training, that is any
    item that the user does not have in the training part, drawn again in each epoch, so that held-out items are drawn
    as often as others. In the validation and test part, it is an item that the user has nowhere, fixed by the seed.
    All parts have `num_negatives` negatives per positive, and therefore the same share of positives.

    fields: names of the context's columns, "user" first. context: int64 (n, f - 1), items: int64 (n,): the training
    part. seen: the users' items in it.
    """

    fields: tuple[str, ...]
    context: Tensor
    items: Tensor
    seen: SeenItems
    valid: EvalRows
    test: EvalRows
    ids: Mapping[str, FileIds]
    num_negatives: int
    seed: int
    summary: dict[str, Any] = field(default_factory=dict)
    split_summary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls, rows: ContextRows, seed: int, num_negatives: int = 2, row_split: RowSplit | None = None
    ) -> CtrTask:
        """Choose at most MAX_JUDGED positives per part to evaluate on, and draw their negatives, by `seed`.

        row_split: the rows and parts to use; by default `rows`, split by split_rows.
        """
        row_split = split_by_rule(rows, None, derive_seed(seed, "split")) if row_split is None else row_split
        rows, parts = row_split.rows, row_split.parts
        users, items, shape = rows.context[:, 0], rows.items, (len(rows.ids["user"]), len(rows.ids["item"]))
        anywhere = SeenItems(users, items, *shape, user_ids=rows.ids["user"])
        evaluated = {}
        for name, part in (("valid", parts.valid), ("test", parts.test)):
            if part.numel() > MAX_JUDGED:
                generator = torch.Generator().manual_seed(derive_seed(seed, "rows", name))
                chosen = torch.randperm(part.numel(), generator=generator)[:MAX_JUDGED].sort().values
                part = part[chosen]
            negatives = evaluation_negatives(
                users[part], anywhere, num_negatives, derive_seed(seed, name), option="negatives"
            )
            evaluated[name] = EvalRows(rows.context[part], torch.cat([items[part, None], negatives], dim=1))
        seen = SeenItems(users[parts.train], items[parts.train], *shape, user_ids=rows.ids["user"])
        seen.check_unseen(users[parts.train], 1, LEAVE_OUT)
        return cls(
            fields=rows.fields,
            context=rows.context[parts.train],
            items=items[parts.train],
            seen=seen,
            valid=evaluated["valid"],
            test=evaluated["test"],
            ids=rows.ids,
            num_negatives=num_negatives,
            seed=seed,
            summary={
                "users": shape[0],
                "items": shape[1],
                "interactions": len(rows),
                "repeats_left_out": rows.num_repeats,
                "fields": {name: len(known) for name, known in rows.ids.items()},
                "split": {LEAVE_ONE_OUT: "by time", AT_RANDOM: "at random"}.get(row_split.summary["rule"], "as asked"),
                "trained_positives": parts.train.numel(),
                "judged_positives": evaluated["test"].items.shape[0],
            },
            split_summary=row_split.summary,
        )

    @cached_property
    def tables(self) -> dict[str, TableInfo]:
        """The table of each field, at `fields.NAME`."""
        users, tables = self.context[:, 0], {}
        for name, column in (*zip(self.fields, self.context.unbind(1), strict=True), ("item", self.items)):
            other = users if name == "item" else self.items
            counts = torch.bincount(column, minlength=len(self.ids[name]))
            tables[f"{PREFIX}{name}"] = field_table(name, counts, (column, other))
        return tables

    def on(self, device: torch.device) -> CtrTask:
        """As TrainingTask.on."""
        context, items = self.context.to(device), self.items.to(device)
        return replace(self, context=context, items=items, seen=self.seen.on(device))

    @property
    def nbytes(self) -> int:
        """As TrainingTask.nbytes."""
        return self.seen.nbytes + self.context.nbytes + self.items.nbytes * (3 + 2 * self.num_negatives)

    def num_batches(self, batch_size: int) -> int:
        """The number of batches per epoch."""
        num = self.items.numel()
        return -(-num // positives_per_step(num, batch_size))

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        """Batches (context (b, f - 1), items (b, 1 + c)), the positive first; seed, phase and epoch determine them."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, phase, epoch))
        negatives = sample_negatives(self.context[:, 0], self.seen, self.num_negatives, generator)
        items = torch.cat([self.items[:, None], negatives], dim=1)
        order = torch.randperm(self.items.numel(), generator=generator).to(items.device)
        for chosen in torch.split(order, positives_per_step(self.items.numel(), batch_size)):
            yield self.context[chosen], items[chosen]

    def loss(self, model: WideDeep, batch: Batch) -> Tensor:
        """Mean binary cross-entropy, with label 1 for positives and 0 for negatives."""
        logits = model(*batch)
        return F.binary_cross_entropy_with_logits(logits, _labels(logits))

    def validation(self, model: WideDeep) -> Validation:
        """auc and logloss of the validation part."""
        logits = _logits(model, self.valid)
        labels, scores = _labels(logits).reshape(-1), logits.reshape(-1)
        figures = {"auc": auc(labels, scores), "logloss": log_loss(labels, scores)}
        return Validation(figures, auc_placements(labels, scores))

    def evaluate(self, model: WideDeep) -> dict[str, float]:
        """All final figures: auc, logloss, ece (calibration_error) and calibration (calibration_ratio).

        Plain names are of the test part, `valid_NAME` of the validation part. head_auc and tail_auc are of the test
        positives among the 10% most frequent items in training, and of the others, each against their own negatives.
        """
        test = _logits(model, self.test)
        in_head = head_items(self.tables[f"{PREFIX}item"].counts)[self.test.items[:, 0]]
        return {
            **_figures(test),
            "head_auc": _figures(test[in_head])["auc"] if in_head.any() else float("nan"),
            "tail_auc": _figures(test[~in_head])["auc"] if not in_head.all() else float("nan"),
            **{f"valid_{name}": value for name, value in _figures(_logits(model, self.valid)).items()},
        }


def field_table(name: str, counts: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> TableInfo:
    """The table of the field `name`.

    A field with at most SMALL_FIELD = 100 ids keeps a full table whatever the run's embedding is, since codebooks would
    cost more than they save. It has SMALL_DIM = 16 dimensions, or those of the run if they are fewer.

    counts: int64 (num_ids,), how often each id occurs in the training part. pairs: as in TableInfo.
    """
    num_ids = counts.numel()
    if num_ids > SMALL_FIELD:
        return TableInfo(name, num_ids, counts, pairs=pairs)
    return TableInfo(name, num_ids, counts, SMALL_DIM, fixed="full", pairs=pairs)


def _labels(logits: Tensor) -> Tensor:
    labels = torch.zeros_like(logits)
    labels[:, 0].fill_(1.0)
    return labels


@torch.no_grad()
def _logits(model: WideDeep, part: EvalRows) -> Tensor:
    """(n, 1 + c)."""
    batches = zip(torch.split(part.context, EVAL_BATCH), torch.split(part.items, EVAL_BATCH), strict=True)
    return torch.cat([model(context, items) for context, items in batches])


def _figures(logits: Tensor) -> dict[str, float]:
    return probability_figures(_labels(logits).reshape(-1), logits.reshape(-1))


def probability_figures(labels: Tensor, logits: Tensor) -> dict[str, float]:
    """auc, logloss, ece (calibration_error) and calibration (calibration_ratio); labels and logits (n,)."""
    probabilities = logits.double().sigmoid()
    return {
        "auc": auc(labels, logits),
        "logloss": log_loss(labels, logits),
        "ece": calibration_error(labels, probabilities),
        "calibration": calibration_ratio(labels, probabilities),
    }


def prepare(config: RunSettings) -> tuple[CtrTask, str]:
    """The data of a configuration, split and prepared, and a digest of them."""
    context = tuple(name.strip() for name in config.context_columns.split(",") if name.strip())
    for name in context:
        if "." in name or "/" in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"context column {name!r} cannot be the name of a table: rename it in the file")
    if len(set(context)) < len(context):
        raise ValueError(f"context_columns: expected different names, got {config.context_columns}")
    columns = Columns.of(config, context)

    def load(path: str) -> ContextRows:
        return load_rows(path, config.data_dir, config.format, columns)

    rows, seed = load(config.data), derive_seed(config.seed, "split")
    if config.test is None:
        row_split = split_by_rule(rows, config.split, seed)
    else:
        row_split = split_row_parts(rows, None if config.valid is None else load(config.valid), load(config.test), seed)
    task = CtrTask.prepare(rows, config.seed, config.negatives, row_split)
    if config.split is None and config.test is None:
        return task, rows.fingerprint
    digest = hashlib.sha256(row_split.rows.fingerprint.encode())
    for part in (row_split.parts.train, row_split.parts.valid):
        digest.update(part.numpy().tobytes())
    return task, digest.hexdigest()
