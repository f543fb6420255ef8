"""QuantizedEmbedding: rows that train, codes that are served; the warm-up and the bridge between the two.

MGQEmbedding, DPQEmbedding and their Bag forms say which arguments there are and what a forward pass returns; what
happens to rows and codebooks is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe import ops
from mgqe.autograd import Batch
from mgqe.capacity import Capacity
from mgqe.codebook import draw_places, revive_interval, revive_size, sample_size
from mgqe.ids import as_int64, check_ids, check_sizes
from mgqe.parts import cpu_generator, make_quantizer, make_weight, other_tiers
from mgqe.quantizers import Groups
from mgqe.stats import CodebookStats
from mgqe.table import CompactTable
from mgqe.tiers import Tiers
from mgqe.vq import VQQuantizer

MAX_PENDING_LOSSES = 64  # losses kept for quantization_loss() by a loop that never asks for them
SWEEP_ROWS = 65_536  # rows quantised at a time in a sweep over the vocabulary


class QuantizedEmbedding(nn.Module):
    """What MGQEmbedding, DPQEmbedding and their Bag forms have in common."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    tier_of: Tensor | None
    tier_sizes: Tensor
    steps: Tensor
    started: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        tiers: Tiers,
        capacity: Capacity,
        quantizer: str,
        warmup_steps: int,
        centroid_dtype: str,
        commitment: float,
    ) -> None:
        super().__init__()
        if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, int) or warmup_steps < 0:
            raise ValueError(f"warmup_steps must be a whole number of 0 or more, got {warmup_steps}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = check_sizes(num_embeddings, embedding_dim, padding_idx)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.warmup_steps = warmup_steps
        self.centroid_dtype = centroid_dtype
        self.capacity = capacity
        self._tiers = tiers
        weight = make_weight(num_embeddings, embedding_dim, self.padding_idx, _weight, device, dtype)
        self.weight = nn.Parameter(weight, requires_grad=not _freeze)
        self.quantizer = make_quantizer(quantizer, capacity, weight, centroid_dtype, commitment, sparse)
        at = weight.device
        # Checkpoints keep the tiers, so that codes are never read under others than they were trained with.
        self.register_buffer("tier_sizes", torch.tensor(tiers.sizes, dtype=torch.int64, device=at))
        self.register_buffer("tier_of", None if tiers.tier_of is None else tiers.tier_of.to(at))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=at))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool, device=at))
        # The two buffers above as Python values, read once, so that a training pass never waits for a device; None
        # when they have to be read again. Two values, not a pair: a compiled graph hangs on the second alone.
        self._steps: int | None = 0
        self._started: bool | None = False
        self._started_version = self.started._version
        self._aux: list[Tensor] = []
        self._aux_read = False
        self._revival_due = False
        self._seen = self._parameter_version()
        reach = zip(tiers.sizes, capacity.num_centroids, strict=True)
        self._revive_every = revive_interval(max(min(size, revive_size(k)) for size, k in reach))

    # ---- state -------------------------------------------------------------------------------------------

    @property
    def tiers(self) -> Tiers:
        """The ids' partition, tier 0 the most frequent."""
        return self._tiers

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up is over: the forward pass returns quantised vectors."""
        if self.started.is_meta:
            return bool(self._started)
        # Averaged copies of models and broadcasts between processes write into the buffer itself.
        if self._started is None or (
            not torch.compiler.is_compiling() and self.started._version != self._started_version
        ):
            self._started, self._steps = bool(self.started), None
            self._started_version = self.started._version
        return self._started

    def _passes(self) -> int:
        """Training passes so far."""
        if self._steps is None:
            self._steps = int(self.steps)
        return self._steps

    def _set_progress(self, steps: int, started: bool) -> None:
        self.steps.fill_(steps)
        self.started.fill_(started)
        self._steps, self._started = steps, started
        self._started_version = self.started._version

    def _parameter_version(self) -> int:
        """A number that changes when an optimiser takes a step."""
        version: int = self.weight._version + self.quantizer.version()
        return version

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As newly constructed: rows from N(0, 1), the warm-up ahead. Also fills a layer made on the meta device."""
        self.weight.normal_()
        if self.padding_idx is not None:
            self.weight[self.padding_idx].zero_()
        self.tier_sizes.copy_(torch.tensor(self._tiers.sizes, device="cpu"))
        if self.tier_of is not None and self._tiers.tier_of is not None:
            self.tier_of.copy_(self._tiers.tier_of)
        self.quantizer.reset_parameters()
        self._set_progress(0, False)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if difference := other_tiers(state_dict, prefix, self._tiers):
            error_msgs.append(difference)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._steps = self._started = None

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: without the last pass's losses, which hang on its graph."""
        state = dict(self.__dict__)
        state.update(_aux=[], _started=None, _steps=None, _seen=-1)
        return state

    # ---- codebooks ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_quantizing(self) -> None:
        """End the warm-up now: start the codebooks from the rows as they are. Does nothing the second time."""
        if not self.quantizing:
            self._check_rows()
            limits = [sample_size(k, self.embedding_dim) for k in self.capacity.num_centroids]
            generator = cpu_generator()
            self.quantizer.start(self._tier_rows(limits, generator), generator)
            self._set_progress(self._passes(), True)

    @torch.no_grad()
    def _revive(self) -> None:
        generator = cpu_generator()
        limits = [revive_size(k) for k in self.capacity.num_centroids]
        self.quantizer.revive(self._tier_rows(limits, generator), generator)

    def _tier_rows(self, limits: list[int], generator: torch.Generator) -> list[Tensor]:
        """Each tier's rows (n_g, d) float32, all but padding, or so many of them at random where a tier is larger."""
        rows = []
        for g, limit in enumerate(limits):
            with torch.device("cpu"):
                chosen = self._draw_members(g, limit, generator)
            if self.padding_idx is not None:
                chosen = chosen[chosen != self.padding_idx]
            rows.append(self._read_rows(chosen.to(self.weight.device)).float())
        return rows

    def _draw_members(self, tier: int, limit: int, generator: torch.Generator) -> Tensor:
        if self._tiers.sizes[tier] <= limit:
            return self._tiers.members(tier)
        places = draw_places(self._tiers.sizes[tier], limit, generator)
        if self._tiers.tier_of is None:
            return places + self._tiers.starts[tier]
        return self._tiers.members(tier)[places]

    def _read_rows(self, ids: Tensor) -> Tensor:
        """Rows as a forward pass reads them: ``max_norm`` renormalises them first, in place, as in nn.Embedding."""
        return F.embedding(ids, self.weight.detach(), None, self.max_norm, self.norm_type)

    def _check_rows(self) -> None:
        """Raises ValueError naming the first row of ``weight`` that is not finite."""
        for start in range(0, self.num_embeddings, SWEEP_ROWS):
            finite = self.weight.detach()[start : start + SWEEP_ROWS].isfinite().all(1)
            if self.padding_idx is not None and start <= self.padding_idx < start + SWEEP_ROWS:
                finite[self.padding_idx - start] = True  # looks up as zeros, whatever its row holds
            if not bool(finite.all()):
                row = start + int((~finite).nonzero()[0])
                raise ValueError(
                    f"row {row} of the embedding weight holds NaN or infinity and cannot be quantised: "
                    "the training diverged; lower the learning rate or go back to an earlier checkpoint"
                )

    # ---- training ----------------------------------------------------------------------------------------

    def _begin_pass(self) -> None:
        """What comes before every forward pass."""
        counts = self.training and torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            if counts:
                outside_graphs(self._count_training_pass)
        elif counts:
            self._count_training_pass()
        else:
            self._forget_losses()

    def _forget_losses(self) -> None:
        if self._aux_read or len(self._aux) >= MAX_PENDING_LOSSES:
            self._aux.clear()
            self._aux_read = False

    def _count_training_pass(self) -> None:
        """Count one training pass; end the warm-up when it is over; look for dead centroids now and then.

        The first pass after an optimiser's step forgets the losses of the passes before it, read or not. Revival
        waits for that moment too: between two calls of one step the first one's graph still needs the codebooks.
        """
        version = self._parameter_version()
        if version != self._seen and self.max_norm is None:  # max_norm itself changes rows in a forward pass
            self._aux.clear()
        self._forget_losses()
        quantizing, steps = self.quantizing, self._passes() + 1
        self._steps = steps
        self.steps.add_(1)
        if not quantizing:
            if steps > self.warmup_steps:
                self.start_quantizing()
                version = self._parameter_version()
        else:
            self._revival_due = self._revival_due or steps % self._revive_every == 0
            if self._revival_due and version != self._seen:
                self._revive()
                self._revival_due = False
                version = self._parameter_version()
        self._seen = version

    def _keep_loss(self, loss: Tensor) -> None:
        self._aux.append(loss)

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids as int64 that are safe to index with. On other devices than the CPU the look-up itself refuses."""
        rows = as_int64(ids)
        if rows.device.type != "cpu" or torch.compiler.is_compiling():
            return rows
        return check_ids(rows, self.num_embeddings)

    def _quantized(self, flat: Tensor, repeat: bool) -> tuple[Tensor, Tensor | None]:
        """Quantised vectors of flat ids (n,): (n, d) and None; or those of distinct ids (u, d) and all places (n,)."""
        if torch.compiler.is_compiling():
            vectors, places = self._quantized_in_graph(flat)
        else:
            ids, places, counts, sizes = ops.unique_by_tier(flat, self._tiers.sizes, self.tier_of)
            quantizer, trains = self.quantizer, self.training and torch.is_grad_enabled()
            if trains and isinstance(quantizer, VQQuantizer) and quantizer.reads:
                scale = repeat and self.scale_grad_by_freq
                batch = Batch(ids, counts, places, self._is_padding(ids), repeat, scale, self.sparse)
                vectors, loss = quantizer.read(self.weight, self._read_rows(ids), sizes, batch)
                self._keep_loss(loss)
                return vectors, None if repeat else places
            vectors = self._quantized_rows(ids, sizes, counts)
        if places is None or not repeat:
            return vectors, places
        return F.embedding(places, vectors, scale_grad_by_freq=self.scale_grad_by_freq), None

    def _quantized_in_graph(self, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """With static shapes: nothing may depend on how many ids are distinct, or in a tier."""
        if not self.training:  # finding duplicates would save nothing
            return self._quantized_rows(flat, self._tier_numbers(flat), torch.ones_like(flat)), None
        ids, places, counts = ops.unique(flat, self.num_embeddings)
        return self._quantized_rows(ids, self._tier_numbers(ids), counts), places

    def _quantized_rows(self, ids: Tensor, groups: Groups, counts: Tensor) -> Tensor:
        """The quantiser's vectors (u, d) of ids (u,), zeros for padding; keeps its loss."""
        rows = F.embedding(ids, self.weight, self.padding_idx, self.max_norm, self.norm_type, sparse=self.sparse)
        padding = self._is_padding(ids)
        weights = counts if padding is None else counts.masked_fill(padding, 0)
        vectors: Tensor
        vectors, loss = self.quantizer(rows, groups, weights)
        if loss is not None:
            if torch.compiler.is_compiling():
                outside_graphs(self._keep_loss, loss)
            else:
                self._keep_loss(loss)
        return vectors if padding is None else vectors.masked_fill(padding.unsqueeze(-1), 0.0)

    def _is_padding(self, ids: Tensor) -> Tensor | None:
        return None if self.padding_idx is None else ids.eq(self.padding_idx)

    def _tier_numbers(self, ids: Tensor) -> Tensor:
        if self.capacity.num_tiers == 1:
            return torch.zeros_like(ids)
        if self.tier_of is not None:
            return self.tier_of[ids]
        return torch.bucketize(ids, self.tier_sizes.cumsum(0)[:-1], right=True)

    def auxiliary_loss(self) -> Tensor | None:
        """The sum of the losses since the training pass after the last reading, None if there are none."""
        self._aux_read = True
        if len(self._aux) == 1:
            return self._aux[0]
        return torch.stack(self._aux).sum() if self._aux else None

    # ---- freezing ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def sweep(self) -> list[Tensor]:
        """Codes of the whole vocabulary, never-seen ids included: (n_g, D_g) int32 a tier, in order of ids."""
        codes = []
        for g in range(self._tiers.num_tiers):
            ids = self._tiers.members(g).to(self.weight.device)
            parts = [self.quantizer.codes(self._read_rows(chunk), g).cpu() for chunk in torch.split(ids, SWEEP_ROWS)]
            codes.append(torch.cat(parts))
        return codes

    @torch.no_grad()
    def freeze(self) -> CompactTable:
        """Pack codes and centroids into the table that is served.

        In the warm-up this starts the codebooks at this moment (post-training quantisation).

        Returns:
            a table on the CPU whose look-ups equal this layer's eval-mode forward pass.

        Raises:
            ValueError: a row or centroid is NaN or infinite.
        """
        self._check_rows()
        self.start_quantizing()
        with torch.device("cpu"):
            return CompactTable.from_codes(
                self._tiers,
                self.sweep(),
                [book.cpu() for book in self.quantizer.served()],
                self.capacity.codebook_of,
                self.capacity.num_centroids,
                self.padding_idx,
                self.centroid_dtype,
            )

    def codebook_stats(self) -> list[CodebookStats]:
        """Centroids in use and perplexity, a tier; one sweep over the vocabulary.

        Raises:
            RuntimeError: still in the warm-up, there are no codes yet.
        """
        if not self.quantizing:
            raise RuntimeError(
                "codebook_stats() needs codebooks, but this layer is still in its warm-up "
                f"({self._passes()} of {self.warmup_steps} training passes): "
                "train on, or call mgqe.start_quantizing(model)"
            )
        return self.freeze().codebook_stats()

    def extra_repr(self) -> str:
        tiers = ", ".join(
            f"{n:,} ids x {d} of {k}"
            for n, d, k in zip(
                self._tiers.sizes,
                self.capacity.num_subspaces,
                self.capacity.num_centroids,
                strict=True,
            )
        )
        text = f"{self.num_embeddings}, {self.embedding_dim}, tiers=({tiers})"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        return text + ("" if self.quantizing else f", warm-up of {self.warmup_steps} passes")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def outside_graphs(function: Callable[..., None], *arguments: Any) -> None:
    """Run what changes Python's state: a compiled graph that did would be made again for every new state."""
    function(*arguments)
