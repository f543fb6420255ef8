"""Size against quality on real data: every method at 20, 15, 10, 5 and 2% of the full tables' bytes.

Methods may have several candidates at a budget; the one with the best validation HR@10 (mean over seeds) is reported,
with its test figures. Runs are kept below --work and not repeated; the summary goes to
benchmarks/results/curve-DATA.json and the picture to docs/pictures/curve-DATA.png.

    python benchmarks/curve.py --data ml-1m --data-dir DIR --seeds 1,2,3 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mgqe.recsys.study.compare import Comparison, Event, Run, run_study
from mgqe.recsys.study.summary import Interval
from mgqe.recsys.train.checkpoint import write_json
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.tuned import tuned_settings

Grid = dict[str, dict[int, list[str]]]  # method -> budget in % -> candidates

ML_1M: Grid = {
    "small d": {20: ["full:d=12"], 15: ["full:d=9"], 10: ["full:d=6"], 5: ["full:d=3"], 2: ["full:d=1"]},
    "low rank": {20: ["lowrank:r=12"], 10: ["lowrank:r=6"], 5: ["lowrank:r=3"]},
    "scalar": {20: ["scalar:bits=6"], 15: ["scalar:bits=4"], 10: ["scalar:bits=3"], 5: ["scalar:bits=1"]},
    "PQ after training": {
        20: ["pq:D=32,K=512,centroids=int8"],
        15: ["pq:D=32,K=256,centroids=int8"],
        10: ["pq:D=32,K=64,centroids=int8", "pq:d=32,D=16,K=256,centroids=int8"],
        5: ["pq:D=32,K=8,centroids=int8", "pq:d=32,D=16,K=32,centroids=int8"],
        2: ["pq:d=16,D=8,K=16,centroids=int8"],
    },
    "DPQ": {
        20: ["dpq:D=32,K=512,centroids=int8"],
        15: ["dpq:D=32,K=256,centroids=int8"],
        10: ["dpq:D=32,K=64,centroids=int8", "dpq:d=32,D=16,K=256,centroids=int8"],
        5: ["dpq:D=32,K=8,centroids=int8", "dpq:d=32,D=16,K=32,centroids=int8"],
        2: ["dpq:d=16,D=8,K=16,centroids=int8"],
    },
    "MGQE": {
        20: ["mgqe:D=64,K=64/32,centroids=int8"],
        15: ["mgqe:D=32,K=256/128,centroids=int8"],
        10: [
            "mgqe:D=32,K=256/32,centroids=int8",
            "mgqe:D=32,K=128/64,share_subspaces=true",
            "mgqe:d=32,D=32,K=64/32,centroids=int8",
        ],
        5: ["mgqe:d=32,D=16,K=128/32,centroids=int8", "mgqe:D=16,K=256/32,share_subspaces=true"],
        2: [
            "mgqe:d=16,D=8,K=32/16,centroids=int8",
            "mgqe:d=16,D=8,K=32/16,centroids=int8@quantised_learning_rate=1e-3",
        ],
    },
}
APPS: Grid = {
    "small d": {6: ["full:d=3"]},
    "low rank": {6: ["lowrank:r=3"]},
    "scalar": {10: ["scalar:bits=3"], 6: ["scalar:bits=1"]},
    "PQ after training": {10: ["pq:D=32,K=64"], 6: ["pq:D=16,K=64", "pq:d=32,D=16,K=64"]},
    "DPQ": {10: ["dpq:D=32,K=64"], 6: ["dpq:D=16,K=64", "dpq:d=32,D=16,K=64"]},
    "MGQE": {
        10: ["mgqe:D=32,K=256/32"],
        6: ["mgqe:D=16,K=256/64", "mgqe:d=32,D=16,K=256/64"],
        2: ["mgqe:d=16,D=8,K=64/16"],
    },
}
GRIDS = {"ml-1m": ML_1M, "amazon-apps": APPS}


def candidates(grid: Grid, methods: list[str]) -> list[str]:
    """Every embedding to train, each once, the full table first."""
    listed = [spec for method in methods for specs in grid[method].values() for spec in specs]
    return list(dict.fromkeys(["full", *listed]))


def finished(run: Run, out: Path) -> dict[str, Any] | None:
    """The metrics of a finished run of exactly this configuration (wherever its data lay), else None."""
    path = out / run.folder / "metrics.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    wanted = json.loads(json.dumps(asdict(run.config)))
    return found if {**found["config"], "data_dir": None} == {**wanted, "data_dir": None} else None


def rows_of(grid: Grid, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and budget: the candidate with the best validation figure, and the rejected ones' names."""
    by_spec: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_spec.setdefault(run["embedding"], []).append(run)
    full = {run["seed"]: run["quality"]["hr@10"] for run in by_spec.get("full", [])}
    names = {spec: _name(spec) for budgets in grid.values() for specs in budgets.values() for spec in specs}

    def row(method: str, budget: int, spec: str, rejected: list[str]) -> dict[str, Any]:
        mine = by_spec[spec]
        hits = [run["quality"]["hr@10"] for run in mine]
        gaps = [100 * (run["quality"]["hr@10"] - full[run["seed"]]) for run in mine if run["seed"] in full]
        interval = Interval.of(gaps)
        return {
            "method": method,
            "budget": budget,
            "embedding": spec,
            "rejected": rejected,
            "seeds": [run["seed"] for run in mine],
            "bytes": statistics.fmean(run["embedding_bytes"] for run in mine),
            "share": statistics.fmean(run["embedding_bytes"] / run["full_embedding_bytes"] for run in mine),
            "valid_hr@10": statistics.fmean(run["quality"]["valid_hr@10"] for run in mine),
            "hr@10": statistics.fmean(hits),
            "hr@10 of seeds": hits,
            "ndcg@10": statistics.fmean(run["quality"]["ndcg@10"] for run in mine),
            "full_hr@10": statistics.fmean(run["quality"]["full_hr@10"] for run in mine),
            "full_ndcg@10": statistics.fmean(run["quality"]["full_ndcg@10"] for run in mine),
            "difference": interval.mean,
            "difference_half_width": interval.half_width,
            "commits": sorted({run["commit"] for run in mine}),
            "seconds_per_epoch": [run["seconds_per_epoch"] for run in mine],
        }

    rows = [row("full", 100, "full", [])] if full else []
    for method, budgets in grid.items():
        for budget, specs in budgets.items():
            there = [names[spec] for spec in specs if names[spec] in by_spec]
            most = max((len(by_spec[spec]) for spec in there), default=0)
            there = [spec for spec in there if len(by_spec[spec]) == most]
            if there:
                best = max(there, key=lambda s: statistics.fmean(r["quality"]["valid_hr@10"] for r in by_spec[s]))
                rows.append(row(method, budget, best, [spec for spec in there if spec != best]))
    return rows


