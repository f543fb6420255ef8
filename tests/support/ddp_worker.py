"""One of two processes that test_loops.py starts: trains under DistributedDataParallel, says what it ended with.

python ddp_worker.py RANK FILE OUT MODE
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mgqe
from mgqe.checks.waiting import as_on_gpu
from mgqe.nn.metric import DECAY, Sums, second_moment

N, DIM = 3000, 8


class Model(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.item = nn.Embedding(N, DIM, sparse=sparse)
        self.bag = nn.EmbeddingBag(N, DIM, mode="sum")
        self.head = nn.Linear(DIM, N, bias=False)
        self.head.weight = self.item.weight
        self.dropout = nn.Dropout(0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.item(ids[:, 0]) + self.bag(ids)))


def gathering(model: Model) -> dict[str, Sums]:
    """Let the layers gather their metric; the sums of this process alone, as the warm-up of 5 steps adds to them."""
    own = {}
    for name in ("item", "bag"):
        layer = model.get_submodule(name)
        layer.gathers_metric = True
        own[name] = Sums.zeros(DIM, torch.device("cpu"))

        def watch(vectors, lookups, layer=layer, sums=own[name], watch=layer.moments._watch):
            def add(gradient):
                moment, number, _ = second_moment(gradient, lookups)
                decay = DECAY ** (5 - layer.schedule.passes)
                sums.moment.add_(moment * decay)
                sums.weight[0] += number * decay

            vectors.register_hook(add)
            watch(vectors, lookups)

        layer.moments._watch = watch
    return own


def run(rank: int, mode: str) -> dict[str, object]:
    torch.manual_seed(100 + rank)  # each its own, as samplers and dropout want it
    model = Model(sparse=mode == "sparse")
    counts = torch.arange(N) * 7 % 1999 + 1
    config = mgqe.CompressConfig(num_centroids=(16, 8), warmup_steps=5, quantizer="sx" if "sx" in mode else "vq")
    init = "from_weight" if mode == "from_weight" else "warmup"
    if mode == "budget":
        # Of this each process would make another plan.
        options = {"counts": counts.roll(rank), "budget": f"{30 - 8 * rank}%", "warmup_steps": 5}
        model.item = mgqe.MGQEmbedding(N, DIM, **options)
        model.bag = mgqe.MGQEmbeddingBag(N, DIM, mode="sum", **options)
        model.head = nn.Linear(DIM, N, bias=False)
    else:
        mgqe.compress_(model, config, counts={"item": counts, "bag": counts}, init=init)
    own = gathering(model) if mode == "metric" else {}
    parallel = DistributedDataParallel(model, find_unused_parameters=mode == "find_unused")
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(rank)
    losses, unused = [], 0.0
    for step in range(130 if mode == "revive" else 40):  # 100 passes until the first look for dead centroids
        ids = torch.randint(N, (16, 3), generator=generator)
        if mode == "by hand" and step == 3:
            mgqe.start_quantizing(parallel)
        if mode == "revive" and step == 60:
            with torch.no_grad():
                for layer in (model.item, model.bag):
                    layer.quantizer.codebooks[0][:, 4:] = 100.0
        loss = nn.functional.cross_entropy(parallel(ids), ids[:, 0])
        optimizer.zero_grad()
        (loss + mgqe.quantization_loss(parallel)).backward()
        optimizer.step()
        losses.append(loss.item())
        if mode == "revive" and step == 65:
            unused = sum(s.usage for s in model.item.codebook_stats())
    assert model.item.quantizing
    state = {key: value.clone() for key, value in model.state_dict().items()}
    layers = (model.item, model.bag)
    codes = [layer.codes_of(layer.tiers.members(g), g) for layer in layers for g in range(layer.tiers.num_tiers)]
    usage = [s.usage for layer in (model.item, model.bag) for s in layer.codebook_stats()]
    metrics = {name: model.get_submodule(name).metric().matrix for name in own}
    own_metrics = {name: sums.moment.double() / float(sums.weight[0]) for name, sums in own.items()}
    figures = {"codes": codes, "losses": losses, "usage": usage, "unused": unused}
    return {"state": state, "metrics": metrics, "own": own_metrics, **figures}


def main() -> None:
    rank, file, out, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        with as_on_gpu() if mode.startswith("gpu") else nullcontext():
            result: dict[str, object] = run(rank, mode)
    except RuntimeError as error:
        result = {"error": str(error)}
    torch.save(result, f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
