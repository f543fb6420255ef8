"""A DLRM whose tables torchrec shards: trained on several ranks, frozen shard by shard, served by one process.

Install as docs/torchrec.md says, then

    torchrun --standalone --nproc-per-node 2 examples/torchrec_dlrm.py model
    python examples/torchrec_dlrm.py model --serve

The click log is synthetic: users and items have hidden tastes, and a click is likely where they agree. The items that a
user clicked before reveal the taste, and the hour of the day adds a little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

import mgqe
import mgqe.torchrec

USERS, ITEMS, DIM, PAST = 2_000, 1_500, 16, 8
FEATURES = ["user", "item", "past"]  # one user, one item, up to PAST items clicked before
TABLES = [
    EmbeddingBagConfig(name="user", num_embeddings=USERS, embedding_dim=DIM, feature_names=["user"]),
    EmbeddingBagConfig(
        name="item", num_embeddings=ITEMS, embedding_dim=DIM, feature_names=["item", "past"], pooling=PoolingType.MEAN
    ),
]
for table in TABLES:
    table.weight_init_min, table.weight_init_max = -0.2, 0.2


class Log:
    """Rows of (user, item, items clicked before, hour, clicked), equal on every rank."""

    def __init__(self, rows: int = 400_000, seed: int = 0) -> None:
        made = torch.Generator().manual_seed(seed)
        tastes, kinds = torch.randn(USERS, 4, generator=made), torch.randn(ITEMS, 4, generator=made)
        self.user = self._skewed(USERS, rows, made)
        self.item = self._skewed(ITEMS, rows, made)
        # Of the items that a user saw, those nearest to the taste were clicked.
        met = torch.randint(ITEMS, (USERS, 6 * PAST), generator=made)
        liked = (kinds[met] * tastes.unsqueeze(1)).sum(-1).topk(PAST, dim=1).indices
        self.past = met.gather(1, liked)[self.user]
        self.past_length = torch.randint(PAST + 1, (rows,), generator=made)
        self.hour = torch.rand(rows, generator=made)
        logit = (tastes[self.user] * kinds[self.item]).sum(-1) + torch.sin(self.hour * 6.28) - 0.5
        self.click = (torch.rand(rows, generator=made) < logit.sigmoid()).float()

    @staticmethod
    def _skewed(size: int, rows: int, made: torch.Generator) -> Tensor:
        return (torch.rand(rows, generator=made).pow(2) * size).long()

    def batch(self, rows: Tensor) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
        """Dense features (B, 2), sparse ones and labels (B,) of some rows."""
        lengths = self.past_length[rows]
        past = self.past[rows][torch.arange(PAST) < lengths.unsqueeze(1)]
        one = torch.ones_like(rows)
        values, sizes = [self.user[rows], self.item[rows], past], [one, one, lengths]
        hour = self.hour[rows] * 6.28
        sparse = KeyedJaggedTensor(FEATURES, torch.cat(values), lengths=torch.cat(sizes))
        return torch.stack([hour.sin(), hour.cos()], dim=1), sparse, self.click[rows]


class DLRM(nn.Module):
    """Dense features through an MLP, then the inner products of all pairs of vectors through another.

    Args:
        embeddings: KeyedJaggedTensor -> KeyedTensor; in training one class, in serving another.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.bottom = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, DIM))
        count = len(FEATURES) + 1
        self.pairs = torch.triu_indices(count, count, offset=1)
        self.top = nn.Sequential(nn.Linear(DIM + self.pairs.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """Logits (B,)."""
        hidden = self.bottom(dense)
        vectors = torch.stack([hidden, *self.embeddings(sparse).to_dict().values()], dim=1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([hidden, products], dim=1)).squeeze(1)


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve (no ties among scores)."""
    ranks = torch.empty_like(scores).index_copy_(0, scores.argsort(), torch.arange(1.0, len(scores) + 1))
    positive = labels.sum()
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def train(folder: Path, steps: int, batch: int, budget: str, warm_up: float) -> None:
    with mgqe.torchrec.process_group() as ranks:
        log = Log()
        rows = torch.arange(len(log.user))
        judged, trained = rows[rows % 10 == 0], rows[rows % 10 != 0]
        mine = trained[ranks.rank :: ranks.size]  # each rank counts its own part of the log
        counts = {
            "user": mgqe.torchrec.merge_counts(mgqe.count_ids(log.user[mine], USERS)),
            "item": mgqe.torchrec.merge_counts(mgqe.count_ids(log.item[mine], ITEMS)),
        }
        # Tables are planned on the rows as they are when the warm-up ends, so that it lasts for most of the training.
        config = mgqe.CompressConfig(budget=budget, warmup_steps=int(warm_up * steps))
        torch.manual_seed(0)
        model = DLRM(mgqe.torchrec.QuantizedEmbeddingBagCollection(TABLES, config, counts=counts, device="meta"))
        parallel = shard(model, ranks.size)
        dense = [p for name, p in parallel.named_parameters() if ".rows." not in name]
        optimizer = torch.optim.Adam(dense, lr=5e-3)
        drawn = torch.Generator().manual_seed(1)
        for step in range(1, steps + 1):
            whole = trained[torch.randint(len(trained), (batch,), generator=drawn)]
            numbers, ids, clicked = log.batch(whole[ranks.rank :: ranks.size])
            loss = F.binary_cross_entropy_with_logits(parallel(numbers, ids), clicked)
            optimizer.zero_grad()
            (loss + mgqe.quantization_loss(parallel)).backward()
            optimizer.step()
            if ranks.rank == 0 and step % max(1, steps // 6) == 0:
                print(f"step {step}: log-loss {loss.item():.4f}")
        parallel.eval()
        numbers, ids, clicked = log.batch(judged)  # on every rank: look-ups are collectives
        with torch.no_grad():
            logits = parallel(numbers, ids)
        nbytes = mgqe.torchrec.freeze(parallel, folder / "tables")
        if ranks.rank == 0:
            kept = {n: p for n, p in model.state_dict().items() if not n.startswith("embeddings.")}
            save_file(kept, folder / "dense.safetensors")
            full = 4 * DIM * (USERS + ITEMS)
            print(f"AUC trained {auc(logits, clicked):.4f}; tables {sum(nbytes.values()):,} of {full:,} bytes")
            frozen = load(folder)
            print(f"AUC frozen  {auc(frozen(numbers, ids), clicked):.4f}")
            serve(folder)
        dist.barrier()


def shard(model: DLRM, ranks: int) -> DistributedModelParallel:
    """torchrec's part: the planner, the fused optimiser, rows divided among the ranks."""
    collection = model.embeddings
    apply_optimizer_in_backward(RowWiseAdagrad, collection.rows.parameters(), {"lr": 0.1})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sharders = [EmbeddingCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, compute_device=device.type), constraints=collection.sharding_constraints()
    )
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    parallel = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    collection.reset_rows(seed=0)  # the same rows whatever the number of ranks
    return parallel


def load(folder: Path) -> DLRM:
    """The model as it is served: one process, tables in codes."""
    model = DLRM(mgqe.torchrec.load(folder / "tables"))
    model.load_state_dict(load_file(folder / "dense.safetensors"))
    return model.eval().requires_grad_(False)


def serve(folder: Path, user: int = 17, k: int = 5) -> None:
    """Score every item for a user at noon, given three items clicked before; print the best."""
    model, items = load(folder), torch.arange(ITEMS)
    past = torch.tensor([3, 14, 159])
    one = torch.ones(ITEMS, dtype=torch.int64)
    values, lengths = [torch.full((ITEMS,), user), items, past.repeat(ITEMS)], [one, one, 3 * one]
    sparse = KeyedJaggedTensor(FEATURES, torch.cat(values), lengths=torch.cat(lengths))
    noon = torch.tensor([[0.0, -1.0]]).expand(ITEMS, -1)
    best = model(noon, sparse).sigmoid().topk(k)
    print(f"user {user}: " + ", ".join(f"item {i} {p:.3f}" for p, i in zip(best.values, best.indices, strict=True)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the model is kept")
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--batch", type=int, default=1024, help="rows a step, all ranks together")
    options.add_argument("--budget", default="10%", help="of the bytes of the tables")
    options.add_argument("--warm-up", type=float, default=0.75, help="share of the steps before tables are planned")
    options.add_argument("--serve", action="store_true", help="serve what was trained before")
    given = options.parse_args()
    if given.serve:
        serve(given.folder)
    else:
        train(given.folder, given.steps, given.batch, given.budget, given.warm_up)


if __name__ == "__main__":
    main()
