"""Loops as people have them: autocast, checkpointing, accumulation, several processes, Lightning, Accelerate."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from two_processes import two_processes

import mgqe

N, DIM = 400, 8
COUNTS = torch.arange(N) * 7 % 199 + 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(N, DIM)
        self.hidden = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh())
        self.out = nn.Linear(DIM, N, bias=False)
        self.out.weight = self.item.weight

    def forward(self, ids):
        return self.out(self.hidden(self.item(ids)))


def make(quantizer: str = "vq", **options) -> Model:
    torch.manual_seed(0)
    model = Model()
    config = mgqe.CompressConfig(num_centroids=(16, 8), quantizer=quantizer, centroid_dtype="int8", **options)
    mgqe.compress_(model, config, counts={"item": COUNTS})
    return model


def losses_of(model: nn.Module, step, steps: int = 12) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        ids = torch.randint(N, (32,), generator=generator)
        optimizer.zero_grad()
        losses.append(step(ids))
        optimizer.step()
    return losses


def plain(model: nn.Module):
    def step(ids: torch.Tensor) -> float:
        loss = nn.functional.cross_entropy(model(ids), ids) + mgqe.quantization_loss(model)
        loss.backward()
        return loss.item()

    return step


def same_state(a: nn.Module, b: nn.Module) -> None:
    for (key, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
@pytest.mark.parametrize("started", [False, True])
def test_autocast_changes_neither_vectors_nor_codes(quantizer, started):
    model = make(quantizer)
    if started:
        mgqe.start_quantizing(model)
    twin, ids = copy.deepcopy(model), torch.arange(30)
    expected = twin.item(ids)
    expected.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = model.item(ids)
        loss = mgqe.quantization_loss(model)
        assert model(ids).dtype == torch.bfloat16  # the dense layers
        assert model.item.weight.dtype == torch.float32
    vectors.sum().backward()
    assert vectors.dtype == torch.float32
    assert loss.dtype == torch.float32
    assert torch.equal(vectors, expected)
    assert torch.equal(model.item.raw_weight.grad, twin.item.raw_weight.grad)
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = model.item.freeze()
        assert torch.equal(model.item(ids), table.lookup(ids))


def test_autocast_over_pure_torch_operations():
    """As on a GPU, where distances are a matrix product, which autocast would round to 8 bits."""
    code = (
        "import torch, mgqe\n"
        "layer = mgqe.DPQEmbedding.from_pretrained(torch.randn(500, 8), num_centroids=32, num_subspaces=2)\n"
        "ids = torch.arange(500)\n"
        "with torch.autocast('cpu', dtype=torch.bfloat16):\n"
        "    layer(ids)\n"
        "    got = layer(ids)\n"
        "assert torch.equal(got, layer.eval()(ids))\n"
        "with torch.autocast('cpu', dtype=torch.bfloat16):\n"
        "    assert torch.equal(layer.freeze().to_dense(), got)\n"
    )
    environment = {"MGQE_NATIVE": "0", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_model_trains_under_autocast():
    model = make(warmup_steps=4)

    def step(ids: torch.Tensor) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(ids), ids) + mgqe.quantization_loss(model)
        loss.backward()
        return loss.item()

    losses = losses_of(model, step, 40)
    assert model.item.quantizing
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
@pytest.mark.parametrize("warmup_steps", [0, 5, 1000])
def test_gradient_checkpointing_changes_nothing(quantizer, warmup_steps):
    # SX has batch statistics: a tier with one row in a batch takes the running ones, which have moved on by then.
    model = make(quantizer, warmup_steps=warmup_steps, fractions=(0.5, 0.5))
    twin = copy.deepcopy(model)

    def step(ids: torch.Tensor) -> float:
        logits = checkpoint(twin, ids, use_reentrant=False)
        loss = nn.functional.cross_entropy(logits, ids) + mgqe.quantization_loss(twin)
        loss.backward()
        return loss.item()

    torch.manual_seed(1)
    expected = losses_of(model, plain(model))
    torch.manual_seed(1)
    assert losses_of(twin, step) == pytest.approx(expected, rel=1e-5)
    same_state(model, twin)


def test_reentrant_checkpointing_is_warned_of():
    model = make(init="from_weight")
    hidden = torch.zeros(1, requires_grad=True)
    out = checkpoint(lambda h: model(torch.arange(4)) + h, hidden, use_reentrant=True)
    with pytest.warns(UserWarning, match="MGQEmbedding of 400 x 8 is inside a reentrant checkpoint"):
        out.sum().backward()


@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_gradient_accumulation(warmup_steps):
    """Two halves of a batch give the gradient of the whole; the losses of the first half are not counted again."""
    model = make(warmup_steps=warmup_steps)
    model.out = nn.Linear(DIM, N, bias=False)  # an output over all rows would see them twice
    if not warmup_steps:
        mgqe.start_quantizing(model)
    twin = copy.deepcopy(model)
    ids = torch.arange(32)
    (nn.functional.cross_entropy(model(ids), ids) + mgqe.quantization_loss(model)).backward()
    for half in ids.chunk(2):
        loss = nn.functional.cross_entropy(twin(half), half) + mgqe.quantization_loss(twin)
        (loss / 2).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)

    def step(ids: torch.Tensor) -> float:
        total = 0.0
        for half in ids.chunk(2):
            loss = nn.functional.cross_entropy(twin(half), half) + mgqe.quantization_loss(twin)
            (loss / 2).backward()
            total += loss.item() / 2
        return total

    losses = losses_of(twin, step, 60)
    assert twin.item.quantizing
    assert losses[-1] < 0.85 * losses[0]


# ---- several processes ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize(
    "mode", ["warm-up", "from_weight", "by hand", "revive", "sx", "find_unused", "budget", "gpu", "gpu sx"]
)
def test_two_processes_hold_the_same_codebooks_and_codes(mode, tmp_path):
    first, second = two_processes(mode, tmp_path)
    assert first.keys() == second.keys()
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key
    assert all(torch.equal(a, b) for a, b in zip(first["codes"], second["codes"], strict=True))
    assert first["losses"] != second["losses"]  # each on its own data
    assert sum(first["losses"][-10:]) < sum(first["losses"][:10])
    if mode == "revive":
        assert first["unused"] < 1.3  # of two tiers
        assert min(first["usage"]) > 0.6


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_sparse_gradients_between_processes_are_refused(tmp_path):
    for result in two_processes("sparse", tmp_path):
        assert result["error"].startswith("item: sparse=True does not go with DistributedDataParallel")


# ---- other people's loops ------------------------------------------------------------------------------------


def test_an_accelerate_loop(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, project_dir=tmp_path)
    model = make(warmup_steps=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    loader = torch.utils.data.DataLoader(torch.arange(N).repeat(3), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for ids in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(ids), ids) + mgqe.quantization_loss(model)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    bare = accelerator.unwrap_model(model).eval()
    expected = bare(torch.arange(5))
    mgqe.freeze_(bare)
    torch.testing.assert_close(bare(torch.arange(5)), expected)


def test_a_lightning_loop(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = make(warmup_steps=10)

        def training_step(self, ids, index):
            return nn.functional.cross_entropy(self.model(ids), ids) + mgqe.quantization_loss(self)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    module = Module()
    loader = torch.utils.data.DataLoader(torch.arange(N).repeat(3), batch_size=32, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        precision="bf16-mixed",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader)
    assert module.model.item.quantizing
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Module()
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"])
    assert torch.equal(again.eval().model(torch.arange(5)), module.eval().model(torch.arange(5)))
    mgqe.freeze_(again)
