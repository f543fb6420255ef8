"""QuantizedEmbedding: rows that train, codes that are served; one training step is here, its parts are elsewhere.

MGQEmbedding, DPQEmbedding and their Bag forms say which arguments there are and what a forward pass returns.
src/mgqe/nn/README.md tells a training step and a freeze in order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe import ops
from mgqe.checks.ids import as_int64, check_ids, check_sizes, no_values
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_float, optional_float
from mgqe.codec.kmeans import KMEANS, KMeans, revive_size, sample_size
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import FittedPlan
from mgqe.codec.stats import CodebookStats
from mgqe.codec.tiers import Tiers
from mgqe.nn.budget_planner import BudgetPlanner
from mgqe.nn.codebook_layer import Batch, CodebookLayer
from mgqe.nn.context.ddp import broadcast_from_first, common_generator, data_parallel, is_sharded, of_first, recomputing
from mgqe.nn.context.decorators import in_full_precision, outside_graphs
from mgqe.nn.context.hints import OptimizerHints, leave_hints
from mgqe.nn.freezing import frozen_table
from mgqe.nn.quantization import (
    Counts,
    Quantization,
    QuantizationOptions,
    layer_budget,
    merge_options,
    plan_layer,
    resolve_tiers,
    tiers_or_counts,
)
from mgqe.nn.quantizers.autograd import RepeatVectors, mask_rows
from mgqe.nn.quantizers.build import make_quantizer
from mgqe.nn.quantizers.mixed import MixedQuantizer
from mgqe.nn.rows import RowStore, resolve_rows
from mgqe.nn.rows.build import key_dim_of, make_rows, make_store
from mgqe.nn.rows.checks import first_bad_row
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

FOLLOWING_STEPS = 3  # of Lloyd's algorithm, when the warm-up of a layer ends whose codebooks are in use already


class QuantizedEmbedding(CodebookLayer):
    """What MGQEmbedding, DPQEmbedding and their Bag forms have in common.

    The rows are the parameter ``weight``, so that checkpoints of full tables load; the attribute of that name gives the
    vectors that look-ups return, and :attr:`raw_weight` the rows.

    Attributes:
        store: where rows are while they train.
        zero_padding: ``padding_idx`` looks up as zeros whatever its row holds. False: as its row, quantised like the
            others; it gets no gradient either way.
        given_metric: see :meth:`set_metric`.
    """

    one_tier: ClassVar[bool] = False  # whether all ids have the same capacity, as in DPQ
    zero_padding: bool = True
    given_metric: Metric | None = None
    store: RowStore

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
        sizes = check_sizes(num_embeddings, embedding_dim, padding_idx)
        config = merge_options(type(self), self.one_tier, config, options)
        source = tiers_or_counts(type(self), self.one_tier, config, counts, tiers)
        planner = None
        if config.budget is not None:
            nbytes = layer_budget(config, *sizes[:2], _weight, dtype)
            if config.plans_on_rows:
                planner, source = BudgetPlanner.of(nbytes, counts, sizes[:2], sizes[2]), None
            else:
                plan = plan_layer(config, counts, *sizes, _weight, dtype)
                config, source = config.with_plan(plan), plan.tiers
        tiers = resolve_tiers(sizes[0], source, config.fractions)
        capacity = config.capacity_of(sizes[1], tiers) if planner is None else planner.before(*sizes[:2])
        max_norm, norm_type = optional_float("max_norm", max_norm), as_float("norm_type", norm_type)
        rows = resolve_rows(config.rows)
        weight, vector_dtype = make_rows(rows, tiers, capacity, sizes[2], _weight, device, dtype)
        super().__init__(tiers, capacity, config.warmup_steps, weight.device)
        self.num_embeddings, self.embedding_dim, self.padding_idx = sizes
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.planner = planner
        self.centroid_dtype = config.centroid_dtype if planner is None else "int8"
        self.row_storage = rows if isinstance(rows, str) else type(rows).__name__
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=not _freeze))
        like = weight.new_empty(0, dtype=vector_dtype)
        key_dim = key_dim_of(rows, capacity)
        if planner is not None:
            self.quantizer = MixedQuantizer(capacity, like, self.centroid_dtype, config.commitment, sparse)
        else:
            self.quantizer = make_quantizer(
                config.quantizer, capacity, like, config.centroid_dtype, config.commitment, sparse, key_dim
            )
        self.store = make_store(rows, tiers, capacity, self.quantizer, weight)
        if max_norm is not None and not self.store.is_full:
            raise ValueError(f'max_norm goes with rows="float32" or "bfloat16" alone, got {max_norm}')
        if self.store.codes_are_fixed:
            self.schedule.end()
        if planner is not None:
            self.gathers_metric = True
            self.register_load_state_dict_post_hook(_read_plan)  # type: ignore[no-untyped-call]

    # ---- the rows as a parameter ---------------------------------------------------------------------------

    @property
    def raw_weight(self) -> nn.Parameter:
        """The rows that the optimiser moves, (N, d) unless ``rows=`` says otherwise; ``weight`` in state_dict()."""
        rows = self._parameters["weight"]
        if rows is None:
            raise RuntimeError("this layer has no rows: its parameter `weight` was set to None")
        return rows

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if self.planner is not None and isinstance(sizes := state_dict.get(f"{prefix}tier_sizes"), Tensor):
            tiers = Tiers(tuple(sizes.tolist()), state_dict.get(f"{prefix}tier_of"))  # those of the checkpoint's plan
            self._set_tiers(tiers, self.capacity)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def vector_dtype(self) -> torch.dtype:
        """Of what look-ups return: the rows' dtype, or the codebooks' where rows are kept in fewer bits."""
        if self.row_storage != "bfloat16":
            return self.raw_weight.dtype
        return next(self.quantizer.parameters()).dtype

    @property
    def weight(self) -> Tensor:
        """The table (N, d) that look-ups read, whole: ``layer(ids)`` is ``layer.weight[ids]``, with its gradients.

        In the warm-up it is the parameter :attr:`raw_weight` itself, which may be filled, scaled or shared (a copy of
        it where ``rows`` is not "float32": fill ``raw_weight`` there). After it, the decoded rows: a gradient goes
        straight through to the rows, and in training mode (with gradients on) every row takes part in
        ``quantization_loss``, as after a forward pass of all ids. Decodes N rows each time.
        """
        if self._trains and not self.store.trains_all_ids:
            raise RuntimeError(
                f'weight would train all {self.num_embeddings} ids at once, which rows="cached" has no places for: '
                "look up the ids that are needed; raw_weight holds the rows that there are; eval() or freeze() for all"
            )
        if self.store.is_full and not self.quantizing:
            rows: Tensor = self.raw_weight.to(self.vector_dtype)
            return self.tie_to_codebooks(self._watched_rows(rows) if self.gathering else rows)
        self._begin_pass()
        ids = torch.arange(self.num_embeddings, device=self.raw_weight.device)
        vectors, batch = self._distinct_vectors(ids)
        vectors = self._repeated(vectors, batch)
        return self.tie_to_codebooks(self._watched_rows(vectors) if self.gathering else vectors)

    @outside_graphs
    def _watched_rows(self, rows: Tensor) -> Tensor:
        """The whole table as it leaves the layer, gradients gathered; the parameter itself before ids have trained."""
        if self.schedule.passes == 0:
            return rows
        rows = rows.view_as(rows)  # a hook on the parameter would see the gradients of look-ups too
        self.moments.watch_rows(rows, self.padding_idx)
        return rows

    def __setattr__(self, name: str, value: Any) -> None:
        """As nn.Module; also sees what shards a model's parameters, which cannot be done to these rows."""
        if name == "weight" and isinstance(value, Tensor) and (type(value) is Tensor or is_sharded(value)):
            raise RuntimeError(
                f"the rows of a {self._sizes} cannot be replaced by a sharded or plain tensor, as fully_shard and "
                "FullyShardedDataParallel do: codebooks start from and follow whole rows on every process. Use "
                "DistributedDataParallel, or mgqe.torchrec for tables that one process cannot hold, or freeze_ the "
                "model first; the model is half wrapped now, so make it again. To replace the rows themselves assign "
                "an nn.Parameter"
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module, which refuses names that are properties."""
        if name == "weight":
            self._parameters[name] = param
        else:
            super().register_parameter(name, param)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As newly constructed: rows from N(0, 1), the warm-up ahead. Also fills a layer made on the meta device."""
        self.raw_weight.normal_()
        if self.padding_idx is not None and self.store.is_full:
            self.raw_weight[self.padding_idx].zero_()
        self.tier_sizes.copy_(torch.tensor(self.tiers.sizes, device="cpu"))
        if self.tier_of is not None and self.tiers.tier_of is not None:
            self.tier_of.copy_(self.tiers.tier_of)
        self.quantizer.reset_parameters()
        self.store.reset_parameters()
        self.moments.reset()
        self.schedule.set(0, self.store.codes_are_fixed)

    # ---- a forward pass, first half: what comes between two passes -----------------------------------------

    def _begin_pass(self) -> None:
        """What comes before every forward pass."""
        if self._trains:
            self._begin_training_pass()

    @outside_graphs
    def _begin_training_pass(self) -> None:
        """Settle what the last step left, count the pass, and start or revive codebooks where that is due.

        A pass that gradient checkpointing runs again must find everything as it was, and was counted the first time.
        """
        if self.sparse and (parallel := data_parallel()) is not None:
            path = next((name for name, module in parallel.named_modules() if module is self), "")
            raise RuntimeError(
                f"{path.removeprefix('module.') or 'the layer'}: sparse=True does not go with DistributedDataParallel, "
                "which takes sparse gradients from torch's own classes alone: make the layer with sparse=False"
            )
        if recomputing():
            self._warn_of_reentrance()
            return
        rows_stepped = self.watcher.rows_stepped(self.raw_weight)
        codebooks_stepped = self.watcher.codebooks_stepped(self.quantizer)
        stepped = rows_stepped or codebooks_stepped
        if self._ends_step(rows_stepped, codebooks_stepped):
            self.losses.end_step()  # those of the passes before, read or not
        if stepped:
            self._tell_optimizer()
        if rows_stepped:  # else the gradients of the rows may be waiting for a step of their own
            self._tend_store()
        self._count_pass(stepped, self.store.may_revive)
        self.watcher.remember(self.quantizer, self.raw_weight)

    def _ends_step(self, rows_stepped: bool, codebooks_stepped: bool) -> bool:
        # With max_norm a forward pass changes rows itself: there the codebooks alone tell.
        return codebooks_stepped or (rows_stepped and self.max_norm is None)

    def _step_is_over(self) -> bool:
        watcher = self.watcher
        return self._ends_step(watcher.rows_stepped(self.raw_weight), watcher.codebooks_stepped(self.quantizer))

    def _losses_are_past(self) -> bool:
        return self.watcher.same_rows(self.raw_weight) and self._step_is_over()

    def _tell_optimizer(self) -> None:
        follow = OptimizerHints(follows_rows=self.quantizer.follows_rows and not self.store.codes_are_fixed)
        for book in self.quantizer.parameters():
            leave_hints(book, follow)

    @torch.no_grad()
    def _tend_store(self) -> None:
        """What the store does between two steps of the optimiser."""
        if self.store.is_full:
            return
        if data_parallel() is not None:
            raise RuntimeError(
                f"rows={type(self.store).__name__} does not go with DistributedDataParallel: each process would give "
                'the cache to ids of its own. Use rows="float32" or "bfloat16"'
            )
        passes = self.schedule.passes
        self.store.after_step(self.raw_weight, passes)
        if self.store.is_nearly_full():
            self._check_rows()
            if not self.store.has_codes:
                self._start_codebooks()
            elif not self.quantizing:
                self.store.lloyd_step(self.raw_weight, passes)
            self.store.flush(self.raw_weight)

    # ---- a forward pass, second half: from ids to vectors ----------------------------------------------------

    @property
    def _reads_parameter(self) -> bool:
        """Whether vectors are rows of the parameter as it is, so that nn.Embedding's own functions do."""
        return self.store.is_full and not self.quantizing and self.raw_weight.dtype == self.vector_dtype

    def _distinct_vectors(self, flat: Tensor) -> tuple[Tensor, Batch]:
        """Vectors (u, d) of the distinct ids among flat ids (n,), zeros for padding."""
        if self.quantizing and not self.store.codes_are_fixed:
            return self._quantized_vectors(flat)
        return self._row_vectors(flat)

    @outside_graphs
    @in_full_precision
    def _row_vectors(self, flat: Tensor) -> tuple[Tensor, Batch]:
        batch = Batch(*ops.unique(flat, self.num_embeddings))
        vectors = self.store.vectors(self._rows_of(batch.ids, left_out=self.padding_idx))
        padding = self._is_padding(batch.ids)
        return vectors if padding is None else mask_rows(vectors, padding, self.zero_padding), batch

    @in_full_precision
    def _quantized_vectors(self, flat: Tensor) -> tuple[Tensor, Batch]:
        batch = self._batch_by_tier(flat)
        rows, counts, padding = self._rows_of(batch.ids), batch.counts, self._is_padding(batch.ids)
        if padding is not None:
            counts = counts.masked_fill(padding, 0)
            rows = rows if self.zero_padding else mask_rows(rows, padding, False)
        gathered = self.store.gathers(self.raw_weight)
        vectors, loss = self.quantizer.quantize(rows, batch.groups, counts, gathered)
        if not self._tracks and (final := self.store.final_codes_mask(batch.ids)) is not None:
            vectors = torch.where(final.unsqueeze(-1), rows, vectors)  # as frozen: no code is chosen again
        if loss is not None:
            self._keep_loss(loss)
        if padding is not None and self.zero_padding:
            vectors = mask_rows(vectors, padding, True)
        return vectors, batch

    def _repeated(self, vectors: Tensor, batch: Batch) -> Tensor:
        """The vectors (u, d) of a batch's distinct ids -> those of all its ids (n, d)."""
        by_tier = not isinstance(batch.groups, Tensor) and len(batch.groups) > 0
        if not (by_tier and self.quantizer.is_fused and self.store.gathers(self.raw_weight)):
            # torch's own function, as for the rest of the pass
            return F.embedding(batch.inverse, vectors, scale_grad_by_freq=self.scale_grad_by_freq)
        counts = batch.counts if self.scale_grad_by_freq else None
        return RepeatVectors.apply(vectors, batch.inverse, counts, self.vector_dtype)  # type: ignore[no-any-return, no-untyped-call]

    def _batch_by_tier(self, flat: Tensor) -> Batch:
        if not torch.compiler.is_compiling():
            return Batch(*ops.unique_by_tier(flat, self.tiers.sizes, self.tier_of))
        # Graphs have static shapes: nothing may depend on how many ids are in a tier.
        if self.training:
            ids, inverse, counts = ops.unique(flat, self.num_embeddings)
        else:  # finding duplicates would save nothing
            ids, inverse, counts = flat, torch.arange(flat.shape[0], device=flat.device), torch.ones_like(flat)
        return Batch(ids, inverse, counts, self._tier_numbers(ids))

    def _tier_numbers(self, ids: Tensor) -> Tensor:
        if self.capacity.num_tiers == 1:
            return torch.zeros_like(ids)
        if self.tier_of is not None:
            return self.tier_of[ids]
        return torch.bucketize(ids, self.tier_sizes.cumsum(0)[:-1], right=True)

    @property
    def _tracks(self) -> bool:
        """Whether rows are read with a gradient."""
        return torch.is_grad_enabled() and (self.training or self.store.trains_in_eval_mode)

    def _rows_of(self, ids: Tensor, left_out: int | None = None) -> Tensor:
        """Rows of distinct ids in the vectors' dtype, with a gradient where one is due; see ``RowStore.train_rows``."""
        if not self._tracks:
            return self._read_rows(ids).to(self.vector_dtype)
        self._renormalize(ids)
        return self.store.train_rows(self.raw_weight, ids, self.sparse, left_out).to(self.vector_dtype)

    def _read_rows(self, ids: Tensor) -> Tensor:
        self._renormalize(ids)
        return self.store.read(self.raw_weight, ids)

    def _renormalize(self, ids: Tensor) -> None:
        """As nn.Embedding does before it reads rows: shorten in place those that are longer than ``max_norm``."""
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.raw_weight.detach(), ids, self.max_norm, self.norm_type)

    @outside_graphs
    def _keep_loss(self, loss: Tensor) -> None:
        if not recomputing():
            self.losses.add(loss)

    @property
    def zero_row(self) -> int | None:
        """The id that looks up as zeros."""
        return self.padding_idx if self.zero_padding else None

    def _is_padding(self, ids: Tensor) -> Tensor | None:
        """Mask of the ids that train nothing."""
        return None if self.padding_idx is None else ids.eq(self.padding_idx)

    # ---- ids -----------------------------------------------------------------------------------------------

    def _int64(self, ids: Tensor) -> Tensor:
        """Ids as int64; TypeError where they are on the meta device and the rows are not."""
        ids = as_int64(ids)
        if ids.is_meta and not self.raw_weight.is_meta:
            raise no_values()
        return ids

    def _checked_ids(self, ids: Tensor) -> Tensor:
        """Ids as int64 that are safe to index with. On other devices than the CPU the look-up itself refuses."""
        ids = self._int64(ids)
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return ids
        return check_ids(ids, self.num_embeddings)

    # ---- codebooks -----------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def start_quantizing(self, kmeans: KMeans = KMEANS) -> None:
        """End the warm-up now: start the codebooks from the rows as they are. Does nothing the second time.

        Processes that train together start alike: see :mod:`mgqe.nn.context.ddp`.
        """
        if self.quantizing:
            return
        self._check_rows()
        if self.store.has_codes:  # of these codebooks, and ids without a row have nothing else
            for _ in range(FOLLOWING_STEPS):
                self.store.lloyd_step(self.raw_weight, self.schedule.passes)
        else:
            self._start_codebooks(kmeans)
        self.schedule.end()

    def _start_codebooks(self, kmeans: KMeans = KMEANS) -> None:
        if self.planner is not None:
            return None if self.quantizer.is_planned else self._start_by_plan(self.planner)
        limits = [sample_size(k, self.embedding_dim) for k in self.capacity.num_centroids]
        generator = common_generator(self.raw_weight, self.schedule.passes)
        self.quantizer.start(self._tier_rows(limits, generator), generator, kmeans)
        broadcast_from_first(self.quantizer)
        self.store.codebooks_started()

    def set_metric(self, metric: Metric) -> None:
        """Spend the layer's budget by this metric instead of by the gradients that it gathers.

        Raises:
            ValueError: a layer without ``budget=``, or a metric of other dimensions.
        """
        if self.planner is None:
            raise ValueError("a metric says how a budget is spent: make the layer with budget=")
        if metric.embedding_dim != self.embedding_dim:
            raise ValueError(f"the metric has {metric.embedding_dim} dimensions, the layer {self.embedding_dim}")
        self.given_metric = metric
        self.gathers_metric = False

    def _start_by_plan(self, planner: BudgetPlanner) -> None:
        generator = common_generator(self.raw_weight, self.schedule.passes)
        fitted = planner.fit(self.raw_weight.detach(), self.given_metric or self.metric(), generator)
        self.adopt_plan(of_first(fitted))  # shapes and tiers follow from it: all processes must have the same

    @torch.no_grad()
    def adopt_plan(self, fitted: FittedPlan) -> None:
        """Take over a plan that was fitted to this layer's rows: its tiers, axes, bits and centroids."""
        if not isinstance(self.quantizer, MixedQuantizer):
            raise TypeError("only a layer with budget= takes a plan")
        self.quantizer.adopt(fitted)
        self._set_tiers(fitted.plan.tiers, fitted.plan.capacity)

    @in_full_precision
    @torch.no_grad()
    def revive(self) -> None:
        """Move centroids that no id chooses onto rows that are far from theirs."""
        generator = common_generator(self.raw_weight, self.schedule.passes)
        limits = [revive_size(k) for k in self.capacity.num_centroids]
        self.quantizer.revive(self._tier_rows(limits, generator), generator)
        broadcast_from_first(self.quantizer)

    def _tier_rows(self, limits: list[int], generator: torch.Generator) -> list[Tensor]:
        """Each tier's rows (n_g, d) float32 without padding, at most as many as its limit, at random."""
        rows = []
        for g, limit in enumerate(limits):
            with torch.device("cpu"):
                ids = self.store.draw_ids(self.tiers, g, limit, generator).cpu()
            if self.zero_row is not None:
                ids = ids[ids != self.zero_row]
            rows.append(self._read_rows(ids.to(self.raw_weight.device)).float())
        return rows

    # ---- freezing ------------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def codes_of(self, ids: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) int32 of ids (n,) that are all of one tier, never-seen ones included."""
        codes = self.store.codes(ids, tier)
        return self.quantizer.codes(self._read_rows(ids), tier) if codes is None else codes

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
        self._check_rows()
        self.start_quantizing()

    def _check_rows(self) -> None:
        """Raise ValueError naming the first row that cannot be quantised."""
        full, largest = self.store.is_full, self.quantizer.largest_value
        row = first_bad_row(self.raw_weight, largest, self.zero_row if full else None)
        if row is None:
            return
        name = f"row {row} of {'the embedding weight' if full else 'raw_weight'}"
        if bool(self.raw_weight.detach()[row].isfinite().all()):
            raise ValueError(
                f"{name} holds numbers beyond {largest:g}, whose products with keys overflow float32: scale the rows "
                'down, or use quantizer="vq"'
            )
        raise ValueError(
            f"{name} holds NaN or infinity and cannot be quantised ({self._sizes}): the training diverged; lower the "
            "learning rate or go back to an earlier checkpoint"
        )

    def codebook_stats(self) -> list[CodebookStats]:
        """Centroids in use and perplexity, per tier; one sweep over the vocabulary.

        Raises:
            RuntimeError: still in the warm-up, there are no codes yet.
        """
        if not self.quantizing:
            raise RuntimeError(
                "codebook_stats() needs codebooks, but this layer is still in its warm-up "
                f"({self.schedule.passes} of {self.warmup_steps} training passes): "
                "train on, or call mgqe.start_quantizing(model)"
            )
        return self.freeze().codebook_stats()

    # ---- texts ---------------------------------------------------------------------------------------------

    @property
    def _sizes(self) -> str:
        return f"{type(self).__name__} of {self.num_embeddings} x {self.embedding_dim}"

    def _warn_of_reentrance(self) -> None:
        if self.max_norm is None and self._step_is_over():  # nothing was counted the first time
            warnings.warn(
                f"a {self._sizes} is inside a reentrant checkpoint, where its training passes are not seen and its "
                "quantisation loss is lost: call torch.utils.checkpoint.checkpoint with use_reentrant=False, or leave "
                "the layer outside",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """Sizes, for print."""
        text = f"{self.num_embeddings}, {self.embedding_dim}, tiers=({self._describe_tiers()})"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        return text + ("" if self.quantizing else f", warm-up of {self.warmup_steps} passes")


def _read_plan(layer: nn.Module, _: Any) -> None:
    """After a checkpoint was loaded into a layer with a budget: the plan that came with it."""
    if isinstance(layer, QuantizedEmbedding) and isinstance(layer.quantizer, MixedQuantizer):
        layer.capacity = layer.quantizer.read_layout(
            layer.tiers.sizes, BudgetPlanner.before(layer.num_embeddings, layer.embedding_dim)
        )
