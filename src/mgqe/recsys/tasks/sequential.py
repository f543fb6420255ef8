"""Sequential recommendation: ranks the items that follow a user's history among negatives and the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mgqe.recsys.data.held_out import Split
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.data.moving import CPU, on_device
from mgqe.recsys.data.sampling import sample_negatives
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.models.sasrec import PackedHistories, SASRec
from mgqe.recsys.tasks.base import RunSettings, TableInfo, Validation
from mgqe.recsys.tasks.losses import shared_softmax_loss
from mgqe.recsys.tasks.metrics import ranges, sampled_ranks
from mgqe.recsys.tasks.ranking import RankingTask, chosen_metrics, data_fingerprint, load_split, split_tensors

EVAL_BATCH = 512  # histories per batch of the evaluation


@dataclass(frozen=True)
class Batch:
    """Windows of training histories, packed.

    items: int64 (m,), the items of each window in time order; sizes: int64 (b,), each 2 or more, summing to m. A window
    of s items has s - 1 positions: each item but the last is an input, each but the first a target.
    negatives: int64, (m - b, c) with one row per position ("bce"), (c,) shared by all ("softmax"), or None ("ce").
    positions: what follows from the sizes; None: the loss finds it.
    """

    items: Tensor
    sizes: Tensor
    negatives: Tensor | None
    positions: Positions | None = None


@dataclass(frozen=True)
class Positions:
    """The positions of windows: which items are inputs and which are targets, int64 (m - b,); the inputs' layout."""

    inputs: Tensor
    targets: Tensor
    histories: PackedHistories

    @classmethod
    def of(cls, sizes: Tensor) -> Positions:
        """Of windows of so many items."""
        ends = sizes.cumsum(0)
        is_input, is_target = torch.ones(2, int(sizes.sum()), dtype=torch.bool)
        is_input[ends - 1] = False
        is_target[ends - sizes] = False
        return cls(is_input.nonzero().squeeze(1), is_target.nonzero().squeeze(1), PackedHistories.of(sizes - 1))


