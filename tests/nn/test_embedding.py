"""The training modules: warm-up, start, losses, revival, freezing. What all embeddings share is in contract.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mgqe
from mgqe import DPQEmbedding, MGQEmbedding, MGQEmbeddingBag, Tiers, quantization_loss, start_quantizing

N, DIM = 200, 16
COUNTS = torch.arange(N) * 7 % 101

LAYOUTS = {
    "defaults": {},
    "one centroid short of a power of two": {"num_centroids": (19, 7)},
    "subspaces": {"capacity": "subspaces", "num_subspaces": (8, 4), "num_centroids": 8},
    "separate codebooks": {"share_codebook": False, "num_centroids": (16, 8)},
    "separate codebooks, subspaces": {
        "capacity": "subspaces",
        "share_codebook": False,
        "num_subspaces": (8, 2),
        "num_centroids": 8,
    },
    "one codebook for all subspaces": {"share_subspaces": True, "num_centroids": (64, 16)},
    "three tiers": {"fractions": (0.1, 0.3, 0.6), "num_centroids": (16, 8, 4)},
    "float16": {"centroid_dtype": "float16"},
    "int8": {"centroid_dtype": "int8"},
    "sx": {"quantizer": "sx", "num_centroids": (16, 8)},
    "sx, subspaces": {"quantizer": "sx", "capacity": "subspaces", "num_subspaces": (8, 4), "num_centroids": 8},
    "padding": {"padding_idx": 5},
    "wide subspaces": {"num_subspaces": 1},
}


def train(layer: nn.Module, steps: int, learning_rate: float = 0.02) -> list[float]:
    """Pull vectors towards targets, one of 12 for each id; the losses."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(12, DIM, generator=generator).repeat(N, 1)[:N]
    optimizer = torch.optim.Adam(layer.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        ids = torch.randint(N, (64,), generator=generator)
        loss = (layer(ids) - targets[ids]).square().mean()
        optimizer.zero_grad()
        (loss + quantization_loss(layer)).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("arguments", LAYOUTS.values(), ids=LAYOUTS)
def test_eval_forward_is_the_frozen_look_up_bit_for_bit(arguments, tmp_path):
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=3, **arguments)
    train(layer, 10)
    layer.eval()
    table = layer.freeze()
    ids = torch.arange(N)
    rows = table.lookup(ids)
    assert torch.equal(layer(ids), rows)
    with torch.no_grad():
        assert torch.equal(layer(ids), rows)
        assert torch.equal(layer(ids[7:8]), rows[7:8])  # whatever else is in the batch
    mgqe.save(table, tmp_path / "t.safetensors")
    assert torch.equal(mgqe.load(tmp_path / "t.safetensors").lookup(ids), rows)
    assert table.nbytes < N * DIM * 4


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_training_through_the_codes_lowers_the_loss(quantizer):
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, counts=COUNTS, num_centroids=(16, 16), quantizer=quantizer, warmup_steps=20)
    losses = train(layer, 300)
    assert layer.quantizing
    assert sum(losses[-10:]) < 0.5 * sum(losses[20:30])


def test_warm_up_counts_training_passes_and_survives_a_checkpoint():
    layer = MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=5)
    ids = torch.arange(10)
    layer.train()
    for _ in range(3):
        assert torch.equal(layer(ids), layer.weight[ids])  # rows as they are
    layer.eval()
    layer(ids)
    layer.train()
    with torch.no_grad():
        layer(ids)  # neither evaluation nor a pass without gradients counts
    assert int(layer.steps) == 3
    resumed = MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=5)
    resumed.load_state_dict(layer.state_dict())
    for _ in range(2):
        assert not resumed.quantizing
        resumed(ids)
    assert not resumed.quantizing
    resumed(ids)
    assert resumed.quantizing