def _name(spec: str) -> str:
    """What a run of this description calls itself."""
    config = TrainConfig().with_embedding(spec)
    return config.label or config.embedding


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table in the terminal."""
    table = Table("method", title=title, title_justify="left")
    for name in ("budget", "embedding", "bytes", "valid HR@10", "HR@10", "NDCG@10", "points to full"):
        table.add_column(name, justify="left" if name == "embedding" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['budget']}%",
            row["embedding"],
            f"{100 * row['share']:.2f}%",
            f"{row['valid_hr@10']:.4f}",
            f"{row['hr@10']:.4f}",
            f"{row['ndcg@10']:.4f}",
            f"{row['difference']:+.2f} ± {row['difference_half_width']:.2f}",
        )
    Console(width=140).print(table)


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Size against quality, a line a method; colours that colour-blind readers can tell apart, and markers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    styles = zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"), ("o", "s", "^", "D", "v", "P"), strict=True
    )
    full = next(row for row in rows if row["method"] == "full")
    axes.axhline(full["hr@10"], color="black", linewidth=1, linestyle="--")
    axes.annotate("full table (100%)", (1.3, full["hr@10"]), textcoords="offset points", xytext=(0, 4))
    methods = [method for method in reversed(dict.fromkeys(row["method"] for row in rows)) if method != "full"]
    for method, (color, marker) in zip(methods, styles, strict=False):
        mine = sorted((100 * row["share"], row["hr@10"]) for row in rows if row["method"] == method)
        axes.plot(*zip(*mine, strict=True), color=color, marker=marker, label=method,
                  linewidth=2.5 if method == "MGQE" else 1.5)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([2, 5, 10, 15, 20], labels=["2%", "5%", "10%", "15%", "20%"])
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, at: ""))
    axes.set_xlim(1.2, 24)
    axes.set_ylim(full["hr@10"] - 0.12, full["hr@10"] + 0.015)  # what lies below is in the table
    axes.set_xlabel("bytes of both tables' files, of the full tables' (log scale)")
    axes.set_ylabel("test HR@10, 99 sampled negatives")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m", choices=sorted(GRIDS))
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", help="joined by commas; default all of them")
    parser.add_argument("--budgets", help="in per cent, joined by commas; default all of them")
    parser.add_argument("--work", default="runs", help="where runs are kept")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--pictures", default="docs/pictures")
    given = parser.parse_args()
    grid = GRIDS[given.data]
    methods = given.methods.split(",") if given.methods else list(grid)
    chosen = {method: grid[method] for method in methods}
    if given.budgets:
        wanted = {int(budget) for budget in given.budgets.split(",")}
        chosen = {method: {b: s for b, s in budgets.items() if b in wanted} for method, budgets in chosen.items()}
    base = TrainConfig(data=given.data, data_dir=given.data_dir).with_settings(tuned_settings("gmf", given.data))
    seeds = tuple(int(seed) for seed in given.seeds.split(","))
    study = Comparison(base, tuple(candidates(chosen, methods)), seeds, Path(given.work) / f"curve-{given.data}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        total = progress.add_task("runs", total=len(study.runs()))

        def on_event(event: Event) -> None:
            if event.error is not None:
                progress.print(f"{event.run.name} failed: {event.error}")
            if event.report is None:
                progress.advance(total)

        run_study(study, given.jobs, on_event=on_event)
    whole = replace(study, embeddings=tuple(candidates(grid, list(grid))))
    runs = [found for run in whole.runs() if (found := finished(run, study.out)) is not None]
    rows = rows_of(grid, runs)
    first = runs[0]
    write_json(
        Path(given.out) / f"curve-{given.data}.json",
        {
            "data": given.data,
            "machine": first["machine"],
            "versions": first["versions"],
            "config": first["config"],
            "rows": rows,
        },
    )
    show(rows, f"{given.data}: GMF, test figures of the best candidate on validation")
    draw(rows, f"{given.data}: GMF, size against quality", Path(given.pictures) / f"curve-{given.data}.png")


if __name__ == "__main__":
    main()
