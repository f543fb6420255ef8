"""How a table is quantised: one configuration for the layers, compress_, torchrec's tables and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from mgqe.checks.names import did_you_mean
from mgqe.checks.scalars import as_float, as_floats, as_int, as_ints, is_sequence, optional_int
from mgqe.codec.capacity import CAPACITIES, MIN_CENTROIDS, Capacity, resolve_capacity
from mgqe.codec.layout import CENTROID_DTYPES, frozen_nbytes
from mgqe.codec.planning import COUNTS_POWER, Plan, Problem, budget_bytes
from mgqe.codec.planning.budget import check_budget, plain_budget
from mgqe.codec.planning.mixed import least_nbytes
from mgqe.codec.planning.shapes import PREFERENCES, SPEED
from mgqe.codec.tiers import Tiers
from mgqe.nn.rows.config import CodeRows, Rows, can_be_planned, has_all_rows, resolve_rows

if TYPE_CHECKING:
    from typing_extensions import Self

Counts = Tensor | Sequence[float]
CHOICES = {
    "quantizer": ("vq", "sx"),
    "capacity": CAPACITIES,
    "centroid_dtype": tuple(CENTROID_DTYPES),
    "prefer": PREFERENCES,
}
BETWEEN_TIERS = ("fractions", "capacity", "share_codebook", "prefer_tail")  # attributes that say how tiers differ


class QuantizationOptions(TypedDict, total=False):
    """The attributes of :class:`Quantization`, as the layers take them by keyword."""

    num_subspaces: int | Sequence[int] | None
    num_centroids: int | Sequence[int] | None
    fractions: Sequence[float]
    quantizer: str
    capacity: str
    share_codebook: bool
    share_subspaces: bool
    centroid_dtype: str
    commitment: float
    budget: int | float | str | None
    prefer: str
    prefer_tail: bool
    warmup_steps: int
    rows: Rows


@dataclass(frozen=True)
class Quantization:
    """How a table is quantised. The values are checked once, here, and serve any number of tables.

    The layers take a configuration as ``config=``. They take its attributes as keywords, too, which replace those of
    the configuration.

    A layer with neither a budget nor another value than the default of what a budget chooses is planned all the same:
    its budget is the bytes that the even shape of the defaults would take. It keeps the even shape where tiers are
    given, with "sx", with rows that are "cached", "narrow" or :class:`mgqe.nn.rows.CodeRows`, and in tables so small
    that the even shape saves nothing.

    Attributes:
        num_subspaces: D, or one number per tier with ``capacity="subspaces"`` or "both". Default d / 2.
        num_centroids: K, or one number per tier; 2 to 65,536. Default 256 for the first tier, 64 for the others.
        fractions: the share of the ids in each tier, the most frequent first, where tiers are made from counts.
        quantizer: "vq" (nearest centroid) or "sx" (softmax over keys).
        capacity: what differs between tiers, "centroids", "subspaces" or "both". With "both" and
            ``share_codebook=False`` tiers may differ by many bits, which is best below 5% of the bytes.
        share_codebook: whether all tiers share one codebook; otherwise each tier has its own.
        share_subspaces: one codebook for all subspaces, D times cheaper.
        centroid_dtype: how the frozen table holds centroids: "float32", "float16" or "int8" with scales; training
            already rounds to it.
        commitment: beta, the weight of ||q - sg(c)||^2 in the loss.
        budget: how many bytes the frozen table's file may take: "5%" or 0.05 of the full table, or a number of bytes.
            It chooses the tiers (from counts), D, K, their codebooks and ``centroid_dtype`` (:func:`mgqe.plan`), so
            that the attributes for these must be left at their defaults. With "sx", whose codes are not those of the
            nearest centroids, it buys an even shape from the counts alone; ``CodeRows``, whose codes are given, are
            refused. Default: the bytes of the even shape, see above.
        prefer: how the budget is spent, or the bytes that a layer without one is planned with. "speed": of the shapes
            that are expected to lose about as little, the one that looks up fastest (docs/method.md says how much it
            may lose for that). "size": the one that is expected to lose least, however long look-ups take. It makes a
            difference in tables of 16,384 rows or more; none where the budget buys an even shape.
        prefer_tail: how much rare ids count where a budget is spent, or the default bytes. By default an id's error
            weighs more if it is frequent, (count + 1) to a power, 0.5 unless a judge of the whole model prefers
            another. True: every id weighs the same, so that rare ids keep more and frequent ones less. It needs counts.
        warmup_steps: training passes with unquantised rows before the codebooks start; a training pass is a forward
            pass in training mode. ``mgqe.start_quantizing(model)`` ends the warm-up early. A budget is spent when it
            ends, on the rows as they are then, and anew each time the passes have grown by half: give at least half of
            the passes of the training, better three quarters, where you know how many there are (docs/plan.md has
            figures). A warning says if rows look like random ones by then.
        rows: how rows are kept while they train: "float32" (or the layer's ``dtype``), "bfloat16", "cached" (codes for
            all ids, full rows for those that train now), "narrow", "sketch", or a configuration of
            :mod:`mgqe.nn.rows`. docs/large_tables.md says what each costs.

    Raises:
        ValueError, TypeError: values that cannot be right for any table.

    Example:
        >>> import mgqe
        >>> small = mgqe.Quantization(num_subspaces=8, num_centroids=64, centroid_dtype="int8")
        >>> mgqe.DPQEmbedding(1000, 32, config=small).freeze().nbytes < mgqe.DPQEmbedding(1000, 32).freeze().nbytes
        True
    """

    num_subspaces: int | Sequence[int] | None = None
    num_centroids: int | Sequence[int] | None = None
    fractions: Sequence[float] = (0.1, 0.9)
    quantizer: str = "vq"
    capacity: str = "centroids"
    share_codebook: bool = True
    share_subspaces: bool = False
    centroid_dtype: str = "float32"
    commitment: float = 0.25
    budget: int | float | str | None = None
    prefer: str = SPEED
    prefer_tail: bool = False
    warmup_steps: int = 1_000
    rows: Rows = "float32"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        checked = {
            "num_subspaces": _numbers("num_subspaces", self.num_subspaces),
            "num_centroids": _numbers("num_centroids", self.num_centroids),
            "fractions": as_floats("fractions", self.fractions),
            "commitment": as_float("commitment", self.commitment),
            "budget": plain_budget(self.budget),
            "warmup_steps": as_int("warmup_steps", self.warmup_steps, 0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not 0 <= self.commitment < float("inf"):
            raise ValueError(f"commitment must be a finite number of 0 or more, got {self.commitment}")
        resolve_rows(self.rows)
        if self.budget is not None:
            check_budget(self.budget)
            self._check_left_to_budget()
            if isinstance(self.rows, CodeRows):
                raise ValueError(
                    "rows=CodeRows has the codes already, so that there is nothing for budget= to choose: leave "
                    "budget= out and give the codes' num_subspaces= and num_centroids=, or start from them with "
                    "rows=CachedRows(codes=...), whose codes a budget makes anew"
                )
        if self.prefer != SPEED and (shape := self.capacity_settings):
            raise ValueError(
                f"prefer={self.prefer!r} says how a table is planned, but {', '.join(shape)} says its shape: leave one "
                "or the other out"
            )
        if self.prefer_tail and (shape := self.capacity_settings):
            raise ValueError(
                f"prefer_tail=True says how a table is planned, but {', '.join(shape)} says its shape: leave one "
                "or the other out"
            )

    def _check_left_to_budget(self) -> None:
        if set_too := self.capacity_settings:
            raise ValueError(
                f"budget= chooses {', '.join(set_too)}: leave {'it' if len(set_too) == 1 else 'them'} out, "
                "or leave budget= out"
            )

    def for_one_tier(self) -> Self:
        """This configuration for a table of one tier, with the D and K of the first tier, which are the largest."""
        subspaces, centroids = (_first(value) for value in (self.num_subspaces, self.num_centroids))
        return replace(self, num_subspaces=subspaces, num_centroids=centroids)

    def cut_to(self, tiers: Tiers) -> Self:
        """This configuration with no more centroids than each tier can use."""
        if self.num_centroids is None:
            return self
        wanted = self.num_centroids
        each = tuple(wanted) if isinstance(wanted, Sequence) else (wanted,) * tiers.num_tiers
        if len(each) != tiers.num_tiers:
            return self  # resolve_capacity refuses it and says why
        finest = self.num_subspaces if isinstance(self.num_subspaces, int) else 1
        usable = [n * (finest if self.share_subspaces else 1) for n in tiers.sizes]
        cut = tuple(
            k if k <= n or n == 0 else max(MIN_CENTROIDS, 1 << (n.bit_length() - 1))
            for k, n in zip(each, usable, strict=True)
        )
        if self.capacity == "subspaces" and len(set(each)) == 1:
            cut = (min(cut),) * len(cut)
        return replace(self, num_centroids=cut)

    def capacity_of(self, embedding_dim: int, tiers: Tiers) -> Capacity:
        """D and K of each tier of a table; ValueError where they do not fit it."""
        return resolve_capacity(
            embedding_dim,
            tiers.sizes,
            num_subspaces=self.num_subspaces,
            num_centroids=self.num_centroids,
            capacity=self.capacity,
            share_codebook=self.share_codebook,
            share_subspaces=self.share_subspaces,
        )

    @property
    def plans_on_rows(self) -> bool:
        """Whether a budget is spent on the rows as they are when the warm-up ends: with VQ, where these can be read."""
        return self.quantizer == "vq" and can_be_planned(self.rows)

    @property
    def leaves_capacity_open(self) -> bool:
        """Whether there is neither a budget nor any of what one chooses, so that all of it is planned on the rows."""
        planned = self.quantizer == "vq" and has_all_rows(self.rows)
        return self.budget is None and planned and not self.capacity_settings

    @property
    def capacity_settings(self) -> tuple[str, ...]:
        """The attributes that a budget would choose and that have another value than their default."""
        return tuple(name for name, default in CHOSEN_BY_BUDGET.items() if getattr(self, name) != default)

    def with_plan(self, plan: Plan) -> Self:
        """This configuration with what a budget has chosen."""
        return replace(self, budget=None, prefer=SPEED, prefer_tail=False, **plan.settings())


# The attributes that a budget chooses, with their defaults, which stand for "not set".
CHOSEN_BY_BUDGET: dict[str, Any] = {
    field.name: field.default
    for field in fields(Quantization)
    if field.name not in ("quantizer", "commitment", "budget", "prefer", "prefer_tail", "warmup_steps", "rows")
}


def merge_options(
    layer: type[nn.Module], one_tier: bool, config: Quantization | None, options: Mapping[str, Any]
) -> Quantization:
    """A layer's ``config=``, or the default, with the layer's keywords in place of its attributes.

    Raises:
        TypeError: ``config`` is something else, or a keyword is unknown, or it says how tiers differ though the layer
            has one tier.
    """
    if config is not None and not isinstance(config, Quantization):
        raise TypeError(f"config must be a Quantization, got {type(config).__name__}: mgqe.Quantization(...)")
    known = [field.name for field in fields(Quantization)]
    for name in options:
        if name not in known:
            nearest = did_you_mean(name, [*known, *inspect.signature(layer).parameters])
            raise TypeError(f"{layer.__name__}() got an unexpected keyword argument {name!r}{nearest}")
    if one_tier:
        _refuse(layer, [name for name in BETWEEN_TIERS if name in options])
    return replace(config or Quantization(), **options)


def tiers_or_counts(
    layer: type[nn.Module],
    one_tier: bool,
    config: Quantization,
    counts: Counts | None,
    tiers: Tiers | Sequence[int] | None,
) -> Tiers | Counts | None:
    """Which of a layer's arguments its tiers come from; None for a layer of one tier, or whose budget makes its tiers.

    Raises:
        ValueError: both are given, or neither though the layer has several tiers.
        TypeError: one is given though the layer has one tier.
    """
    if one_tier:
        _refuse(layer, [name for name, value in (("counts", counts), ("tiers", tiers)) if value is not None])
        return None
    if counts is not None and tiers is not None:
        raise ValueError("give counts= or tiers=, not both")
    if counts is not None:
        return counts
    if config.budget is not None and (tiers is None or (isinstance(tiers, Tiers) and tiers.num_tiers == 1)):
        return None
    if config.budget is not None:
        raise ValueError(
            "budget= chooses the tiers, by counts= (how often each id occurs in training), or without them by the "
            "lengths of rows: leave tiers= out"
        )
    if tiers is None:
        raise ValueError(
            "MGQEmbedding needs to know which ids are frequent: give counts= (how often each id occurs in "
            "training), or, for ids in frequency order, tiers=mgqe.Tiers.from_fractions(num_embeddings, "
            f"{config.fractions}). DPQEmbedding and DPQEmbeddingBag need neither"
        )
    with torch.device("cpu"):
        return tiers if isinstance(tiers, Tiers) else Tiers.from_sizes(tiers)


def layer_budget(
    config: Quantization,
    source: Tiers | Counts | None,
    sizes: tuple[int, int, int | None],
    weight: Tensor | None,
    dtype: torch.dtype | None,
) -> int | None:
    """The bytes that a layer of ``sizes`` (N, d, padding_idx) is planned with; None where ``config`` says its shape.

    ``source``: see :func:`tiers_or_counts`.
    """
    itemsize = (weight.dtype if weight is not None else dtype or torch.get_default_dtype()).itemsize
    full_nbytes = sizes[0] * sizes[1] * itemsize
    if config.budget is not None:
        return budget_bytes(config.budget, full_nbytes)
    return default_budget(config, source, sizes, full_nbytes)


def default_budget(
    config: Quantization, source: Tiers | Counts | None, sizes: tuple[int, int, int | None], full_nbytes: int
) -> int | None:
    """The bytes that a layer plans with where nothing says how large it should be: what the even shape would take.

    The even shape is that of the attributes' defaults. None where the layer keeps it or another shape: some capacity
    is given, tiers are given, rows are not planned on, or the table is so small that codes save nothing.
    """
    if not config.leaves_capacity_open or isinstance(source, Tiers):
        return None
    num_embeddings, embedding_dim, padding_idx = sizes
    tiers = resolve_tiers(num_embeddings, source, config.fractions)
    capacity = config.capacity_of(embedding_dim, tiers)
    nbytes = frozen_nbytes(tiers, capacity, padding_idx, config.centroid_dtype)
    return nbytes if least_nbytes(*sizes) <= nbytes < full_nbytes else None


def plan_layer(
    config: Quantization,
    counts: Counts | None,
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None,
    weight: Tensor | None,
    dtype: torch.dtype | None,
) -> Plan:
    """The even shape that a layer's budget buys, from the counts."""
    itemsize = (weight.dtype if weight is not None else dtype or torch.get_default_dtype()).itemsize
    full_nbytes = num_embeddings * embedding_dim * itemsize
    power = 0.0 if config.prefer_tail else COUNTS_POWER
    sizes = num_embeddings, embedding_dim
    problem = Problem.of(*sizes, counts, padding_idx, counts_power=power, full_nbytes=full_nbytes)
    return problem.plan(budget_bytes(config.budget, full_nbytes))


def resolve_tiers(num_embeddings: int, source: Tiers | Counts | None, fractions: Sequence[float]) -> Tiers:
    """A table's tiers: the given ones, or tiers from counts, or one tier of all ids without either."""
    with torch.device("cpu"):  # tiers stay on the CPU, whatever the default device is
        if source is None:
            return Tiers.from_sizes([num_embeddings])
        if not isinstance(source, Tiers):
            return Tiers.from_counts(source, fractions=fractions, num_embeddings=num_embeddings)
    if source.num_embeddings != num_embeddings:
        raise ValueError(f"tiers hold {source.num_embeddings} ids, but num_embeddings is {num_embeddings}")
    return source


def _numbers(name: str, value: Any) -> int | tuple[int, ...] | None:
    try:
        return as_ints(name, value) if is_sequence(value) else optional_int(name, value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, or one per tier, got {value!r}") from error


def _first(value: int | Sequence[int] | None) -> int | None:
    return value[0] if isinstance(value, Sequence) else value


def _refuse(layer: type[nn.Module], names: list[str]) -> None:
    if names:
        raise TypeError(
            f"{layer.__name__} has one tier and takes no {', '.join(names)}: use MGQEmbedding or MGQEmbeddingBag"
        )
