"""Plans from counts against the even default at equal bytes: trained full tables, quantised once, judged at once.

Full tables are trained (or found in --work). The default is MGQEmbedding's even shape: the 10% of ids that are most
frequent with 256 centroids and the others with 64, at D = d / 2 and d / 4 and with float32 and int8 centroids. Each
table is then planned for with the bytes that the default takes of it, by `mgqe.plan` from counts alone, for several
powers of the counts (--powers). Error is the share of the squares that is lost; HR@10 are means over k-means starts.
The power is to be chosen by the validation figures.

    python -m benchmarks.quality.plan --data ml-1m --data-dir DATA
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import QUALITY, environment
from mgqe.codec.capacity import Capacity, resolve_capacity
from mgqe.codec.kmeans import THOROUGH, KMeans
from mgqe.codec.planning import Problem
from mgqe.codec.planning.loss import predicted
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.models.registry import MODELS
from mgqe.recsys.tasks.ranking import RankingTask
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import full_model
from mgqe.recsys.train.tuned import tuned_settings

DEFAULTS: dict[str, dict[str, Any]] = {
    "D = d / 2": {"width": 2, "centroid_dtype": "float32"},
    "D = d / 2, int8": {"width": 2, "centroid_dtype": "int8"},
    "D = d / 4": {"width": 4, "centroid_dtype": "float32"},
    "D = d / 4, int8": {"width": 4, "centroid_dtype": "int8"},
}
FIGURES = ("valid_hr@10", "hr@10", "ndcg@10")  # against sampled items


def decoded(rows: Tensor, start: int, arguments: dict[str, Any], effort: KMeans = THOROUGH) -> tuple[int, Tensor]:
    """Bytes of the file and the decoded rows (N, d), straight after the codebooks' start."""
    torch.manual_seed(derive_seed(start, "plan"))
    layer = mgqe.MGQEmbedding.from_pretrained(rows, **arguments)
    layer.start_quantizing(effort)
    table = layer.freeze()
    return _file_bytes(table), table.to_dense()


def _file_bytes(table: mgqe.CompactTable) -> int:
    from mgqe.files.container import encode

    tensors, config = table.tensor_chunks()
    return encode(tensors, table.kind, config)[0]


def errors_of(problem: Problem, rows: Tensor, made: list[tuple[int, Tensor]], tiers: mgqe.Tiers) -> dict[str, Any]:
    """What is lost, in the mean of the starts: of all rows' squares, of each tier's, and weighted as plans are."""
    shares = []
    for _, table in made:
        wrong, square = (rows - table).square().sum(1), rows.square().sum(1)
        members = [tiers.members(g) for g in range(tiers.num_tiers)]
        shares.append([float(wrong.sum() / square.sum()), *(float(wrong[i].sum() / square[i].sum()) for i in members)])
    whole, *each = (sum(column) / len(shares) for column in zip(*shares, strict=True))
    return {"rows": whole, "tiers": each, "loss": float(problem.space.tier_weights(tiers.sizes) @ each)}


class Judge:
    """A trained model and its data; figures of tables that stand in for its own."""

    def __init__(self, config: TrainConfig, work: Path) -> None:
        self.data = RunData.load(config)
        self.model, _ = full_model(config, self.data, work, lambda report: None)
        self.model.eval()
        infos = self.data.task.tables
        self.rows = {path: self.model.get_submodule(path).weight.detach().clone() for path in infos}
        self.padding = {path: getattr(self.model.get_submodule(path), "padding_idx", None) for path in infos}
        self.counts = {path: info.counts for path, info in infos.items()}

    def figures(self, tables: dict[str, Tensor]) -> dict[str, float]:
        swapped = copy.deepcopy(self.model).eval()
        for path, vectors in tables.items():
            parent, _, name = path.rpartition(".")
            setattr(swapped.get_submodule(parent), name, nn.Embedding.from_pretrained(vectors))
        task = self.data.task
        if not isinstance(task, RankingTask):
            evaluated = task.evaluate(swapped)
            return {name: evaluated[name] for name in FIGURES}
        # What judge says of these, without its ranks among the whole catalogue, which take the most time.
        test = replace(task, valid=task.test).validation(swapped).figures
        valid = task.validation(swapped).figures
        return {"valid_hr@10": valid["hr@10"], "hr@10": test["hr@10"], "ndcg@10": test["ndcg@10"]}


