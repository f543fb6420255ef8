"""Item ranking: what an epoch trains on, and how a model is judged. Leave-one-out, sampled negatives."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mgqe.recsys.datasets import Split, leave_one_out, load_data
from mgqe.recsys.interactions import Columns, IdMap, Interactions
from mgqe.recsys.metrics import catalogue_ranks, sampled_ranks, summary, tier_summary
from mgqe.recsys.models import MODELS
from mgqe.recsys.models.gmf import GMF, TABLES
from mgqe.recsys.models.neumf import NeuMF
from mgqe.recsys.ncf import PUBLISHED, PublishedSplit, load_published
from mgqe.recsys.sampling import SeenItems, evaluation_negatives, sample_negatives
from mgqe.recsys.seeds import derive_seed
from mgqe.recsys.tasks import TableInfo

if TYPE_CHECKING:
    from mgqe.recsys.config import TrainConfig

Batch = tuple[Tensor, Tensor]
Model = GMF | NeuMF
MIN_STEPS = 64


@dataclass(frozen=True)
class RankingTask:
    """One data set, split and ready to train and judge on.

    split: the training part and each user's held-out items.
    seen: what users have in training, which negatives avoid.
    users: int64 (u,) the users that are judged; valid_items, test_items: int64 (u,), theirs.
    valid_negatives, test_negatives: int64 (u, c), items that the user has nowhere; one that is the positive itself
        does not count.
    table_fields: path of each of the model's tables -> "user" or "item"; by default GMF's.
    """

    split: Split
    seen: SeenItems
    users: Tensor
    valid_items: Tensor
    test_items: Tensor
    valid_negatives: Tensor
    test_negatives: Tensor
    num_negatives: int
    seed: int
    table_fields: Mapping[str, str] = field(default_factory=lambda: TABLES)
    ids: Mapping[str, IdMap] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metric: str = "hr@10"

    @classmethod
    def prepare(
        cls,
        interactions: Interactions,
        seed: int,
        num_negatives: int = 4,
        eval_negatives: int = 99,
        eval_users: int = 10_000,
    ) -> RankingTask:
        """Split, choose at most `eval_users` users to judge on, and draw their negatives, all by `seed`."""
        split = leave_one_out(interactions)
        shape = (split.num_users, split.num_items)
        anywhere = SeenItems(interactions.users, interactions.items, *shape)
        kept = torch.arange(split.users.numel())
        if split.users.numel() > eval_users:
            generator = torch.Generator().manual_seed(derive_seed(seed, "users"))
            kept = torch.randperm(split.users.numel(), generator=generator)[:eval_users].sort().values
        users = split.users[kept]
        return cls(
            split=split,
            seen=SeenItems(split.train_users, split.train_items, *shape),
            users=users,
            valid_items=split.valid_items[kept],
            test_items=split.test_items[kept],
            valid_negatives=evaluation_negatives(users, anywhere, eval_negatives, derive_seed(seed, "valid")),
            test_negatives=evaluation_negatives(users, anywhere, eval_negatives, derive_seed(seed, "test")),
            num_negatives=num_negatives,
            seed=seed,
            ids={"user": interactions.user_ids, "item": interactions.item_ids},
            summary=sizes(interactions, users.numel()),
        )

    @classmethod
    def published(
        cls, data: PublishedSplit, seed: int, num_negatives: int = 4, eval_negatives: int = 99
    ) -> RankingTask:
        """On published test items and negatives, all users judged; validation as PublishedSplit.split says.

        eval_negatives: of the validation items, drawn by `seed`.
        """
        interactions, split = data.interactions, data.split(derive_seed(seed, "valid"))
        shape = (split.num_users, split.num_items)
        anywhere = SeenItems(interactions.users, interactions.items, *shape)
        return cls(
            split=split,
            seen=SeenItems(split.train_users, split.train_items, *shape),
            users=split.users,
            valid_items=split.valid_items,
            test_items=split.test_items,
            valid_negatives=evaluation_negatives(split.users, anywhere, eval_negatives, derive_seed(seed, "valid")),
            test_negatives=data.test_negatives,
            num_negatives=num_negatives,
            seed=seed,
            ids={"user": interactions.user_ids, "item": interactions.item_ids},
            summary=sizes(interactions, split.users.numel()),
        )

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

    def num_batches(self, batch_size: int) -> int:
        """Batches an epoch."""
        num = self.split.train_users.numel()
        return -(-num // step_size(num, batch_size))

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        """An epoch's (users (b,), items (b, 1 + num_negatives)), the positive first: fixed by seed, phase, epoch."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, phase, epoch))
        users = self.split.train_users
        size = step_size(users.numel(), batch_size)
        negatives = sample_negatives(users, self.seen, self.num_negatives, generator)
        items = torch.cat([self.split.train_items[:, None], negatives], dim=1)
        for chosen in torch.split(torch.randperm(users.numel(), generator=generator), size):
            yield users[chosen], items[chosen]

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Mean binary cross-entropy of all pairs: the positive against 1, the negatives against 0."""
        users, items = batch
        scores = model(users, items)
        target = torch.zeros_like(scores)
        target[:, 0] = 1.0
        return F.binary_cross_entropy_with_logits(scores, target)

    def validate(self, model: Model) -> dict[str, float]:
        """hr@10 and ndcg@10 of the validation items against their sampled negatives."""
        return summary(self._sampled(model, self._distinct(model)[1], self.valid_items, self.valid_negatives))

    @torch.no_grad()
    def _distinct(self, model: Model) -> tuple[Tensor, Tensor]:
        """The catalogue's distinct rows (v, ...), and each item's place among them: int64 (num_items,)."""
        distinct, places = torch.unique(model.catalogue(self.split.num_items), dim=0, return_inverse=True)
        return distinct, places

    def _sampled(self, model: Model, places: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Ranks among sampled negatives.

        A matrix product may give equal rows unequal last bits; items that share all their codes must draw.
        """

        def scores(users: Tensor, items: Tensor) -> Tensor:
            found = model(users, items)
            at = places[items]
            return torch.where(at == at[:, :1], found[:, :1], found)

        return sampled_ranks(scores, self.users, positives, negatives)

    @torch.no_grad()
    def judge(self, model: Model) -> dict[str, float]:
        """All final figures.

        hr@10 and ndcg@10 of the test items against sampled negatives; `full_` the same against the whole
        catalogue less the user's training and validation items; `valid_` and `valid_full_` for the validation
        items (against the catalogue less the user's training items); `head_` and `tail_` for the test items among
        the 10% most frequent items in training, and for the others.
        """
        distinct, places = self._distinct(model)

        def scores(users: Tensor) -> Tensor:
            return model.score_catalogue(users, distinct)[:, places]

        def catalogue(positives: Tensor, also_seen: Tensor | None) -> Tensor:
            return catalogue_ranks(
                scores,
                self.users,
                positives,
                self.split.train_items,
                self.split.train_offsets,
                self.split.num_items,
                also_seen,
            )

        test = self._sampled(model, places, self.test_items, self.test_negatives)
        valid = self._sampled(model, places, self.valid_items, self.valid_negatives)
        return {
            **summary(test),
            **tier_summary(test, self.test_items, self.split.item_counts),
            **summary(catalogue(self.test_items, self.valid_items), prefix="full_"),
            **summary(valid, prefix="valid_"),
            **summary(catalogue(self.valid_items, None), prefix="valid_full_"),
        }


