"""One table's codebooks over rows that live elsewhere: its warm-up, start, revival and losses, alike on every rank."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mgqe.codec.kmeans import KMEANS, THOROUGH, KMeans, revive_size, sample_size
from mgqe.nn.codebook_layer import Batch, CodebookLayer
from mgqe.nn.context.decorators import in_full_precision
from mgqe.nn.metric import Total
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.build import make_quantizer
from mgqe.nn.rows.store import draw_members
from mgqe.torchrec.rows import RowSource
from mgqe.torchrec.settings import TableSettings


class QuantizedTable(CodebookLayer):
    """What every rank has of a table: tiers, codebooks, how far the warm-up is.

    Args:
        source: where the rows are; shared with the collection.
        settings: tiers, capacity and configuration.
        seed: of what k-means and revival draw.
        device: of the codebooks.
    """

    _FORCE_STATE_DICT_LOAD = True  # read by DistributedModelParallel, which drops error messages otherwise

    def __init__(self, source: RowSource, settings: TableSettings, seed: int, device: torch.device) -> None:
        config = settings.config
        warmup_steps = config.warmup_steps if config.init == "warmup" else 0
        super().__init__(settings.tiers, settings.capacity, warmup_steps, device)
        self.name, self.source, self.seed, self.config = settings.name, source, seed, config
        like = torch.empty(0, self.capacity.embedding_dim, device=device)
        self.quantizer = self._make_quantizer(like)

    def _make_quantizer(self, like: Tensor) -> Quantizer:
        """The codebooks, in the dtype and on the device of ``like``."""
        config = self.config
        return make_quantizer("vq", self.capacity, like, config.centroid_dtype, config.commitment, False)

    def settings(self) -> dict[str, str]:
        """What has to be equal on all ranks, by name."""
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
    def passes(self) -> int:
        """Training passes so far."""
        return self.schedule.passes

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
        self._start_codebooks(kmeans)
        self.schedule.end()

    def _start_codebooks(self, kmeans: KMeans | None) -> None:
        """Make codebooks from rows that are finite, alike on every rank. A collective."""
        generator, dim = self._generator(), self.capacity.embedding_dim
        rows = self._tier_rows([sample_size(k, dim) for k in self.capacity.num_centroids], generator)
        if self.source.ranks.rank == 0:
            effort = KMEANS if self.config.init == "warmup" else THOROUGH
            self.quantizer.start(rows, generator, kmeans or effort)
        self._share_codebooks()

    @in_full_precision
    @torch.no_grad()
    def revive(self) -> None:
        """Move centroids that no id chooses onto rows that are far from theirs, alike on every rank. A collective."""
        generator = self._generator()
        rows = self._tier_rows([revive_size(k) for k in self.capacity.num_centroids], generator)
        if self.source.ranks.rank == 0:
            self.quantizer.revive(rows, generator)
        self._share_codebooks()

    def _share_codebooks(self) -> None:
        self.source.ranks.broadcast([book.data for book in self.quantizer.parameters()])

    def _generator(self) -> torch.Generator:
        text = f"{self.seed} {self.name} {self.passes}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))

    def _tier_rows(self, limits: list[int], generator: torch.Generator) -> list[Tensor]:
        """Each tier's rows (n_g, d) float32, at most as many as its limit, at random; on every rank."""
        ids = [draw_members(self.tiers, g, limit, generator, 4 * limit) for g, limit in enumerate(limits)]
        return list(torch.split(self.source.read(torch.cat(ids)), [len(some) for some in ids]))

    # ---- training ----------------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """What comes before every forward pass; in training it may start or revive codebooks: a collective."""
        if not self._trains:
            return
        if self._step_is_over():
            self.losses.end_step()
        self._count_pass()
        self.watcher.remember(self.quantizer)

    def _total(self) -> Total | None:
        return self.source.ranks.add if self.source.ranks.active else None

    def _step_is_over(self) -> bool:
        # torchrec's optimiser of the rows steps within the backward pass, so the codebooks alone can tell.
        return self.watcher.codebooks_stepped(self.quantizer)

    @in_full_precision
    def quantize(self, rows: Tensor, batch: Batch, share: float) -> Tensor:
        """Fetched rows to vectors (u, d), straight through after the warm-up.

        Args:
            rows: (u, d) of the batch's distinct ids, as fetched, with their gradient.
            batch: the ids.
            share: what this rank's mean loss is multiplied by, so that the ranks' average is the mean over all ids.
        """
        if not self.quantizing:
            return rows
        vectors, loss = self.quantizer.quantize(rows, batch.groups, batch.counts)
        if loss is not None:
            self.losses.add(loss * share)
        return vectors

    @in_full_precision
    def codes(self, rows: Tensor, tier: int) -> Tensor:
        """Rows (n, d) of one tier -> codes (n, D_g) int32."""
        return self.quantizer.codes(rows, tier)

    def extra_repr(self) -> str:
        """Sizes, and what a plan measured errors by, for print."""
        text = f"{self.name}: tiers=({self._describe_tiers()}){self._describe_metric()}"
        return text + ("" if self.quantizing else f", warm-up of {self.warmup_steps} passes")
