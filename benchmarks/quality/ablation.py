"""What each part of the planner is worth: tables of one trained run, coded at equal bytes with parts left out.

Arms, each within the bytes of the budget, shared by the tables in proportion to their sizes:

    even            equal bits for every subspace, in the rows' own coordinates, one tier: product quantisation
    metric          the same in units of what an error in each coordinate costs the loss
    tiers, even     even, with tiers, of equal bits each: the paper's variable centroids
    even, trained   even, trained through the codes: the paper's DPQ
    bits            unequal bits, in the rows' own coordinates, sorted by their variance (the order is not counted)
    rotation        equal bits, in uncorrelated coordinates that are dealt to subspaces of equal products of variances
    rotation, bits  both: the planner with the identity as its metric
    gradients       the same in the metric of the loss's gradients
    queries         the same in the metric of what rows are multiplied with
    tiers           gradients, with tiers and weights of ids that are expected to lose least
    additive        gradients, codes that are added up instead of codes of subspaces, and no rotation
    ideal           gradients, rows as the best code there can be of Gaussian rows returns them, with all bytes for
                    codes: what no other code of one tier exceeds, unless rows are far from Gaussian
    ideal, equal    the same where rows whose length is of no matter for the order of items have equal lengths
    budget          everything chosen by validation, as `budget=` does in `mgqe train`
    trained         the same, trained through the codes

    python -m benchmarks.quality.ablation --data-dir DIR --work runs/ablation

Results go to benchmarks/quality/results/ablation.json one by one; what is there is not done again. The bound alone, of
another pair or another budget: ``--pairs sasrec-ml-1m --budgets 2% --arms ideal``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, groupby, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import QUALITY, environment
from benchmarks.quality.additive import code_table
from mgqe.codec.axes import Axes
from mgqe.codec.capacity import Capacity, TierShape
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.metric import Metric
from mgqe.codec.planning.fits import fit_table
from mgqe.codec.planning.mixed import FittedPlan, MixedPlan, Sample, fit_plan, plan_mixed, spectrum_of
from mgqe.codec.planning.problem import SHAPES, Candidate, TableProblem
from mgqe.codec.planning.shapes import Choice
from mgqe.codec.planning.tables import proportional
from mgqe.codec.planning.waterfill import water_level
from mgqe.convert.budget import decoded, rows_in_place
from mgqe.convert.calibration import calibrate
from mgqe.files.atomic import write_json
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.budget import BATCHES, budget_for, planned_layers
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.provenance import commit
from mgqe.recsys.train.run import build_tables, full_model, train_run
from mgqe.recsys.train.tuned import tuned_settings

OUT = QUALITY / "ablation.json"
PAIRS = {  # as in studies/budget
    "gmf-ml-1m": ("gmf", "ml-1m", ()),
    "sasrec-games": ("sasrec", "amazon-games", ("max_epochs=24", "anneal_epochs=5")),
    "wide-deep-frappe": ("wide_deep", "frappe", ()),
    "sasrec-ml-1m": ("sasrec", "ml-1m", ("max_length=50", "max_epochs=16", "anneal_epochs=4")),
    "sasrec-games-1024": ("sasrec", "amazon-games", ("negatives=1024", "max_epochs=60", "anneal_epochs=10")),
    "sasrec-ml-1m-softmax": (
        "sasrec",
        "ml-1m",
        ("max_length=50", "max_epochs=24", "anneal_epochs=4", "loss=softmax", "negatives=1024"),
    ),
    "sasrec-ml-1m-ce": (
        "sasrec",
        "ml-1m",
        ("max_length=100", "max_epochs=30", "patience=6", "anneal_epochs=5", "loss=ce"),
    ),
    "lightgcn-beauty": ("lightgcn", "beauty-split", ()),
    "deepfm-frappe": ("deepfm", "frappe", ()),
}
TASKS = {"sasrec": "sequential", "wide_deep": "ctr", "deepfm": "ctr"}
ABLATED = ("gmf-ml-1m", "sasrec-games", "wide-deep-frappe")
ONE_TIER = Candidate(0.25, (1.0,), "gradients")
TIERED = tuple(Candidate(0.5, fractions, "identity") for fractions in dict.fromkeys(shape for _, shape in SHAPES))


class Trained:
    """A model with full tables, and its tables as problems for the planner."""

    def __init__(self, config: TrainConfig, work: Path) -> None:
        self.config, self.data = config, RunData.load(config)
        self.model, _ = full_model(config, self.data, work, lambda report: None)
        self.model.eval()
        self.task: Any = self.data.task
        self.layers = planned_layers(build_tables(config, self.data), self.task)
        self.weights = [self.model.get_submodule(path).weight for path in self.layers]
        self.problems = self._problems()
        self.full_nbytes = 4 * sum(self.model.get_submodule(path).weight.numel() for path in self.task.tables)

    def _problems(self) -> list[TableProblem]:
        batches = islice(self.task.batches(self.config.batch_size, "calibration", 1), BATCHES)
        gradients = calibrate(self.model, batches, self.task.loss, progress=False).metrics
        queries = self._queries()
        return [
            TableProblem(
                weight.detach().clone(),
                self.task.tables[path].counts,
                {"gradients": gradients[path]} | ({"queries": queries[path]} if path in queries else {}),
                layer.zero_row,
            )
            for (path, layer), weight in zip(self.layers.items(), self.weights, strict=True)
        ]

    def equal_problems(self) -> list[TableProblem]:
        """The same where rows whose length is of no matter for an order have equal lengths; empty without such rows."""
        free = [i for i, path in enumerate(self.layers) if path in getattr(self.model, "scale_free", ())]
        if not free:
            return []
        equal = [self.problems[i].metrics["gradients"].equal_costs(self.problems[i].rows) for i in free]
        with rows_in_place([self.weights[i] for i in free], equal):
            return self._problems()

    @torch.no_grad()
    def _queries(self) -> dict[str, Metric]:
        """Of the models that score by inner products."""
        if self.config.model == "gmf":
            users, items = torch.arange(self.model.user.num_embeddings), torch.arange(self.model.item.num_embeddings)
            rows = {"item": self.model.query(users), "user": self.model.item(items) * self.model.weight}
        elif self.config.model == "sasrec":
            rows = {"item": self.task.queries(self.model, test=False)}
        else:
            return {}
        return {path: Metric.of_queries(each) for path, each in rows.items()}

    def figures(self, tables: Iterable[Tensor] | None = None) -> dict[str, float]:
        """The task's figures with other rows, or with those that were trained."""
        with rows_in_place(self.weights, tables or [problem.rows for problem in self.problems]):
            result: dict[str, float] = self.task.evaluate(self.model)
        return result


