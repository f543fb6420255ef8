"""Counts the outcomes of cases, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from reliability.fuzz.outcome import BAD, OUTCOMES
from reliability.fuzz.run import Result

MAX_KEPT = 50  # faults whose files are kept


def is_fault(kind: str, outcome: str) -> bool:
    """Whether an outcome is a fault. Files of format 1 have no checksums: other values in them cannot be noticed."""
    return outcome in BAD and not (outcome in ("warned", "different") and kind.endswith("format 1"))


@dataclass
class Tally:
    """Counts of outcomes.

    Attributes:
        counts: (kind, mutation, outcome) -> cases.
        bad: the first faults.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> bool:
        """Count a result; returns whether it is one of the first faults."""
        self.counts[result.kind, result.mutation, result.outcome.name] += 1
        if len(self.bad) < MAX_KEPT and is_fault(result.kind, result.outcome.name):
            self.bad.append(result)
            return True
        return False

    @property
    def failures(self) -> int:
        """The number of faults."""
        return sum(n for (kind, _, outcome), n in self.counts.items() if is_fault(kind, outcome))

    def record(self) -> list[list[Any]]:
        """The counts for JSON: lists of kind, mutation, outcome, cases."""
        return [[*key, n] for key, n in sorted(self.counts.items())]

    @classmethod
    def of(cls, records: Iterable[list[Any]]) -> Tally:
        """From the lists of :meth:`record`, also of several runs, whose counts are added."""
        tally = cls()
        for kind, mutation, outcome, n in records:
            tally.counts[kind, mutation, outcome] += n
        return tally

    def rows(self, by: int) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table by kind (0) or mutation (1), without columns of outcomes that did not occur."""
        outcomes = [outcome for outcome in OUTCOMES if any(key[2] == outcome for key in self.counts)]
        first = ("what", "damage")[by]
        names = sorted({key[by] for key in self.counts})
        rows = [[name, *self._cells(outcomes, by, name)] for name in names]
        return [first, "files", *outcomes], [*rows, ["all", *self._cells(outcomes, by, None)]]

    def _cells(self, outcomes: list[str], by: int, name: str | None) -> list[str]:
        counts: Counter[str] = Counter()
        for key, n in self.counts.items():
            if name is None or key[by] == name:
                counts[key[2]] += n
        return [f"{counts.total():,}", *(f"{counts[outcome]:,}" if counts[outcome] else "" for outcome in outcomes)]


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A table as plain text, with the first column aligned left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)
