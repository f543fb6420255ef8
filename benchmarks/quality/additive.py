"""Additive codes against the planner's mixed tables, at equal bytes, on trained runs.

The rows of a run's full tables are coded in both ways, in one metric (from gradients), with the same weights and tiers,
within the same bytes: codes, int8 centroids, scales, matrix, mean, tier map and a header alike. Nothing is trained
through the codes. Every candidate is fitted with the first seed; the best of each kind on validation is fitted with the
others, and its test figures are reported. The share of the weighted squares that is lost, in the metric, is that of the
rows as they are looked up.

    python -m benchmarks.quality.additive --run RUN --name amazon-games
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._common import QUALITY, environment
from benchmarks.quality._additive_codes import AdditivePlan, fit_additive, plan_additive
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import MixedPlan, Sample, fit_plan, plan_mixed
from mgqe.codec.planning.problem import Candidate, TableProblem
from mgqe.codec.planning.tables import share_bytes
from mgqe.convert.calibration import calibrate
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import CONFIG, load_run
from mgqe.recsys.train.budget import BATCHES, budget_for
from mgqe.recsys.train.config import TrainConfig

KINDS = ("mixed", "additive")
CENTROIDS = (16, 64)  # K of additive codes, that are tried
SHAPES = ((0.5, (0.1, 0.9)), (1.0, (0.1, 0.3, 0.6)))


class Run:
    """A trained run with full tables: its task, its model and the tables to compress."""

    def __init__(self, folder: Path, eval_users: int) -> None:
        config = TrainConfig(**json.loads((folder / CONFIG).read_text()))
        self.config = replace(config, eval_users=eval_users)
        self.task: Any = RunData.load(self.config).task
        self.model: Any = load_run(folder)
        for path in self.task.tables:
            rows = self.model.get_submodule(path).table.to_dense()
            parent, _, name = path.rpartition(".")
            self.model.get_submodule(parent).register_module(name, nn.Embedding.from_pretrained(rows, freeze=False))
        self.paths = [path for path, info in self.task.tables.items() if not info.fixed]
        batches = islice(self.task.batches(self.config.batch_size, "calibration", 1), BATCHES)
        metrics = calibrate(self.model, batches, self.task.loss, progress=False).metrics
        self.problems = [self._problem(path, metrics[path]) for path in self.paths]

    def _problem(self, path: str, metric: Metric) -> TableProblem:
        rows = self.model.get_submodule(path).weight.detach().clone()
        padding = None if rows[0].any() else 0
        return TableProblem(rows, self.task.tables[path].counts, {metric.source: metric}, padding)

    def budget(self, share: float) -> int:
        """Bytes for the tables to compress."""
        return budget_for(self.model, self.paths, self.task, f"{100 * share}%")

    def figures(self, tables: Sequence[Tensor]) -> dict[str, float]:
        """The task's figures with other rows; those of the validation part as valid_NAME."""
        weights = [self.model.get_submodule(path).weight for path in self.paths]
        with torch.no_grad():
            for weight, rows, problem in zip(weights, tables, self.problems, strict=True):
                weight.copy_(rows)
                if problem.padding_idx is not None:
                    weight[problem.padding_idx] = 0
            result: dict[str, float] = self.task.evaluate(self.model.eval())
            for weight, problem in zip(weights, self.problems, strict=True):
                weight.copy_(problem.rows)
        return result


def lost(plan: MixedPlan, problem: TableProblem, decoded: Tensor) -> float:
    """The share of all rows' weighted squares, in the metric, that decoded rows lack."""
    counts = np.ones(len(decoded)) if problem.counts is None else problem.counts.double().numpy() + 1
    weights = counts**plan.choice.counts_power
    if problem.padding_idx is not None:
        weights[problem.padding_idx] = 0
    errors = (decoded - problem.rows).double().numpy() @ plan.axes.encoder
    squares = (plan.axes.coordinates(problem.rows.double().numpy()) ** 2).sum(1)
    return float(weights @ (errors**2).sum(1) / (weights @ squares))


