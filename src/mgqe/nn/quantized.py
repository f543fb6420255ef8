"""QuantizedEmbedding: rows that train, codes that are served; one training step is here, its parts are elsewhere.

MGQEmbedding, DPQEmbedding and their Bag forms say which arguments there are and what a forward pass returns.
src/mgqe/nn/README.md tells a training step and a freeze in order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mgqe.checks.devices import usable_device
from mgqe.checks.ids import check_sizes
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_float, optional_float
from mgqe.checks.waiting import reads_wait
from mgqe.codec.capacity import Capacity
from mgqe.codec.kmeans import KMEANS, KMeans, revive_size, sample_size
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import FittedPlan
from mgqe.codec.stats import CodebookStats
from mgqe.codec.tiers import Tiers
from mgqe.nn.budget_planner import BudgetPlanner, read_plan, warn_without_gradients
from mgqe.nn.codebook_layer import revive_every
from mgqe.nn.context.ddp import broadcast_from_first, common_generator, data_parallel, of_first, recomputing
from mgqe.nn.context.decorators import in_full_precision, outside_graphs
from mgqe.nn.context.hints import OptimizerHints, leave_hints
from mgqe.nn.context.one_graph import in_one_graph
from mgqe.nn.even_checkpoints import default_capacity, even_codebooks, even_quantizer, refusal
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
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.build import make_quantizer
from mgqe.nn.quantizers.mixed import MixedQuantizer, planned_shape
from mgqe.nn.row_layer import RowLayer
from mgqe.nn.rows import resolve_rows
from mgqe.nn.rows.build import key_dim_of, make_rows, make_store
from mgqe.nn.rows.checks import check_rows
from mgqe.table.compact import CompactTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

FOLLOWING_STEPS = 3  # of Lloyd's algorithm, when the warm-up of a layer ends whose codebooks are in use already


class QuantizedEmbedding(RowLayer):
    """What MGQEmbedding, DPQEmbedding and their Bag forms have in common.

    The rows are the parameter ``weight``, so that checkpoints of full tables load; the attribute of that name gives the
    vectors that look-ups return, and :attr:`raw_weight` the rows.

    Attributes:
        planner: what a budget is spent by; None without one.
        given_metric: see :meth:`set_metric`.
    """

    one_tier: ClassVar[bool] = False  # whether all ids have the same capacity, as in DPQ
    planner: BudgetPlanner | None
    given_metric: Metric | None = None

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
        device = None if device is None else usable_device(device)
        config = merge_options(type(self), self.one_tier, config, options)
        source = tiers_or_counts(type(self), self.one_tier, config, counts, tiers)
        planner = None
        if (nbytes := layer_budget(config, source, sizes, _weight, dtype)) is not None:
            if config.plans_on_rows:
                how = config.leaves_capacity_open, config.prefer, config.prefer_tail
                by_length = not self.one_tier and tiers is None
                planner = BudgetPlanner.of(nbytes, counts, sizes[:2], sizes[2], *how, by_length)
            else:
                plan = plan_layer(config, counts, *sizes, _weight, dtype)
                config, source = config.with_plan(plan), plan.tiers
        row_tiers = tiers = resolve_tiers(sizes[0], source, config.fractions)  # which say what rows a cache keeps
        if planner is not None:
            tiers = Tiers.from_sizes([sizes[0]])
        capacity = config.capacity_of(sizes[1], tiers) if planner is None else planner.before(*sizes[:2])
        max_norm, norm_type = optional_float("max_norm", max_norm), as_float("norm_type", norm_type)
        rows = resolve_rows(config.rows)
        weight, vector_dtype = make_rows(rows, row_tiers, capacity, sizes[2], _weight, device, dtype)
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
        self.store = make_store(rows, row_tiers, capacity, self.quantizer, weight)
        if max_norm is not None and not self.store.is_full:
            raise ValueError(f'max_norm goes with rows="float32" or "bfloat16" alone, got {max_norm}')
        if self.store.codes_are_fixed:
            self.schedule.end()
        if planner is not None:
            self.gathers_metric = True
            self.register_load_state_dict_post_hook(read_plan)  # type: ignore[no-untyped-call]

    # ---- the table as a whole ------------------------------------------------------------------------------

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

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As newly constructed: rows from N(0, 1), the warm-up ahead. Also fills a layer made on the meta device."""
        self.raw_weight.normal_()
        if self.padding_idx is not None and self.store.is_full:
            self.raw_weight[self.padding_idx].zero_()
        self.quantizer.reset_parameters()
        if isinstance(self.quantizer, MixedQuantizer):
            before = BudgetPlanner.before(self.num_embeddings, self.embedding_dim)
            self._set_tiers(Tiers.from_sizes([self.num_embeddings]), self.quantizer.read_layout((), before))
        self.tier_sizes.copy_(torch.tensor(self.tiers.sizes, device="cpu"))
        if self.tier_of is not None and self.tiers.tier_of is not None:
            self.tier_of.copy_(self.tiers.tier_of)
        self.store.read_plan(self.quantizer, self.tiers)
        self.store.reset_parameters()
        self.moments.reset()
        self.schedule.set(0, self.store.codes_are_fixed)

    # ---- what comes between two passes ---------------------------------------------------------------------

    def _begin_pass(self) -> None:
        """What comes before every forward pass."""
        if self._trains and not in_one_graph():
            self._begin_training_pass()

    def refusal_of_one_graph(self) -> str | None:
        if self.quantizing and self.store.is_full:
            return None
        return (
            "mgqe.one_graph() takes layers whose codebooks have started (mgqe.start_quantizing(model)) and whose rows "
            f'are "float32" or "bfloat16", got a {self._sizes} with rows={self.row_storage!r}'
            f"{'' if self.quantizing else ', in its warm-up'}"
        )

    def prepare_for_one_graph(self) -> None:
        self._tell_optimizer()
        self.quantizer.prepare_for_one_graph(self.raw_weight.device)
        if reads_wait(self.raw_weight.device):
            self.id_guard.prepared(self.raw_weight.device)

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
                self._fit(self.store.codebooks(self.quantizer))
            elif not self.quantizing:
                self.store.lloyd_step(self.raw_weight, passes)
            self.store.flush(self.raw_weight)

    # ---- codebooks -----------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def start_quantizing(self, kmeans: KMeans = KMEANS) -> None:
        """End the warm-up now: start the codebooks from the rows as they are. Does nothing the second time.

        Processes that train together start alike: see :mod:`mgqe.nn.context.ddp`.
        """
        if self.quantizing:
            return
        self.check_ids()
        self._check_rows()
        if self.store.has_codes and self.planner is None:  # of these codebooks, and ids without a row have nothing else
            for _ in range(FOLLOWING_STEPS):
                self.store.lloyd_step(self.raw_weight, self.schedule.passes)
        else:
            self._start_codebooks(kmeans)
        self.schedule.end()

    def _start_codebooks(self, kmeans: KMeans = KMEANS) -> None:
        if self.planner is not None:
            return None if self.quantizer.is_planned else self._start_by_plan(self.planner)
        self._fit(self.quantizer, kmeans)

    @in_full_precision
    @torch.no_grad()
    def plan_again(self) -> None:
        """Spend the budget anew on the rows as they are now, by the gradients of the warm-up.

        Plans by a metric that was given, and those that were given themselves, stay. So do those of rows that are not
        all there, whose codes are all that is left of the others.
        """
        if self.planner is None or not self.store.is_full or self.metric().source != "gradients":
            return
        self.check_ids()
        self._check_rows()
        self._start_by_plan(self.planner)

    def _fit(self, quantizer: Quantizer, kmeans: KMeans = KMEANS) -> None:
        limits = [sample_size(k, self.embedding_dim) for k in quantizer.capacity.num_centroids]
        generator = common_generator(self.raw_weight, self.schedule.passes)
        quantizer.start(self._tier_rows(limits, generator), generator, kmeans)
        broadcast_from_first(quantizer)
        self.store.codebooks_started()

    @in_full_precision
    @torch.no_grad()
    def revive(self) -> None:
        """Move centroids that no id chooses onto rows that are far from theirs."""
        self.check_ids()
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

    # ---- a budget ------------------------------------------------------------------------------------------

    def set_metric(self, metric: Metric) -> None:
        """Spend the layer's budget by this metric instead of by the gradients that it gathers.

        Raises:
            ValueError: a layer that is not planned on its rows, or a metric of other dimensions.
        """
        if self.planner is None:
            raise ValueError("a metric says how a budget is spent: make the layer with budget=")
        self.given_metric = metric.for_rows(self.embedding_dim)
        self.gathers_metric = False

    @torch.no_grad()
    def adopt_plan(self, fitted: FittedPlan) -> None:
        """Take over a plan that was fitted to this layer's rows: its tiers, axes, bits and centroids."""
        if not isinstance(self.quantizer, MixedQuantizer):
            raise TypeError("only a layer with budget= takes a plan")
        with torch.device("cpu"):
            self.quantizer.adopt(fitted)
        self._set_tiers(fitted.plan.tiers, fitted.plan.capacity)
        self.store.adopt_plan(self.raw_weight, self.quantizer, self.tiers)
        self.schedule.revive_every = revive_every(self.capacity)

    def _become_even(self, capacity: Capacity) -> None:
        """Take the even shape of a checkpoint, from when layers without capacity arguments had one."""
        assert isinstance(self.quantizer, MixedQuantizer)
        self.quantizer = even_quantizer(self.quantizer, capacity)
        self.planner, self.capacity, self.centroid_dtype = None, capacity, self.quantizer.centroid_dtype
        self.gathers_metric = False
        self.schedule.revive_every = revive_every(capacity)

    def _start_by_plan(self, planner: BudgetPlanner) -> None:
        generator = common_generator(self.raw_weight, self.schedule.passes)
        with torch.device("cpu"):  # whatever the default device
            sizes, metric = (self.num_embeddings, self.embedding_dim), self.given_metric or self.metric()
            planner.warn_of_unlearnt(f"a {self._sizes}", sizes, self._rows_to_plan, self.schedule.passes)
            if self.gathers_metric:
                warn_without_gradients(f"a {self._sizes}", metric, self.schedule.passes)
            fitted = planner.fit(sizes, self._rows_to_plan, metric, generator)
        self.adopt_plan(of_first(fitted))  # shapes and tiers follow from it: all processes must have the same

    def _rows_to_plan(self, ids: Tensor) -> Tensor:
        """Rows (n, d) of ids on the CPU, wherever the store has them."""
        return self._read_rows(ids.to(self.raw_weight.device))

    def _take_tiers(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        if self.planner is not None and isinstance(sizes := state_dict.get(f"{prefix}tier_sizes"), Tensor):
            tiers = Tiers(tuple(sizes.tolist()), state_dict.get(f"{prefix}tier_of"))  # those of the checkpoint's plan
            if shapes := even_codebooks(state_dict, prefix, planned_shape(self.embedding_dim)):
                capacity = default_capacity(self.embedding_dim, tiers)
                if not self.planner.is_default or shapes != list(capacity.codebook_shapes):
                    return refusal(shapes, prefix)
                self._become_even(capacity)
            self._set_tiers(tiers, self.capacity)
        return super()._take_tiers(state_dict, prefix)

    # ---- freezing ------------------------------------------------------------------------------------------

    @in_full_precision
    @torch.no_grad()
    def codes_of(self, ids: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) int32 of ids (n,) that are all of one tier, never-seen ones included."""
        kept, final = self.store.codes(ids, tier), self.store.final_codes_mask(ids)
        if kept is not None and (final is None or bool(final.all())):
            return kept
        codes = self.quantizer.codes(self._read_rows(ids), tier)
        return codes if kept is None or final is None else torch.where(final.unsqueeze(-1), kept, codes)

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
        self.check_ids()
        self._check_rows()
        self.start_quantizing()

    def _check_rows(self) -> None:
        """Raise ValueError naming the first row that cannot be quantised."""
        full = self.store.is_full
        name, ignored = ("the embedding weight", self.zero_row) if full else ("raw_weight", None)
        check_rows(self.raw_weight, self.quantizer.largest_value, ignored, name, self._sizes)

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

    def _warn_of_reentrance(self) -> None:
        if self.max_norm is None and self._step_is_over():  # nothing was counted the first time
            warnings.warn(
                f"a {self._sizes} is inside a reentrant checkpoint, where its training passes are not seen and its "
                "quantisation loss is lost: call torch.utils.checkpoint.checkpoint with use_reentrant=False, or leave "
                "the layer outside",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """Sizes, and what a plan measured errors by, for print."""
        text = f"{self.num_embeddings}, {self.embedding_dim}, tiers=({self._describe_tiers()}){self._describe_metric()}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        return text + ("" if self.quantizing else f", warm-up of {self.warmup_steps} passes")
