"""How good a trained model is right after compress_(init="from_weight"), against faiss PQ of the same tables.

Full GMF tables are trained (or found in --work), then both tables are compressed in each of these ways, and what the
frozen files take is counted: codes, centroids, tier map and header. faiss PQ is trained on the same rows; its bytes are
its packed codes and float32 centroids, no header. Error is ||q - e||^2 / ||q||^2 over all rows; HR@10 is that of the
test items; both are means over several k-means starts, since HR@10 moves by some tenths of a point from start to start
(on the same full tables). Then one epoch of fine-tuning through the codes, by the optimiser that trained the full
tables, at the recipe's learning rate falling to zero.

    python -m benchmarks.quality.convert --data ml-1m --data-dir DATA
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import QUALITY, environment
from mgqe.recsys.data.seeds import derive_seed
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import QUANTISED_RATE, TrainConfig
from mgqe.recsys.train.loop import make_optimizer
from mgqe.recsys.train.run import anneal, warm_up
from mgqe.recsys.train.tuned import tuned_settings

# One tier is faiss's own setting. The others spend the same bytes or fewer on what faiss has not got.
SETTINGS: dict[str, dict[str, Any]] = {
    "one tier, D = 32, K = 64": {"num_subspaces": 32, "num_centroids": 64},
    "one tier, D = 16, K = 256": {"num_subspaces": 16, "num_centroids": 256},
    "one tier, D = 16, K = 64": {"num_subspaces": 16, "num_centroids": 64},
    "one tier, D = 32, K = 128, int8": {"num_subspaces": 32, "num_centroids": 128, "centroid_dtype": "int8"},
    "MGQE, D = 32, K = 256/64, int8": {"num_centroids": (256, 64), "centroid_dtype": "int8"},
    "MGQE, D = 32, K = 128/32, int8": {"num_centroids": (128, 32), "centroid_dtype": "int8"},
    "MGQE, D = 32, K = 64/16, int8": {"num_centroids": (64, 16), "centroid_dtype": "int8"},
}
FAISS = [(16, 6), (16, 7), (16, 8), (32, 4), (32, 5), (32, 6), (32, 7)]
TABLES = ("user", "item")


def relative_error(rows: Tensor, decoded: Tensor, weights: Tensor) -> dict[str, float]:
    """Over all rows alike, and with each row weighted by its count."""
    wrong, norm = (rows - decoded).square().sum(1), rows.square().sum(1)
    return {
        "rows": float(wrong.sum() / norm.sum()),
        "interactions": float((weights * wrong).sum() / (weights * norm).sum()),
    }


def judge(data: RunData, model: nn.Module, tables: dict[str, Tensor]) -> dict[str, float]:
    """Test figures with other vectors."""
    swapped = copy.deepcopy(model).eval()
    for name, vectors in tables.items():
        setattr(swapped, name, nn.Embedding.from_pretrained(vectors))
    return dict(data.task.evaluate(swapped))


def faiss_pq(rows: Tensor, subspaces: int, bits: int, start: int) -> tuple[int, Tensor]:
    """Bytes and decoded rows of faiss's product quantiser with its own settings."""
    quantizer = faiss.ProductQuantizer(rows.shape[1], subspaces, bits)
    quantizer.cp.seed = 1234 + start  # 1234 is faiss's own
    quantizer.train(rows.numpy())
    codes = quantizer.compute_codes(rows.numpy())
    return codes.nbytes + 4 * quantizer.centroids.size(), torch.from_numpy(quantizer.decode(codes))


