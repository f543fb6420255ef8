"""What a training module keeps: checkpoints, devices, dtypes, copies, and what must be refused."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from mgqe import DPQEmbedding, MGQEmbedding, quantization_loss, start_quantizing

N, DIM = 200, 16
COUNTS = torch.arange(N) * 7 % 101
ALL = torch.arange(N)
QUANTIZERS = [
    {"num_centroids": (16, 64)},
    {"num_centroids": None},  # planned on its rows
    {"quantizer": "sx", "num_centroids": (16, 8)},
    {"padding_idx": 3, "centroid_dtype": "int8"},
]

each_quantizer = pytest.mark.parametrize("arguments", QUANTIZERS, ids=["vq", "default", "sx", "padding, int8"])


def trained(steps: int = 5, **arguments) -> MGQEmbedding:
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, **{"counts": COUNTS, "num_centroids": (16, 64), "warmup_steps": 0, **arguments})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        (layer(torch.arange(20) + step).square().mean() + quantization_loss(layer)).backward()
        optimizer.step()
    return layer


def vectors(layer: nn.Module) -> torch.Tensor:
    training = layer.training
    made = layer.eval()(ALL)
    layer.train(training)
    return made


def test_state_dict_keys_stay():
    """A rename would make every checkpoint unreadable."""
    assert sorted(trained().state_dict()) == sorted(
        ["weight", "steps", "started", "tier_sizes", "tier_of", "quantizer.codebooks.0"]
    )
    separate = trained(quantizer="sx", share_codebook=False, num_centroids=(8, 8)).state_dict()
    names = [f"quantizer.{part}.{g}" for part in ("keys", "values_") for g in (0, 1)]
    names += [f"quantizer.{part}_{g}" for part in ("mean", "variance") for g in (0, 1)]
    assert sorted(separate) == sorted(["weight", "steps", "started", "tier_sizes", "tier_of", *names])


def test_checkpoint_holds_plain_tensors_alone():
    layer, buffer = trained(), io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = MGQEmbedding(N, DIM, counts=COUNTS)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.quantizing
    assert torch.equal(vectors(other), vectors(layer))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({"tiers": [50, 150]}, r"emb: the checkpoint has tiers of \(20, 180\) ids, this layer of \(50, 150\)"),
        ({"counts": COUNTS.flip(0)}, r"other ids in its tiers.*from_assignment\(state_dict\['emb.tier_of'\]\)"),
        ({"tiers": [20, 180]}, "other ids in its tiers"),
    ],
)
def test_a_checkpoint_of_other_tiers_is_refused(tiers, message, strict):
    saved = nn.ModuleDict({"emb": trained()}).state_dict()
    model = nn.ModuleDict({"emb": MGQEmbedding(N, DIM, num_centroids=(16, 64), **tiers)})
    before = model["emb"].weight.clone()
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(saved, strict=strict)
    assert torch.equal(model["emb"].weight, before)
    assert not model["emb"].quantizing


def test_the_refusal_names_a_way_that_works():
    from mgqe import Tiers

    saved = trained().state_dict()
    layer = MGQEmbedding(N, DIM, tiers=Tiers.from_assignment(saved["tier_of"]))
    layer.load_state_dict(saved)
    assert torch.equal(vectors(layer), vectors(trained()))


def test_rows_of_a_full_table_load_into_a_warm_up():
    rows = nn.Embedding(N, DIM)
    layer = MGQEmbedding(N, DIM, counts=COUNTS)
    missing = layer.load_state_dict(rows.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert not layer.quantizing
    assert torch.equal(layer(ALL), rows.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(rows.state_dict())


@pytest.mark.parametrize("stop", [3, 6, 8], ids=["in the warm-up", "at its end", "after it"])
@each_quantizer
def test_resumed_training_is_the_same(arguments, stop):
    """Stopped at any moment and resumed from a checkpoint: the same bits."""

    def run(layer, optimizer, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            ids = torch.randint(N, (32,))
            optimizer.zero_grad()
            (layer(ids).square().mean() + quantization_loss(layer)).backward()
            optimizer.step()

    def make():
        layer = trained(0, warmup_steps=6, **arguments)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.01)

    whole, optimizer = make()
    run(whole, optimizer, 0, 12)
    first, optimizer = make()
    run(first, optimizer, 0, stop)
    second, resumed = make()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    run(second, resumed, stop, 12)
    assert int(second.steps) == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@each_quantizer
def test_meta_device_and_deferred_start(arguments):
    source = trained(**arguments)
    with torch.device("meta"):
        layer = MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=0, **arguments)
    assert layer.weight.is_meta
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert torch.equal(vectors(layer), vectors(source))
    assigned = MGQEmbedding(N, DIM, counts=COUNTS, device="meta", **arguments)
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert assigned.quantizing
    assert torch.equal(vectors(assigned), vectors(source))
    fresh = MGQEmbedding(N, DIM, counts=COUNTS, device="meta", warmup_steps=1, **arguments).to_empty(device="cpu")
    fresh.reset_parameters()
    assert not fresh.quantizing
    assert abs(float(fresh.weight.detach().std()) - 1) < 0.1
    assert fresh.padding_idx is None or not fresh.weight[fresh.padding_idx].any()
    for _ in range(2):
        fresh(ALL).sum().backward()
    assert torch.equal(fresh.eval()(ALL), fresh.freeze().to_dense())


def test_to_meta_and_back_to_a_start():
    layer = trained().to("meta")
    assert "tiers" in repr(layer)
    layer.to_empty(device="cpu").reset_parameters()
    assert not layer.quantizing


@each_quantizer
def test_any_default_device(arguments):
    """Layers and tables on the CPU work where torch makes tensors elsewhere by default; `meta` stands in for a GPU."""
    with torch.device("meta"):
        layer = MGQEmbedding(N, DIM, counts=COUNTS, device="cpu", warmup_steps=0, **arguments)
        ids = torch.arange(N, device="cpu")
        (layer(ids).sum() + quantization_loss(layer)).backward()
        layer.revive()
        table = layer.freeze()
        rows = table.lookup(ids)
        assert layer.codebook_stats()[0].used > 1
        assert table.tiers == layer.tiers
        assert rows.device.type == "cpu"
        assert torch.equal(layer.eval()(ids), rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@each_quantizer
def test_conversion_in_the_middle_of_training(arguments, dtype):
    layer = trained(**arguments).to(dtype)
    for step in range(3):
        out = layer(torch.arange(20) + step)
        assert out.dtype == dtype
        (out.square().mean() + quantization_loss(layer)).backward()
    layer.eval()
    assert torch.equal(layer(ALL), layer.freeze().to_dense().to(dtype))


@pytest.mark.parametrize("sparse", [False, True])
@each_quantizer
def test_tables_in_double_precision(arguments, sparse):
    layer = trained(0, dtype=torch.float64, sparse=sparse, scale_grad_by_freq=True, **arguments)
    out = layer(torch.tensor([5, 5, 9]))
    assert out.dtype == torch.float64
    out.sum().backward()
    assert layer.raw_weight.grad.dtype == torch.float64
    row = layer.raw_weight.grad.to_dense()[5]
    assert row.any() if "quantizer" in arguments else torch.equal(row, torch.ones_like(row))  # divided by its count


def test_freezing_in_inference_mode_leaves_a_layer_that_trains():
    layer = MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=0)
    with torch.inference_mode():
        table = layer.freeze()
        assert torch.equal(layer.eval()(ALL), table.to_dense())
    (layer.train()(ALL).sum() + quantization_loss(layer)).backward()
    assert layer.quantizer.codebooks[0].grad.abs().sum() > 0


def test_from_pretrained_leaves_the_rows_it_was_given_alone():
    rows = torch.randn(N, DIM)
    before = rows.clone()
    layer = DPQEmbedding.from_pretrained(rows, num_centroids=8)
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(rows, before)
    with pytest.raises(TypeError, match=r"floating-point type, got torch\.int64"):
        DPQEmbedding.from_pretrained(torch.ones(N, DIM, dtype=torch.int64))


def test_steps_count_in_buffers_that_other_code_may_write():
    model = nn.Sequential(MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=5))
    start_quantizing(model)
    clone = nn.Sequential(MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=5))
    for mine, theirs in zip(clone.state_dict().values(), model.state_dict().values(), strict=True):
        mine.copy_(theirs)  # as a broadcast between processes does
    assert clone[0].quantizing
