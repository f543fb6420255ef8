"""What test_torchrec_sharded.py starts on every rank: trains, checkpoints, freezes, goes wrong as it is told.

torchrun --nproc-per-node 2 torchrec_worker.py OUT MODE [name=value ...]
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

import mgqe
import mgqe.torchrec
from mgqe.torchrec import budget, freezing

ROWS, DIM, BATCH = {"user": 1500, "item": 4001}, {"user": 16, "item": 8}, 64
FEATURES = {"user": ["user"], "item": ["seen", "bought"]}


def tables(pooled: bool = True) -> list:
    made = []
    for name in ROWS:
        same = {"name": name, "num_embeddings": ROWS[name], "embedding_dim": DIM[name], "feature_names": FEATURES[name]}
        limits = {"weight_init_min": -0.5, "weight_init_max": 0.5}
        if pooled:
            pooling = PoolingType.MEAN if name == "item" else PoolingType.SUM
            made.append(EmbeddingBagConfig(**same, **limits, pooling=pooling))
        else:
            made.append(EmbeddingConfig(**same, **limits))
    return made


def counts_of(name: str, rank: int, size: int) -> torch.Tensor:
    """This rank's part of the counts, which add up to the same whatever the size."""
    whole = (torch.arange(ROWS[name]) * 2654435761 % 1009) ** 2 // 997 + 1
    part = whole // size
    return part if rank else whole - part * (size - 1)


class Model(nn.Module):
    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = collection
        self.over = nn.Sequential(nn.Linear(16 + 2 * 8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.over(self.embeddings(features).values()).squeeze(1)


def batch(step: int, rank: int, size: int) -> tuple[KeyedJaggedTensor, torch.Tensor]:
    """This rank's part of the batch of a step; the whole does not depend on the size."""
    made = torch.Generator().manual_seed(step)
    lengths = {"user": torch.ones(BATCH, dtype=torch.int64)}
    lengths["seen"] = torch.randint(10, (BATCH,), generator=made)
    lengths["bought"] = torch.randint(3, (BATCH,), generator=made)
    values, parts = [], []
    start, stop = BATCH * rank // size, BATCH * (rank + 1) // size
    label = torch.zeros(BATCH)
    for feature, n in lengths.items():
        rows = ROWS["user" if feature == "user" else "item"]
        ids = (torch.rand(int(n.sum()), generator=made) ** 3 * rows).long()
        label += torch.zeros(BATCH).index_add_(0, torch.repeat_interleave(n), (ids % 7 - 3).float() / 3)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), n.cumsum(0)])
        values.append(ids[ends[start] : ends[stop]])
        parts.append(n[start:stop])
    kjt = KeyedJaggedTensor(list(lengths), torch.cat(values), lengths=torch.cat(parts))
    return kjt, (label > 0).float()[start:stop]


def build(rank: int, size: int, options: dict) -> tuple[DistributedModelParallel, KeyedOptimizerWrapper]:
    names = list(ROWS)
    if options.get("other") == "rows" and rank == 1:
        ROWS["item"] += 1
    counts = {name: mgqe.torchrec.merge_counts(counts_of(name, rank, size)) for name in names}
    config = mgqe.CompressConfig(
        num_centroids=(32, 16), warmup_steps=int(options.get("warmup", 10)), centroid_dtype=options.get("dtype", "int8")
    )
    if "budget" in options:
        config = mgqe.CompressConfig(budget=options["budget"], warmup_steps=int(options.get("warmup", 10)))
        if options.get("other") == "budget" and rank == 1:
            config = mgqe.CompressConfig(budget="12%", warmup_steps=10)
        if options.get("other") == "plan":
            budget.share_bytes = no_plan
    made = tables()
    if options.get("other") == "config" and rank == 1:
        config = mgqe.CompressConfig(num_centroids=(32, 8), warmup_steps=10)
    if options.get("other") == "counts":
        counts = {name: counts_of(name, rank, size) + torch.arange(ROWS[name]) * rank for name in names}
    collection = mgqe.torchrec.QuantizedEmbeddingBagCollection(made, config, counts=counts, device="meta")
    model = Model(collection)
    apply_optimizer_in_backward(RowWiseAdagrad, collection.rows.parameters(), {"lr": float(options.get("lr", 0.1))})
    constraints = collection.sharding_constraints()
    if "sharding" in options:
        wide = {"min_partition": 4} if options["sharding"] == "column_wise" else {}
        kinds = [options["sharding"]]
        constraints = {name: ParameterConstraints(sharding_types=kinds, **wide) for name in names}
    topology = Topology(world_size=size, compute_device="cpu", local_world_size=size)
    sharders: list = [EmbeddingCollectionSharder()]
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    parallel = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)
    collection.reset_rows(seed=1)
    for table in collection.tables.values() if "nudge" in options else ():
        for _, rows in table.source.ranges():  # a control: as far off as float32 rounding
            rows.mul_(1 + float(options["nudge"]) * torch.rand(rows.shape[0], 1))
    dense = [(name, p) for name, p in parallel.named_parameters() if ".rows." not in name]
    rate = float(options.get("lr", 0.1)) / 10
    return parallel, KeyedOptimizerWrapper(dict(dense), lambda params: torch.optim.Adam(params, lr=rate))


