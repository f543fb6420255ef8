"""The times of a study's tables, which a report shows beside their bytes.

Runs train side by side, so that no time in their records says how fast their tables are. ``python -m
benchmarks.quality.study_speed OUT`` measures that afterwards, alone on a machine, and writes OUT/speed.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mgqe.files.atomic import read_json

SPEED = "speed.json"
LOOKUP, SEARCH = "look-up", "top-100"


@dataclass(frozen=True)
class Speeds:
    """Times of compact tables over those of the full table in the same run, by (pair, embedding, LOOKUP or SEARCH)."""

    shares: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def measured(self, pair: str) -> list[str]:
        """Which of LOOKUP and SEARCH were measured on a pair."""
        return [what for what in (LOOKUP, SEARCH) if any(key[::2] == (pair, what) for key in self.shares)]

    def text(self, pair: str, embedding: str, what: str) -> str:
        """Such as `0.57`; empty where it was not measured."""
        share = self.shares.get((pair, embedding, what))
        return "" if share is None else f"{share:.2f}"


def read_speeds(path: Path) -> Speeds:
    """What OUT/speed.json holds, nothing where there is no such file; ValueError where it holds something else."""
    if not path.exists():
        return Speeds()
    try:
        rows = read_json(path)["results"]
        return Speeds({(row["pair"], row["name"], row["what"]): float(row["ratio"]) for row in rows})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not the times of a study: remove it, or write it by python -m benchmarks.quality.study_speed"
        ) from error
