"""A study's records -> what is compared: one cell per pair, method and budget, and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgqe.recsys.study.declaration import FULL, StudyDeclaration, method_of
from mgqe.recsys.study.records import Record, run_key
from mgqe.recsys.study.speed import Speeds

# Student's t, two-sided 95%, by degrees of freedom; beyond 30 the normal distribution's 1.96 is near enough.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

# A task's leading figure -> the second one that tables show.
SECOND = {"hr@10": "ndcg@10", "full_hr@10": "full_ndcg@10", "auc": "logloss"}
NAMES = {
    "hr@10": "HR@10", "ndcg@10": "NDCG@10", "auc": "AUC", "logloss": "log loss",
    "full_hr@10": "HR@10, whole catalogue", "full_ndcg@10": "NDCG@10, whole catalogue, %",
}  # fmt: skip
RELATIVE = "full_ndcg@10"  # differences of this figure are given in per cent of the other group's
POINTS = 100.0  # differences are given in points: hundredths of HR@10 or AUC


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the half width of its 95% interval (Student's t), NaN for a single seed."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, math.nan)
        t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
        return cls(mean, t * statistics.stdev(values) / math.sqrt(len(values)))

    def text(self, digits: int = 4, sign: str = "") -> str:
        """Such as `0.6712 ± 0.0021`, or without the interval for a single seed; sign: "+" shows it always."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if math.isnan(self.half_width) else f"{mean} ± {self.half_width:.{digits}f}"


@dataclass(frozen=True)
class Group:
    """All seeds of one embedding on one pair: records by seed."""

    pair: str
    embedding: str
    by_seed: Mapping[int, Record]

    @property
    def embedding_method(self) -> str:
        """The embedding without its options, such as `mgqe`."""
        return self.embedding.partition("@")[0].partition(":")[0]

    @property
    def metric(self) -> str:
        """The pair's leading figure."""
        name: str = next(iter(self.by_seed.values()))["metric"]
        return name

    @property
    def leading(self) -> list[str]:
        """The figures that comparisons show: for rankings also that of the whole catalogue, which comes first."""
        return [RELATIVE, self.metric] if self.ranks else [self.metric]

    @property
    def ranks(self) -> bool:
        """Whether all runs say how the whole catalogue was ranked."""
        return all(RELATIVE in record["quality"] for record in self.by_seed.values())

    @property
    def nbytes(self) -> float:
        """Bytes of all tables' files; mean over seeds."""
        return statistics.fmean(record["embedding_bytes"] for record in self.by_seed.values())

    @property
    def share(self) -> float:
        """Bytes of all tables' files, as a share of the full tables' bytes; mean over seeds."""
        return statistics.fmean(
            record["embedding_bytes"] / record["full_embedding_bytes"] for record in self.by_seed.values()
        )

    def figure(self, name: str) -> Interval:
        """A figure of `quality` over the seeds, those left out where it is not a number."""
        values = [record["quality"].get(name) for record in self.by_seed.values()]
        return Interval.of([value for value in values if value is not None] or [float("nan")])

    def over(self, other: Group, name: str) -> Interval | None:
        """This group's figure less another's, seed by seed, in points or per cent; None without a common seed."""
        common = [seed for seed in self.by_seed if seed in other.by_seed]
        values = [(self.by_seed[s]["quality"].get(name), other.by_seed[s]["quality"].get(name)) for s in common]
        gaps = [
            POINTS * (mine - theirs) / (theirs if name == RELATIVE else 1.0)
            for mine, theirs in values
            if mine is not None and theirs is not None and (theirs or name != RELATIVE)
        ]
        return Interval.of(gaps) if gaps else None


def best_on_validation(groups: Sequence[Group]) -> Group:
    """The group of a pair that is best by the figure that leads, or by the task's own where some run lacks it."""
    metric = groups[0].metric
    records = [record for group in groups for record in group.by_seed.values()]
    name = RELATIVE if all(f"valid_{RELATIVE}" in record["quality"] for record in records) else metric
    return max(groups, key=lambda group: group.figure(f"valid_{name}").mean)


def within_budget(groups: Sequence[Group], method: str, budget: float) -> list[Group]:
    """The groups of a method that fit a budget, in per cent.

    Variants of the full tables have no other budget than their rows, beside which their files have a header.
    """
    return [group for group in groups if 100 * group.share <= budget or method_of(method) == FULL]


