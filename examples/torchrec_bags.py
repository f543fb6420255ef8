"""torchrec's EmbeddingBagCollection: compressed, trained through its codes, frozen; the caller's code stays.

torchrec names the CUDA build of fbgemm among its dependencies; without them it runs on the CPU build:

    python3 -m venv torchrec-env
    torchrec-env/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    torchrec-env/bin/pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0
    torchrec-env/bin/pip install tensordict torchmetrics==1.0.3 tqdm pyre-extensions iopath .
    torchrec-env/bin/python examples/torchrec_bags.py
"""

from __future__ import annotations

import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

import mgqe

ROWS = {"user": 3000, "item": 5000}


def make(dim: int = 32) -> EmbeddingBagCollection:
    """Sums over user ids and means over item ids; the item table has two features."""
    tables = [
        EmbeddingBagConfig(
            name=name, embedding_dim=dim, num_embeddings=ROWS[name], feature_names=features, pooling=pooling
        )
        for name, features, pooling in (
            ("user", ["user"], PoolingType.SUM),
            ("item", ["seen", "bought"], PoolingType.MEAN),
        )
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))


def batch(size: int = 64) -> KeyedJaggedTensor:
    """One user per row, up to nine items seen and up to three bought, so that some bags are empty."""
    lengths = torch.cat([torch.ones(size), torch.randint(10, (size,)), torch.randint(4, (size,))]).int()
    users, items = torch.randint(ROWS["user"], (size,)), torch.randint(ROWS["item"], (int(lengths[size:].sum()),))
    return KeyedJaggedTensor(keys=["user", "seen", "bought"], values=torch.cat([users, items]), lengths=lengths)


def main() -> None:
    torch.manual_seed(0)
    model, features = make(), batch()
    report = mgqe.compress_(model, mgqe.CompressConfig(num_centroids=64), init="from_weight")
    print(report)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        loss = model(features).values().square().mean() + mgqe.quantization_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    expected = model(features).to_dict()
    mgqe.freeze_(model)
    frozen = model(features).to_dict()
    gap = max(float((frozen[key] - expected[key].detach()).abs().max()) for key in expected)
    print(f"{', '.join(frozen)}: the frozen model differs from the trained one by at most {gap:.1e}")


if __name__ == "__main__":
    main()
