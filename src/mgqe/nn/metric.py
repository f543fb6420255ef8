"""GradientMoments: what a layer gathers of its vectors' gradients, E[g g^T], and the metric that it makes of them.

Half-precision gradients are summed in float32. Gradients that a GradScaler scales are gathered as they come: its scale
is the same for all tables, and constant for thousands of steps but for the passes that overflow, which are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.checks.inference import outside_inference
from mgqe.codec.metric import Metric
from mgqe.nn.context.ddp import recomputing
from mgqe.nn.context.decorators import outside_graphs

HALF_LIFE = 32  # gathered steps, after which a gradient counts half
DECAY = 0.5 ** (1 / HALF_LIFE)
SAMPLE = 256  # vectors of a pass whose gradients are gathered
RARELY = 16  # steps of which one is gathered; more of them in a warm-up of fewer than RARELY * HALF_LIFE steps
SHARE_EVERY = 4  # gathered steps between two sums over processes

Total = Callable[[Tensor], Any]  # replaces a tensor, in place, by its sum over all processes


class Lookups(NamedTuple):
    """Which vectors of a pass are gathered, and what each counts.

    Attributes:
        places: (s,) their positions among the pass's n vectors; None: all of them.
        scale: n / s, so that sums over the sample stand for sums over the pass.
        costs: (s,) float32, what g g^T of each counts: the sum of its ids' squared weights; None: 1.
        ids: (s,) float32, how many ids each is made of, padding left out; None: 1.
        used_rows: vectors without a gradient are no look-ups, as rows of a table of which an output layer read some.
            ``ids`` is not used then.
    """

    places: Tensor | None
    scale: float
    costs: Tensor | None = None
    ids: Tensor | None = None
    used_rows: bool = False


def sample_places(n: int, limit: int, turn: int, device: torch.device) -> Tensor | None:
    """``limit`` different positions below n, spread evenly and in step with no period of the data; None for all n.

    Positions follow each other in steps of about the golden ratio of n, coprime to n. Each turn goes on where the one
    before has ended. No random numbers are drawn.
    """
    if n <= limit:
        return None
    step = next(s for s in range(int(n * 0.618), n + 1) if math.gcd(s, n) == 1)
    return torch.arange(limit, device=device).add_(turn * limit % n).mul_(step).remainder_(n)


def steps_between(warmup_steps: int) -> int:
    """Of how many steps one is gathered: at least ``HALF_LIFE`` are in every warm-up that has as many."""
    return min(RARELY, max(1, warmup_steps // HALF_LIFE))


def lookups_of_vectors(ids: Tensor, padding_idx: int | None, limit: int, turn: int) -> Lookups:
    """Of ids (...), one vector each."""
    flat = ids.reshape(-1)
    places = sample_places(len(flat), limit, turn, flat.device)
    scale = 1.0 if places is None else len(flat) / limit
    if padding_idx is None:
        return Lookups(places, scale)
    ones = (flat if places is None else flat[places]).ne(padding_idx).float()
    return Lookups(places, scale, ones, ones)


def lookups_of_rows(num_embeddings: int, padding_idx: int | None, limit: int, turn: int, at: torch.device) -> Lookups:
    """Of a whole table that an output layer reads: each row that gets a gradient is one look-up."""
    places = sample_places(num_embeddings, limit, turn, at)
    scale = 1.0 if places is None else num_embeddings / limit
    costs = None
    if padding_idx is not None:
        ids = torch.arange(num_embeddings, device=at) if places is None else places
        costs = ids.ne(padding_idx).float()
    return Lookups(places, scale, costs, used_rows=True)


def lookups_of_bags(
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int | None,
    limit: int,
    turn: int,
) -> Lookups:
    """Of bags of ids; arguments as for nn.EmbeddingBag.

    An id's gradient is that of its bag times its weight in the bag: 1 or ``per_sample_weights`` in a sum, 1 / n in a
    mean of n ids. In a maximum each dimension goes to one id alone; there its n ids count 1 / n each.
    """
    ones = torch.ones_like(ids, dtype=torch.float32) if padding_idx is None else ids.ne(padding_idx).float()
    squares = ones if per_sample_weights is None else ones * per_sample_weights.detach().float().square()
    bags = len(ids) if offsets is None else len(offsets) - int(include_last_offset)
    places = sample_places(bags, limit, turn, ids.device)
    counts = _bag_sums(ones, offsets, places, include_last_offset)
    if mode == "sum":
        costs = counts if squares is ones else _bag_sums(squares, offsets, places, include_last_offset)
    elif mode == "mean":
        costs = torch.where(counts > 0, 1 / counts, 0)
    else:
        costs = (counts > 0).float()
    return Lookups(places, 1.0 if places is None else bags / limit, costs, counts)


def _bag_sums(values: Tensor, offsets: Tensor | None, places: Tensor | None, include_last_offset: bool) -> Tensor:
    """Sums over bags of values like the ids, (s,) float32."""
    if offsets is None:
        return (values if places is None else values[places]).sum(1)
    sums = F.pad(values.double().cumsum(0), (1, 0))
    ends = offsets if include_last_offset else F.pad(offsets, (0, 1), value=len(values))
    starts, stops = ends[:-1], ends[1:]
    if places is not None:
        starts, stops = starts[places], stops[places]
    return (sums[stops] - sums[starts]).float()


@torch.no_grad()
def second_moment(gradient: Tensor, lookups: Lookups) -> tuple[Tensor, Tensor | float, Tensor]:
    """The sum of g g^T over a pass's look-ups, without a wait for the device.

    Args:
        gradient: (..., d) of the pass's vectors.
        lookups: which of them count, and how much.

    Returns:
        the sum (d, d) float32; how many look-ups these are; whether all gradients that count are finite, a bool
        scalar.
    """
    rows = gradient.detach().reshape(-1, gradient.shape[-1])
    rows = (rows if lookups.places is None else rows.index_select(0, lookups.places)).float()
    if lookups.costs is not None:
        # Padding may have NaN, which the layer keeps from its rows.
        rows = (rows * lookups.costs.sqrt().unsqueeze(-1)).masked_fill_(lookups.costs.eq(0).unsqueeze(-1), 0.0)
    device = rows.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        moment = rows.T @ rows
    ids = rows.ne(0).any(1).float() if lookups.used_rows else lookups.ids  # rows of padding are zeros here
    number = len(rows) if ids is None else ids.sum()
    return moment.mul_(lookups.scale), number * lookups.scale, moment.trace().isfinite()


class Sums(NamedTuple):
    """Decayed sums over the steps that are gathered.

    Attributes:
        moment: (d, d) float32, of g g^T over all look-ups.
        weight: (2,) float32, of look-ups and of steps.
    """

    moment: Tensor
    weight: Tensor

    @classmethod
    def zeros(cls, embedding_dim: int, device: torch.device) -> Sums:
        """Of no steps."""
        return cls(
            torch.zeros(embedding_dim, embedding_dim, dtype=torch.float32, device=device),
            torch.zeros(2, dtype=torch.float32, device=device),
        )

    def begin_step(self) -> None:
        """Another step: all before it counts less."""
        self.moment.mul_(DECAY)
        self.weight.mul_(DECAY)
        self.weight[1] += 1


class GradientMoments:
    """The decayed average of g g^T over a sample of the vectors that a layer's training passes return.

    It is gathered in the warm-up, where vectors are rows and their gradients are those of an unquantised model: in all
    passes of one step in sixteen, or of more in a short warm-up. The average forgets by half within 32 such steps, so
    that late ones decide, whenever the warm-up ends. A hook on the vectors reads their gradients in the loss's own
    scale, which is the same for all tables of a model, and changes nothing. A pass in which a sampled gradient is NaN
    or infinite counts nothing.

    The sums are buffers of the layer, so that its checkpoints have them; they stay float32 where the layer becomes
    half precision. Processes that train together sum what each has gathered every few passes and at the start, at
    points that all of them reach, so that all have the same metric and none has to ask the others when it is read.

    Args:
        buffers: the layer's, which stay this mapping wherever the layer moves.
        embedding_dim: d.
    """

    NAMES = ("metric_sum", "metric_weight")  # of the buffers: part of the format of checkpoints

    def __init__(self, buffers: MutableMapping[str, Any], embedding_dim: int) -> None:
        self.gathers = False
        self._buffers, self._embedding_dim = buffers, embedding_dim
        self._steps = 0
        self._is_gathered = False  # the step that the latest pass belongs to
        self._turn = 0
        self._alone: Sums | None = None  # what this process has gathered and the others do not know yet
        self._steps_alone = 0

    # ---- on and off ----------------------------------------------------------------------------------------

    @outside_inference
    def turn(self, on: bool, device: torch.device) -> None:
        """Begin to gather, or forget all and stop."""
        if on == self.gathers:
            return
        values = Sums.zeros(self._embedding_dim, device) if on else (None, None)
        self._buffers.update(zip(self.NAMES, values, strict=True))
        self.gathers, self._alone = on, None

    def reset(self) -> None:
        """Forget all."""
        self._alone = None
        for values in self.sums or ():
            values.zero_()

    @property
    def sums(self) -> Sums | None:
        """What all processes have gathered; None where nothing is gathered."""
        moment, weight = (self._buffers[name] for name in self.NAMES)
        return None if moment is None else Sums(moment, weight)

    def restore_precision(self, before: Sums | None) -> None:
        """Called when the layer was moved or converted: take the sums as they were ``before``, if they were rounded."""
        for name, exact in zip(self.NAMES, before or (), strict=False):
            if self._buffers[name].dtype != exact.dtype:
                self._buffers[name] = exact.to(self._buffers[name].device)

    # ---- passes --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin_pass(self, stepped: bool, warmup_steps: int, total: Total | None, is_last: bool) -> None:
        """A training pass of the warm-up begins.

        Args:
            stepped: an optimiser has stepped since the last pass.
            warmup_steps: of the layer.
            total: the sum over processes that train together, if there are any. This is a collective then, once in
                some steps and at the end.
            is_last: the warm-up ends before this pass.
        """
        sums = self.sums
        if sums is None:
            return
        if total is None:
            self._alone = None
        elif self._alone is None:
            self._alone, self._steps_alone = Sums.zeros(self._embedding_dim, sums.moment.device), 0
        elif is_last or self._steps_alone == SHARE_EVERY:
            self.share(total)
        if stepped and not is_last:
            self._is_gathered = self._steps % steps_between(warmup_steps) == 0
            self._steps += 1
            if self._is_gathered:
                (self._alone or sums).begin_step()
                self._steps_alone += 1

    @torch.no_grad()
    def share(self, total: Total) -> None:
        """Tell the other processes what this one has gathered since they were last told. A collective."""
        if self._alone is None or self.sums is None:
            return
        for shared, own in zip(self.sums, self._alone, strict=True):
            total(own)
            shared.mul_(DECAY**self._steps_alone).add_(own)
            own.zero_()
        self._steps_alone = 0

    @outside_graphs
    def watch_vectors(self, vectors: Tensor, ids: Tensor, padding_idx: int | None) -> None:
        """Gather the gradients that vectors (..., d) of ids (...) will have."""
        if self._due(vectors):
            self._watch(vectors, lookups_of_vectors(ids, padding_idx, SAMPLE, self._turn))

    @outside_graphs
    def watch_bags(
        self,
        bags: Tensor,
        ids: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        mode: str,
        include_last_offset: bool,
        padding_idx: int | None,
    ) -> None:
        """Gather the gradients that bags (B, d) will have; the other arguments are nn.EmbeddingBag's."""
        if self._due(bags):
            options = (offsets, per_sample_weights, mode, include_last_offset, padding_idx)
            self._watch(bags, lookups_of_bags(ids, *options, SAMPLE, self._turn))

    @outside_graphs
    def watch_rows(self, rows: Tensor, padding_idx: int | None) -> None:
        """Gather the gradients that rows (N, d), read as a whole, will have."""
        if self._due(rows):
            self._watch(rows, lookups_of_rows(len(rows), padding_idx, SAMPLE, self._turn, rows.device))

    def _due(self, vectors: Tensor) -> bool:
        # Gradient checkpointing computes vectors again, whose first ones are watched.
        has_values = vectors.requires_grad and vectors.numel() > 0 and not vectors.is_meta
        return self.gathers and self._is_gathered and has_values and not recomputing()

    def _watch(self, vectors: Tensor, lookups: Lookups) -> None:
        self._turn += 1
        vectors.register_hook(lambda gradient: self._add(gradient, lookups))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _add(self, gradient: Tensor, lookups: Lookups) -> None:
        sums = self._alone or self.sums
        if sums is not None:
            moment, number, is_finite = second_moment(gradient, lookups)
            sums.moment.add_(torch.where(is_finite, moment, 0.0).to(sums.moment.device))
            sums.weight[0] += (number * is_finite).to(sums.weight.device)

    # ---- the metric ----------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """E[g g^T] per look-up with look-ups per step; the identity where nothing, or only zeros, were gathered."""
        if (sums := self.sums) is None:
            return Metric.identity(self._embedding_dim)
        lookups, steps = sums.weight.tolist()
        return metric_of(sums.moment, lookups, steps)


def metric_of(moment: Tensor, lookups: float, steps: float) -> Metric:
    """The metric of a sum (d, d) of g g^T over so many look-ups in so many steps; the identity of zeros."""
    if lookups <= 0 or steps <= 0 or not float(moment.diagonal().sum()) > 0:
        return Metric.identity(moment.shape[0])
    return Metric(moment.detach().cpu().double() / lookups, "gradients", lookups / steps)
