"""Writes the tables of docs/plan.md from what plan_quality.py measured.

PYTHONPATH=src:benchmarks python benchmarks/plan_report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _common import RESULTS

from mgqe.tables import TextTable, fill

TITLES = {"ml-1m": "MovieLens-1M", "amazon-apps": "Amazon Apps"}
NAMES = {"default": "the default", "counts": "planned from counts", "rows": "planned from the rows"}
PAGE = Path(__file__).parent.parent / "docs" / "plan.md"


def powers(runs: list[dict[str, Any]]) -> str:
    """HR@10 on validation a power; the default beside."""
    keys = list(dict.fromkeys((run["data"], run["default"]) for run in runs))
    found = {(run["data"], run["default"], run["method"], run["power"]): run["valid_hr@10"] for run in runs}
    steps = sorted({run["power"] for run in runs if run["power"] is not None})
    table = TextTable("", ["validation HR@10, bytes of", "the default", *(f"power {step:g}" for step in steps)])
    for data, default in keys:
        cells = [found[data, default, "default", None], *(found[data, default, "counts", step] for step in steps)]
        table.rows.append([f"{TITLES[data]}, {default}", *(f"{cell:.4f}" for cell in cells)])
    return table.markdown()


def errors(data: dict[str, list[dict[str, Any]]]) -> str:
    """Predicted and measured losses, a line for both tables."""
    table = TextTable("", ["loss: predicted / measured", "bytes", "users", "items"])
    for name, runs in data.items():
        for run in runs:
            if run["method"] == "full":
                continue
            cells = [
                f"{100 * one['predicted']['loss']:.2f}% / {100 * one['measured']['loss']:.2f}%"
                for one in run["tables"].values()
            ]
            what = f"{TITLES[name]}, {run['default']}: {NAMES[run['method']]}"
            table.rows.append([what, f"{100 * run['share']:.1f}%", *cells])
    return table.markdown()


def quality(data: dict[str, list[dict[str, Any]]]) -> str:
    """HR@10 on validation and test at equal bytes."""
    table = TextTable(
        "", ["bytes of", "configuration", "bytes", "valid HR@10", "test HR@10", "points to default"], left=2
    )
    for name, runs in data.items():
        default: dict[str, Any] = {}
        for run in runs:
            default = run if run["method"] == "default" else default
            figures = run["quality"]
            gain = ""
            if run["method"] not in ("default", "full"):
                gain = f"{100 * (figures['hr@10'] - default['quality']['hr@10']):+.2f}"
            what = "full tables" if run["method"] == "full" else NAMES[run["method"]]
            cells = (f"{100 * run['share']:.1f}%", f"{figures['valid_hr@10']:.4f}", f"{figures['hr@10']:.4f}", gain)
            table.rows.append([f"{TITLES[name]}, {run['default']}" if "default" in run else TITLES[name], what, *cells])
    return table.markdown()


def main() -> None:
    data = {}
    for name in TITLES:
        data[name] = json.loads((RESULTS / f"plan-{name}.json").read_text())["runs"]
    chosen = json.loads((RESULTS / "plan-powers.json").read_text())["runs"]
    missing = fill(PAGE, {"plan-powers": powers(chosen), "plan-errors": errors(data), "plan-quality": quality(data)})
    if missing:
        raise SystemExit(f"{PAGE} has no marks for {', '.join(missing)}")


if __name__ == "__main__":
    main()