def test_start_quantizing_ends_every_warm_up_once():
    model = nn.ModuleDict({"a": DPQEmbedding(N, DIM, num_centroids=8), "b": nn.Embedding(3, 4)})
    model["c"] = MGQEmbedding(N, DIM, counts=COUNTS)
    assert start_quantizing(model) == 2
    assert model["a"].quantizing
    codebook = model["a"].quantizer.codebooks[0].clone()
    assert start_quantizing(model) == 0
    assert torch.equal(model["a"].quantizer.codebooks[0], codebook)


def test_freezing_in_the_warm_up_is_post_training_quantisation():
    torch.manual_seed(0)
    layer = DPQEmbedding(N, DIM, num_subspaces=8, num_centroids=128)
    table = layer.freeze()
    error = (table.to_dense() - layer.raw_weight).square().mean() / layer.raw_weight.var()
    assert error < 0.02  # 3.5 bits a dimension
    assert layer.quantizing


def test_start_follows_the_seed_alone():
    books = []
    for _ in range(2):
        torch.manual_seed(3)
        layer = MGQEmbedding(N, DIM, counts=COUNTS)
        layer.start_quantizing()
        books.append(layer.quantizer.codebooks[0].detach())
    assert torch.equal(*books)


def test_quantization_loss_is_that_of_the_last_pass():
    layer = DPQEmbedding(N, DIM, num_centroids=4, warmup_steps=0, commitment=0.5)
    ids = torch.tensor([1, 1, 2])
    out = layer(ids)
    error = (layer.raw_weight[ids] - out).square().mean().item()
    assert quantization_loss(layer).item() == pytest.approx(1.5 * error, rel=1e-5)
    assert quantization_loss(layer).item() == pytest.approx(1.5 * error, rel=1e-5)  # reading does not spend it
    layer(ids)
    layer(ids)  # two calls in one pass add up
    assert quantization_loss(layer).item() == pytest.approx(3 * error, rel=1e-5)
    quantization_loss(layer).backward()
    assert layer.raw_weight.grad[1].abs().sum() > 0
    assert layer.raw_weight.grad[3].abs().sum() == 0


def test_quantization_loss_of_a_model_without_such_layers_is_zero():
    assert quantization_loss(nn.Linear(2, 2)).item() == 0.0


def test_duplicates_are_quantised_once(monkeypatch):
    layer = DPQEmbedding(N, DIM, num_centroids=4, warmup_steps=0)
    layer(torch.arange(3))
    seen = []
    codes = layer.quantizer.codes
    monkeypatch.setattr(layer.quantizer, "codes", lambda rows, tier: seen.append(len(rows)) or codes(rows, tier))
    layer(torch.tensor([[7, 7, 9], [9, 7, 7]]))
    assert seen == [2]


def test_dead_centroids_come_back():
    torch.manual_seed(0)
    layer = DPQEmbedding(N, DIM, num_subspaces=4, num_centroids=16, warmup_steps=0)
    layer(torch.arange(N))
    with torch.no_grad():
        layer.quantizer.codebooks[0][:, 4:] = 100.0  # 12 of 16 centroids that no row will choose
    assert layer.codebook_stats()[0].used == 4
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    for _ in range(101):  # one look for dead centroids every 100 passes
        layer(torch.arange(3)).sum().backward()
        optimizer.step()
    assert layer.codebook_stats()[0].usage > 0.9


@pytest.mark.slow
def test_codebooks_of_a_large_vocabulary_are_in_use():
    """100,000 rows, d = 64, D = 8, K = 256 and default settings: over 95% of what a tier can reach."""
    torch.manual_seed(0)
    rows = 100_000
    counts = (1e6 / torch.arange(1, rows + 1)).long()
    layer = MGQEmbedding(rows, 64, counts=counts, num_subspaces=8, num_centroids=256)
    targets = torch.randn(rows, 64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for step in range(300):
        if step == 100:
            start_quantizing(layer)
        ids = (rows ** torch.rand(4096)).long() - 1
        loss = (layer(ids.clamp(0, rows - 1)) - targets[ids]).square().mean() + quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for stats in layer.codebook_stats():
        assert stats.usage > 0.95, stats


def test_sparse_adam_takes_the_whole_layer():
    layer = MGQEmbedding(N, DIM, sparse=True, counts=COUNTS, warmup_steps=2)
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.1)
    before = layer.raw_weight.detach().clone()
    for _ in range(4):
        (layer(torch.tensor([3, 4, 3])).square().mean() + quantization_loss(layer)).backward()
        assert layer.raw_weight.grad.is_sparse
        optimizer.step()
        optimizer.zero_grad()
    changed = (layer.raw_weight.detach() != before).any(1).nonzero().squeeze(-1)
    assert changed.tolist() == [3, 4]


