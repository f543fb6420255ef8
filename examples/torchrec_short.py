"""torchrec's DLRM on clicks made up here: trained, compressed to 15%, trained on through the codes, frozen.

Install as docs/torchrec.md says. examples/torchrec_dlrm.py trains over several ranks.
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

import mgqe

SIZES, ROWS, DIM = {"user": 1000, "item": 2000, "city": 200}, 60_000, 16
made = torch.Generator().manual_seed(0)
rows = {name: (torch.rand(ROWS, generator=made) ** 2 * size).long() for name, size in SIZES.items()}
tastes = [torch.randn(size, 4, generator=made)[rows[name]] for name, size in SIZES.items()]
clicks = ((tastes[0] * tastes[1] + tastes[2]).sum(1) > torch.randn(ROWS, generator=made)).float()
hour = torch.rand(ROWS, 1, generator=made)
tables = [
    EmbeddingBagConfig(name=n, num_embeddings=size, embedding_dim=DIM, feature_names=[n]) for n, size in SIZES.items()
]
torch.manual_seed(0)
model = DLRM(EmbeddingBagCollection(tables=tables, device=torch.device("cpu")), 1, [32, DIM], [64, 1])


def logits(start: int, stop: int) -> torch.Tensor:
    ids = torch.cat([column[start:stop] for column in rows.values()])
    return model(hour[start:stop], KeyedJaggedTensor(list(SIZES), ids, lengths=torch.ones_like(ids))).squeeze(1)


def fit(epochs: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=rate)
    for start in [*range(0, 50_000, 500)] * epochs:
        loss = binary_cross_entropy_with_logits(logits(start, start + 500), clicks[start : start + 500])
        optimizer.zero_grad()
        (loss + mgqe.quantization_loss(model)).backward()
        optimizer.step()


def judge(title: str) -> None:
    model.eval()
    with torch.no_grad():
        loss = binary_cross_entropy_with_logits(logits(50_000, ROWS), clicks[50_000:])
    print(f"{title}: log loss {float(loss):.4f}")


fit(4, 1e-3)
judge("trained")
print(mgqe.compress_(model, mgqe.CompressConfig(budget="15%"), init="from_weight"))
judge("compressed")
fit(1, 1e-4)
judge("through the codes")
mgqe.freeze_(model)
judge("frozen")
