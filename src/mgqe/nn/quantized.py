"""QuantizedEmbedding: rows that train, codes that are served; the warm-up and the bridge between the two.

MGQEmbedding, DPQEmbedding and their Bag forms say which arguments there are and what a forward pass returns; what
happens to rows and codebooks is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe import ops
from mgqe.checks.ids import check_sizes
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_float, optional_float
from mgqe.codec.equations import Groups
from mgqe.codec.kmeans import KMEANS, KMeans, draw_places, revive_interval, revive_size, sample_size
from mgqe.codec.stats import CodebookStats
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.ddp import KeepInGraph, broadcast_from_first, common_generator, data_parallel
from mgqe.nn.context.graphs import outside_graphs
from mgqe.nn.context.precision import in_full_precision
from mgqe.nn.freezing import frozen_table
from mgqe.nn.pending import PendingLosses
from mgqe.nn.quantization import (
    Counts,
    Quantization,
    QuantizationOptions,
    merge_options,
    plan_layer,
    resolve_tiers,
    tiers_or_counts,
)
from mgqe.nn.quantizers.autograd import TrainingBatch
from mgqe.nn.quantizers.build import make_quantizer, other_tiers
from mgqe.nn.quantizers.vq import VQQuantizer
from mgqe.nn.rows import resolve_rows
from mgqe.nn.rows.build import key_dim_of, make_rows, make_store
from mgqe.nn.rows.cache import CacheStore
from mgqe.nn.rows.fixed import FixedStore
from mgqe.nn.schedule import TrainingPasses
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

FOLLOWING_STEPS = 3  # of Lloyd's algorithm, when the warm-up of a layer ends whose codebooks are in use already


class QuantizedEmbedding(TrainingPasses):
    """What MGQEmbedding, DPQEmbedding and their Bag forms have in common."""

    one_tier: ClassVar[bool] = False  # whether all ids have the same capacity, as in DPQ
    tier_of: Tensor | None
    tier_sizes: Tensor

    @outside_inference
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
        counts: Counts | None = None,
        tiers: Tiers | Sequence[int] | None = None,
        config: Quantization | None = None,
        **options: Unpack[QuantizationOptions],
    ) -> None:
        super().__init__()
        sizes = check_sizes(num_embeddings, embedding_dim, padding_idx)
        self.num_embeddings, self.embedding_dim, self.padding_idx = sizes
        config = merge_options(type(self), self.one_tier, config, options)
        source = tiers_or_counts(type(self), self.one_tier, config, counts, tiers)
        if config.budget is not None:
            plan = plan_layer(config, counts, *sizes, _weight, dtype)
            config, source = config.with_plan(plan), plan.tiers
        tiers = resolve_tiers(self.num_embeddings, source, config.fractions)
        capacity = config.capacity_of(self.embedding_dim, tiers)
        self.max_norm = max_norm = optional_float("max_norm", max_norm)
        self.norm_type = as_float("norm_type", norm_type)
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.warmup_steps = config.warmup_steps
        self.centroid_dtype = config.centroid_dtype
        self.capacity = capacity
        self._tiers = tiers
        rows = resolve_rows(config.rows)
        self.row_storage = rows if isinstance(rows, str) else type(rows).__name__
        weight, vector_dtype = make_rows(rows, tiers, capacity, self.padding_idx, _weight, device, dtype)
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=not _freeze))
        like = weight.new_empty(0, dtype=vector_dtype)
        key_dim = key_dim_of(rows, capacity)
        self.quantizer = make_quantizer(
            config.quantizer, capacity, like, config.centroid_dtype, config.commitment, sparse, key_dim
        )
        self.store = make_store(rows, tiers, capacity, self.quantizer, weight)
        if self.store is not None and max_norm is not None:
            raise ValueError(f'max_norm goes with rows="float32" or "bfloat16" alone, got {max_norm}')
        at = weight.device
        # Checkpoints keep the tiers, so that codes are never read under others than they were trained with.
        self.register_buffer("tier_sizes", torch.tensor(tiers.sizes, dtype=torch.int64, device=at))
        self.register_buffer("tier_of", None if tiers.tier_of is None else tiers.tier_of.to(at))
        self._begin_counting(at)
        reach = zip(tiers.sizes, capacity.num_centroids, strict=True)
        self._revive_every = revive_interval(max(min(size, revive_size(k)) for size, k in reach))
        if isinstance(self.store, FixedStore):
            self._set_progress(0, True)

    # ---- state -------------------------------------------------------------------------------------------

    @property
    def tiers(self) -> Tiers:
        """The ids' partition, tier 0 the most frequent."""
        return self._tiers

    @property
    def vector_dtype(self) -> torch.dtype:
        """Of what look-ups give: the rows', or the codebooks' where rows are kept in fewer bits."""
        if self.row_storage != "bfloat16":
            return self.raw_weight.dtype
        return next(self.quantizer.parameters()).dtype

    @property
    def weight(self) -> Tensor:
        """The table (N, d) that look-ups read, whole: ``layer(ids)`` is ``layer.weight[ids]``, with its gradients.

        In the warm-up it is the parameter :attr:`raw_weight` itself, which may be filled, scaled or shared (a copy of
        it where ``rows`` is not "float32": fill ``raw_weight`` there). After it, the decoded rows: a gradient goes
        straight through to the rows, and in training mode (with gradients on) every row has its part in
        ``quantization_loss``, as after a forward pass of all ids. Decodes N rows each time.
        """
        if isinstance(self.store, CacheStore) and self.training and torch.is_grad_enabled():
            raise RuntimeError(
                f'weight would train all {self.num_embeddings} ids at once, which rows="cached" has no places for: '
                "look up the ids that are needed; raw_weight holds the rows that there are; eval() or freeze() for all"
            )
        if not self.quantizing and self.store is None:
            return self._joined(self.raw_weight.to(self.vector_dtype))
        self._begin_pass()
        ids = torch.arange(self.num_embeddings, device=self.raw_weight.device)
        return self._joined(self._vectors(ids, repeat=True)[0])

    def _parameter_version(self) -> int:
        """A number that changes when an optimiser takes a step."""
        return self.raw_weight._version + self._codebook_version()

    def _codebook_version(self) -> int:
        version: int = self.quantizer.version()
        return version

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As newly constructed: rows from N(0, 1), the warm-up ahead. Also fills a layer made on the meta device."""
        self.raw_weight.normal_()
        if self.padding_idx is not None and self.store is None:
            self.raw_weight[self.padding_idx].zero_()
        self.tier_sizes.copy_(torch.tensor(self._tiers.sizes, device="cpu"))
        if self.tier_of is not None and self._tiers.tier_of is not None:
            self.tier_of.copy_(self._tiers.tier_of)
        self.quantizer.reset_parameters()
        if self.store is not None:
            self.store.reset_parameters()
        self._set_progress(0, isinstance(self.store, FixedStore))

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
        state.update(_pending=PendingLosses(), _started=None, _steps=None, _seen=-1, _rows_seen=-1, _step_seen=-1)
        return state

    # ---- codebooks ---------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def start_quantizing(self, kmeans: KMeans = KMEANS) -> None:
        """End the warm-up now: start the codebooks from the rows as they are. Does nothing the second time.

        Processes that train together start alike: see :mod:`mgqe.nn.context.ddp`.
        """
        if not self.quantizing:
            self._check_rows(self.quantizer.largest_value)
            if isinstance(self.store, CacheStore) and self.store.ready:  # other ids have codes of these codebooks
                for _ in range(FOLLOWING_STEPS):
                    self.store.lloyd_step(self.raw_weight, common_generator(self.raw_weight, self._passes()))
            else:
                self._start_codebooks(kmeans)
            self._set_progress(self._passes(), True)

    def _start_codebooks(self, kmeans: KMeans = KMEANS) -> None:
        limits = [sample_size(k, self.embedding_dim) for k in self.capacity.num_centroids]
        generator = common_generator(self.raw_weight, self._passes())
        self.quantizer.start(self._tier_rows(limits, generator), generator, kmeans)
        broadcast_from_first(self.quantizer)
        if isinstance(self.store, CacheStore):
            self.store.start()

    def _mark_codebooks(self) -> None:
        if isinstance(self.quantizer, VQQuantizer) and not isinstance(self.store, FixedStore):
            for book in self.quantizer.parameters():
                book.mgqe_codebook = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _tend_store(self) -> None:
        """What a store does between two steps of the optimiser."""
        store = self.store
        if store is None:
            return
        if data_parallel() is not None:
            raise RuntimeError(
                f"rows={type(store).__name__} does not go with DistributedDataParallel: each process would give the "
                'cache to ids of its own. Use rows="float32" or "bfloat16"'
            )
        store.after_step(self.raw_weight, self._passes())
        if isinstance(store, CacheStore) and store.nearly_full():
            self._check_rows(self.quantizer.largest_value)
            if not store.ready:
                self._start_codebooks()
            elif not self.quantizing:
                store.lloyd_step(self.raw_weight, common_generator(self.raw_weight, self._passes()))
            store.flush(self.raw_weight)

    @in_full_precision
    @torch.no_grad()
    def _revive(self) -> None:
        generator = common_generator(self.raw_weight, self._passes())
        limits = [revive_size(k) for k in self.capacity.num_centroids]
        self.quantizer.revive(self._tier_rows(limits, generator), generator)
        broadcast_from_first(self.quantizer)

    def _tier_rows(self, limits: list[int], generator: torch.Generator) -> list[Tensor]:
        """Each tier's rows (n_g, d) float32, all but padding, or so many of them at random where a tier is larger."""
        rows = []
        for g, limit in enumerate(limits):
            with torch.device("cpu"):
                if isinstance(self.store, CacheStore):
                    chosen = self.store.residents(g, limit, generator).cpu()
                else:
                    chosen = self._draw_members(g, limit, generator)
            if self.zero_row is not None:
                chosen = chosen[chosen != self.zero_row]
            rows.append(self._read_rows(chosen.to(self.raw_weight.device)).float())
        return rows

    def _draw_members(self, tier: int, limit: int, generator: torch.Generator) -> Tensor:
        if self._tiers.sizes[tier] <= limit:
            return self._tiers.members(tier)
        places = draw_places(self._tiers.sizes[tier], limit, generator)
        if self._tiers.tier_of is None:
            return places + self._tiers.starts[tier]
        return self._tiers.members(tier)[places]

    # ---- training ----------------------------------------------------------------------------------------

    def _joined(self, vectors: Tensor) -> Tensor:
        """Vectors as they leave the layer: in a DistributedDataParallel pass, tied to every parameter."""
        if torch.compiler.is_compiling() or data_parallel() is None:
            return vectors
        if not (self.training and torch.is_grad_enabled()):
            return vectors
        return KeepInGraph.apply(vectors, *self.quantizer.parameters())  # type: ignore[no-any-return, no-untyped-call]

    @property
    def _revivable(self) -> bool:
        """Not where centroids that no row at hand chooses may be those of ids that have nothing but codes."""
        return not isinstance(self.store, (CacheStore, FixedStore))

    @property
    def _tracks(self) -> bool:
        """Whether rows are read with a gradient; a cache gives places in training alone."""
        return torch.is_grad_enabled() and (self.training or not isinstance(self.store, CacheStore))

    def _vectors(self, flat: Tensor, repeat: bool) -> tuple[Tensor, Tensor | None]:
        """As ``_quantized``, also in the warm-up of a layer that has a store."""
        if self.quantizing and not isinstance(self.store, FixedStore):
            return self._quantized(flat, repeat)
        return self._stored(flat, repeat)

    @outside_graphs
    @in_full_precision
    def _stored(self, flat: Tensor, repeat: bool) -> tuple[Tensor, Tensor | None]:
        ids, places, _ = ops.unique(flat, self.num_embeddings)
        rows = self._train_rows(ids) if self._tracks else self._read_rows(ids).to(self.vector_dtype)
        if self.store is not None:
            rows = self.store.vectors(rows)
        padding = self._is_padding(ids)
        if padding is not None:
            rows = self._zeroed(ids, torch.where(padding.unsqueeze(-1), rows.detach(), rows))
        if not repeat:
            return rows, places
        return F.embedding(places, rows, scale_grad_by_freq=self.scale_grad_by_freq), None

    @in_full_precision
    def _quantized(self, flat: Tensor, repeat: bool) -> tuple[Tensor, Tensor | None]:
        """Quantised vectors of flat ids (n,): (n, d) and None; or those of distinct ids (u, d) and all places (n,)."""
        if torch.compiler.is_compiling():
            vectors, places = self._quantized_in_graph(flat)
        else:
            ids, places, counts, sizes = ops.unique_by_tier(flat, self._tiers.sizes, self.tier_of)
            quantizer, trains = self.quantizer, self.training and torch.is_grad_enabled()
            if trains and isinstance(quantizer, VQQuantizer) and quantizer.reads:
                scale = repeat and self.scale_grad_by_freq
                padding = self._is_padding(ids)
                index = ids if self.store is None else self.store.places(self.raw_weight, ids)
                if index is not None:
                    batch = TrainingBatch(
                        index, counts, places, padding, repeat, scale, self.sparse, self.zero_padding, self.vector_dtype
                    )
                    rows = self._read_rows(ids) if self.store is None else self.raw_weight.detach()[index]
                    vectors, loss = quantizer.read(self.raw_weight, rows, sizes, batch)
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
        rows = self._train_rows(ids) if self._tracks else self._read_rows(ids).to(self.vector_dtype)
        padding = self._is_padding(ids)
        if padding is not None and self.store is not None:
            rows = torch.where(padding.unsqueeze(-1), rows.detach(), rows)
        weights = counts if padding is None else counts.masked_fill(padding, 0)
        vectors: Tensor
        vectors, loss = self.quantizer(rows, groups, weights)
        if self.store is not None and not self._tracks and (standing := self.store.final_codes_mask(ids)) is not None:
            vectors = torch.where(standing.unsqueeze(-1), rows, vectors)  # as frozen: no code is chosen again
        if loss is not None:
            if torch.compiler.is_compiling():
                self._keep_loss_outside_graphs(loss)
            else:
                self._keep_loss(loss)
        return self._zeroed(ids, vectors)

    def _tier_numbers(self, ids: Tensor) -> Tensor:
        if self.capacity.num_tiers == 1:
            return torch.zeros_like(ids)
        if self.tier_of is not None:
            return self.tier_of[ids]
        return torch.bucketize(ids, self.tier_sizes.cumsum(0)[:-1], right=True)

    # ---- freezing ----------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def codes_of(self, ids: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) int32 of ids (n,) that are all of one tier, never-seen ones included."""
        if self.store is not None and (known := self.store.codes(ids, tier)) is not None:
            return known
        return self.quantizer.codes(self._read_rows(ids), tier)

    @torch.no_grad()
    def freeze(self) -> CompactTable:
        """Pack codes and centroids into the table that is served.

        In the warm-up this starts the codebooks at this moment (post-training quantisation).

        Returns:
            a table on the CPU whose look-ups equal this layer's eval-mode forward pass.

        Raises:
            ValueError: a row or centroid is NaN or infinite.
        """
        self.prepare_to_freeze()
        return frozen_table(self)

    @in_full_precision
    @torch.no_grad()
    def prepare_to_freeze(self) -> None:
        """Check the rows, and start the codebooks if they have not been."""
        self._check_rows(self.quantizer.largest_value)
        self.start_quantizing()

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