def fine_tune(config: TrainConfig, data: RunData, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One epoch through the codes, learning rates falling to zero."""
    mgqe.extend_optimizer(optimizer, model)
    batches = data.task.num_batches(config.batch_size)
    model.train()
    for number, batch in enumerate(data.task.batches(config.batch_size, "fine-tuning", 1)):
        for group in optimizer.param_groups:
            group["lr"] = (config.quantised_learning_rate or QUANTISED_RATE) * (1 - number / batches)
        loss = data.task.loss(model, batch) + mgqe.quantization_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def run(config: TrainConfig, data: RunData, work: Path, starts: int) -> list[dict[str, Any]]:
    """All settings on one trained model."""
    model, first = warm_up(config, data, work, lambda report: None)
    trained = anneal(config, data, model, first, work, lambda report: None)
    phase = config.phase("annealed", data.task.metric)
    model.eval()
    rows = {name: getattr(model, name).weight.detach().clone() for name in TABLES}
    counts = {name: getattr(data.task.split, f"{name}_counts") for name in TABLES}
    full_bytes = sum(r.nbytes for r in rows.values())

    def record(name: str, nbytes: int, tables_by_start: list[dict[str, Tensor]]) -> dict[str, Any]:
        errors = {
            t: mean([relative_error(rows[t], decoded[t], counts[t].float()) for decoded in tables_by_start])
            for t in TABLES
        }
        qualities = [judge(data, model, decoded) for decoded in tables_by_start]
        quality = mean(qualities)
        print(
            f"seed {config.seed} {name:32} {nbytes:9,} bytes {100 * nbytes / full_bytes:5.1f}%  "
            f"HR@10 {quality['hr@10']:.4f}  error {errors['user']['rows']:.4f} {errors['item']['rows']:.4f}",
            flush=True,
        )
        each = [q["hr@10"] for q in qualities]
        return {
            "seed": config.seed,
            "method": name,
            "bytes": nbytes,
            "errors": errors,
            "quality": quality,
            "hr@10_each_start": each,
        }

    found = [record("full", full_bytes, [rows])]
    for subspaces, bits in FAISS:
        tables_by_start = [{t: faiss_pq(rows[t], subspaces, bits, start) for t in TABLES} for start in range(starts)]
        nbytes = sum(size for size, _ in tables_by_start[0].values())
        decoded = [{t: d for t, (_, d) in one.items()} for one in tables_by_start]
        found.append(record(f"faiss PQ, M = {subspaces}, {bits} bits", nbytes, decoded))
    for name, setting in SETTINGS.items():
        decoded, after, nbytes = [], [], 0
        for start in range(starts):
            compressed = copy.deepcopy(model)
            optimizer = make_optimizer(compressed, phase)
            optimizer.load_state_dict(copy.deepcopy(trained.optimizer))
            torch.manual_seed(derive_seed(config.seed, "convert", start))
            chosen = counts if name.startswith("MGQE") else None
            report = mgqe.compress_(compressed, mgqe.CompressConfig(**setting), counts=chosen, init="from_weight")
            nbytes = report.bytes_after
            tables = mgqe.freeze_(copy.deepcopy(compressed))
            decoded.append({path: table.to_dense() for path, table in tables.items()})
            fine_tune(config, data, compressed, optimizer)
            mgqe.freeze_(compressed)
            after.append(dict(data.task.evaluate(compressed)))
        found.append(record(name, nbytes, decoded))
        found[-1]["after_one_epoch"] = mean(after)
        print(f"{'':7}after one epoch {found[-1]['after_one_epoch']['hr@10']:.4f}", flush=True)
    return found


def mean(records: list[dict[str, float]]) -> dict[str, float]:
    """Each figure's mean."""
    return {key: sum(record[key] for record in records) / len(records) for key in records[0]}


def best_within(found: list[dict[str, Any]], nbytes: int, figure: str) -> dict[str, Any]:
    """faiss's best at no more bytes, by error of the rows (mean of the tables) or by HR@10."""
    within = [entry for entry in found if entry["method"].startswith("faiss") and entry["bytes"] <= nbytes]
    if figure == "error":
        return min(within, key=lambda entry: sum(entry["errors"][t]["rows"] for t in TABLES))
    return max(within, key=lambda entry: entry["quality"]["hr@10"])


def compare(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting against the best faiss PQ of no more bytes; what of the gap to full tables an epoch closes."""
    full = found[0]["quality"]["hr@10"]
    compared = []
    for entry in found:
        if "after_one_epoch" not in entry:
            continue
        error, quality = (best_within(found, entry["bytes"], figure) for figure in ("error", "hr@10"))
        gap = full - entry["quality"]["hr@10"]
        compared.append(
            {
                "seed": entry["seed"],
                "method": entry["method"],
                "bytes": entry["bytes"],
                "hr@10": entry["quality"]["hr@10"],
                "hr@10_of_faiss": quality["quality"]["hr@10"],
                "faiss_by_hr@10": quality["method"],
                "error": {t: entry["errors"][t] for t in TABLES},
                "error_of_faiss": {t: error["errors"][t] for t in TABLES},
                "faiss_by_error": error["method"],
                "hr@10_after_one_epoch": entry["after_one_epoch"]["hr@10"],
                "gap_closed": (entry["after_one_epoch"]["hr@10"] - entry["quality"]["hr@10"]) / gap
                if gap > 0
                else None,
            }
        )
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="1", help="whole numbers joined by commas")
    parser.add_argument("--starts", type=int, default=3, help="k-means starts per setting")
    parser.add_argument("--work", default="runs/convert-quality", help="checkpoints of the full models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    found, compared = [], []
    for seed in map(int, options.seeds.split(",")):
        config = TrainConfig(data=options.data, data_dir=options.data_dir, embedding="mgqe", seed=seed)
        config = replace(config.with_settings([*tuned_settings(config.model, options.data)]), embedding="mgqe")
        mine = run(config, RunData.load(config), Path(options.work), options.starts)
        found += mine
        compared += compare(mine)
    out = QUALITY / f"convert-{options.data}.json"
    content = {"environment": environment(), "compared": compared, "runs": found}
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
