"""A training step over torchrec's rows: one rank against two on the same cores.

In the warm-up the same pass goes without codes: torchrec's look-up of distinct rows, then pooling.

In every round each contender runs in processes of its own, by torchrun, and takes turns with the others; the median of
its steps counts, on the slowest rank of each. The batch is the same size for all, shared among the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks._common import Measurement, argument_parser, print_table, save

CONTENDERS = {  # name: ranks, threads each, quantised
    "1 rank, 2 threads": (1, 2, True),
    "1 rank, 1 thread": (1, 1, True),
    "2 ranks, 1 thread each": (2, 1, True),
    "1 rank, 2 threads, in the warm-up": (1, 2, False),
    "2 ranks, 1 thread each, in the warm-up": (2, 1, False),
}
PEER, JUDGED = "1 rank, 2 threads", "2 ranks, 1 thread each"
PEERS = {"1 rank, 2 threads, in the warm-up": PEER, "2 ranks, 1 thread each, in the warm-up": JUDGED}


def worker(given: argparse.Namespace) -> None:
    """One rank of a contender: step times as JSON on standard output, from rank 0."""
    import torch.distributed as dist
    from torch import nn
    from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    import mgqe
    import mgqe.torchrec

    torch.set_num_threads(given.threads[0])
    names = [f"table{i}" for i in range(given.tables)]
    tables = [
        EmbeddingBagConfig(name=n, num_embeddings=given.rows, embedding_dim=given.dim, feature_names=[n]) for n in names
    ]

    class Model(nn.Module):
        def __init__(self, embeddings: nn.Module) -> None:
            super().__init__()
            self.embeddings = embeddings
            self.top = nn.Sequential(nn.Linear(given.dim * given.tables, 128), nn.ReLU(), nn.Linear(128, 1))

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            return self.top(self.embeddings(features).values())

    with mgqe.torchrec.process_group() as ranks:
        torch.manual_seed(0)
        tiers = mgqe.Tiers.from_fractions(given.rows)
        config = mgqe.CompressConfig(num_centroids=(256, 64), warmup_steps=10**9 if given.plain else 1)
        counts = dict.fromkeys(names, tiers)
        collection = mgqe.torchrec.QuantizedEmbeddingBagCollection(tables, config, counts=counts, device="meta")
        model, sharders = Model(collection), [EmbeddingCollectionSharder()]
        rows, constraints = collection.rows.parameters(), collection.sharding_constraints()
        apply_optimizer_in_backward(RowWiseAdagrad, rows, {"lr": 0.01})
        topology = Topology(world_size=ranks.size, compute_device="cpu", local_world_size=ranks.size)
        planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
        plan = planner.collective_plan(model, sharders, dist.group.WORLD)
        parallel = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)
        optimizer = torch.optim.Adam([p for n, p in parallel.named_parameters() if n.startswith("top")], lr=1e-3)
        made = torch.Generator().manual_seed(given.seed + ranks.rank)
        size = given.batch // ranks.size
        lengths = torch.full((given.tables * size,), given.bag)
        seconds = []
        for step in range(4 + given.steps):
            ids = (torch.rand(int(lengths.sum()), generator=made) ** 4 * given.rows).long()
            features = KeyedJaggedTensor(names, ids, lengths=lengths)
            dist.barrier()
            start = time.perf_counter()
            loss = parallel(features).square().mean() + mgqe.quantization_loss(parallel)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            if step == 3:
                seconds.clear()  # the start of the codebooks, the first allocations
        everyone = ranks.gather(seconds)
        if ranks.rank == 0:
            given.out.write_text(json.dumps([max(times) for times in zip(*everyone, strict=True)]))


def step_seconds(name: str, given: argparse.Namespace, out: Path) -> list[float]:
    """Step seconds of one contender, in processes of its own."""
    ranks, threads, quantised = CONTENDERS[name]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    options = ["--worker", "--threads", str(threads), "--out", str(out), "--steps", str(given.calls)]
    for option in ("rows", "dim", "tables", "batch", "bag", "seed"):
        options += [f"--{option}", str(getattr(given, option))]
    if not quantised:
        options.append("--plain")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *launch, "-m", "benchmarks.speed.torchrec", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[:6000]}")
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def main() -> None:
    options = argument_parser(__doc__ or "", "torchrec")
    options.set_defaults(rounds=4, calls=12)
    options.add_argument("--rows", type=int, default=250_000, help="of each table")
    options.add_argument("--dim", type=int, default=32)
    options.add_argument("--tables", type=int, default=4)
    options.add_argument("--batch", type=int, default=4096, help="bags per table, all ranks together")
    options.add_argument("--bag", type=int, default=20, help="ids per bag")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        worker(given)
        return
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.rounds):
            for name in CONTENDERS:
                seconds[name] += step_seconds(name, given, Path(folder) / "seconds.json")
                print(f"round {turn + 1}: {name}: {statistics.median(seconds[name]):.3f} s per step", file=sys.stderr)
    setting = {name: getattr(given, name) for name in ("tables", "rows", "dim", "batch", "bag")}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    measured = [
        Measurement(
            setting,
            name,
            medians[name],
            min(seconds[name]),
            medians[name] / medians[PEER],
            1.0 if name == JUDGED else None,
            {"ratio_to_1_rank_1_thread": round(medians[name] / medians["1 rank, 1 thread"], 4)}
            | ({"quantised_over_this": round(medians[PEERS[name]] / medians[name], 4)} if name in PEERS else {}),
        )
        for name in CONTENDERS
    ]
    print_table(measured, given.batch * given.bag * given.tables, "id")
    del given.worker, given.plain, given.steps
    save(given.out, "torchrec", given, measured)


if __name__ == "__main__":
    main()
