"""Writes the tables of docs/plan.md from what benchmarks/quality/plan.py measured.

The results also hold plans of an earlier version that tried even shapes out on the rows; the page says what came of it.

python -m benchmarks.reports.plan
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks._common import QUALITY, ROOT
from mgqe.recsys.study.text_table import TextTable, fill

TITLES = {"ml-1m": "MovieLens-1M", "amazon-apps": "Amazon Apps"}
NAMES = {"full": "full tables", "default": "the default", "counts": "planned from counts"}
PAGE = ROOT / "docs" / "plan.md"


def settings(runs: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(default, method) -> its runs, one per seed."""
    group: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in (run for run in runs if run["method"] in NAMES):
        group.setdefault((run.get("default", ""), run["method"]), []).append(run)
    return group


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def errors(data: dict[str, list[dict[str, Any]]]) -> str:
    """Predicted and measured losses, one column per table."""
    table = TextTable("", ["loss: predicted / measured", "bytes", "users", "items", "seeds"])
    for name, runs in data.items():
        for (default, method), group in settings(runs).items():
            if method == "full":
                continue
            cells = []
            for path in group[0]["tables"]:
                each = (
                    mean([run["tables"][path][kind]["loss"] for run in group]) for kind in ("predicted", "measured")
                )
                cells.append(" / ".join(f"{100 * loss:.2f}%" for loss in each))
            what = f"{TITLES[name]}, {default}: {NAMES[method]}"
            table.rows.append([what, f"{100 * group[0]['share']:.1f}%", *cells, str(len(group))])
    return table.markdown()


def quality(data: dict[str, list[dict[str, Any]]]) -> str:
    """HR@10 on validation and test at equal bytes; differences are paired by seed."""
    header = [
        "bytes of",
        "configuration",
        "bytes",
        "valid HR@10",
        "test HR@10",
        "points to default: valid",
        "test",
        "seeds",
    ]
    table = TextTable("", header, left=2)
    for name, runs in data.items():
        groups = settings(runs)
        for (default, method), group in groups.items():
            gains = ["", ""]
            if method == "counts":
                beside = {run["seed"]: run["quality"] for run in groups[default, "default"]}
                for place, figure in enumerate(("valid_hr@10", "hr@10")):
                    each = [100 * (run["quality"][figure] - beside[run["seed"]][figure]) for run in group]
                    gains[place] = f"{mean(each):+.2f}" + (
                        f" ({', '.join(f'{x:+.2f}' for x in each)})" if each[1:] else ""
                    )
            figures = [f"{mean([run['quality'][figure] for run in group]):.4f}" for figure in ("valid_hr@10", "hr@10")]
            title = f"{TITLES[name]}, {default}" if default else TITLES[name]
            share = f"{100 * group[0]['share']:.1f}%"
            table.rows.append([title, NAMES[method], share, *figures, *gains, str(len(group))])
    return table.markdown()


def main() -> None:
    data = {}
    for name in TITLES:
        data[name] = json.loads((QUALITY / f"plan-{name}.json").read_text())["runs"]
    missing = fill(PAGE, {"plan-errors": errors(data), "plan-quality": quality(data)})
    if missing:
        raise SystemExit(f"{PAGE} has no marks for {', '.join(missing)}")


if __name__ == "__main__":
    main()
