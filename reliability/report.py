"""Writes the figures in reliability/results to docs/reliability.md, between <!-- NAME --> and <!-- /NAME -->.

python -m reliability.report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mgqe.recsys.study.text_table import TextTable, fill
from reliability.fuzz.tally import Tally

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "reliability.md"


def read(pattern: str) -> list[dict[str, Any]]:
    """The records in the results files whose names match a pattern."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(pattern))]


def fuzz_tables() -> dict[str, str]:
    """Outcomes of all fuzzing runs by kind and by mutation, and a line about the runs."""
    records = read("fuzz-*.json")
    tally = Tally.of(row for record in records for row in record["counts"])
    runs = [record["fuzz"] for record in records]
    files, seconds = sum(run["files"] for run in runs), sum(run["seconds"] for run in runs)
    about = (
        f"{files:,} files, seeds {', '.join(str(run['seed']) for run in runs)}, {files / seconds:.0f} per second and "
        f"process (beside other work) on {runs[0]['machine']['processor']}, {tally.failures:,} of them a fault; commit "
        f"{', '.join(dict.fromkeys(run['commit'][:7] for run in runs))}, torch {runs[0]['versions']['torch']}, Python "
        f"{runs[0]['versions']['python']}."
    )
    by_kind, by_damage = (TextTable("", *tally.rows(by)).markdown() for by in (0, 1))
    return {"fuzz-about": about, "fuzz-kinds": by_kind, "fuzz-damage": by_damage}


def kill_table() -> str:
    """The commands that were killed, and how often."""
    rows = []
    for record in read("kill-*.json"):
        kill = record["kill"]
        runs = f"{kill['runs']:,}" if "runs" in kill else ""
        left = f"{kill['unfinished']:,}" if "unfinished" in kill else ""
        rows.append([f"`{kill['what']}`", f"{kill['kills']:,}", left, runs, "0"])
    header = ["killed", "kills", "left a temporary file", "runs that ended", "torn, lost or left behind"]
    return TextTable("", header, rows).markdown()


def main() -> None:
    missing = fill(PAGE, {**fuzz_tables(), "kill": kill_table()})
    if missing:
        raise SystemExit(f"{PAGE} has no place for {', '.join(missing)}")


if __name__ == "__main__":
    main()
