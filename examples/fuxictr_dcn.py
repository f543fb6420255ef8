"""A DCN of FuxiCTR's parts on clicks made up here: trained, compressed to 15%, trained on through the codes, frozen.

pip install fuxictr==2.3.10 mgqe     # it has no model zoo, but the parts that the zoo's DCN is made of
"""

import tempfile

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNet, FeatureEmbedding
from fuxictr.pytorch.models import BaseModel

import mgqe

SIZES, ROWS, DIM = {"user": 1000, "item": 2000, "city": 200}, 60_000, 16
made, fields = torch.Generator().manual_seed(0), FeatureMap(".", "")
fields.features = {name: {"type": "categorical", "vocab_size": size, "source": ""} for name, size in SIZES.items()}
fields.labels, fields.num_fields, fields.default_emb_dim = ["click"], len(SIZES), DIM
rows = {name: (torch.rand(ROWS, generator=made) ** 2 * size).long() for name, size in SIZES.items()}
tastes = [torch.randn(size, 4, generator=made)[rows[name]] for name, size in SIZES.items()]
rows["click"] = ((tastes[0] * tastes[1] + tastes[2]).sum(1) > torch.randn(ROWS, generator=made)).float()
batches = [{name: column[i : i + 500] for name, column in rows.items()} for i in range(0, ROWS, 500)]
train, valid, test = batches[:96], batches[96:108], batches[108:]


class DCN(BaseModel):
    def __init__(self, folder: str) -> None:
        super().__init__(fields, verbose=0, model_root=folder, metrics=["AUC", "logloss"])
        self.embedding, self.cross = FeatureEmbedding(fields, DIM), CrossNet(len(SIZES) * DIM, 3)
        self.last = torch.nn.Linear(len(SIZES) * DIM, 1)

    def forward(self, batch: dict) -> dict:
        vectors = self.embedding(self.get_inputs(batch), flatten_emb=True)
        return {"y_pred": self.last(self.cross(vectors)).sigmoid()}

    def add_loss(self, answer: dict, clicked: torch.Tensor) -> torch.Tensor:
        return super().add_loss(answer, clicked) + mgqe.quantization_loss(self)


def fit(title: str, model: DCN, passes: int, rate: float) -> None:
    model.compile("adam", "binary_crossentropy", lr=rate)  # an optimiser with the parameters of now
    model.fit(train, epochs=passes, validation_data=valid)
    print(title, model.evaluate(test))


with tempfile.TemporaryDirectory() as folder:  # FuxiCTR writes its best epoch there, and reads it again
    torch.manual_seed(0)
    model = DCN(folder)
    fit("trained", model, 12, 1e-3)
    print(mgqe.compress_(model, mgqe.CompressConfig(budget="15%"), init="from_weight"))
    print("compressed", model.evaluate(test))
    fit("through the codes", model, 1, 1e-4)
    mgqe.freeze_(model)
    print("frozen", model.evaluate(test), mgqe.save_model(model, f"{folder}/frozen"), "bytes in all")
