"""The callback in real Lightning loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mgqe

lightning = pytest.importorskip("lightning", reason="needs lightning: pip install 'mgqe[loops]'")
from lightning.pytorch.loggers import Logger  # noqa: E402

from mgqe.integrations.lightning import QuantizedTables  # noqa: E402

N, DIM = 400, 8


class Module(lightning.LightningModule):
    def __init__(self, warmup_steps: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.item, self.out = nn.Embedding(N, DIM), nn.Linear(DIM, N)
        mgqe.compress_(self, mgqe.CompressConfig(num_centroids=16, warmup_steps=warmup_steps))
        self.started: list[bool] = []

    def training_step(self, ids, index):
        loss = nn.functional.cross_entropy(self.out(self.item(ids)), ids) + mgqe.quantization_loss(self)
        self.started.append(self.item.quantizing)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Lines(Logger):
    """Keeps what it is given."""

    name, version = "lines", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, {name: value for name, value in metrics.items() if name.startswith("mgqe")}))

    def log_hyperparams(self, *args, **kwargs):
        pass


def fit(module, callback, tmp_path, **options):
    lines = Lines()
    loader = torch.utils.data.DataLoader(torch.arange(N), batch_size=40)  # 10 steps an epoch
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 2, "logger": lines, **quiet, **options}
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[callback], **options)
    trainer.fit(module, loader)
    return [line for line in lines.lines if line[1]]


@pytest.mark.parametrize(("start", "first"), [(None, 3), (0.5, 10), (0.0, 0), (1.0, 20)])
def test_it_starts_logs_and_freezes(start, first, tmp_path):
    module, callback = Module(), QuantizedTables(start, every=4)
    lines = fit(module, callback, tmp_path)
    assert module.started == [step >= first for step in range(20)]
    assert isinstance(module.item, mgqe.CompactEmbedding)
    assert callback.tables == {"item": module.item.table}
    steps = [step for step, metrics in lines if "mgqe/item/tier_0/usage" not in metrics]
    assert [step for step in steps if step not in (10, 20)] == [0, 4, 8, 12, 16]
    for step, metrics in lines:
        if step in (4, 8, 12, 16):
            assert metrics["mgqe/item/quantizing"] == float(step >= first)
            assert ("mgqe/item/quantization_loss" in metrics) == (step >= first)
    if first < 20:
        assert 0 < lines[-1][1]["mgqe/item/tier_0/usage"] <= 1


def test_training_is_the_same_with_and_without_it(tmp_path):
    weights = []
    for callback in (QuantizedTables(freeze=False, every=1), lightning.Callback()):
        module = Module()
        fit(module, callback, tmp_path)
        weights.append(module.item.raw_weight.detach())
    assert torch.equal(*weights)


def test_a_step_of_several_batches_is_logged_once(tmp_path):
    lines = fit(Module(0), QuantizedTables(every=2), tmp_path, accumulate_grad_batches=2, max_epochs=1)
    assert [step for step, metrics in lines if "mgqe/item/tier_0/usage" not in metrics] == [0, 2, 4]


def test_training_without_an_end_has_no_share(tmp_path):
    with pytest.raises(ValueError, match="give the Trainer max_epochs or max_steps"):
        fit(Module(), QuantizedTables(0.5), tmp_path, max_epochs=-1)


@pytest.mark.parametrize("start", [-0.1, 1.5])
def test_a_share_is_between_0_and_1(start):
    with pytest.raises(ValueError, match="share of all steps, 0 to 1"):
        QuantizedTables(start)
