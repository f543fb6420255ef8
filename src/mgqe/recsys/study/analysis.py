"""A study's records -> what is compared: one cell a pair, method and budget, and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgqe.recsys.study.declaration import FULL, StudyDeclaration
from mgqe.recsys.study.records import Record, run_key
from mgqe.recsys.study.summary import NAMES, SECOND, Interval

__all__ = ["NAMES", "SECOND", "Cell", "Group", "StudyResults"]

POINTS = 100.0  # differences are given in points: hundredths of HR@10 or AUC


@dataclass(frozen=True)
class Group:
    """All seeds of one embedding on one pair: records by seed."""

    pair: str
    embedding: str
    by_seed: Mapping[int, Record]

    @property
    def metric(self) -> str:
        """The pair's leading figure."""
        name: str = next(iter(self.by_seed.values()))["metric"]
        return name

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
        """This group's figure less another's, seed by seed, in points; None without a common seed."""
        common = [seed for seed in self.by_seed if seed in other.by_seed]
        values = [(self.by_seed[s]["quality"].get(name), other.by_seed[s]["quality"].get(name)) for s in common]
        gaps = [POINTS * (mine - theirs) for mine, theirs in values if mine is not None and theirs is not None]
        return Interval.of(gaps) if gaps else None


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
    """The records of a grid, ready to ask."""

    def __init__(self, grid: StudyDeclaration, records: Sequence[Record]) -> None:
        self.grid = grid
        last = {record["key"]: record for record in records}  # a run that was tried again counts once
        self.failed = [record for record in last.values() if record["status"] == "failed"]
        done = {key: record for key, record in last.items() if record["status"] == "done"}
        self._groups: dict[tuple[str, str], Group] = {}
        for pair, run in grid.runs():
            record = done.get(run_key(pair.name, run.config))
            if record is not None:
                name = (pair.name, run.config.label or str(run.config.spec))
                group = self._groups.setdefault(name, Group(*name, by_seed={}))
                self._groups[name] = Group(*name, by_seed={**group.by_seed, run.config.seed: record})

    def group(self, pair: str, embedding: str) -> Group | None:
        """All seeds of an embedding, however its description is written; None where none has ended."""
        config = self.grid.pairs[pair].config.with_embedding(embedding)
        return self._groups.get((pair, config.label or str(config.spec)))

    def full(self, pair: str) -> Group | None:
        """The full tables of a pair."""
        return self.group(pair, FULL)

    def pairs(self) -> list[str]:
        """The pairs whose full tables are there."""
        return [name for name in self.grid.pairs if self.full(name) is not None]

    def cell(self, pair: str, method: str, budget: float) -> Cell | None:
        """The candidate within the budget with the best validation figure, of those with the most seeds."""
        listed = self.grid.candidates(pair, method).get(budget, ())
        there = [group for embedding in listed if (group := self.group(pair, embedding)) is not None]
        fitting = [group for group in there if 100 * group.share <= budget]
        if not fitting:
            return None
        most = max(len(group.by_seed) for group in fitting)
        fitting = [group for group in fitting if len(group.by_seed) == most]
        best = max(fitting, key=lambda group: group.figure(f"valid_{group.metric}").mean)
        return Cell(
            pair,
            method,
            budget,
            best,
            tuple(group.embedding for group in fitting if group is not best),
            tuple(group.embedding for group in there if 100 * group.share > budget),
        )

    def cells(self, pair: str) -> list[Cell]:
        """All cells of a pair, the largest budget first, methods in the order of the declaration."""
        found = []
        for budget in self.budgets(pair):
            for method in self.grid.method_names:
                cell = self.cell(pair, method, budget)
                if cell is not None:
                    found.append(cell)
        return found

    def budgets(self, pair: str) -> list[float]:
        """Every budget that some method has on a pair, the largest first."""
        names = self.grid.method_names
        return sorted({budget for name in names for budget in self.grid.candidates(pair, name)}, reverse=True)

    def rival(self, pair: str, method: str, budget: float, but: Sequence[str] = ()) -> Cell | None:
        """The other method, none of `but`, that is best on validation at a budget."""
        cells = [
            cell
            for name in self.grid.method_names
            if name != method and name not in but and (cell := self.cell(pair, name, budget)) is not None
        ]
        return max(cells, key=lambda cell: cell.group.figure(f"valid_{cell.group.metric}").mean, default=None)
