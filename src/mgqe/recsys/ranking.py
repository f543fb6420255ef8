"""Item ranking: what an epoch trains on, and how a model is judged. Leave-one-out, sampled negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mgqe.recsys.datasets import Split, leave_one_out, load_data
from mgqe.recsys.interactions import Columns, IdMap, Interactions
from mgqe.recsys.metrics import catalogue_ranks, sampled_ranks, summary, tier_summary
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.sampling import SeenItems, evaluation_negatives, sample_negatives
from mgqe.recsys.seeds import derive_seed
from mgqe.recsys.tasks import TableInfo

if TYPE_CHECKING:
    from mgqe.recsys.config import TrainConfig

Batch = tuple[Tensor, Tensor]
MIN_STEPS = 64


@dataclass(frozen=True)
class RankingTask:
    """One data set, split and ready to train and judge on.

    split: the training part and each user's held-out items.
    seen: what users have in training, which negatives avoid.
    users: int64 (u,) the users that are judged; valid_items, test_items: int64 (u,), theirs.
    valid_negatives, test_negatives: int64 (u, c), items that the user has nowhere.
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
            summary={
                "users": split.num_users,
                "items": split.num_items,
                "interactions": len(interactions),
                "repeats_left_out": interactions.num_repeats,
                "judged_users": users.numel(),
            },
        )

    @cached_property
    def tables(self) -> dict[str, TableInfo]:
        """Users and items."""
        split = self.split
        users, items = split.train_users, split.train_items
        return {
            "user": TableInfo("user", split.num_users, split.user_counts, pairs=(users, items)),
            "item": TableInfo("item", split.num_items, split.item_counts, pairs=(items, users)),
        }

    def num_batches(self, batch_size: int) -> int:
        """Batches an epoch."""
        return -(-self.split.train_users.numel() // self._batch_size(batch_size))

    def _batch_size(self, limit: int) -> int:
        """At most `limit`; in small data sets a power of two that leaves 64 steps an epoch, but 256 at least."""
        most = self.split.train_users.numel() // MIN_STEPS
        return min(limit, max(256, 1 << max(0, most.bit_length() - 1)))

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        """An epoch's (users (b,), items (b, 1 + num_negatives)), the positive first: fixed by seed, phase, epoch."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, phase, epoch))
        users = self.split.train_users
        negatives = sample_negatives(users, self.seen, self.num_negatives, generator)
        items = torch.cat([self.split.train_items[:, None], negatives], dim=1)
        for chosen in torch.split(torch.randperm(users.numel(), generator=generator), self._batch_size(batch_size)):
            yield users[chosen], items[chosen]

    def loss(self, model: GMF, batch: Batch) -> Tensor:
        """Mean binary cross-entropy of all pairs: the positive against 1, the negatives against 0."""
        users, items = batch
        scores = model(users, items)
        target = torch.zeros_like(scores)
        target[:, 0] = 1.0
        return F.binary_cross_entropy_with_logits(scores, target)

    def validate(self, model: GMF) -> dict[str, float]:
        """hr@10 and ndcg@10 of the validation items against their sampled negatives."""
        return summary(sampled_ranks(model, self.users, self.valid_items, self.valid_negatives))

    @torch.no_grad()
    def judge(self, model: GMF) -> dict[str, float]:
        """All final figures.

        hr@10 and ndcg@10 of the test items against sampled negatives; `full_` the same against the whole
        catalogue less the user's training and validation items; `valid_` and `valid_full_` for the validation
        items (against the catalogue less the user's training items); `head_` and `tail_` for the test items among
        the 10% most frequent items in training, and for the others.
        """
        vectors = model.item(torch.arange(self.split.num_items))
        # A matrix product may give equal rows unequal last bits; items that share all their codes must draw.
        distinct, places = torch.unique(vectors, dim=0, return_inverse=True)

        def scores(users: Tensor) -> Tensor:
            if len(distinct) == len(vectors):
                return model.score_catalogue(users, vectors)
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

        test = sampled_ranks(model, self.users, self.test_items, self.test_negatives)
        valid = sampled_ranks(model, self.users, self.valid_items, self.valid_negatives)
        return {
            **summary(test),
            **tier_summary(test, self.test_items, self.split.item_counts),
            **summary(catalogue(self.test_items, self.valid_items), prefix="full_"),
            **summary(valid, prefix="valid_"),
            **summary(catalogue(self.valid_items, None), prefix="valid_full_"),
        }


def prepare(config: TrainConfig) -> tuple[RankingTask, str]:
    """The data that `config` names, split and ready, and a digest of them."""
    columns = Columns(config.user_column, config.item_column, config.time_column)
    interactions = load_data(config.data, config.data_dir, config.format, columns)
    task = RankingTask.prepare(interactions, config.seed, config.negatives, config.eval_negatives, config.eval_users)
    return task, fingerprint(interactions)


def fingerprint(interactions: Interactions) -> str:
    """A digest of who took what, in order."""
    digest = hashlib.sha256()
    for rows in (interactions.users, interactions.items):
        digest.update(rows.numpy().tobytes())
    return digest.hexdigest()