@dataclass(frozen=True)
class Cell:
    """A method on a pair at a budget. rejected: candidates with worse validation figures; too_large: over budget."""

    pair: str
    method: str
    budget: float
    group: Group
    rejected: tuple[str, ...] = ()
    too_large: tuple[str, ...] = ()


class StudyResults:
    """The records of a study, by pair and embedding. speeds: the times of its tables, where these were measured."""

    def __init__(self, declaration: StudyDeclaration, records: Sequence[Record], speeds: Speeds | None = None) -> None:
        self.declaration, self.speeds = declaration, speeds or Speeds()
        last = {record["key"]: record for record in records}  # a run that was repeated counts once
        self.failed = [record for record in last.values() if record["status"] == "failed"]
        done = {key: record for key, record in last.items() if record["status"] == "done"}
        self._groups: dict[tuple[str, str], Group] = {}
        for pair, run in declaration.runs():
            record = done.get(run_key(pair.name, run.config))
            if record is not None:
                name = (pair.name, run.config.name)
                group = self._groups.setdefault(name, Group(*name, by_seed={}))
                self._groups[name] = Group(*name, by_seed={**group.by_seed, run.config.seed: record})

    def group(self, pair: str, embedding: str) -> Group | None:
        """All seeds of an embedding, however its description is written; None where none has ended."""
        config = self.declaration.pairs[pair].config.with_embedding(embedding)
        return self._groups.get((pair, config.name))

    def groups(self, pair: str) -> list[Group]:
        """All embeddings of a pair of which a run has ended, the largest first."""
        groups = [group for group in self._groups.values() if group.pair == pair]
        return sorted(groups, key=lambda group: (-group.nbytes, group.embedding))

    def full(self, pair: str) -> Group:
        """The full tables of one of `pairs()`."""
        return self._groups[pair, FULL]

    def pairs(self) -> list[str]:
        """The pairs whose full tables have been trained."""
        return [name for name in self.declaration.pairs if (name, FULL) in self._groups]

    def title(self, pair: str) -> str:
        """What a pair is called in tables and pictures."""
        return self.declaration.pairs[pair].title

    def cell(self, pair: str, method: str, budget: float) -> Cell | None:
        """The candidate within the budget with the best validation figure, of those with the most seeds."""
        listed = self.declaration.candidates(pair, method).get(budget, ())
        groups = [group for embedding in listed if (group := self.group(pair, embedding)) is not None]
        fitting = within_budget(groups, method, budget)
        if not fitting:
            return None
        most = max(len(group.by_seed) for group in fitting)
        fitting = [group for group in fitting if len(group.by_seed) == most]
        best = best_on_validation(fitting)
        return Cell(
            pair,
            method,
            budget,
            best,
            tuple(group.embedding for group in fitting if group is not best),
            tuple(group.embedding for group in groups if 100 * group.share > budget),
        )

    def cells(self, pair: str) -> list[Cell]:
        """All cells of a pair, the largest budget first, methods in the order of the declaration."""
        methods = self.declaration.method_names
        cells = [self.cell(pair, method, budget) for budget in self.budgets(pair) for method in methods]
        return [cell for cell in cells if cell is not None]

    def cells_of(self, pair: str, method: str) -> list[Cell]:
        """A method's cells of a pair, the largest budget first."""
        return [cell for cell in self.cells(pair) if cell.method == method]

    def budgets(self, pair: str) -> list[float]:
        """Every budget that some method has on a pair, the largest first."""
        names = self.declaration.method_names
        return sorted({budget for name in names for budget in self.declaration.candidates(pair, name)}, reverse=True)

    def rival(self, pair: str, method: str, budget: float, besides: Sequence[str] = ()) -> Cell | None:
        """The other method, no variant of this one and none of `besides`, that is best on validation at a budget."""
        cells = [
            cell
            for name in self.declaration.method_names
            if method_of(name) not in map(method_of, (method, *besides))
            and (cell := self.cell(pair, name, budget)) is not None
        ]
        if not cells:
            return None
        best = best_on_validation([cell.group for cell in cells])
        return next(cell for cell in cells if cell.group is best)