def measure(judge: Judge, made: dict[str, list[tuple[int, Tensor]]], **about: Any) -> dict[str, Any]:
    """One setting: bytes, and the figures of every start."""
    starts = len(next(iter(made.values())))
    each = [judge.figures({path: tables[start][1] for path, tables in made.items()}) for start in range(starts)]
    mean = {name: sum(figures[name] for figures in each) / starts for name in FIGURES}
    nbytes = sum(tables[0][0] for tables in made.values())
    full = sum(rows.nbytes for rows in judge.rows.values())
    shown = " ".join(f"{key}={value}" for key, value in about.items() if isinstance(value, (str, float, int)))
    print(
        f"{shown:60} {nbytes:9,} {100 * nbytes / full:5.1f}%  valid {mean['valid_hr@10']:.4f} test {mean['hr@10']:.4f}",
        flush=True,
    )
    return {**about, "bytes": nbytes, "share": nbytes / full, "quality": mean, "each_start": each}


def run(
    judge: Judge, starts: int, powers: list[float], effort: KMeans, defaults: list[str]
) -> Iterator[dict[str, Any]]:
    yield measure(judge, {path: [(rows.nbytes, rows)] for path, rows in judge.rows.items()}, method="full")
    problems = {
        (path, power): Problem.of(*rows.shape, judge.counts[path], judge.padding[path], counts_power=power)
        for path, rows in judge.rows.items()
        for power in powers
    }
    for default in defaults:
        made, about = {}, {}
        for path, rows in judge.rows.items():
            problem = problems[path, powers[0]]
            tiers, capacity, dtype = default_of(judge.counts[path], rows.shape[1], DEFAULTS[default])
            arguments = {
                "tiers": tiers,
                "num_centroids": capacity.num_centroids,
                "num_subspaces": capacity.num_subspaces[0],
                "centroid_dtype": dtype,
                "padding_idx": judge.padding[path],
            }
            made[path] = [decoded(rows, start, arguments, effort) for start in range(starts)]
            loss, errors = predicted(problem.space, tiers.sizes, capacity, dtype)
            about[path] = {
                "bytes": made[path][0][0],
                "predicted": {"loss": loss, "tiers": errors},
                "measured": errors_of(problem, rows, made[path], tiers),
            }
        yield measure(judge, made, default=default, method="default", tables=about)
        budgets = {path: tables[0][0] for path, tables in made.items()}
        for power in powers:
            made, about = {}, {}
            for path, rows in judge.rows.items():
                problem = problems[path, power]
                plan = problem.plan(budgets[path])
                arguments = {**plan.arguments(), "padding_idx": judge.padding[path]}
                made[path] = [decoded(rows, start, arguments, effort) for start in range(starts)]
                if made[path][0][0] != plan.nbytes:
                    raise RuntimeError(f"planned {plan.nbytes} bytes, got {made[path][0][0]}")
                about[path] = {
                    "bytes": plan.nbytes,
                    "plan": str(plan),
                    "predicted": {"loss": plan.loss, "tiers": plan.errors},
                    "measured": errors_of(problem, rows, made[path], plan.tiers),
                }
                loss = about[path]["measured"]["loss"]
                print(f"   {path}: {plan}: predicted {plan.loss:.4f}, measured {loss:.4f}")
            yield measure(judge, made, default=default, method="counts", power=power, tables=about)


def default_of(counts: Tensor, dim: int, setting: dict[str, Any]) -> tuple[mgqe.Tiers, Capacity, str]:
    tiers = mgqe.Tiers.from_counts(counts)
    capacity = resolve_capacity(
        dim, tiers.sizes, num_subspaces=dim // setting["width"], num_centroids=(256, 64),
        capacity="centroids", share_codebook=True, share_subspaces=False,
    )  # fmt: skip
    return tiers, capacity, setting["centroid_dtype"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="gmf", choices=list(MODELS))
    parser.add_argument("--seeds", default="1", help="whole numbers joined by commas")
    parser.add_argument("--starts", type=int, default=3, help="k-means starts per setting")
    parser.add_argument("--powers", default="0.5", help="of the counts, joined by commas")
    parser.add_argument("--defaults", default=";".join(DEFAULTS), help="which, joined by semicolons")
    parser.add_argument("--quick", action="store_true", help="one k-means of 15 iterations, to choose powers by")
    parser.add_argument("--work", default="runs/plan-quality", help="checkpoints of the full models")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    out = options.out or QUALITY / f"plan-{options.data}.json"
    chosen = options.defaults.split(";")
    effort = KMeans(spread=True) if options.quick else THOROUGH
    powers = [float(power) for power in options.powers.split(",")]
    for seed in map(int, options.seeds.split(",")):
        config = TrainConfig(
            data=options.data, data_dir=options.data_dir, embedding="mgqe", seed=seed, model=options.model,
            task=MODELS[options.model].task,
        )  # fmt: skip
        config = config.with_settings([*tuned_settings(config.model, options.data)])
        judge = Judge(replace(config, embedding="mgqe"), Path(options.work))
        for record in run(judge, options.starts, powers, effort, chosen):
            records.append({"seed": seed, "quick": options.quick, "starts": options.starts, **record})
            out.write_text(json.dumps({"environment": environment(), "runs": records}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
