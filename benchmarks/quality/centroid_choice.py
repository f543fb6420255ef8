"""Whether a planned table's tiers should share their centroids, and whether these should take one byte or two.

The planner gives each tier centroids of its own, in int8. This plans Gaussian rows of 64 dimensions with the counts of
a power law in all four ways within the same bytes, header and matrix included, and tells what each is expected to lose.
Tables of up to 24,000 rows are fitted, too, since the prediction takes no notice of what it costs shared centroids to
be nested. Rows are as long for rare ids as for frequent ones, which suits shared centroids best, or shorter.

    python -m benchmarks.quality.centroid_choice
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import QUALITY, environment
from benchmarks.quality.plan_prediction import measured_loss
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import MixedProblem, Sample, fit_plan
from mgqe.codec.planning.shapes import SIZE, Choice

DIM = 64
SIZES = (3_416, 24_000, 100_000, 1_000_000)  # rows
FITTED = 24_000  # rows at most, of tables that are fitted as well
BUDGETS = (0.10, 0.05, 0.02)
RECIPES = ((0.5, (0.1, 0.9)), (1.0, (0.1, 0.3, 0.6)))  # powers of the counts, and tiers; with one tier all is own
LENGTHS = (0.0, 0.2)  # powers of the counts, by which rows are the longer the more often their id occurs
CHOICES = tuple(product((False, True), ("int8", "float16")))  # shared, type


def rows_of(n: int, lengthening: float) -> Tensor:
    """Gaussian rows (n, DIM) with variances 1 / k, turned so that no coordinate of theirs is one that is coded."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
    rows = torch.randn(n, DIM, generator=generator) * torch.arange(1, DIM + 1) ** -0.5 @ turn
    return rows * (counts_of(n).float() + 1).pow(lengthening).unsqueeze(1)


def counts_of(n: int) -> Tensor:
    """How often each id occurs, the most frequent first."""
    return (10 * n / torch.arange(1, n + 1)).long()


def problem_of(sample: Sample, choice: Choice) -> MixedProblem:
    """What plans of the choice have in common: the matrix has scales by rows, without which float16 does not go."""
    problem = MixedProblem.of(sample, choice)
    return replace(problem, coordinates=tuple(each for each in problem.coordinates if each.matrix_dtype == "int8"))


def measure(rows: Tensor, counts: Tensor, power: float, fractions: tuple[float, ...]) -> list[dict[str, Any]]:
    """All choices within all budgets."""
    results = []
    sample = Sample.of(rows, counts, power, fractions, None)
    for shared, dtype in CHOICES:
        problem = problem_of(sample, Choice(power, fractions, Metric.identity(DIM), shared, dtype, SIZE))
        for budget in BUDGETS:
            plan = problem.plan(int(budget * rows.numel() * 4))
            assert plan is not None
            about: dict[str, Any] = {"power": power, "tiers": len(fractions), "budget": budget, "shared": shared}
            about |= {"centroids": dtype, "bytes": plan.nbytes, "predicted": plan.loss}
            if len(rows) <= FITTED:
                fitted = fit_plan(plan, sample, torch.Generator().manual_seed(0))
                about["measured"] = measured_loss(rows, fitted, (counts.double() + 1) ** power)
            results.append(about)
    return results


def shown(results: Sequence[dict[str, Any]]) -> str:
    """One line per budget: what each choice loses, predicted / measured."""
    lines = []
    for budget in BUDGETS:
        cells = [
            f"{'shared' if each['shared'] else 'own'} {each['centroids']} {each['predicted']:.5f} / "
            f"{each.get('measured', float('nan')):.5f}"
            for each in results
            if each["budget"] == budget
        ]
        lines.append(f"  {budget:4.0%}  {', '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    out = QUALITY / "centroid-choice.json"
    for n, lengthening in product(options.sizes, LENGTHS):
        rows, counts = rows_of(n, lengthening), counts_of(n)
        for power, fractions in RECIPES:
            about = {"rows": n, "lengthening": lengthening}
            found = [{**about, **each} for each in measure(rows, counts, power, fractions)]
            title = f"{n:,} rows, lengths counts^{lengthening:g}"
            print(f"{title}, {len(fractions)} tiers, counts^{power:g}\n{shown(found)}", flush=True)
            results += found
    out.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