def test_deepcopy_after_a_training_pass():
    layer = DPQEmbedding(N, DIM, num_centroids=4, warmup_steps=0)
    layer(torch.arange(3))
    twin = copy.deepcopy(layer).eval()
    assert torch.equal(twin(torch.arange(N)), layer.eval()(torch.arange(N)))


def test_never_seen_ids_have_defined_codes():
    layer = MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(20):
        (layer(torch.arange(20)).square().mean() + quantization_loss(layer)).backward()
        optimizer.step()
        optimizer.zero_grad()
    unseen = layer.freeze().lookup(torch.arange(100, N))
    rows = layer.weight.detach()[100:]
    assert unseen.isfinite().all()
    assert (unseen - rows).square().mean() < rows.square().mean()


def test_from_pretrained_starts_from_the_rows():
    rows = torch.randn(N, DIM)
    layer = DPQEmbedding.from_pretrained(rows, num_subspaces=8, num_centroids=64)
    assert torch.equal(layer.weight, rows)
    assert layer.weight.requires_grad
    assert layer.freeze().lookup(torch.arange(N)).sub(rows).square().mean() < 0.1
    assert not MGQEmbedding.from_pretrained(rows, freeze=True, counts=COUNTS).raw_weight.requires_grad


def test_nan_rows_give_nan_in_training_and_an_error_when_frozen():
    layer = DPQEmbedding(N, DIM, num_centroids=4, warmup_steps=0)
    layer(torch.arange(3))
    with torch.no_grad():
        layer.raw_weight[17, 2] = float("nan")
    assert layer(torch.tensor([17])).isnan().any()
    with pytest.raises(ValueError, match="row 17 of the embedding weight holds NaN"):
        layer.freeze()


def test_zero_rows_and_empty_batches():
    layer = DPQEmbedding(0, DIM, num_centroids=2, warmup_steps=0)
    assert layer(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3, DIM)
    assert layer.freeze().lookup(torch.empty(0, dtype=torch.int64)).shape == (0, DIM)
    with pytest.raises(IndexError):
        layer(torch.tensor([0]))


def test_codebook_stats_before_there_are_codes():
    with pytest.raises(RuntimeError, match="still in its warm-up"):
        DPQEmbedding(N, DIM, num_centroids=4).codebook_stats()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs to know which ids are frequent"),
        ({"counts": COUNTS, "tiers": [N]}, "not both"),
        ({"counts": COUNTS[:-1]}, "199|200"),
        ({"counts": -COUNTS - 1}, "negative"),
        ({"counts": torch.zeros(N)}, "zero"),
        ({"tiers": [10, 10]}, "tiers hold 20 ids, but num_embeddings is 200"),
        ({"counts": COUNTS, "quantizer": "pq"}, "quantizer must be"),
        ({"counts": COUNTS, "centroid_dtype": "int4"}, "centroid_dtype must be one of"),
        ({"counts": COUNTS, "warmup_steps": -1}, "warmup_steps"),
        ({"counts": COUNTS, "commitment": -1.0}, "commitment"),
        ({"counts": COUNTS, "padding_idx": N}, "padding_idx=200 is outside"),
        ({"counts": COUNTS, "_weight": torch.zeros(N, 3)}, "_weight must have shape"),
    ],
)
def test_bad_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        MGQEmbedding(N, DIM, **arguments)


