"""One table's codebooks over rows that live elsewhere: its warm-up, start, revival and losses, alike on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgqe.codec.kmeans import KMEANS, THOROUGH, KMeans, draw_places, revive_interval, revive_size, sample_size
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.ddp import KeepInGraph, data_parallel
from mgqe.nn.context.precision import in_full_precision
from mgqe.nn.model import AuxiliaryLayer
from mgqe.nn.pending import PendingLosses
from mgqe.nn.quantizers.autograd import TrainingBatch
from mgqe.nn.quantizers.build import make_quantizer, other_tiers
from mgqe.nn.quantizers.vq import VQQuantizer
from mgqe.torchrec.rows import RowSource
from mgqe.torchrec.settings import TableSettings


class FetchedBatch(TrainingBatch):
    """A batch whose rows were fetched: their gradient is for them, not for a whole table."""

    def rows_of(self, weight: Tensor) -> Tensor:
        """The rows (u, d) of the distinct ids, which is what was fetched."""
        return weight

    def row_gradient(self, values: Tensor, num_embeddings: int) -> Tensor:
        """The gradient (u, d) of the distinct rows, as it is."""
        return values


@dataclass(frozen=True)
class Distinct:
    """A batch's distinct ids of one table, those of a tier together.

    Attributes:
        ids: (u,). places: (n,) each id's place among them. counts: (u,). sizes: how many each tier has.
    """

    ids: Tensor
    places: Tensor
    counts: Tensor
    sizes: list[int]

    @classmethod
    def nothing(cls, device: torch.device) -> Distinct:
        """No ids."""
        none = torch.empty(0, dtype=torch.int64, device=device)
        return cls(none, none, none, [])


class QuantizedTable(AuxiliaryLayer):
    """The part of a table that every rank has: tiers, codebooks, how far the warm-up is.

    Args:
        source: where the rows are; shared with the collection.
        settings: tiers, capacity and configuration.
        seed: of what k-means and revival draw.
    """

    tier_of: Tensor | None
    tier_sizes: Tensor
    steps: Tensor
    started: Tensor

    def __init__(self, source: RowSource, settings: TableSettings, seed: int, device: torch.device) -> None:
        super().__init__()
        self.name, self.source, self.seed = settings.name, source, seed
        self.tiers, self.capacity, self.config = settings.tiers, settings.capacity, settings.config
        tiers, config, dim = self.tiers, self.config, self.capacity.embedding_dim
        like = torch.empty(0, dim, device=device)
        made = make_quantizer("vq", self.capacity, like, config.centroid_dtype, config.commitment, False)
        assert isinstance(made, VQQuantizer)
        self.quantizer = made
        self.warmup_steps = config.warmup_steps if config.init == "warmup" else 0
        # As in QuantizedEmbedding: a checkpoint keeps the tiers that its codes were trained with.
        self.register_buffer("tier_sizes", torch.tensor(tiers.sizes, dtype=torch.int64, device=device))
        self.register_buffer("tier_of", None if tiers.tier_of is None else tiers.tier_of.to(device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool, device=device))
        self._progress: tuple[int, bool] | None = (0, False)
        self._pending = PendingLosses()
        self._seen = -1
        reach = zip(tiers.sizes, self.capacity.num_centroids, strict=True)
        self._revive_every = revive_interval(max(min(size, revive_size(k)) for size, k in reach))

    # ---- state -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        """What has to be the same on every rank, by name."""
        tier_of = self.tiers.tier_of
        digest = "" if tier_of is None else f" {hashlib.sha256(tier_of.numpy().tobytes()).hexdigest()[:12]}"
        rows, config, name = self.source.config, self.config, self.name
        return {
            f"{name}: rows": f"{rows.num_embeddings:,} x {rows.embedding_dim}",
            f"{name}: features": ", ".join(rows.feature_names),
            f"{name}: tiers": f"{self.tiers.sizes}{digest}",
            f"{name}: capacity": f"D = {self.capacity.num_subspaces}, K = {self.capacity.num_centroids}, "
            f"share_codebook = {config.share_codebook}, share_subspaces = {config.share_subspaces}",
            f"{name}: centroid_dtype": config.centroid_dtype,
            f"{name}: commitment": f"{config.commitment}",
            f"{name}: warm-up": f"{config.init}, {self.warmup_steps} steps",
            f"{name}: seed": f"{self.seed}",
        }

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up is over."""
        return self._state()[1]

    @property
    def passes(self) -> int:
        """Training passes so far."""
        return self._state()[0]

    def _state(self) -> tuple[int, bool]:
        if self._progress is None:
            self._progress = int(self.steps), bool(self.started)
        return self._progress

    def _set_progress(self, steps: int, started: bool) -> None:
        self.steps.fill_(steps)
        self.started.fill_(started)
        self._progress = steps, started

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if difference := other_tiers(state_dict, prefix, self.tiers):
            rest[-1].append(difference)
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._progress = None

    # ---- codebooks ---------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def start_quantizing(self, kmeans: KMeans | None = None) -> None:
        """End the warm-up now: codebooks start from the rows as they are, alike on every rank. A collective.

        The ids that k-means looks at depend on the seed, not on how many ranks there are.

        Raises:
            ValueError: (on every rank) a row is NaN or infinite, or rows are sharded by columns.
        """
        if self.quantizing:
            return
        self.source.check_finite()
        generator = self._generator()
        dim = self.source.config.embedding_dim
        rows = self._tier_rows([sample_size(k, dim) for k in self.capacity.num_centroids], generator)
        if self.source.ranks.rank == 0:
            effort = KMEANS if self.config.init == "warmup" else THOROUGH
            self.quantizer.start(rows, generator, kmeans or effort)
        self.source.ranks.broadcast([book.data for book in self.quantizer.codebooks])
        self._set_progress(self.passes, True)

    @in_full_precision
    @torch.no_grad()
    def _revive(self) -> None:
        generator = self._generator()
        rows = self._tier_rows([revive_size(k) for k in self.capacity.num_centroids], generator)
        if self.source.ranks.rank == 0:
            self.quantizer.revive(rows, generator)
        self.source.ranks.broadcast([book.data for book in self.quantizer.codebooks])

    def _generator(self) -> torch.Generator:
        text = f"{self.seed} {self.name} {self.passes}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))

    def _tier_rows(self, limits: list[int], generator: torch.Generator) -> list[Tensor]:
        """Each tier's rows (n_g, d) float32, or so many of them at random where a tier is larger, on every rank."""
        chosen = [draw_members(self.tiers, g, limit, generator) for g, limit in enumerate(limits)]
        rows = self.source.read(torch.cat(chosen))
        return list(torch.split(rows, [len(ids) for ids in chosen]))

    # ---- training ----------------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """What comes before every forward pass; in training it may start or revive codebooks: a collective."""
        if not (self.training and torch.is_grad_enabled()):
            return
        if self._losses_are_past:
            self._pending.end_step()
        self._pending.begin_pass()
        steps, quantizing = self.passes + 1, self.quantizing
        self._set_progress(steps, quantizing)
        if not quantizing:
            if steps > self.warmup_steps:
                self.start_quantizing()
        elif steps % self._revive_every == 0:
            self._revive()
        self._seen = self.quantizer.version()

    @in_full_precision
    def quantize(self, rows: Tensor, batch: Distinct, repeat: bool, share: float) -> tuple[Tensor, Tensor]:
        """Fetched rows to vectors, straight through after the warm-up.

        Args:
            rows: (u, d) of the batch's distinct ids, as fetched, with their gradient.
            batch: the ids.
            repeat: give the vectors of all n ids; else those of the distinct ones.
            share: what this rank's mean loss is multiplied by, so that the ranks' average is the mean over all ids.

        Returns:
            vectors (n, d) or (v, d), and the place of each id in them (n,).
        """
        every = torch.arange(batch.places.shape[0], device=batch.places.device) if repeat else batch.places
        if not self.quantizing:
            return (rows.index_select(0, batch.places) if repeat else rows), every
        if self.training and torch.is_grad_enabled():
            whole = FetchedBatch(batch.ids, batch.counts, batch.places, None, repeat, False, False)
            vectors, loss = self.quantizer.read(rows, rows.detach(), batch.sizes, whole)
            self._pending.add(loss * share)
            return vectors, every
        vectors, _ = self.quantizer(rows, batch.sizes, batch.counts)
        return (vectors.index_select(0, batch.places) if repeat else vectors), every

    def joined(self, vectors: Tensor) -> Tensor:
        """Vectors as they leave the module: in a DistributedDataParallel pass, tied to every codebook."""
        if data_parallel() is None or not (self.training and torch.is_grad_enabled()):
            return vectors
        return KeepInGraph.apply(vectors, *self.quantizer.parameters())  # type: ignore[no-any-return, no-untyped-call]

    @property
    def _losses_are_past(self) -> bool:
        """The rows' own optimiser steps within the backward pass: the codebooks tell."""
        return self._seen != self.quantizer.version()

    @in_full_precision
    def codes(self, rows: Tensor, tier: int) -> Tensor:
        """Rows (n, d) of one tier -> codes (n, D_g) int32."""
        return self.quantizer.codes(rows, tier)

    def extra_repr(self) -> str:
        tiers = zip(self.tiers.sizes, self.capacity.num_subspaces, self.capacity.num_centroids, strict=True)
        text = ", ".join(f"{n:,} ids x {d} of {k}" for n, d, k in tiers)
        return f"{self.name}: tiers=({text})" + ("" if self.quantizing else f", warm-up of {self.warmup_steps} passes")


def draw_members(tiers: Tiers, tier: int, limit: int, generator: torch.Generator) -> Tensor:
    """A tier's ids, or ``limit`` of them at random where it has more; the generator decides, and nothing else."""
    size = tiers.sizes[tier]
    if size <= limit:
        return tiers.members(tier)
    if tiers.tier_of is None:
        return draw_places(size, limit, generator) + tiers.starts[tier]
    if size <= 4 * limit:
        return tiers.members(tier)[draw_places(size, limit, generator)]
    # Without a list of the tier's ids, which takes eight bytes each: draw among all, keep those of the tier.
    found: list[Tensor] = []
    while sum(len(ids) for ids in found) < limit:
        ids = torch.randint(tiers.num_embeddings, (limit,), generator=generator, device="cpu")
        found.append(ids[tiers.tier_of[ids] == tier])
    return torch.cat(found)[:limit]
