"""Quality at equal bytes of tables of levels, and of the tables of centroids that they replace in large tables.

One trained model per seed. Its tables are planned within the same budget in several families of shapes; within each,
validation chooses between candidates in the metric of the gradients, as `budget=` does in `mgqe train` (which tries the
identity as well), and nothing is trained through the codes:

    centroids  joined coordinates with centroids of their own: what small tables get
    levels     a code of one coordinate each, with shared levels, in the axes that lose less
    speed      the shape that looks up fastest of all that lose about as little: what large tables get

    python -m benchmarks.quality.levels --data-dir DIR --work runs/levels

Results go to benchmarks/quality/results/levels.json one by one; what is there is not done again, and a warm-up in the
folder of ``--work`` is used again. ``--pairs sasrec-games wide-deep-frappe`` names other models. Levels are tried here
in tables of any size, while `budget=` keeps them for tables of 16,384 rows or more, whose look-ups take time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks._common import QUALITY
from benchmarks.quality.ablation import PAIRS, Records, Trained
from mgqe.codec.planning import fits, mixed, shapes
from mgqe.codec.planning.fits import BestPlans, best_plans
from mgqe.codec.planning.mixed import FittedPlan
from mgqe.codec.planning.problem import SHAPES, Candidate, TableProblem
from mgqe.codec.planning.shapes import LEVELS, SIZE, SPEED, Coordinates
from mgqe.convert.budget import decoded, rows_in_place
from mgqe.recsys.train.budget import budget_for
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.tuned import tuned_settings

OUT = QUALITY / "levels.json"
TASKS = {"gmf": "ranking", "sasrec": "sequential", "wide_deep": "ctr"}
NEVER, ALWAYS = 1 << 62, 0  # rows of a table, from which shapes are planned for speed
FAMILIES = {"centroids": (NEVER, SIZE), "levels": (ALWAYS, SIZE), "speed": (ALWAYS, SPEED)}


@contextmanager
def shapes_of(family: str) -> Iterator[None]:
    """Within the block plans are of shapes of this family."""
    kinds = shapes._kinds

    def levels_alone(coordinates: Coordinates) -> list[tuple[float, float]]:
        return [each for each in kinds(coordinates) if each[0] == LEVELS]

    with (
        patch.object(mixed, "WHOLE_ROWS", FAMILIES[family][0]),
        patch.object(shapes, "_kinds", levels_alone if family == "levels" else kinds),
        patch.object(fits, "candidates", lambda problems: [Candidate(*each, "gradients") for each in SHAPES]),
    ):
        yield


def planned(trained: Trained, family: str, nbytes: int) -> tuple[BestPlans, Sequence[TableProblem]]:
    """The plans that validation likes best, and the rows that they are of: their own, or users of equal length."""

    def best_of(problems: Sequence[TableProblem]) -> tuple[BestPlans, Sequence[TableProblem]]:
        mine = [
            replace(each, metrics={"gradients": each.metrics["gradients"]}, prefer=FAMILIES[family][1])
            for each in problems
        ]

        def judge(fitted: Sequence[FittedPlan]) -> float:
            with rows_in_place(trained.weights, decoded(mine, fitted)):
                return float(trained.task.validation(trained.model).figures[trained.task.judges_by])

        return best_plans(mine, nbytes, judge), mine

    with shapes_of(family):
        found = [best_of(problems) for problems in (trained.problems, trained.equal_problems()) if problems]
    return max(found, key=lambda pair: pair[0].figure or 0.0)


def in_words(fitted: FittedPlan) -> str:
    """A plan's shape, of the rows of each tier."""
    capacity = fitted.plan.capacity
    bits = " / ".join(str(sum(tier.code_bits)) for tier in capacity.tiers)
    kind = "levels" if capacity.has_levels else "centroids"
    return f"{len(capacity.widths)} codes, {bits} bits, {kind}{', turned' if fitted.plan.turned else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/levels"), help="warm-ups")
    parser.add_argument("--pairs", nargs="+", default=["gmf-ml-1m"], choices=list(PAIRS))
    parser.add_argument("--budgets", nargs="+", default=["20%", "15%", "12.5%", "10%"])
    parser.add_argument("--families", nargs="+", default=["centroids", "levels"], choices=list(FAMILIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the warm-ups, to try this"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(options.out)
    for seed, pair in product(options.seeds, options.pairs):
        wanted = {(budget, family) for budget in options.budgets for family in options.families} | {("100%", "full")}
        if all(arm in records.arms(pair, seed, budget) for budget, arm in wanted):
            continue
        model, data, settings = PAIRS[pair]
        config = TrainConfig(
            task=TASKS[model], model=model, data=data, data_dir=options.data_dir, seed=seed,
            embedding="mgqe:budget=10%",
        ).with_settings([*tuned_settings(model, data), *settings, *options.set])  # fmt: skip
        trained = Trained(config, options.work)

        def figures(trained: Trained = trained) -> dict[str, float]:
            valid = trained.task.validation(trained.model).figures
            return {**trained.task.evaluate(trained.model), **{f"valid_{name}": value for name, value in valid.items()}}

        if "full" not in records.arms(pair, seed, "100%"):
            records.add(pair, seed, "100%", "full", trained.full_nbytes, figures())
        for budget, family in product(options.budgets, options.families):
            if family in records.arms(pair, seed, budget):
                continue
            total = budget_for(trained.model, trained.layers, trained.task, budget)
            best, problems = planned(trained, family, total)
            nbytes = sum(fitted.plan.nbytes for fitted in best.fitted)
            with rows_in_place(trained.weights, decoded(problems, best.fitted)):
                found = figures()
            about = {path: in_words(fitted) for path, fitted in zip(trained.layers, best.fitted, strict=True)}
            records.add(pair, seed, budget, family, nbytes, found, shapes=about)


if __name__ == "__main__":
    main()