def own_axes(sample: Sample, metric: Metric) -> Axes:
    """The rows' own coordinates, the largest variance first."""
    mean = sample.weights @ sample.rows / sample.weights.sum()
    order = np.argsort(-(sample.weights @ (sample.rows - mean) ** 2), kind="stable")
    turn = np.eye(len(mean))[:, order]
    return Axes(mean, turn, turn.T, 1.0)


def scaled_axes(sample: Sample, metric: Metric) -> Axes:
    """The rows' own coordinates, in units of what an error in each costs."""
    return Axes.own(sample.rows, sample.weights, metric)


def turned_axes(sample: Sample, metric: Metric) -> Axes:
    """Uncorrelated coordinates."""
    return Axes.of(sample.rows, sample.weights, metric)


def dealt(axes: Axes, variances: np.ndarray, num_subspaces: int) -> Axes:
    """Coordinates in another order: subspaces of equal widths get products of variances as equal as they can.

    The largest variance that is left goes to the subspace with the smallest product (Ge et al., "Optimized Product
    Quantization", 2013, section 4.2).
    """
    kept = len(variances)
    members: list[list[int]] = [[] for _ in range(num_subspaces)]
    for coordinate in range(kept):
        open_ones = [m for m in members if len(m) < kept // num_subspaces]
        min(open_ones, key=lambda m: sum(np.log(variances[c] + 1e-12) for c in m)).append(coordinate)
    order = [*(c for m in members for c in m), *range(kept, len(axes.mean))]
    return Axes(axes.mean, axes.encoder[:, order], axes.decoder[order], axes.cost)


def even_plan(
    problem: TableProblem,
    nbytes: int,
    axes_of: Callable[[Sample, Metric], Axes],
    candidates: Sequence[Candidate] = (replace(ONE_TIER, source="identity"),),
) -> FittedPlan:
    """The table of equal widths, and of equal bits within a tier, that is expected to lose least.

    Where axes turn rows it has so few coordinates as fit, and a matrix.
    """
    d, best = problem.rows.shape[1], None
    for candidate in candidates:
        sample, choice = problem.sample(candidate), problem.choice(candidate)
        axes = axes_of(sample, choice.metric)
        turns = np.count_nonzero(axes.encoder) > d
        total = spectrum_of(axes.coordinates(sample.rows), sample, "int8").total
        kept, found = d, None
        while found is None and kept:
            shapes = list(_even_shapes(d, kept, sample.tiers.sizes, "int8" if turns else None))
            for num_subspaces, capacities in groupby(shapes, lambda shape: len(shape.widths)):
                dealt_axes = dealt(axes, total[:kept], num_subspaces) if turns else axes
                spectrum = spectrum_of(dealt_axes.coordinates(sample.rows), sample, "int8")
                for capacity in capacities:
                    size = frozen_nbytes(sample.tiers, capacity, problem.padding_idx, "int8")
                    lost = spectrum.lost(capacity.widths, [tier.code_bits for tier in capacity.tiers])
                    if size <= nbytes and (found is None or spectrum.loss(lost) < found[0].loss):
                        plan = MixedPlan(
                            choice, sample.tiers, capacity, dealt_axes, size, spectrum.loss(lost), tuple(lost), 0.0
                        )
                        found = plan, sample
            kept = kept // 2 if turns else 0
        if found is not None and (best is None or found[0].loss < best[0].loss):
            best = found
    assert best is not None, f"nothing fits {nbytes:,} bytes"
    plan, sample = best
    if plan.capacity.matrix_dtype is None:  # to fit centroids there must be one; it is none of the file's bytes
        plan = replace(plan, capacity=replace(plan.capacity, matrix_dtype="float32"))
    return fit_plan(plan, sample, torch.Generator().manual_seed(0))


def _even_shapes(d: int, kept: int, sizes: Sequence[int], matrix_dtype: str | None) -> Iterator[Capacity]:
    """All tables of equal widths, and of equal bits within each tier, no tier having more than the one before it."""
    for num_subspaces in (n for n in range(1, kept + 1) if kept % n == 0):
        for bits in combinations_with_replacement(range(8, 0, -1), len(sizes)):
            tiers = tuple(TierShape.mixed(*each) for each in zip(sizes, [(b,) * num_subspaces for b in bits]))
            yield Capacity(d, tiers, True, False, (kept // num_subspaces,) * num_subspaces, matrix_dtype)


def uneven_plan(problem: TableProblem, nbytes: int) -> FittedPlan:
    """Unequal bits without a rotation."""
    sample = problem.sample(ONE_TIER)
    choice = Choice(ONE_TIER.counts_power, ONE_TIER.fractions, Metric.identity(sample.rows.shape[1]))
    plan = plan_mixed(sample, choice, nbytes, problem.padding_idx, own_axes(sample, choice.metric))
    assert plan is not None, f"nothing fits {nbytes:,} bytes"
    return fit_plan(plan, sample, torch.Generator().manual_seed(0))


def tiers_plan(problem: TableProblem, nbytes: int) -> FittedPlan:
    """Of all tiers and weights of ids those that are expected to lose least, ids weighing the root of their counts."""
    shapes = [replace(each, source="gradients") for each in TIERED]
    fits = [fit_table(problem, each, nbytes, torch.Generator().manual_seed(0), by_prediction=True) for each in shapes]
    return min(fits, key=lambda fitted: fitted.plan.loss)


def ideal_rows(problem: TableProblem, nbytes: int) -> Tensor:
    """Rows through the test channel of Gaussian coordinates at so many bytes (Shannon; Cover and Thomas, 10.3.2-3)."""
    sample, choice = problem.sample(ONE_TIER), problem.choice(ONE_TIER)
    axes = Axes.of(sample.rows, sample.weights, choice.metric)
    variances = spectrum_of(axes.coordinates(sample.rows), sample).total
    level = water_level(variances, 8.0 * nbytes / len(problem.rows))
    kept = np.maximum(0.0, 1.0 - level / np.maximum(variances, level))
    coordinates = axes.coordinates(problem.rows.double().numpy())
    noise = np.random.default_rng(0).normal(size=coordinates.shape) * np.sqrt(level * kept)
    rows = torch.from_numpy(axes.mean + (coordinates * kept + noise) @ axes.decoder).to(problem.rows.dtype)
    if problem.padding_idx is not None:
        rows[problem.padding_idx] = 0.0
    return rows


def even_spec(trained: Trained, shares: Sequence[int]) -> str:
    """The layers whose frozen tables have the shapes of the even arm: the paper's DPQ."""
    options = []
    for path, problem, nbytes in zip(trained.layers, trained.problems, shares, strict=True):
        (tier,) = even_plan(problem, nbytes, own_axes).plan.capacity.tiers
        field = trained.task.tables[path].field
        options += [f"{field}.D={tier.num_subspaces}", f"{field}.K={tier.num_centroids}"]
    return f"dpq:{','.join(options)},centroid_dtype=int8"


def planned(source: str) -> Callable[[TableProblem, int], FittedPlan]:
    """One tier, in a metric."""
    candidate = replace(ONE_TIER, source=source)
    return lambda problem, nbytes: fit_table(problem, candidate, nbytes, torch.Generator().manual_seed(0))


ARMS: dict[str, Callable[[TableProblem, int], Any]] = {
    "even": lambda problem, nbytes: even_plan(problem, nbytes, own_axes),
    "metric": lambda problem, nbytes: even_plan(problem, nbytes, scaled_axes, [ONE_TIER]),
    "tiers, even": lambda problem, nbytes: even_plan(problem, nbytes, own_axes, TIERED),
    "bits": uneven_plan,
    "rotation": lambda problem, nbytes: even_plan(problem, nbytes, turned_axes),
    "rotation, bits": planned("identity"),
    "gradients": planned("gradients"),
    "queries": planned("queries"),
    "tiers": tiers_plan,
    "additive": lambda problem, nbytes: code_table(problem, ONE_TIER, nbytes, "additive", 0),
}
OTHER_ARMS = ("ideal", "ideal, equal", "budget", "trained", "even, trained")  # that are not coded table by table


def results(trained: Trained, budget: str, done: set[str], work: Path) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(arm, bytes of all tables, figures) of the arms that are not done."""
    total = budget_for(trained.model, trained.layers, trained.task, budget)
    outside = int(float(budget.rstrip("%")) / 100 * trained.full_nbytes) - total
    shares = proportional(trained.problems, total)
    for arm, code in ARMS.items():
        has_metric = arm != "queries" or all("queries" in problem.metrics for problem in trained.problems)
        if arm in done or not has_metric:
            continue
        coded = [code(problem, nbytes) for problem, nbytes in zip(trained.problems, shares, strict=True)]
        if arm == "additive":
            nbytes = sum(about["nbytes"] for _, about in coded)
            tables = iter([rows for rows, _ in coded])
        else:
            nbytes = sum(fitted.plan.nbytes for fitted in coded)
            tables = decoded(trained.problems, coded)
        yield arm, nbytes + outside, trained.figures(tables)
    ideal = {"ideal": lambda: trained.problems, "ideal, equal": trained.equal_problems}
    for arm, problems in ideal.items():
        if arm not in done and (rows := [ideal_rows(*each) for each in zip(problems(), shares)]):
            yield arm, sum(shares) + outside, trained.figures(iter(rows))
    codes = {"budget": f"mgqe:budget={budget}", "trained": f"mgqe:budget={budget}"}
    if "even, trained" not in done:
        codes["even, trained"] = even_spec(trained, shares)
    for arm, embedding in codes.items():
        if arm not in done:
            epochs = 0 if arm == "budget" else trained.config.quantised_epochs
            config = replace(trained.config, embedding=embedding, quantised_epochs=epochs)
            metrics = train_run(config, work / f"{arm}-{budget}-{config.data}-{config.seed}", warm_ups=work)
            yield arm, metrics["embedding_bytes"], metrics["quality"]


class Records:
    """What the result file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = json.loads(path.read_text())["records"] if path.is_file() else []

    def arms(self, pair: str, seed: int, budget: str) -> set[str]:
        """What is there."""
        return {r["arm"] for r in self.records if (r["pair"], r["seed"], r["budget"]) == (pair, seed, budget)}

    def add(
        self, pair: str, seed: int, budget: str, arm: str, nbytes: int, figures: dict[str, float], **about: Any
    ) -> None:
        """Add a record to the file, and print it."""
        record = {"pair": pair, "seed": seed, "budget": budget, "arm": arm, "nbytes": nbytes, "figures": figures}
        self.records.append({**record, **about, "commit": commit(), "processor": environment()["cpu"]})
        write_json(self.path, {"environment": environment(), "records": self.records})
        shown = {name: round(figures[name], 4) for name in ("auc", "hr@10", "full_ndcg@10") if name in figures}
        print(pair, seed, budget, arm, f"{nbytes:,}", shown, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="warm-ups and runs")
    parser.add_argument("--pairs", nargs="+", default=list(ABLATED), choices=list(PAIRS))
    parser.add_argument("--budgets", nargs="+", default=["5%", "2%"])
    parser.add_argument("--arms", nargs="+", default=[*ARMS, *OTHER_ARMS], choices=[*ARMS, *OTHER_ARMS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(OUT)
    for seed, pair in product(options.seeds, options.pairs):
        model, data, settings = PAIRS[pair]
        config = TrainConfig(
            task=TASKS.get(model, "ranking"), model=model, data=data, data_dir=options.data_dir, seed=seed,
            embedding="mgqe:budget=5%",
        ).with_settings([*tuned_settings(model, data), *settings])  # fmt: skip
        trained = Trained(config, options.work)
        if "full" not in records.arms(pair, seed, "100%"):
            records.add(pair, seed, "100%", "full", trained.full_nbytes, trained.figures())
        for budget in options.budgets:
            done = records.arms(pair, seed, budget) | {*ARMS, *OTHER_ARMS}.difference(options.arms)
            for arm, nbytes, figures in results(trained, budget, done, options.work):
                records.add(pair, seed, budget, arm, nbytes, figures)


if __name__ == "__main__":
    main()
