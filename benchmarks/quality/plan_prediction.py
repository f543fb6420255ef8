"""How well the loss that a plan predicts holds: MixedPlan.loss against the error of the table that is fitted.

Gaussian rows with spectra from flat to steep, and a planted table: clusters in a few dimensions, whose rows are the
longer the more often an id occurs, judged by queries that weigh directions unequally. For each: four budgets and one
to three tiers, with the counts of a power law, an id weighing the root of its count or its count.

    python -m benchmarks.quality.plan_prediction
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import QUALITY, environment
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import FittedPlan, Sample, fit_plan, plan_mixed
from mgqe.codec.planning.shapes import Choice

ROWS, DIM = 10_000, 32
BUDGETS = (0.02, 0.05, 0.10, 0.20)

TIERS = ((1.0,), (0.1, 0.9), (0.1, 0.3, 0.6))
POWERS = {"Gaussian, variances 1 / k^2": (0.5, 1.0), "planted": (0.5, 1.0)}  # of the counts; of others 0.5
LATENT, CLUSTERS = 12, 200


def spectra() -> dict[str, Tensor]:
    """Name -> the standard deviation of each coordinate, (d,)."""
    k = torch.arange(1, DIM + 1, dtype=torch.float64)
    return {"all 1": torch.ones(DIM), "1 / k": k**-0.5, "1 / k^2": k**-1.0, "0.7^k": 0.7 ** (k / 2)}


def tables(seed: int) -> dict[str, tuple[Tensor, Metric]]:
    """Name -> rows (N, d), the most frequent id first, and the metric."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    result = {}
    for name, deviations in spectra().items():
        rows = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64) * deviations
        result[f"Gaussian, variances {name}"] = ((rows @ turn).float(), Metric.identity(DIM))
    return result | {"planted": planted(generator)}


def planted(generator: torch.Generator) -> tuple[Tensor, Metric]:
    """Clusters in LATENT dimensions and noise in all; the length of rows falls with the rank."""
    mixing = torch.randn(LATENT, DIM, generator=generator)
    centres = torch.randn(CLUSTERS, LATENT, generator=generator)
    own = torch.randn(ROWS, LATENT, generator=generator)
    taste = centres[torch.randint(CLUSTERS, (ROWS,), generator=generator)] + 0.5 * own
    lengths = counts().float().add(1).pow(0.2).unsqueeze(1)
    rows = lengths * (taste @ mixing) + 0.3 * torch.randn(ROWS, DIM, generator=generator)
    queries = torch.randn(2_000, LATENT, generator=generator) @ mixing
    return rows, Metric.of_queries(queries + 0.5 * torch.randn(2_000, DIM, generator=generator))


def counts() -> Tensor:
    """How often each id occurs."""
    return (100_000 / torch.arange(1, ROWS + 1)).long()


def measured_loss(rows: Tensor, fitted: FittedPlan, weights: Tensor) -> float:
    """The weighted error of look-ups in the metric, as a share of the weighted squares about the mean."""
    axes = fitted.plan.axes
    encoder, mean = torch.from_numpy(axes.encoder), torch.from_numpy(axes.mean)
    errors = ((fitted.decoded(rows).double() - rows.double()) @ encoder).square().sum(1)
    squares = ((rows.double() - mean) @ encoder).square().sum(1)
    return float(weights @ errors / (weights @ squares))


def measure(rows: Tensor, metric: Metric, power: float, fractions: tuple[float, ...], share: float) -> dict[str, Any]:
    """One plan, predicted and measured."""
    choice = Choice(power, fractions, metric)
    sample = Sample.of(rows, counts(), power, fractions, None)
    plan = plan_mixed(sample, choice, int(share * rows.numel() * 4))
    assert plan is not None
    fitted = fit_plan(plan, sample, torch.Generator().manual_seed(0))
    weights = (counts().double() + 1) ** power
    return {
        "power": power,
        "tiers": len(fractions),
        "budget": share,
        "bytes": plan.nbytes,
        "widths": list(plan.capacity.widths),
        "bits": [list(tier.code_bits) for tier in plan.capacity.tiers],
        "predicted": plan.loss,
        "measured": measured_loss(rows, fitted, weights),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    results = []
    for name, (rows, metric) in tables(0).items():
        for power, share, fractions in product(POWERS.get(name, (0.5,)), BUDGETS, TIERS):
            row = {"rows": name, **measure(rows, metric, power, fractions, share)}
            results.append(row)
            gap = 100 * (row["predicted"] / row["measured"] - 1)
            text = f"{row['predicted']:.5f} predicted, {row['measured']:.5f} measured ({gap:+.1f}%)"
            print(f"{name:26} counts^{power:g} {share:4.0%} {len(fractions)} tiers: {text}", flush=True)
    out = QUALITY / "plan-prediction.json"
    out.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
