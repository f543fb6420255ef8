"""A trained table that is to be compressed, and the candidates that a plan of it may be made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mgqe.codec.metric import Metric
from mgqe.codec.planning.lengths import MORE_PAY, sizes_by_length
from mgqe.codec.planning.mixed import SAMPLE_ROWS, MixedPlan, MixedProblem, RowReader, Sample, least_nbytes
from mgqe.codec.planning.shapes import SPEED, Choice


@dataclass(frozen=True)
class Candidate:
    """What candidates differ in; see :class:`mgqe.codec.planning.shapes.Choice`.

    Attributes:
        counts_power: an id weighs (count + 1) to this power.
        fractions: the share of the ids in each tier.
        source: which metric: "gradients", "queries" or "identity".
        by_length: tiers are as many as fractions, but made by the lengths of rows.
    """

    counts_power: float
    fractions: tuple[float, ...]
    source: str
    by_length: bool = False

    def describe(self) -> str:
        """In a few words, for reports."""
        tiers = "one tier" if len(self.fractions) == 1 else f"tiers {'/'.join(f'{f:g}' for f in self.fractions)}"
        if self.by_length:
            return f"{self.source}, {tiers if len(self.fractions) == 1 else f'{len(self.fractions)} tiers by length'}"
        return f"{self.source}, {tiers}, counts^{self.counts_power:g}"


ONE = (1.0,)
MAX_TIERS = 4  # by length
EQUAL = tuple((1.0 / tiers,) * tiers for tiers in range(1, MAX_TIERS + 1))
SHAPES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.5, (0.1, 0.9)),
    (0.5, ONE),
    (0.25, ONE),
    (0.0, ONE),
    (0.75, (0.1, 0.9)),
    (1.0, (0.1, 0.3, 0.6)),
    (1.0, (0.02, 0.08, 0.3, 0.6)),
)


@dataclass(frozen=True, eq=False)
class TableProblem:
    """A trained table that is to be compressed.

    Attributes:
        rows: (N, d). counts: (N,), how often each id occurs, or None.
        metrics: source -> metric, the best first; the identity need not be among them.
        padding_idx: the id that looks up as zeros, or None.
        may_stay: whether the table may be left as it is, where its bytes are worth it within a budget for several.
        read: gives rows of ids, all finite, where ``rows`` is on the meta device and says the shape alone; or None.
        prefer: see :class:`mgqe.codec.planning.shapes.Choice`.
        prefer_tail: every id counts alike, whatever its count and the candidate's power.
        by_length: without counts, tiers are made by how long rows are, less their mean; else there is one tier.

    Raises ValueError for a metric of rows of another width, and for rows other than the padding's that hold NaN or
    infinity, in a table that may be compressed.
    """

    rows: Tensor
    counts: Tensor | None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    padding_idx: int | None = None
    may_stay: bool = False
    read: RowReader | None = None
    prefer: str = SPEED
    prefer_tail: bool = False
    by_length: bool = False

    def __post_init__(self) -> None:
        for metric in self.metrics.values():
            metric.for_rows(self.rows.shape[1])
        if self.read is not None or (self.may_stay and not self.compresses) or len(self.rows) == 0:
            return
        if all(bool(end.isfinite()) for end in self.rows.aminmax()):
            return
        bad = ~self.rows.isfinite().all(1)
        if self.padding_idx is not None:
            bad[self.padding_idx] = False
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} rows of weight hold NaN or infinity, the first is row {int(bad.nonzero()[0])}: "
                "training diverged, or the file is damaged"
            )

    def choice(self, candidate: Candidate) -> Choice:
        """A candidate for this table: one tier without counts, the identity without the metric."""
        metric = self.metrics.get(candidate.source) or Metric.identity(self.rows.shape[1])
        fractions = candidate.fractions
        if self.counts is None:
            fractions = ONE if self.squares is None else self._fractions(len(fractions))
        power = 0.0 if self.prefer_tail else candidate.counts_power
        return Choice(power, fractions, metric, prefer=self.prefer, by_length=self.squares is not None)

    def sample(self, candidate: Candidate) -> Sample:
        """Its rows as the candidate weighs and divides them."""
        choice = self.choice(candidate)
        weighted = self.counts, choice.counts_power, choice.fractions, self.padding_idx
        return Sample.of(self.rows, *weighted, read=self.read, order=self.squares)

    @cached_property
    def squares(self) -> Tensor | None:
        """(N,), the square of each row less their mean, where tiers are made by it; that of the padding is 0."""
        if self.counts is not None or not self.by_length or not self.compresses:
            return None
        starts = range(0, len(self.rows), SAMPLE_ROWS)
        mean = self._block(0).double().mean(0)
        squares = torch.cat([_squares(self._block(start), mean) for start in starts])
        if self.padding_idx is not None:
            squares[self.padding_idx] = 0.0
        return squares

    def _block(self, start: int) -> Tensor:
        """SAMPLE_ROWS rows, on the CPU, that of the padding as zeros."""
        ids = torch.arange(start, min(start + SAMPLE_ROWS, len(self.rows)), device="cpu")
        rows = self.rows[start : start + len(ids)].detach().cpu() if self.read is None else self.read(ids).cpu()
        if self.padding_idx is not None and start <= self.padding_idx < start + len(ids):
            return rows.masked_fill((ids == self.padding_idx).unsqueeze(1), 0.0)
        return rows

    def _fractions(self, tiers: int) -> tuple[float, ...]:
        """The shares of at most so many tiers by length."""
        sizes = [each for each in self._sizes if len(each) <= tiers][-1]
        return tuple(size / len(self.rows) for size in sizes)

    @cached_property
    def _sizes(self) -> list[tuple[int, ...]]:
        """Of tiers by length: the sizes of 1 tier, of 2, and so on."""
        assert self.squares is not None
        return sizes_by_length(self.squares.numpy(), MAX_TIERS)

    def unjudged(self, candidate: Candidate) -> list[Candidate]:
        """What the prediction chooses from where nothing judges: the candidate, and other numbers of tiers."""
        if self.squares is None:
            return [candidate, replace(candidate, fractions=ONE)]
        return [replace(candidate, fractions=each) for each in self.numbers_of_tiers]

    def expected_best(self, plans: Sequence[MixedPlan]) -> int:
        """The place of the plan that nothing judges: the one that is expected to lose least.

        Of plans by length the one with fewest tiers that loses about as little, since tiers make look-ups slower.
        """
        least = min(plan.loss for plan in plans)
        slack = MORE_PAY if self.squares is not None and self.prefer == SPEED else 1.0
        near = [place for place, plan in enumerate(plans) if plan.loss <= slack * least]
        return min(near, key=lambda place: (plans[place].tiers.num_tiers if slack > 1 else 0, plans[place].loss))

    @property
    def numbers_of_tiers(self) -> list[tuple[float, ...]]:
        """As many fractions as there may be tiers by length, from one on."""
        return [EQUAL[len(sizes) - 1] for sizes in self._sizes]

    def mixed(self, candidate: Candidate) -> MixedProblem:
        """What all plans of the candidate have in common, whatever the bytes."""
        return MixedProblem.of(self.sample(candidate), self.choice(candidate), self.padding_idx)

    @property
    def least(self) -> int:
        """Bytes of its smallest table."""
        return least_nbytes(self.rows.shape[0], self.rows.shape[1], self.padding_idx)

    @property
    def compresses(self) -> bool:
        """Whether its smallest table takes fewer bytes than its rows; not where there is one row."""
        return len(self.rows) > 1 and self.least < self.rows.nbytes

    @property
    def least_share(self) -> int:
        """The fewest bytes that it can be given."""
        return self.rows.nbytes if self.may_stay and not self.compresses else self.least

    def stays(self, nbytes: int) -> bool:
        """Whether it is left as it is with so many bytes."""
        return self.may_stay and nbytes >= self.rows.nbytes


def _squares(rows: Tensor, mean: Tensor) -> Tensor:
    """(n,) float64, the squares of rows less a mean; with more digits where float32 has too few for them."""
    squares = (rows.float() - mean.float()).square().sum(1).double()
    if bool(squares.isfinite().all()) and bool(squares.any()):
        return squares
    return (rows.double() - mean).square().sum(1)


def candidates(problems: Sequence[TableProblem]) -> list[Candidate]:
    """The candidates for these tables, the default first."""
    sources = list(dict.fromkeys(source for problem in problems for source in problem.metrics))
    by_length = all(problem.counts is None for problem in problems) and any(each.by_length for each in problems)
    shapes: tuple[tuple[float, tuple[float, ...]], ...] = ((0.0, ONE),)
    if any(problem.counts is not None for problem in problems):
        shapes = SHAPES
    elif by_length:
        numbers = {tiers for problem in problems if problem.squares is not None for tiers in problem.numbers_of_tiers}
        shapes = tuple((0.0, tiers) for tiers in sorted(numbers, key=len, reverse=True))
    if all(problem.prefer_tail for problem in problems):
        shapes = tuple(dict.fromkeys((0.0, tiers) for _, tiers in shapes))
    return [Candidate(power, tiers, source, by_length) for source in [*sources, "identity"] for power, tiers in shapes]