def prepare(config: TrainConfig) -> tuple[RankingTask, str]:
    """The data that `config` names, split and ready, and a digest of them."""
    if config.data in PUBLISHED:
        data = load_published(config.data, config.data_dir)
        task = RankingTask.published(data, config.seed, config.negatives, config.eval_negatives)
        digest = fingerprint(data.interactions, data.test_items, data.test_negatives)
    else:
        columns = Columns.of(config)
        interactions = load_data(config.data, config.data_dir, config.format, columns)
        task = RankingTask.prepare(
            interactions, config.seed, config.negatives, config.eval_negatives, config.eval_users
        )
        digest = fingerprint(interactions)
    fields = importlib.import_module(MODELS[config.model].module).TABLES
    return replace(task, table_fields=fields), digest


def step_size(positives: int, limit: int) -> int:
    """Positives a step: at most `limit`; in small data sets a power of two that leaves 64 steps, but 256 at least."""
    most = positives // MIN_STEPS
    return min(limit, max(256, 1 << max(0, most.bit_length() - 1)))


def sizes(interactions: Interactions, judged_users: int) -> dict[str, Any]:
    """What a task's summary says of its data."""
    return {
        "users": interactions.num_users,
        "items": interactions.num_items,
        "interactions": len(interactions),
        "repeats_left_out": interactions.num_repeats,
        "judged_users": judged_users,
    }


def fingerprint(interactions: Interactions, *more: Tensor) -> str:
    """A digest of who took what, in order, and of what else decides the split."""
    digest = hashlib.sha256()
    for rows in (interactions.users, interactions.items, *more):
        digest.update(rows.numpy().tobytes())
    return digest.hexdigest()
