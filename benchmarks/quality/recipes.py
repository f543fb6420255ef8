"""What each part of the training recipe is worth: one change at a time against the default, on real data.

Every variant starts from the same trained full table of the same seed (unless the warm-up is what it varies), is
trained through its codes for ten epochs, and reports its best epoch on validation. Results go to
benchmarks/quality/results/recipes-DATA.json after each run, and a run that is there is not repeated.

    python -m benchmarks.quality.recipes --data ml-1m --data-dir DIR --seeds 1,2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks._common import QUALITY
from benchmarks.quality import _recipe_variants as variants
from mgqe import quantization_loss, start_quantizing
from mgqe.files.atomic import write_json
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.checkpoint import LAST
from mgqe.recsys.train.config import QUANTISED_RATE, SCHEDULE, TrainConfig
from mgqe.recsys.train.loop import carry_optimizer, make_optimizer, optimizer_names, run_phase
from mgqe.recsys.train.provenance import commit, machine, versions
from mgqe.recsys.train.run import anneal, build_tables, warm_up
from mgqe.recsys.train.tuned import tuned_settings

BASE = "mgqe:D=32,K=128/64,centroids=int8"
Change = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Variant:
    """One row of the table: an embedding, a quantiser that replaces the layer's own, settings of the trainer."""

    name: str
    embedding: str = BASE
    quantizer: type | None = None
    settings: tuple[tuple[str, object], ...] = ()
    extra_bytes: int = 0


ALL_QUANTISED = (("anneal_epochs", 0), ("quantised_epochs", 30), ("quantised_learning_rate", 2e-3))

VARIANTS = [
    Variant("default"),
    Variant("full table, as it is before the start", "full", settings=(("quantised_epochs", 0),)),
    Variant("full table, trained on as long (control)", "full"),
    Variant("no third phase: k-means on the trained rows", settings=(("quantised_epochs", 0),)),
    Variant("no warm-up, 30 epochs through the codes", settings=(("warm_up_epochs", 0), *ALL_QUANTISED)),
    Variant("warm-up of 3 epochs, 30 through the codes", settings=(("warm_up_epochs", 3), *ALL_QUANTISED)),
    Variant("start before annealing, 1e-3", settings=(("anneal_epochs", 0), ("quantised_learning_rate", 1e-3))),
    Variant("centroids start as copies of rows", quantizer=variants.RowsStart),
    Variant("one k-means over all rows, not nested", quantizer=variants.OneFit),
    Variant("task gradient into the centroids too", quantizer=variants.TaskGradient),
    Variant("EMA centroids", quantizer=variants.EMACentroids),
    Variant("no revival", quantizer=variants.NoRevival),
    Variant("rotation trick", quantizer=variants.RotationTrick),
    Variant("annealed soft assignment", quantizer=variants.SoftAssignment),
    Variant("SX", f"{BASE},quantizer=sx"),
    Variant("commitment 0", f"{BASE},commitment=0"),
    Variant("commitment 1", f"{BASE},commitment=1"),
    Variant("commitment 4", f"{BASE},commitment=4"),
    Variant("losses weigh distinct ids alike", quantizer=variants.EqualWeights),
    Variant("OPQ rotation kept with the table", quantizer=variants.Rotated, extra_bytes=2 * 64 * 64 * 4),
    Variant("learning rate of the centroids x 10", settings=(("centroid_factor", 10.0),)),
    Variant("learning rates x 3", settings=(("factor", 3.0),)),
    Variant("one codebook for all subspaces, K = 256/64", "mgqe:D=32,K=256/64,centroids=int8,share_subspaces=true"),
    Variant("separate codebooks a tier", f"{BASE},share_codebook=false"),
    Variant("float32 centroids", "mgqe:D=32,K=128/64"),
    Variant("K = 256/32", "mgqe:D=32,K=256/32,centroids=int8"),
    Variant("coarser subspaces: D = 16, K = 256", "mgqe:D=16,K=256/256,centroids=int8"),
    Variant("fewer subspaces for the tail: D = 64/32, K = 64", "mgqe:D=64/32,K=64,capacity=subspaces,centroids=int8"),
    Variant("DPQ, K = 64", "dpq:D=32,K=64,centroids=int8"),
]


