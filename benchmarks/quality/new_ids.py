"""What appended ids lose: codes from codebooks that were fitted without their vectors, and no training through codes.

A full model is trained. A tenth of a table's ids is then held out: codebooks are fitted to the rows of the others, and
the tenth is appended from its trained vectors. Ten times, so that every id is appended once; each is compared with the
same id in a table that was fitted to all rows, by its relative squared error and by the rank of what is judged with it
(items: of users whose test item it is; users: its own test item). Codes are not trained through on either side, so
this is the price of being appended, and nothing else. How good the vectors of really new ids are is another question.

    python -m benchmarks.quality.new_ids --data ml-1m --data-dir DATA
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks._common import QUALITY, environment
from mgqe import CompactTable
from mgqe.recsys.models.embeddings import build
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.tasks.metrics import RankMetric, sampled_ranks
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import anneal, warm_up
from mgqe.recsys.train.tuned import tuned_settings

FOLDS = 10


def fit(config: TrainConfig, table: str, rows: Tensor, counts: Tensor) -> CompactTable:
    """Codebooks by nested k-means on these rows, and their codes."""
    torch.manual_seed(config.seed)
    layer = build(config.spec, table, len(rows), rows.shape[1], counts, config.init_std, config.seed)
    with torch.no_grad():
        layer.weight.copy_(rows)
    return layer.freeze()


def judge(data: RunData, model: GMF, table: str, vectors: Tensor, users: Tensor) -> Tensor:
    """Ranks of the test items of some judged users (n,), under other vectors of one table."""
    swapped = GMF(model.user, model.item, vectors.shape[1]).eval()
    swapped.load_state_dict(model.state_dict())
    setattr(swapped, table, nn.Embedding.from_pretrained(vectors))
    task = data.task
    return sampled_ranks(swapped, task.test.users[users], task.test.items[users], task.test.negatives[users])


def run(config: TrainConfig, data: RunData, folder: Path, table: str) -> dict[str, object]:
    """One table of one trained model."""
    model, first = warm_up(config, data, folder, lambda report: None)
    anneal(config, data, model, first, folder, lambda report: None)
    model.eval()
    rows = getattr(model, table).weight.detach().clone()
    counts = getattr(data.task.split, f"{table}_counts")
    whole = fit(config, table, rows, counts)
    own_tier = whole.tiers.of(torch.arange(len(rows)))
    evaluated = data.task.test.items if table == "item" else data.task.test.users
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
    ranks: dict[str, list[Tensor]] = {"full": [], "fitted": [], "own tier": [], "last tier": []}
    errors: dict[str, Tensor] = {name: torch.zeros(len(rows)) for name in ranks}
    for fold in range(FOLDS):
        new = order[fold::FOLDS]
        old = torch.ones(len(rows), dtype=torch.bool).index_fill(0, new, False).nonzero().reshape(-1)
        users = torch.isin(evaluated, new).nonzero().reshape(-1)
        decoded = {"full": rows, "fitted": whole.to_dense()}
        for name in ("own tier", "last tier"):
            grown = fit(config, table, rows[old], counts[old])
            dense = torch.zeros_like(rows)
            for g in range(grown.num_tiers):
                mine = new[own_tier[new] == g]
                dense[mine] = grown.lookup(grown.append(rows[mine], g if name == "own tier" else None))
            dense[old] = grown.lookup(torch.arange(len(old)))
            decoded[name] = dense
        for name, dense in decoded.items():
            ranks[name].append(judge(data, model, table, dense, users))
            errors[name][new] = (dense[new] - rows[new]).square().sum(1)
    norms = rows.square().sum(1)
    return {
        "data": config.data,
        "embedding": config.embedding,
        "table": table,
        "ids": len(rows),
        "seed": config.seed,
        "judged": sum(len(r) for r in ranks["full"]),
        "hr@10": {name: RankMetric("hr").figure(torch.cat(r)) for name, r in ranks.items()},
        "error": {name: float(e.sum() / norms.sum()) for name, e in errors.items() if name != "full"},
        "error_by_tier": {
            name: [float(e[own_tier == g].sum() / norms[own_tier == g].sum()) for g in range(whole.num_tiers)]
            for name, e in errors.items()
            if name != "full"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="planted")
    parser.add_argument("--data-dir")
    parser.add_argument("--embedding", default="mgqe:D=32,K=256/32,centroids=int8")
    parser.add_argument("--seeds", default="1,2,3", help="whole numbers joined by commas")
    parser.add_argument("--work", default="runs/new-ids", help="checkpoints of the full models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for seed in map(int, options.seeds.split(",")):
        config = TrainConfig(data=options.data, data_dir=options.data_dir, embedding=options.embedding, seed=seed)
        config = replace(
            config.with_settings([*tuned_settings(config.model, options.data)]), embedding=options.embedding
        )
        data = RunData.load(config)
        for table in ("item", "user"):
            records.append(run(config, data, Path(options.work) / options.data, table))
            hit_rates = {name: round(value, 4) for name, value in records[-1]["hr@10"].items()}
            errors = {name: round(value, 4) for name, value in records[-1]["error"].items()}
            print(f"seed {seed} {table:5} HR@10 {hit_rates}  relative error {errors}", flush=True)
    out = QUALITY / f"new-ids-{options.data}.json"
    out.write_text(json.dumps({"environment": environment(), "runs": records}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
