"""What became of all cases: counts, a table for the terminal, a record for docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from reliability.fuzz.outcome import BAD, OUTCOMES
from reliability.fuzz.run import Result

KEPT = 50  # bad cases written out


def must_not_be(kind: str, outcome: str) -> bool:
    """Whether an outcome is a fault. Files of format 1 have no checksums: other values in them cannot be noticed."""
    return outcome in BAD and not (outcome in ("warned", "different") and kind.endswith("format 1"))


@dataclass
class Tally:
    """Attributes:
    counts: cases by kind, mutation and outcome.
    bad: the first of those that must not be.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> bool:
        """Count a result; whether it is one of the first bad ones."""
        self.counts[result.kind, result.mutation, result.outcome.name] += 1
        if len(self.bad) < KEPT and must_not_be(result.kind, result.outcome.name):
            self.bad.append(result)
            return True
        return False

    @property
    def failures(self) -> int:
        """Cases that must not be."""
        return sum(n for (kind, _, outcome), n in self.counts.items() if must_not_be(kind, outcome))

    def record(self) -> list[list[Any]]:
        """As JSON holds it: kind, mutation, outcome, cases."""
        return [[*key, n] for key, n in sorted(self.counts.items())]

    @classmethod
    def of(cls, records: Iterable[list[Any]]) -> Tally:
        """From :meth:`record`; those of several runs are added up."""
        tally = cls()
        for kind, mutation, outcome, n in records:
            tally.counts[kind, mutation, outcome] += n
        return tally

    def rows(self, by: int) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table by kind (0) or mutation (1); outcomes that never came have no column."""
        seen = [outcome for outcome in OUTCOMES if any(key[2] == outcome for key in self.counts)]
        first = ("what", "damage")[by]
        names = sorted({key[by] for key in self.counts})
        rows = [[name, *self._cells(seen, by, name)] for name in names]
        return [first, "files", *seen], [*rows, ["all", *self._cells(seen, by, None)]]

    def _cells(self, seen: list[str], by: int, name: str | None) -> list[str]:
        found: Counter[str] = Counter()
        for key, n in self.counts.items():
            if name is None or key[by] == name:
                found[key[2]] += n
        return [f"{found.total():,}", *(f"{found[outcome]:,}" if found[outcome] else "" for outcome in seen)]


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text, first column to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)