@dataclass(frozen=True)
class SequentialTask:
    """A data set, split and prepared for training and evaluation.

    base: the split, the users to evaluate, their held-out items and negatives. All items of a user in a part are
    ranked by one query, which encodes the items before that part. max_length: the most inputs of a window.
    loss: "bce": separate sampled negatives for each position; "softmax": cross-entropy against negatives that a batch
    shares; "ce": cross-entropy over the catalogue.
    windows: the items of a longer history that an epoch trains on: the "last" max_length + 1, as many from a "random"
    position, or "all", cut at random positions.
    device: of batches.
    """

    base: RankingTask
    max_length: int = 50
    loss_name: str = "bce"
    windows: str = "last"
    judges_by: str = "full_ndcg"
    device: torch.device = CPU

    @property
    def split(self) -> Split:
        return self.base.split

    @property
    def seed(self) -> int:
        return self.base.seed

    @property
    def metric(self) -> str:
        return self.base.metric

    @property
    def selects_by(self) -> str:
        return self.base.selects_by

    @property
    def summary(self) -> dict[str, Any]:
        """Also how many users have a single training item, from which nothing is learnt."""
        return {**self.base.summary, "untrained": int((self.split.train_offsets.diff() == 1).sum())}

    @property
    def split_summary(self) -> dict[str, Any]:
        return self.base.split_summary

    @property
    def ids(self) -> Mapping[str, FileIds]:
        return {"item": self.base.ids["item"]}

    @cached_property
    def tables(self) -> dict[str, TableInfo]:
        """Items."""
        return {"item": self.base.tables["item"]}

    @cached_property
    def trained_users(self) -> Tensor:
        """Users with at least 2 training items: int64."""
        return (self.split.train_offsets.diff() >= 2).nonzero().squeeze(1)

    @cached_property
    def _positions(self) -> int:
        """The number of positions per epoch."""
        positions = self.split.train_offsets.diff()[self.trained_users] - 1
        return int((positions if self.windows == "all" else positions.clamp(max=self.max_length)).sum())

    def on(self, device: torch.device) -> SequentialTask:
        """As TrainingTask.on."""
        return replace(self, base=self.base.on(device), device=device)

    @property
    def nbytes(self) -> int:
        """As TrainingTask.nbytes."""
        each = self.base.num_negatives if self.loss_name == "bce" else 0
        return self.base.seen.nbytes + self.split.train_items.nbytes * 2 + 8 * self._positions * (6 + each)

    def num_batches(self, batch_size: int) -> int:
        """The number of batches per epoch, of `batch_size` positions on average."""
        return max(1, -(-self._positions // batch_size))

    def batches(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        """The windows of an epoch in random order, which seed, phase and epoch determine.

        On a device all are put together before the first is given.
        """
        drawn = self._drawn(batch_size, phase, epoch)
        yield from drawn if self.device == CPU else [on_device(batch, self.device) for batch in drawn]

    def _drawn(self, batch_size: int, phase: str, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, phase, epoch))
        users, starts, sizes = self._windows(generator)
        order = torch.randperm(users.numel(), generator=generator)
        # Batches have numbers of positions as equal as whole windows allow.
        done = (sizes[order] - 1).cumsum(0)
        batches = self.num_batches(batch_size)
        cuts = torch.searchsorted(done, torch.arange(1, batches) * int(done[-1]) // batches)
        for chosen in torch.tensor_split(order, cuts):
            places = ranges(starts[chosen], starts[chosen] + sizes[chosen])[1].to(self.split.train_items.device)
            negatives = self._negatives(users[chosen], sizes[chosen], generator)
            yield Batch(self.split.train_items[places], sizes[chosen], negatives, Positions.of(sizes[chosen]))

    def _windows(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(users, starts in the training part, sizes), each int64 (w,)."""
        users = self.trained_users
        offsets, most = self.split.train_offsets, self.max_length + 1
        first, lengths = offsets[users], offsets[users + 1] - offsets[users]
        sizes = lengths.clamp(max=most)
        if self.windows == "last":
            return users, first + lengths - sizes, sizes
        chance = torch.rand(users.numel(), generator=generator)
        if self.windows == "random":
            return users, first + (chance * (lengths - sizes + 1)).long().clamp(max=lengths - sizes), sizes
        # The last item of a window is the first input of the next, so that every item but the first is a target once.
        shift = torch.where(lengths > most, (chance * self.max_length).long(), self.max_length)  # first cut
        num = 1 + (lengths - 1 - shift + self.max_length - 1).clamp(min=0) // self.max_length
        owner = torch.arange(users.numel()).repeat_interleave(num)
        number = torch.arange(owner.numel()) - (num.cumsum(0) - num)[owner]
        begin = (shift[owner] + (number - 1) * self.max_length).clamp(min=0)
        end = torch.minimum(shift[owner] + number * self.max_length, lengths[owner] - 1)
        nonempty = (end > begin).nonzero().squeeze(1)
        owner, begin, end = owner[nonempty], begin[nonempty], end[nonempty]
        return users[owner], first[owner] + begin, end - begin + 1

    def _negatives(self, users: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor | None:
        num = self.base.num_negatives
        if self.loss_name == "ce":
            return None
        if self.loss_name == "softmax":
            return torch.randint(self.split.num_items, (num,), generator=generator)
        of_positions = users.repeat_interleave(sizes - 1).to(self.split.train_items.device)
        return sample_negatives(of_positions, self.base.seen, num, generator)

    def with_loss(self, loss: str | None, num_negatives: int | None) -> SequentialTask:
        """The same task trained by another loss, or with other negatives; None leaves either as it is."""
        return replace(self, base=self.base.with_loss(None, num_negatives), loss_name=loss or self.loss_name)

    def loss(self, model: SASRec, batch: Batch) -> Tensor:
        """Mean over the batch's positions, with one look-up in the item table."""
        positions = batch.positions or Positions.of(batch.sizes)
        inputs, targets = positions.inputs, positions.targets
        if batch.negatives is None:
            vectors = model.item(torch.arange(self.split.num_items))
            hidden = model.encode(F.embedding(batch.items[inputs], vectors), positions.histories)
            return F.cross_entropy(hidden @ vectors.T, batch.items[targets])
        vectors = model.item(torch.cat([batch.items, batch.negatives.reshape(-1)]))
        item_vectors, negative_vectors = vectors.tensor_split([batch.items.numel()])
        hidden = model.encode(F.embedding(inputs, item_vectors), positions.histories)
        positive = (hidden * F.embedding(targets, item_vectors)).sum(dim=1)
        if batch.negatives.dim() == 1:
            return shared_softmax_loss(hidden, positive, negative_vectors, batch.items[targets], batch.negatives)
        negative = (negative_vectors.view(*batch.negatives.shape, -1) * hidden[:, None]).sum(dim=2)
        return (F.softplus(-positive) + F.softplus(negative).sum(dim=1)).mean()

    def validation(self, model: SASRec) -> Validation:
        """As RankingTask.validation."""
        vectors, queries = self._catalogue(model), self.queries(model, test=False)
        in_catalogue = self._catalogue_ranks(vectors, queries, test=False)
        return self.base.validation_of(self._ranks(vectors, queries, test=False), in_catalogue)

    @torch.no_grad()
    def evaluate(self, model: SASRec) -> dict[str, float]:
        """All final figures, as in RankingTask.evaluate. For the test, histories include the validation items."""
        base = self.base
        vectors = self._catalogue(model)
        figures = {}
        for test, part, prefix in ((True, base.test, ""), (False, base.valid, "valid_")):
            queries = self.queries(model, test)
            sampled = self._ranks(vectors, queries, test)
            figures.update(base.sampled_figures(sampled, part, prefix))
            ranks = self._catalogue_ranks(vectors, queries, test)
            figures.update(base.catalogue_figures(ranks, part, f"{prefix}full_"))
            if test:
                figures.update(base.head_and_tail(sampled, ranks))
        return {**figures, **base.popularity_figures}

    def _catalogue_ranks(self, vectors: Tensor, queries: Tensor, test: bool) -> Tensor:
        """Ranks of a part's items in the whole catalogue, whose vectors are (num_items, d)."""
        part = self.base.test if test else self.base.valid
        # A matrix product may give equal rows unequal last bits, but items that share all their codes must tie.
        distinct, row_of_item = torch.unique(vectors, dim=0, return_inverse=True)
        row = torch.empty(self.split.num_users, dtype=torch.int64)
        row[part.users] = torch.arange(part.users.numel())
        return self.base.catalogue_ranks(lambda users: queries[row[users]] @ distinct.T, part, test, row_of_item)

    @torch.no_grad()
    def queries(self, model: SASRec, test: bool) -> Tensor:
        """h after the histories of a part's users, which include the validation items for the test: (u, d)."""
        items, offsets = self.split.histories(test)
        evaluated = (self.base.test if test else self.base.valid).users
        hidden = []
        # Histories of similar lengths need less padding.
        order = self.split.train_offsets.diff()[evaluated].argsort(stable=True)
        for rows in torch.split(order, EVAL_BATCH):
            users = evaluated[rows]
            ends = offsets[users + 1]
            sizes = torch.minimum(ends - offsets[users], torch.tensor(self.max_length))
            hidden.append(model(items[ranges(ends - sizes, ends)[1]], sizes))
        queries = torch.empty(evaluated.numel(), hidden[0].shape[1])
        queries[order] = torch.cat(hidden)
        return queries

    @torch.no_grad()
    def _catalogue(self, model: SASRec) -> Tensor:
        vectors: Tensor = model.item(torch.arange(self.split.num_items))
        return vectors

    def _ranks(self, vectors: Tensor, queries: Tensor, test: bool) -> Tensor | None:
        """Ranks of a part's items among their sampled negatives, None if it has none; queries (u, d) of its users."""
        part = self.base.test if test else self.base.valid
        if not part.is_sampled:
            return None
        # Multiplication and sum give equal items equal scores; a matrix product may not.
        return sampled_ranks(
            lambda rows, items: (F.embedding(items, vectors) * queries[rows, None]).sum(dim=2),
            torch.arange(part.users.numel()),
            part.items,
            part.negatives,
            owners=part.owners,
        )


def prepare(config: RunSettings) -> tuple[SequentialTask, str]:
    """The data of a configuration, split and prepared, and a digest of them."""
    interactions, parts = load_split(config)
    base = RankingTask.prepare(
        interactions, config.seed, config.negatives, config.eval_negatives, config.eval_users, parts
    )
    base = replace(base, **chosen_metrics(config))
    if config.loss == "bce":
        base.check_negatives()
    task = SequentialTask(base, config.max_length, config.loss, config.windows)
    if task.trained_users.numel() == 0:
        raise ValueError("no user has 2 training interactions: a sequential model learns from one item to the next")
    return task, data_fingerprint(interactions, *split_tensors(parts))