def no_plan(*arguments: object) -> None:
    """In the place of what rank 0 plans by."""
    raise ValueError("nothing fits")


def plans_of(collection: nn.Module) -> dict:
    """What each table's plan is, as this rank has it."""
    plans = {}
    for name, table in collection.planned_tables.items():
        digest = hashlib.sha256()
        for tensor in (*table.quantizer.state_dict().values(), table.tier_sizes, table.tier_of):
            digest.update(tensor.detach().numpy().tobytes())
        shapes = [table.capacity.widths, *(tier.code_bits for tier in table.capacity.tiers)]
        plans[name] = {"nbytes": table.nbytes, "tiers": table.tiers.sizes, "bits": shapes, "all": digest.hexdigest()}
    return plans


def equals_frozen(collection: nn.Module, folder: Path) -> bool:
    """Whether bags of one id, in evaluation, are the vectors of the frozen tables, to the bit."""
    ids = {feature: torch.arange(64) * ROWS[name] // 64 for name in ROWS for feature in FEATURES[name]}
    features = KeyedJaggedTensor(
        list(ids), torch.cat(list(ids.values())), lengths=torch.ones(64 * len(ids), dtype=torch.int64)
    )
    bags = collection(features)
    looked_up = {f: mgqe.load(folder / name).lookup(ids[f]) for name in ROWS for f in FEATURES[name]}
    return all(torch.equal(bags[feature], vectors) for feature, vectors in looked_up.items())


def state_of(parallel: DistributedModelParallel, optimizer: KeyedOptimizerWrapper) -> dict:
    return {
        "model": parallel.state_dict(),
        "rows": parallel.fused_optimizer.state_dict(),
        "dense": optimizer.state_dict(),
    }


def train(parallel, optimizer, first: int, last: int, rank: int, size: int, hook=None) -> list[float]:
    losses = []
    for step in range(first, last):
        if hook is not None:
            hook(step)
        features, labels = batch(step, rank, size)
        task = nn.functional.binary_cross_entropy_with_logits(parallel(features), labels)
        loss = task + mgqe.quantization_loss(parallel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(float(whole) / size)
    return losses


def run(out: Path, mode: str, options: dict, rank: int, size: int) -> dict:
    steps = int(options.get("steps", 60))
    parallel, optimizer = build(rank, size, options)
    result: dict = {}
    if mode == "resume":
        first = int(options["first"])
        optimizer.init_state()  # a place for Adam's moments, which a new optimiser does not have
        state = state_of(parallel, optimizer)
        dcp.load(state, checkpoint_id=options["checkpoint"])
        parallel.load_state_dict(state["model"])
        parallel.fused_optimizer.load_state_dict(state["rows"])
        optimizer.load_state_dict(state["dense"])
        result["losses"] = train(parallel, optimizer, first, steps, rank, size)
    elif mode == "train":
        middle = int(options.get("save", steps))
        losses = train(parallel, optimizer, 0, middle, rank, size)
        if "save" in options:
            dcp.save(state_of(parallel, optimizer), checkpoint_id=out / "checkpoint")
        result["losses"] = losses + train(parallel, optimizer, middle, steps, rank, size)
    elif mode == "metric":
        collected = parallel.module.embeddings.tables
        for table in collected.values():
            table.gathers_metric = True
        result["losses"] = train(parallel, optimizer, 0, steps, rank, size)
        metrics = {name: table.metric() for name, table in collected.items()}
        result["metrics"] = {name: metric.matrix.tolist() for name, metric in metrics.items()}
        result["lookups"] = {name: metric.lookups for name, metric in metrics.items()}
        result["sources"] = {name: metric.source for name, metric in metrics.items()}
    elif mode in ("kill", "hang"):

        def hook(step: int) -> None:
            if step == 5 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL if mode == "kill" else signal.SIGSTOP)

        train(parallel, optimizer, 0, steps, rank, size, hook)
    elif mode == "bad id":
        train(parallel, optimizer, 0, 3, rank, size)
        features, _ = batch(3, rank, size)
        if rank == size - 1:
            features.values()[-1] = ROWS["item"] + 5
        try:
            parallel(features)
        except IndexError as error:
            result["error"] = str(error)
        result["losses"] = train(parallel, optimizer, 3, 8, rank, size)  # nothing was broken
    elif mode == "freeze kill":
        train(parallel, optimizer, 0, 15, rank, size)
        mgqe.torchrec.freeze(parallel, out / "frozen")
        train(parallel, optimizer, 15, 20, rank, size)
        if rank == 1:
            real = freezing._packed

            def packed(*arguments):
                yield next(real(*arguments))
                os.kill(os.getpid(), signal.SIGKILL)

            freezing._packed = packed
        mgqe.torchrec.freeze(parallel, out / "frozen")
    elif mode == "disk full":
        train(parallel, optimizer, 0, 15, rank, size)
        mgqe.torchrec.freeze(parallel, out / "frozen")
        train(parallel, optimizer, 15, 20, rank, size)
        real = os.fsync

        def full(descriptor: int) -> None:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if rank == int(options.get("full", 1)) and options.get("file", "item/") in name:
                raise OSError(28, "No space left on device")
            real(descriptor)

        os.fsync = full
        try:
            mgqe.torchrec.freeze(parallel, out / "frozen")
        except OSError as error:
            result["error"] = str(error)
        os.fsync = real
    if mode in ("train", "resume"):
        parallel.eval()
        features, _ = batch(10_000, rank, size)
        with torch.no_grad():
            scores = parallel(features)
            vectors = parallel.module.embeddings(features).values()
        result["nbytes"] = mgqe.torchrec.freeze(parallel, out / "frozen")
        frozen = mgqe.torchrec.load(out / "frozen")
        result["plans"] = plans_of(parallel.module.embeddings)
        result["equals frozen"] = equals_frozen(parallel.module.embeddings, out / "frozen")
        result["gap"] = float((frozen(features).values() - vectors).abs().max())
        result["scores"] = torch.cat(parallel.module.embeddings.ranks.gather(scores)).tolist()
    return result


def meet(out: Path, rank: int, size: int) -> None:
    """Wait until every rank has imported what it needs: on a busy machine that takes longer than a short timeout."""
    (out / f"started-{rank}").touch()
    while not all((out / f"started-{other}").exists() for other in range(size)):
        time.sleep(0.01)


def main() -> None:
    out, mode = Path(sys.argv[1]), sys.argv[2]
    options = dict(argument.split("=", 1) for argument in sys.argv[3:])
    torch.set_num_threads(1)
    meet(out, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with mgqe.torchrec.process_group(timeout=timedelta(seconds=int(options.get("timeout", 600)))) as ranks:
        file = out / f"result-{ranks.rank}.json"
        try:
            file.write_text(json.dumps(run(out, mode, options, ranks.rank, ranks.size)))
        except ValueError as error:
            file.write_text(json.dumps({"error": f"ValueError: {error}"}))
            dist.barrier()  # torchrun ends the ranks that have not come to their own error once the first has ended
            raise


if __name__ == "__main__":
    start = time.time()
    main()
    print(f"{time.time() - start:.1f} s", file=sys.stderr, flush=True)
    # Without Python's own end: a thread of gloo that is late on a busy machine would abort it (pytorch/pytorch#190489).
    os._exit(0)