def test_compiled_forward_equals_eager():
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, counts=COUNTS, num_centroids=(8, 4)).eval()
    layer.start_quantizing()
    ids = torch.tensor([[1, 5], [5, 199]])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(ids), layer(ids))
    training = torch.compile(layer.train(), backend="aot_eager")
    out = training(ids)
    assert torch.equal(out, layer(ids))
    out.sum().backward()
    assert layer.raw_weight.grad[5].tolist() == [2.0] * DIM


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_bag_equals_embedding_bag_over_the_decoded_rows(mode, padding_idx):
    torch.manual_seed(0)
    layer = MGQEmbeddingBag(N, DIM, mode=mode, padding_idx=padding_idx, counts=COUNTS, warmup_steps=0)
    layer.start_quantizing()
    dense = layer.freeze().to_dense()
    ids, offsets = torch.tensor([4, 9, 9, 4, 180, 4]), torch.tensor([0, 3, 3, 5])  # the second bag is empty
    expected = nn.functional.embedding_bag(ids, dense, offsets, mode=mode, padding_idx=padding_idx)
    assert torch.allclose(layer(ids, offsets), expected)
    assert torch.equal(layer.eval()(ids, offsets), layer.train()(ids, offsets))
    square = ids.view(3, 2)
    expected = nn.functional.embedding_bag(square, dense, mode=mode, padding_idx=padding_idx)
    assert torch.allclose(layer(square), expected)


def test_bag_weights_and_errors():
    layer = MGQEmbeddingBag(N, DIM, mode="sum", tiers=Tiers.from_fractions(N, (0.1, 0.9)), warmup_steps=0)
    layer.start_quantizing()
    weights = torch.tensor([[0.5, 2.0]])
    expected = (layer.freeze().lookup(torch.tensor([3, 4])) * weights.T).sum(0, keepdim=True)
    assert torch.allclose(layer(torch.tensor([[3, 4]]), per_sample_weights=weights), expected)
    with pytest.raises(ValueError, match="offsets must be None"):
        layer(torch.tensor([[3, 4]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        layer(torch.zeros(1, 1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="mode"):
        MGQEmbeddingBag(N, DIM, mode="min", counts=COUNTS)
    with pytest.raises(TypeError, match="takes no counts"):
        mgqe.DPQEmbeddingBag(N, DIM, counts=COUNTS)


@pytest.mark.parametrize("quantizer", ["vq", "sx"])
def test_two_calls_a_step_and_a_loss_read_now_and_then(quantizer):
    torch.manual_seed(0)
    layer = MGQEmbedding(N, DIM, counts=COUNTS, num_centroids=(16, 8), quantizer=quantizer, warmup_steps=0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for step in range(120):  # 240 passes: revival falls on a second call
        loss = layer(torch.arange(5)).square().mean() + layer(torch.arange(5, 10)).square().mean()
        if step % 3 == 0:
            loss = loss + quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(layer.losses) <= 2


def test_an_averaged_copy_quantises_when_its_model_does():
    layer = DPQEmbedding(N, DIM, num_centroids=8, warmup_steps=1)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    for _ in range(3):
        layer(torch.arange(9)).sum().backward()
        averaged.update_parameters(layer)
    assert layer.quantizing
    assert averaged.module.quantizing


def test_a_padding_row_of_nan_does_not_matter():
    layer = DPQEmbedding(N, DIM, num_centroids=8, padding_idx=3)
    with torch.no_grad():
        layer.raw_weight[3] = float("nan")
    assert layer.freeze().lookup(torch.tensor([3])).abs().sum() == 0


def test_ids_that_are_no_tensor_are_said():
    for warmup_steps in (0, 5):
        with pytest.raises(TypeError, match=r"torch.Tensor of integers"):
            DPQEmbedding(N, DIM, num_centroids=8, warmup_steps=warmup_steps)([1, 2])
