"""CodebookLayer: the parts that every layer with codebooks has, and what models ask of it; and a batch's ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mgqe.checks.inference import as_normal, outside_inference
from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import Groups
from mgqe.codec.kmeans import revive_interval, revive_size
from mgqe.codec.metric import Metric
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.ddp import KeepInGraph, data_parallel, total_over_processes
from mgqe.nn.metric import GradientMoments, Total
from mgqe.nn.pending import PendingLosses
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.schedule import Event, WarmUp
from mgqe.nn.step_watcher import StepWatcher


class Batch(NamedTuple):
    """The distinct ids of a look-up, each of which is read and quantised once.

    Attributes:
        ids: (u,) distinct; under torch.compile u is n, and the rest repeats the first id with a count of 0.
        inverse: (n,) the position among them of each id that was looked up. None: ``ids`` are the n ids that were
            looked up, those that occur several times included.
        counts: (u,) how often each was looked up; None for once.
        groups: how many of them each tier has, tiers in order; under torch.compile and on a GPU each one's tier
            (u,). Empty where rows are not quantised.
    """

    ids: Tensor
    inverse: Tensor | None
    counts: Tensor | None
    groups: Groups = ()

    @property
    def positions(self) -> Tensor:
        """The inverse, made where there is none."""
        return torch.arange(self.ids.shape[0], device=self.ids.device) if self.inverse is None else self.inverse


class CodebookLayer(nn.Module):
    """A layer whose codebooks start after a warm-up: the embeddings, and the tables over torchrec's rows.

    :func:`mgqe.quantization_loss` and :func:`mgqe.start_quantizing` look for these in a model.

    Attributes:
        tiers, capacity: which ids are in which tier, and D and K of each.
        quantizer: the codebooks.
        schedule: which training pass it is, when the warm-up ends, when centroids revive.
        losses: quantisation losses that no backward pass has gone through yet.
        watcher: whether an optimiser has taken a step since the last training pass.
        moments: gradients of the warm-up's vectors, gathered where ``gathers_metric`` is set.
        tier_sizes, tier_of: buffers. Checkpoints keep the tiers, so that codes are never read under other ones than
            they were trained with.
        steps, started: buffers of the schedule.
        metric_sum, metric_weight: buffers of the moments, of layers that gather them.
    """

    tiers: Tiers
    quantizer: Quantizer
    tier_sizes: Tensor
    tier_of: Tensor | None
    steps: Tensor
    started: Tensor

    def __init__(self, tiers: Tiers, capacity: Capacity, warmup_steps: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("tier_sizes", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("tier_of", None)
        self._set_tiers(tiers, capacity)
        for name, buffer in WarmUp.buffers(device).items():
            self.register_buffer(name, buffer)
        self.schedule = WarmUp(self._buffers, warmup_steps, revive_every(capacity))
        self.losses = PendingLosses()
        self.watcher = StepWatcher()
        for name in GradientMoments.NAMES:
            self.register_buffer(name, None)
        self.moments = GradientMoments(self._buffers, capacity.embedding_dim)

    @outside_inference
    def _set_tiers(self, tiers: Tiers, capacity: Capacity) -> None:
        self.tiers, self.capacity = tiers, capacity
        device = self.tier_sizes.device
        self.tier_sizes = torch.tensor(tiers.sizes, dtype=torch.int64, device=device)
        self.tier_of = None if tiers.tier_of is None else as_normal(tiers.tier_of).to(device)

    # ---- what a layer does when it is due ------------------------------------------------------------------

    def start_quantizing(self) -> None:
        """End the warm-up now."""
        raise NotImplementedError

    def plan_again(self) -> None:
        """Make the plan anew, of layers that have one and have made it themselves."""

    def revive(self) -> None:
        """Move centroids that no id chooses onto rows that are far from theirs."""
        raise NotImplementedError

    def refusal_of_one_graph(self) -> str | None:
        """Why there can be no pass within :func:`mgqe.one_graph`, as an error text; None where there can."""
        return f"mgqe.one_graph() does not take a {type(self).__name__}"

    def prepare_for_one_graph(self) -> None:
        """What passes need that come within :func:`mgqe.one_graph`."""

    def _step_is_over(self) -> bool:
        """Whether an optimiser has taken the step to which the last passes belong."""
        raise NotImplementedError

    def _losses_are_past(self) -> bool:
        """Whether the losses that wait belong to a step that is over."""
        return self._step_is_over()

    def _count_pass(self, stepped: bool = True, may_revive: bool = True) -> None:
        """Count a training pass, and start, plan or revive codebooks where due; see :meth:`WarmUp.count_pass`."""
        self.losses.begin_pass()
        was_over = self.quantizing
        event = self.schedule.count_pass(stepped, may_revive)
        if self.gathers_metric and not was_over:
            self.moments.begin_pass(stepped, self.warmup_steps, self._total(), event is Event.START)
        if event is Event.START:
            self.start_quantizing()
        elif event is Event.PLAN:
            self.plan_again()
        elif event is Event.REVIVE:
            self.revive()

    def _total(self) -> Total | None:
        """The sum over processes that train together; None where there is one."""
        return total_over_processes()

    # ---- the metric ----------------------------------------------------------------------------------------

    @property
    def gathers_metric(self) -> bool:
        """Whether training passes of the warm-up gather what :meth:`metric` is made of. Setting it to False forgets."""
        return self.moments.gathers

    @gathers_metric.setter
    def gathers_metric(self, value: bool) -> None:
        self.moments.turn(bool(value), self.tier_sizes.device)

    @property
    def gathering(self) -> bool:
        """Whether this pass does."""
        return self.moments.gathers and self._trains and not self.quantizing

    def metric(self) -> Metric:
        """What an error in a row costs: by the gradients that were gathered, or the identity where none were.

        Its ``lookups`` are those of one step of the optimiser.
        """
        return self.moments.metric()

    # ---- what models ask -----------------------------------------------------------------------------------

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up is over: the forward pass returns quantised vectors."""
        return self.schedule.is_over

    @property
    def warmup_steps(self) -> int:
        """Training passes before the codebooks start."""
        return self.schedule.warmup_steps

    @warmup_steps.setter
    def warmup_steps(self, steps: int) -> None:
        self.schedule.warmup_steps = steps

    @property
    def latest_pass(self) -> int:
        """The number of the latest training pass, counted over all layers."""
        return self.losses.latest_pass

    @property
    def ended_pass(self) -> int:
        """The number of the last pass of the step before the latest pass."""
        return self.losses.ended_pass

    def auxiliary_loss(self, latest_pass: int | None = None, ended_pass: int = 0) -> Tensor | None:
        """The sum of the losses that wait to be counted, None if there are none; see :meth:`PendingLosses.read`."""
        if self._losses_are_past():
            self.losses.clear()
        return self.losses.read(latest_pass, ended_pass)

    # ---- for the forward passes and checkpoints --------------------------------------------------------------

    @property
    def _trains(self) -> bool:
        """Whether this is a training pass."""
        return self.training and torch.is_grad_enabled()

    def tie_to_codebooks(self, vectors: Tensor) -> Tensor:
        """Vectors as they leave the layer: in a DistributedDataParallel pass, tied to every codebook."""
        if torch.compiler.is_compiling() or data_parallel() is None or not self._trains:
            return vectors
        return KeepInGraph.apply(vectors, *self.quantizer.parameters())  # type: ignore[no-any-return, no-untyped-call]

    def _take_tiers(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """Before a checkpoint is loaded: take its tiers where they are part of a plan.

        Returns:
            why the layer cannot have the checkpoint, as an error text; None where it can.
        """
        return tiers_difference(state_dict, prefix, self.tiers)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if refusal := self._take_tiers(state_dict, prefix):
            error_messages = rest[-1]
            error_messages.append(refusal)
            return
        keys = [prefix + name for name in GradientMoments.NAMES]
        if all(key in state_dict for key in keys):
            self.gathers_metric = True
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.schedule.reload()
        missing_keys = rest[2]
        if self.gathers_metric and any(key in missing_keys for key in keys):  # the layer that was saved gathered none
            self.moments.reset()
            missing_keys[:] = [key for key in missing_keys if key not in keys]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = self.moments.sums
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.moments.restore_precision(exact)
        return self

    def _describe_tiers(self) -> str:
        return ", ".join(tier.describe() for tier in self.capacity.tiers)

    def _describe_metric(self) -> str:
        """What the plan measured errors by, to be added to a text; nothing where there is no plan."""
        source = getattr(self.quantizer, "metric_source", None)
        return "" if source is None else f", metric={source!r}"


def revive_every(capacity: Capacity) -> int:
    """Training passes between two looks for dead centroids in tables of this capacity."""
    return revive_interval(max(min(tier.ids, revive_size(tier.num_centroids)) for tier in capacity.tiers))


def tiers_difference(state_dict: Mapping[str, Any], prefix: str, tiers: Tiers) -> str | None:
    """How a checkpoint's tiers differ from the layer's, as an error text; None where they do not, or it has none.

    Args:
        state_dict: the checkpoint.
        prefix: of the layer's keys in it.
        tiers: the layer's.
    """
    sizes = state_dict.get(f"{prefix}tier_sizes")
    if not isinstance(sizes, Tensor):
        return None
    tier_of = state_dict.get(f"{prefix}tier_of")
    saved = tuple(sizes.tolist())
    if saved != tiers.sizes:
        difference = f"tiers of {saved} ids, this layer of {tiers.sizes}"
    elif not _same_assignment(tier_of, tiers.tier_of):
        difference = f"other ids in its tiers of {saved} ids than this layer"
    else:
        return None
    argument = f"tiers={list(saved)}"
    if tier_of is not None:
        argument = f"tiers=mgqe.Tiers.from_assignment(state_dict[{prefix + 'tier_of'!r}])"
    return (
        f"{prefix.rstrip('.') or 'the layer'}: the checkpoint has {difference}. Make the layer with the same counts= "
        f"or tiers= as the one that was saved, or with {argument}"
    )


def _same_assignment(saved: Any, tier_of: Tensor | None) -> bool:
    if saved is None or tier_of is None:
        return saved is None and tier_of is None
    return bool(torch.equal(saved.cpu(), tier_of))