def code_table(problem: TableProblem, candidate: Candidate, nbytes: int, kind: str, seed: int) -> tuple[Tensor, Any]:
    """Decoded rows of one table, and what is known of it.

    kind is "mixed", or "additive": of the K that loses least, and mixed where no additive codes fit.
    """
    sample, choice = problem.sample(candidate), problem.choice(candidate)
    base = plan_mixed(sample, choice, nbytes, problem.padding_idx)
    assert base is not None, f"{nbytes:,} bytes are too few"
    if kind != "mixed":
        plans = [plan_additive(base, sample, nbytes, centroids) for centroids in CENTROIDS]
        coded = [_coded(problem, sample, base, plan, seed) for plan in plans if plan is not None]
        if not coded:
            return _coded(problem, sample, base, base, seed)
        decoded, about = min(coded, key=lambda pair: float(pair[1]["lost"]))
        return decoded, {**about, "lost_by_K": {each["K"]: each["lost"] for _, each in coded}}
    return _coded(problem, sample, base, base, seed)


def _coded(
    problem: TableProblem, sample: Sample, base: MixedPlan, plan: MixedPlan | AdditivePlan, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    about: dict[str, Any] = {"nbytes": plan.nbytes, "expected": float(plan.loss)}
    fitted: Any
    if isinstance(plan, MixedPlan):
        fitted = fit_plan(plan, sample, generator)
        about |= {"widths": plan.capacity.widths, "bits": [sum(tier.code_bits) for tier in plan.capacity.tiers]}
    else:
        fitted = fit_additive(plan, sample, generator)
        about |= {"K": plan.num_centroids, "codebooks": plan.num_codebooks, "matrix": plan.has_matrix}
        about |= {"coordinates": plan.num_coordinates}
    between = time.perf_counter()
    decoded = fitted.decoded(problem.rows)
    about |= {"fit_s": between - start, "rows_per_s": len(decoded) / (time.perf_counter() - between)}
    return decoded, {**about, "lost": lost(base, problem, decoded)}


def judged(run: Run, candidate: Candidate, shares: Sequence[int], kind: str, seed: int) -> dict[str, Any]:
    """All tables of a run coded in one way, and the figures of its model with them."""
    coded = [code_table(problem, candidate, n, kind, seed) for problem, n in zip(run.problems, shares, strict=True)]
    return {
        "kind": kind,
        "recipe": candidate.describe(),
        "fit_seed": seed,
        "figures": run.figures([rows for rows, _ in coded]),
        "tables": {path: about for path, (_, about) in zip(run.paths, coded, strict=True)},
    }


def shown(record: dict[str, Any], names: Sequence[str]) -> str:
    figures = " ".join(f"{name} {record['figures'][name]:.4f}" for name in names)
    tables = " ".join(
        f"lost {t['lost']:.5f} ({t['nbytes']:,} B, {t['fit_s']:.0f} s)" for t in record["tables"].values()
    )
    return f"{record['kind']:8} {record['recipe']:40} seed {record['fit_seed']} {figures} {tables}"


def compare(run: Run, share: float, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every candidate with the first seed, and the best of each kind on validation with the others."""
    source = next(iter(run.problems[0].metrics))
    candidates = [Candidate(power, tiers, source) for power, tiers in SHAPES]
    shares = share_bytes(run.problems, candidates[0], run.budget(share))
    select = f"valid_{run.task.selects_by}"
    best: dict[str, tuple[float, Candidate]] = {}
    for candidate, kind in product(candidates, KINDS):
        record = judged(run, candidate, shares, kind, seeds[0])
        best[kind] = max(
            best.get(kind, (-1.0, candidate)), (record["figures"][select], candidate), key=lambda pair: pair[0]
        )
        yield {"share": share, **record}
    for seed, kind in product(seeds[1:], KINDS):
        yield {"share": share, **judged(run, best[kind][1], shares, kind, seed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of `mgqe train --embedding full`")
    parser.add_argument("--name", required=True, help="of the data, for the result file")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.02, 0.05], help="shares of the full tables")
    parser.add_argument("--eval-users", type=int, default=4000, help="that rankings are judged on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the fitting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(options.run, options.eval_users)
    content: dict[str, Any] = {"environment": environment(), "model": run.config.model, "seed": run.config.seed}
    content |= {"full": run.figures([problem.rows for problem in run.problems]), "records": []}
    names = list(dict.fromkeys([f"valid_{run.task.selects_by}", run.task.metric, run.task.selects_by]))
    print("full", {name: round(content["full"][name], 4) for name in names}, flush=True)
    out = QUALITY / f"additive-{options.name}.json"
    for share in options.budgets:
        for record in compare(run, share, options.seeds):
            print(f"{share:.0%} {shown(record, names)}", flush=True)
            content["records"].append(record)
            out.write_text(json.dumps(content, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
