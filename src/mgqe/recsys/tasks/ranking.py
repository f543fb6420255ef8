"""Item ranking: a user's held-out items are ranked among sampled negatives and among the catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.datasets import DIVIDED, PUBLISHED, check_layout, load_data
from mgqe.recsys.data.held_out import HeldOut, Split, core, frequent
from mgqe.recsys.data.interactions import FileIds, Interactions
from mgqe.recsys.data.ncf import PublishedSplit, load_published
from mgqe.recsys.data.sampling import LEAVE_OUT, SeenItems, evaluation_negatives, sample_negatives
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.data.splits import LEAVE_ONE_OUT, RANDOM, leave_one_out, published_parts, split, split_parts
from mgqe.recsys.models.lightgcn import LightGCN
from mgqe.recsys.models.mf import MF, TABLES
from mgqe.recsys.models.neumf import NeuMF
from mgqe.recsys.models.registry import MODELS
from mgqe.recsys.tasks.base import RunSettings, TableInfo, Validation
from mgqe.recsys.tasks.losses import pairwise_loss, pointwise_loss, shared_softmax_loss
from mgqe.recsys.tasks.metrics import (
    CatalogueScorer,
    RankMetric,
    catalogue_ranks,
    head_and_tail_figures,
    log_ranks,
    rank_figures,
    sampled_ranks,
    uncut_gains,
)

Batch = tuple[Tensor, Tensor, Tensor | None]
Model = MF | NeuMF | LightGCN
MIN_STEPS = 64
NDCG_10 = RankMetric("ndcg", 10)
PAIR_LOSSES = {"bce": pointwise_loss, "bpr": pairwise_loss}


@dataclass(frozen=True)
class EvalPart(HeldOut):
    """A held-out part with negatives for its items.

    negatives: int64 (u, c), items that the user has nowhere; one that is the positive itself does not count. c = 0:
    there are no sampled metrics.
    """

    negatives: Tensor

    @property
    def is_sampled(self) -> bool:
        """Whether there are sampled metrics."""
        return self.negatives.shape[1] > 0

    @classmethod
    def of(cls, part: HeldOut, negatives: Tensor) -> EvalPart:
        return cls(part.users, part.items, part.offsets, negatives)


@dataclass(frozen=True)
class RankingTask:
    """A data set, split and prepared for training and evaluation.

    seen: the users' items in training, which are no negatives.
    valid, test: the users to evaluate, with their held-out items and negatives.
    table_fields: path of each of the model's tables -> "user" or "item"; by default those of MF.
    loss_name: "bce": each positive and its own negatives, one by one; "bpr": the positive against each of them;
        "softmax": cross-entropy against negatives that a batch shares; "ce": cross-entropy over the catalogue. The last
        two are for models whose score is a product of two vectors.
    metrics: more figures of the whole catalogue. selects: that by which epochs are chosen.
    """

    split: Split
    seen: SeenItems
    valid: EvalPart
    test: EvalPart
    num_negatives: int
    seed: int
    table_fields: Mapping[str, str] = field(default_factory=lambda: TABLES)
    ids: Mapping[str, FileIds] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    loss_name: str = "bce"
    metrics: tuple[RankMetric, ...] = ()
    selects: RankMetric = NDCG_10
    judges_by: str = "full_ndcg"

    @classmethod
    def prepare(
        cls,
        interactions: Interactions,
        seed: int,
        num_negatives: int = 4,
        eval_negatives: int = 99,
        eval_users: int = 10_000,
        split: Split | None = None,
    ) -> RankingTask:
        """Choose at most `eval_users` users per part to evaluate, and draw their negatives, by `seed`.

        split: the split of these interactions; by default leave-one-out.
        """
        split = leave_one_out(interactions) if split is None else split
        anywhere = SeenItems(
            interactions.users, interactions.items, split.num_users, split.num_items,
            user_ids=interactions.user_ids, owner=interactions.owner,
        )  # fmt: skip
        evaluated = {}
        for name, part in (("valid", split.valid), ("test", split.test)):
            if part.users.numel() > eval_users:
                generator = torch.Generator().manual_seed(derive_seed(seed, "users"))
                positions = torch.randperm(part.users.numel(), generator=generator)[:eval_users].sort().values
                part = part.of_users(positions)
            negatives = evaluation_negatives(part.users, anywhere, eval_negatives, derive_seed(seed, name))
            evaluated[name] = EvalPart.of(part, negatives)
        return cls._of(interactions, split, evaluated["valid"], evaluated["test"], num_negatives, seed)

    @classmethod
    def published(
        cls, data: PublishedSplit, seed: int, num_negatives: int = 4, eval_negatives: int = 99
    ) -> RankingTask:
        """With published test items and negatives, for all users; validation items as in PublishedSplit.split.

        eval_negatives: the number of negatives of the validation items, drawn by `seed`; 0: the published ones are not
            used either.
        """
        interactions, split = data.interactions, data.split(derive_seed(seed, "valid"))
        anywhere = SeenItems(
            interactions.users, interactions.items, split.num_users, split.num_items, user_ids=interactions.user_ids
        )
        negatives = evaluation_negatives(split.valid.users, anywhere, eval_negatives, derive_seed(seed, "valid"))
        published = data.test_negatives if eval_negatives else data.test_negatives[:, :0]
        valid, test = EvalPart.of(split.valid, negatives), EvalPart.of(split.test, published)
        return cls._of(interactions, split, valid, test, num_negatives, seed)

    @classmethod
    def _of(
        cls, interactions: Interactions, split: Split, valid: EvalPart, test: EvalPart, num_negatives: int, seed: int
    ) -> RankingTask:
        shape = (split.num_users, split.num_items)
        return cls(
            split=split,
            seen=SeenItems(
                split.train_users, split.train_items, *shape, user_ids=interactions.user_ids, owner=interactions.owner
            ),
            valid=valid,
            test=test,
            num_negatives=num_negatives,
            seed=seed,
            ids={"user": interactions.user_ids, "item": interactions.item_ids},
            summary=data_summary(interactions, test.users.numel()),
        )

    @property
    def split_summary(self) -> dict[str, Any]:
        """How the data were split and the size of each part."""
        return self.split.summary

    @property
    def metric(self) -> str:
        """HR@10 among sampled items, or in the whole catalogue where there are none."""
        return "hr@10" if self.test.is_sampled else "full_hr@10"

    @property
    def selects_by(self) -> str:
        return f"full_{self.selects}"

    def owners(self, part: HeldOut) -> Tensor | None:
        """The user of each item of a part, for `rank_figures`; None if the rule gives each user one item."""
        return part.owners if self.split.several_items else None

    def catalogue_ranks(
        self, scores: CatalogueScorer, part: HeldOut, test: bool, column_of: Tensor | None = None
    ) -> Tensor:
        """Ranks of a part's items in the catalogue without the users' earlier items: int64 (n,).

        column_of: (num_items,), the column of each item in the scores, where equal items share one.
        """
        known, num_items = self.split.known(test), self.split.num_items
        return catalogue_ranks(
            scores, part.users, part.items, *known, num_items, offsets=part.offsets, column_of=column_of
        )

    def catalogue_figures(self, ranks: Tensor, part: HeldOut, prefix: str) -> dict[str, float]:
        """The figures of a part's ranks in the catalogue: of the first 10, and of 20 where users have several items."""
        owners = self.owners(part)
        depths = (10,) if owners is None else (10, 20)
        figures = {name: value for k in depths for name, value in rank_figures(ranks, k, prefix, owners).items()}
        more = {f"{prefix}{metric}": metric.figure(ranks, owners) for metric in (*self.metrics, self.selects)}
        return {**figures, **more}

    def sampled_figures(self, ranks: Tensor | None, part: HeldOut, prefix: str = "") -> dict[str, float]:
        """The figures of a part's ranks among sampled items, if it has any."""
        return {} if ranks is None else rank_figures(ranks, prefix=prefix, owners=self.owners(part))

    def head_and_tail(self, sampled: Tensor | None, in_catalogue: Tensor) -> dict[str, float]:
        """`head_`, `tail_`, and in the catalogue `head_full_` and `tail_full_`, from the ranks of the test items."""
        owners, figures = self.owners(self.test), {}
        for prefix, ranks in (("", sampled), ("full_", in_catalogue)):
            if ranks is None:
                continue
            parts = head_and_tail_figures(ranks, self.test.items, self.split.item_counts, owners=owners, prefix=prefix)
            figures.update(parts)
        return figures

    @cached_property
    def popularity_figures(self) -> dict[str, float]:
        """`popularity_full_` and `popularity_valid_full_`: of a list of the most frequent items, the same for everyone.

        Of equally frequent items, lower rows come first.
        """
        scores = torch.empty(self.split.num_items)
        scores[self.split.item_counts.argsort(descending=True, stable=True)] = -torch.arange(float(scores.numel()))
        figures = {}
        for test, part, prefix in ((True, self.test, "popularity_"), (False, self.valid, "popularity_valid_")):
            ranks = self.catalogue_ranks(lambda users: scores.expand(users.numel(), -1), part, test)
            figures.update(self.catalogue_figures(ranks, part, f"{prefix}full_"))
        return figures

    @cached_property
    def tables(self) -> dict[str, TableInfo]:
        """Users and items."""
        split = self.split
        users, items = split.train_users, split.train_items
        infos = {
            "user": TableInfo("user", split.num_users, split.user_counts, pairs=(users, items)),
            "item": TableInfo("item", split.num_items, split.item_counts, pairs=(items, users)),
        }
        return {path: infos[name] for path, name in self.table_fields.items()}

    def on(self, device: torch.device) -> RankingTask:
        """As TrainingTask.on. Offsets stay on the CPU, where windows of sequences are cut."""
        users, items = self.split.train_users.to(device), self.split.train_items.to(device)
        return replace(self, split=replace(self.split, train_users=users, train_items=items), seen=self.seen.on(device))

    @property
    def nbytes(self) -> int:
        """As TrainingTask.nbytes."""
        users, negatives = self.split.train_users, self.num_negatives if self.loss_name in PAIR_LOSSES else 0
        return self.seen.nbytes + users.nbytes * (4 + 2 * negatives)  # with the order, and an epoch's pairs

    def num_batches(self, batch_size: int) -> int:
        """The number of batches per epoch."""
        num = self.split.train_users.numel()
        return -(-num // positives_per_step(num, batch_size))

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        """Batches (users (b,), items (b, c), shared negatives), set by seed, phase and epoch.

        The first item of each row is the positive. "bce" and "bpr" have num_negatives more in it and none shared,
        "softmax" has so many shared ones, (num_negatives,), which are uniform, and "ce" has neither.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, phase, epoch))
        users, items = self.split.train_users, self.split.train_items[:, None]
        size = positives_per_step(users.numel(), batch_size)
        if self.loss_name in PAIR_LOSSES:
            items = torch.cat([items, sample_negatives(users, self.seen, self.num_negatives, generator)], dim=1)
        order = torch.randperm(users.numel(), generator=generator).to(users.device)
        batches = torch.split(order, size)
        shared: Sequence[Tensor | None] = [None] * len(batches)
        if self.loss_name == "softmax":
            num = self.num_negatives
            drawn = [torch.randint(self.split.num_items, (num,), generator=generator) for _ in batches]
            shared = torch.stack(drawn).to(users.device).unbind()
        for chosen, negatives in zip(batches, shared, strict=True):
            yield users[chosen], items[chosen], negatives

    def with_loss(self, loss: str | None, num_negatives: int | None) -> RankingTask:
        """The same task trained by another loss, or with other negatives; None leaves either as it is."""
        return replace(self, loss_name=loss or self.loss_name, num_negatives=num_negatives or self.num_negatives)

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Mean over the pairs, or over the positives."""
        model, (users, items, shared) = scoring(model), batch
        if self.loss_name in PAIR_LOSSES:
            return PAIR_LOSSES[self.loss_name](model(users, items))
        if not isinstance(model, MF):
            raise ValueError(
                f"loss={self.loss_name} is for models whose score is a product of two vectors, such as mf and gmf, not "
                f"{type(model).__name__}: set loss=bce or loss=bpr"
            )
        targets = items[:, 0]
        if shared is None:
            return F.cross_entropy(model.score_catalogue(users, model.catalogue(self.split.num_items)), targets)
        query = model.query(users)
        vectors = model.item(torch.cat([targets, shared]))
        target_vectors, shared_vectors = vectors.tensor_split([targets.numel()])
        return shared_softmax_loss(query, (query * target_vectors).sum(dim=1), shared_vectors, targets, shared)

    def check_negatives(self) -> None:
        """ValueError if a user of the training part has every item, so that there are no negatives."""
        self.seen.check_unseen(self.split.train_users, 1, LEAVE_OUT)

    @torch.no_grad()
    def validation(self, model: Model) -> Validation:
        """hr@10 and ndcg@10 of the validation items against sampled negatives, if any, and `full_` in the catalogue.

        full_ndcg has no k: every rank changes it, so that it tells plans of one model apart by less noise.
        full_log_rank is minus the mean logarithm of the rank.
        """
        model = scoring(model)
        distinct, row_of_item = self._distinct(model)
        sampled = self._sampled(model, row_of_item, self.valid)

        def scores(users: Tensor) -> Tensor:
            return model.score_catalogue(users, distinct)

        return self.validation_of(sampled, self.catalogue_ranks(scores, self.valid, False, row_of_item))

    def validation_of(self, sampled: Tensor | None, in_catalogue: Tensor) -> Validation:
        """From the ranks of the validation items."""
        owners = self.owners(self.valid)
        selecting = self.selects.values(in_catalogue, owners)
        figures = self.sampled_figures(sampled, self.valid)
        figures |= rank_figures(in_catalogue, prefix="full_", owners=owners)
        figures[self.selects_by] = float(selecting.mean())
        judged = {"full_ndcg": uncut_gains(in_catalogue), "full_log_rank": -log_ranks(in_catalogue)}
        figures |= {name: float(values.mean()) for name, values in judged.items()}
        return Validation(figures, (selecting,), judged)

    @torch.no_grad()
    def _distinct(self, model: MF | NeuMF) -> tuple[Tensor, Tensor]:
        """The distinct rows (v, ...) of the catalogue, and the row of each item: int64 (num_items,)."""
        distinct, row_of_item = torch.unique(model.catalogue(self.split.num_items), dim=0, return_inverse=True)
        return distinct, row_of_item

    def _sampled(self, model: MF | NeuMF, row_of_item: Tensor, part: EvalPart) -> Tensor | None:
        """Ranks of a part's items among sampled negatives; None if there are none.

        A matrix product may give equal rows unequal last bits, but items that share all their codes must tie.
        """

        def scores(users: Tensor, items: Tensor) -> Tensor:
            result, rows = model(users, items), row_of_item[items]
            return torch.where(rows == rows[:, :1], result[:, :1], result)

        if not part.is_sampled:
            return None
        return sampled_ranks(scores, part.users, part.items, part.negatives, owners=part.owners)

    @torch.no_grad()
    def evaluate(self, model: Model) -> dict[str, float]:
        """All final figures.

        hr@10 and ndcg@10 of the test items among sampled negatives, if any, and as `full_` in the whole catalogue
        without the user's training and validation items. `valid_` and `valid_full_` are those of the validation items,
        in the catalogue without the user's training items. `popularity_` before these are those of the most frequent
        items. `head_` and `tail_` (in the catalogue `head_full_` and `tail_full_`) are those of the test items among
        the 10% most frequent items in training, and of the others. If users may have several items in a part, recall@10
        is added, and in the catalogue all three of the first 20; the items of a user in a part are no rivals of each
        other.
        """
        model = scoring(model)
        distinct, row_of_item = self._distinct(model)

        def scores(users: Tensor) -> Tensor:
            return model.score_catalogue(users, distinct)

        figures = {}
        for test, part, prefix in ((True, self.test, ""), (False, self.valid, "valid_")):
            sampled = self._sampled(model, row_of_item, part)
            figures.update(self.sampled_figures(sampled, part, prefix))
            ranks = self.catalogue_ranks(scores, part, test, row_of_item)
            figures.update(self.catalogue_figures(ranks, part, f"{prefix}full_"))
            if test:
                figures.update(self.head_and_tail(sampled, ranks))
        return {**figures, **self.popularity_figures}


def prepare(config: RunSettings) -> tuple[RankingTask, str]:
    """The data of a configuration, split and prepared, and a digest of them."""
    if config.data in PUBLISHED:
        check_layout(config.data, config.format, Columns.of(config))
        data = load_published(config.data, config.data_dir)
        task = RankingTask.published(data, config.seed, config.negatives, config.eval_negatives)
        digest = data_fingerprint(data.interactions, data.test_items, data.test_negatives)
    else:
        interactions, parts = load_divided(config) if config.data in DIVIDED else load_split(config)
        task = RankingTask.prepare(
            interactions, config.seed, config.negatives, config.eval_negatives, config.eval_users, parts
        )
        digest = data_fingerprint(interactions, *split_tensors(parts))
    if config.loss in PAIR_LOSSES:
        task.check_negatives()
    fields = MODELS[config.model].tables or {}
    return replace(task, table_fields=fields, loss_name=config.loss, **chosen_metrics(config)), digest


def chosen_metrics(config: RunSettings) -> dict[str, Any]:
    """The fields of a task that the settings `metrics` and `select_by` decide."""
    return {"metrics": RankMetric.parse_list(config.metrics), "selects": RankMetric.parse(config.select_by)}


def load_split(config: RunSettings) -> tuple[Interactions, Split]:
    """The interactions of a configuration, and their split; sequential models alone keep repeats."""
    columns = Columns.of(config)
    sequential = {"keep": True, "drop": False, None: None}[config.repeats]
    keep_repeats = sequential if config.task == "sequential" else False

    def load(path: str) -> Interactions:
        data = load_data(path, config.data_dir, config.format, columns, keep_repeats)
        return replace(data, ordered=True) if config.task == "sequential" else data  # the file's order, if no other

    if config.test is None:
        data = load(config.data)
        kept = data if config.min_count in (None, 1) else frequent(data, config.min_count)
        dense = core(kept, config.k_core) if config.k_core > 1 else kept
        interactions, parts = split(dense, config.split or (LEAVE_ONE_OUT if dense.ordered else RANDOM))
        for name, before, after in (("min_count", data, kept), ("k_core", kept, dense)):
            if after is not before:
                parts.summary[f"left_out_by_{name}"] = _fewer(before, after)
        return interactions, parts
    return split_parts(load(config.data), None if config.valid is None else load(config.valid), load(config.test))


def _fewer(before: Interactions, after: Interactions) -> dict[str, int]:
    """How many users, items and interactions were left out."""
    return {
        f"{before.owner}s": before.num_users - after.num_users,
        "items": before.num_items - after.num_items,
        "interactions": len(before) - len(after),
    }


def load_divided(config: RunSettings) -> tuple[Interactions, Split]:
    """The interactions of a data set that was published in parts, and these."""
    check_layout(config.data, config.format, Columns.of(config))
    return published_parts(*DIVIDED[config.data].load(config.data_dir))


def split_tensors(parts: Split) -> list[Tensor]:
    """The tensors that a digest of the data needs besides the interactions, for other splits than leave-one-out."""
    if parts.repeats:
        return [
            parts.train_users,
            parts.train_items,
            *(each for part in (parts.valid, parts.test) for each in (part.users, part.items)),
        ]
    if parts.summary["rule"] == LEAVE_ONE_OUT:
        return []
    return [parts.train_users, parts.train_items, parts.valid.users, parts.valid.items, parts.valid.offsets]


def scoring(model: Model) -> MF | NeuMF:
    """What scores: the model itself, or for LightGCN its propagated rows, which are computed once per call."""
    return model.propagated() if isinstance(model, LightGCN) else model


def positives_per_step(positives: int, limit: int) -> int:
    """Positives per step: at most `limit`; for small data sets a power of two, at least 256, that leaves 64 steps."""
    most = positives // MIN_STEPS
    return min(limit, max(256, 1 << max(0, most.bit_length() - 1)))


def data_summary(interactions: Interactions, judged: int) -> dict[str, Any]:
    """The entries of a task's summary that describe its data. judged: the number of users in the test."""
    owners, kept = f"{interactions.owner}s", interactions.keeps_repeats
    return {
        owners: interactions.num_users,
        "items": interactions.num_items,
        "interactions": len(interactions),
        "repeats_left_out": 0 if kept else interactions.num_repeats,
        **({"repeats_kept": interactions.num_repeats} if kept else {}),
        f"judged_{owners}": judged,
    }


def data_fingerprint(interactions: Interactions, *more: Tensor) -> str:
    """A digest of the interactions, in order, and of further tensors that determine the split."""
    digest = hashlib.sha256()
    for rows in (interactions.users, interactions.items, *more):
        digest.update(rows.numpy().tobytes())
    return digest.hexdigest()