def run(variant: Variant, config: TrainConfig, data: RunData, folder: Path) -> dict[str, object]:
    """Train one variant; validation and test figures of its best epoch."""
    settings = dict(variant.settings)
    factor, centroids = float(settings.pop("factor", 1.0)), float(settings.pop("centroid_factor", 1.0))
    config = replace(config, embedding=variant.embedding, **settings)
    rate = (config.quantised_learning_rate or QUANTISED_RATE) * factor
    config = replace(config, quantised_learning_rate=rate, centroid_learning_rate=rate * centroids)
    full, before = warm_up(config, data, folder, lambda report: None)
    if config.anneal_epochs:
        before = anneal(config, data, full, before, folder, lambda report: None)
    started = time.perf_counter()
    phase = config.phase("quantised")
    directory = folder / f"{variant.name.replace('/', '_').replace(' ', '-')}-{config.seed}"
    model = full if variant.embedding == "full" else _swap(config, data, full, variant)
    optimizer = make_optimizer(model, phase)
    carry_optimizer(before.optimizer, optimizer_names(full), model, optimizer)
    if not (directory / LAST).is_file():
        start_quantizing(model)
    result = run_phase(model, data.task, phase, directory, lambda report: None, optimizer, quantization_loss)
    model.eval()
    stats, size = [], 0
    for table in (model.user, model.item):
        if variant.embedding == "full":
            size += table.weight.nbytes
        else:
            frozen = table.freeze()
            size += frozen.nbytes
            stats += [{"tier": s.tier, "usage": s.usage, "perplexity": s.perplexity} for s in frozen.codebook_stats()]
    return {
        "variant": variant.name,
        "embedding": variant.embedding,
        "seed": config.seed,
        "schedule": SCHEDULE,
        "quality": data.task.evaluate(model),
        "start": result.history[0],
        "best_epoch": result.best_epoch,
        "bytes": size + variant.extra_bytes,
        "full_bytes": 4 * config.dim * (data.task.split.num_users + data.task.split.num_items),
        "codebooks": stats,
        "seconds": time.perf_counter() - started,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def _swap(config: TrainConfig, data: RunData, full: nn.Module, variant: Variant) -> nn.Module:
    """The full model's rows under the variant's layers."""
    model = build_tables(config, data)
    model.load_state_dict(full.state_dict(), strict=False)
    torch.manual_seed(derive_seed(config.seed, "codebooks"))
    if variant.quantizer is not None:
        for layer in (model.user, model.item):
            layer.quantizer = variant.quantizer(
                layer.capacity, layer.raw_weight, layer.centroid_dtype, layer.quantizer.commitment
            )
    return model


def show(rows: list[dict[str, object]]) -> None:
    """Mean over seeds, and the difference to the default."""
    names = list(dict.fromkeys(str(row["variant"]) for row in rows))
    base = {row["seed"]: row["quality"]["hr@10"] for row in rows if row["variant"] == "default"}
    print(f"{'variant':50} {'bytes':>7} {'start':>7} {'valid':>7} {'test':>7} {'NDCG':>7} {'to default':>10}")
    for name in names:
        mine = [row for row in rows if row["variant"] == name]
        mean = lambda values: statistics.fmean(values)  # noqa: E731
        paired = [100 * (row["quality"]["hr@10"] - base[row["seed"]]) for row in mine if row["seed"] in base]
        share = mean(100 * row["bytes"] / row["full_bytes"] for row in mine)
        start = mean(row["start"]["hr@10"] for row in mine)
        valid, test, ndcg = (mean(row["quality"][key] for row in mine) for key in ("valid_hr@10", "hr@10", "ndcg@10"))
        gap = mean(paired) if paired else float("nan")
        print(f"{name:50} {share:6.2f}% {start:7.4f} {valid:7.4f} {test:7.4f} {ndcg:7.4f} {gap:+10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="1,2", help="whole numbers joined by commas")
    parser.add_argument("--only", help="only variants whose names contain one of these, joined by |")
    parser.add_argument("--work", default="runs/recipes", help="checkpoints, shared warm-ups")
    parser.add_argument("--out", type=Path, default=QUALITY)
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, a setting of the trainer")
    parser.add_argument("--show", action="store_true", help="print the table of what is there, train nothing")
    options = parser.parse_args()
    out = options.out / f"recipes-{options.data}.json"
    rows = json.loads(out.read_text()) if out.is_file() else []
    rows = [row for row in rows if row.get("schedule") == SCHEDULE]  # of no older recipe
    done = {(row["variant"], row["seed"]) for row in rows}
    torch.set_num_threads(1)
    for seed in () if options.show else map(int, options.seeds.split(",")):
        config = TrainConfig(data=options.data, data_dir=options.data_dir, embedding=BASE, seed=seed)
        config = config.with_settings([*tuned_settings(config.model, options.data), *options.set])
        data = RunData.load(config)
        for variant in VARIANTS:
            if (variant.name, seed) in done or (
                options.only and not any(part in variant.name for part in options.only.split("|"))
            ):
                continue
            row = run(variant, config, data, Path(options.work) / options.data)
            rows.append(row)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, rows)
            print(f"seed {seed}  {variant.name:50} {row['quality']['hr@10']:.4f}  {row['seconds']:.0f} s", flush=True)
    show(rows)


if __name__ == "__main__":
    main()
