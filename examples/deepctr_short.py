"""DeepCTR-Torch's DeepFM on clicks made up here: trained, compressed to 15%, trained on through the codes, frozen.

pip install deepctr-torch==0.3.0 pandas requests mgqe
"""

import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DeepFM

import mgqe

SIZES, ROWS, DIM = {"user": 1000, "item": 2000, "city": 200}, 60_000, 16
made = torch.Generator().manual_seed(0)
rows = {name: (torch.rand(ROWS, generator=made) ** 2 * size).long() for name, size in SIZES.items()}
tastes = [torch.randn(size, 4, generator=made)[rows[name]] for name, size in SIZES.items()]
clicks = ((tastes[0] * tastes[1] + tastes[2]).sum(1) > torch.randn(ROWS, generator=made)).float().numpy()
train, test = (
    {name: column[part].numpy() for name, column in rows.items()} for part in (slice(50_000), slice(50_000, None))
)
features = [SparseFeat(name, size, embedding_dim=DIM) for name, size in SIZES.items()]
model = DeepFM(features, features, dnn_hidden_units=(64,), seed=0)


def fit(epochs: int, rate: float) -> None:
    model.compile(torch.optim.Adam(model.parameters(), rate), "binary_crossentropy", metrics=["auc", "logloss"])
    model.fit(train, clicks[:50_000], batch_size=500, epochs=epochs, verbose=0)


def set_quantization_loss(model: DeepFM, _: tuple, chances: torch.Tensor) -> None:
    model.aux_loss = len(chances) * mgqe.quantization_loss(model)  # DeepCTR-Torch's loss is a sum over the batch


fit(4, 1e-3)
print("trained", model.evaluate(test, clicks[50_000:], 4096))
print(mgqe.compress_(model, mgqe.CompressConfig(budget="15%"), init="from_weight"))
print("compressed", model.evaluate(test, clicks[50_000:], 4096))
model.register_forward_hook(set_quantization_loss)
fit(1, 1e-4)
print("through the codes", model.evaluate(test, clicks[50_000:], 4096))
mgqe.freeze_(model)
print("frozen", model.evaluate(test, clicks[50_000:], 4096), mgqe.save_model(model, "DeepFM-frozen"), "bytes in all")
