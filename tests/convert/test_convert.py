"""compress_ and freeze_ on models that were not written for them."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from convert_models import COUNTS, DIM, LanguageModel, N, Ranker, batch, ranker
from torch import nn

import mgqe
from mgqe import CompactEmbedding, CompactEmbeddingBag, CompressConfig, MGQEmbedding, MGQEmbeddingBag

EVEN = CompressConfig(num_centroids=(256, 64))


def test_swaps_in_place_and_says_what_and_why():
    torch.manual_seed(0)
    model = Ranker()
    before = model(*batch())
    state = copy.deepcopy(model.state_dict())
    report = mgqe.compress_(model, EVEN, counts={"encoder.item": COUNTS})
    assert report.compressed == ("user", "encoder.item", "tags")
    assert [type(m) for m in (model.user, model.encoder["item"], model.tags)] == [
        MGQEmbedding,
        MGQEmbedding,
        MGQEmbeddingBag,
    ]
    assert type(model.weekday) is nn.Embedding
    assert model.encoder["item"].tiers == mgqe.Tiers.from_counts(COUNTS)
    assert model.user.tiers.sizes == (N,)
    assert model.encoder["item"].padding_idx == 0
    assert model.tags.mode == "sum"
    assert torch.equal(model(*batch()), before)  # the warm-up: rows as they are
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())  # under the same names
    text = str(report).splitlines()
    assert text[0].split() == ["table", "rows", "x", "dim", "bytes", "frozen", "look-up*"]
    assert text.pop() == "* share of nn.Embedding's time, estimated"
    assert "(one tier: no counts)" in text[1]
    assert "200 ids x 8 of 128; 1,800 ids x 8 of 64" in text[2]
    assert text[4].startswith("weekday")
    assert "left: codes and centroids would take no fewer bytes" in text[4]
    assert text[5].startswith("3 of 4 compressed")
    assert report.bytes_after < report.bytes_before


@pytest.mark.parametrize("centroid_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("options", [{}, {"num_centroids": (50, 7)}, {"share_codebook": False}])
def test_bytes_are_predicted_exactly(tmp_path, centroid_dtype, options):
    config = CompressConfig(centroid_dtype=centroid_dtype, **options)
    model = Ranker()
    counts = dict.fromkeys(("user", "encoder.item", "tags"), COUNTS)
    report = mgqe.compress_(model, config, counts=counts, init="from_weight")
    tables = mgqe.freeze_(model)
    for row in report.rows:
        if row.compressed:
            assert mgqe.save(tables[row.path], tmp_path / "table") == row.bytes_after
    assert sum(row.compressed for row in report.rows) == 3


def test_rules_by_name():
    rules = {"user": None, "*.item": {"num_centroids": 32, "centroid_dtype": "int8"}}
    model = Ranker()
    report = mgqe.compress_(model, CompressConfig(num_centroids=16, rules=rules))
    assert report.compressed == ("encoder.item", "tags")
    assert report.rows[0].why == "left: rule 'user'"
    assert model.encoder["item"].capacity.num_centroids == (32,)
    assert model.encoder["item"].centroid_dtype == "int8"
    assert model.tags.capacity.num_centroids == (16,)


def test_a_filter():
    model = Ranker()
    report = mgqe.compress_(model, filter_fn=lambda module, path: isinstance(module, nn.EmbeddingBag))
    assert report.compressed == ("tags",)
    assert report.rows[0].why == "left: filter_fn"


def test_centroids_are_cut_to_what_a_tier_can_use():
    model = nn.Sequential(nn.Embedding(1000, DIM))
    mgqe.compress_(model, CompressConfig(num_centroids=(256, 64), centroid_dtype="int8"), counts={"0": COUNTS[:1000]})
    assert model[0].capacity.num_centroids == (64, 64)  # a head of 100 ids
    model = nn.Sequential(nn.Embedding(1000, DIM))
    config = CompressConfig(num_centroids=256, capacity="subspaces", num_subspaces=(8, 4), centroid_dtype="int8")
    mgqe.compress_(model, config, counts={"0": COUNTS[:1000]})
    assert model[0].capacity.num_centroids == (64, 64)


def test_from_weight_starts_at_once():
    model = ranker(config=EVEN, init="from_weight", counts={"user": COUNTS})
    assert model.user.quantizing
    error = (model.user.weight - model.user.raw_weight).square().mean() / model.user.raw_weight.var()
    assert error < 0.1
    model.eval()
    expected = model(*batch())
    tables = mgqe.freeze_(model)
    assert torch.equal(model(*batch()), expected)
    assert tables["encoder.item"] is model.encoder["item"].table
    assert [type(m) for m in (model.user, model.tags)] == [CompactEmbedding, CompactEmbeddingBag]
    assert sum(p.numel() for p in model.parameters()) == 7 * DIM + DIM + 1


def test_training_and_freezing():
    model = ranker(config=EVEN, init="from_weight")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(*batch()), torch.linspace(-1, 1, 32))
        optimizer.zero_grad()
        (loss + mgqe.quantization_loss(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    expected = model(*batch())
    mgqe.freeze_(model)
    assert torch.equal(model(*batch()), expected)


def test_one_module_at_two_paths_stays_one():
    model = nn.ModuleDict({"a": nn.Embedding(N, DIM), "wrapped": nn.Sequential()})
    model["wrapped"].append(model["a"])
    report = mgqe.compress_(model, EVEN, counts={"wrapped.0": COUNTS})
    assert model["a"] is model["wrapped"][0]
    assert model["a"].tiers.num_tiers == 2
    assert report.rows[0].also == ("wrapped.0",)
    tables = mgqe.freeze_(model)
    assert model["a"] is model["wrapped"][0]
    assert tables["a"] is tables["wrapped.0"]


def test_modules_that_share_a_weight_become_one():
    model = nn.ModuleDict({"encoder": nn.Embedding(N, DIM), "decoder": nn.Embedding(N, DIM)})
    model["decoder"].weight = model["encoder"].weight
    mgqe.compress_(model)
    assert model["encoder"] is model["decoder"]
    other = nn.ModuleDict({"encoder": nn.Embedding(N, DIM), "decoder": nn.Embedding(N, DIM, padding_idx=1)})
    other["decoder"].weight = other["encoder"].weight
    with pytest.warns(UserWarning, match="encoder: left: modules that share its weight differ"):
        mgqe.compress_(other)


@pytest.mark.parametrize("init", ["warmup", "from_weight"])
def test_tied_weights_stay_tied(init):
    torch.manual_seed(0)
    model, ids = LanguageModel(), torch.arange(40).view(2, 20)
    keys = list(model.state_dict())
    raw = model.embed.weight
    report = mgqe.compress_(model, init=init)
    assert "output layer" not in str(report)
    assert set(keys) < set(model.state_dict())
    assert isinstance(model.lm_head, nn.Linear)
    assert model.embed.raw_weight is raw
    assert sum(p is raw for p in model.parameters()) == 1
    tied, untied = model(ids)
    assert torch.equal(tied, untied)
    assert torch.equal(tied, F.linear(model.embed(ids).tanh(), model.embed.weight))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        tied, untied = model(ids)
        loss = F.cross_entropy(tied.flatten(0, 1), (ids + 1).flatten()) + untied.square().mean()
        optimizer.zero_grad()
        (loss + mgqe.quantization_loss(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    mgqe.start_quantizing(model)
    model.eval()
    expected = model(ids)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(made.lm_head, nn.Linear)
        assert all(torch.equal(a, b) for a, b in zip(made(ids), expected, strict=True))
        assert made.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()
        with torch.no_grad():
            made.embed.raw_weight.zero_()
        assert not torch.equal(made(ids)[0], expected[0])
    mgqe.freeze_(model)
    assert all(torch.equal(a, b) for a, b in zip(model(ids), expected, strict=True))
    assert list(model.parameters()) == []
    assert not any(key.startswith("lm_head") for key in model.state_dict())


def test_a_tied_model_compiles_and_moves():
    torch._dynamo.reset()
    model = LanguageModel().eval()
    mgqe.compress_(model, init="from_weight")
    ids = torch.arange(6).view(2, 3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids)[0], model(ids)[0])
    half = model.to(torch.bfloat16)
    assert half(ids)[0].dtype == torch.bfloat16


def test_a_parameter_of_the_model_itself_may_be_tied():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.item = nn.Embedding(N, DIM)
            self.out = self.item.weight

        def forward(self, ids):
            return self.item(ids) @ self.out.T

    model = Owner()
    mgqe.compress_(model, init="from_weight")
    assert isinstance(model, Owner)
    model.eval()
    assert torch.equal(model.out, model.item.weight)
    expected = model(torch.arange(3))
    mgqe.freeze_(model)
    assert torch.equal(model(torch.arange(3)), expected)


def test_a_padding_row_that_is_not_zero_is_kept():
    """Initialisers that fill the whole weight fill that row too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(N, DIM, padding_idx=0))
    nn.init.normal_(model[0].weight)
    row = model[0].weight[0].detach().clone()
    mgqe.compress_(model, CompressConfig(num_centroids=256), init="from_weight")
    ids = torch.tensor([0, 0, 5])
    vectors = model(ids)
    assert (vectors[0] - row).square().mean() < 0.1 * row.square().mean()
    (vectors.sum() + mgqe.quantization_loss(model)).backward()
    assert not model[0].raw_weight.grad[0].any()
    model.eval()
    expected = model(ids)
    mgqe.freeze_(model)
    assert torch.equal(model(ids), expected)
    assert model[0].padding_idx == 0


def test_max_norm_sparse_and_dtype_are_kept():
    options = {"max_norm": 0.5, "norm_type": 1.0, "sparse": True}
    model = nn.Sequential(nn.Embedding(N, DIM, dtype=torch.bfloat16, **options)).eval()
    twin = copy.deepcopy(model)
    ids = torch.arange(50)
    mgqe.compress_(model)
    assert not model.training
    assert torch.equal(model(ids), twin(ids))  # both renormalise the rows that they look up
    assert torch.equal(model[0].raw_weight, twin[0].weight)
    assert (model[0].max_norm, model[0].norm_type, model[0].sparse) == (0.5, 1.0, True)
    model.train()(ids).sum().backward()
    assert model[0].raw_weight.grad.is_sparse
    mgqe.freeze_(model)
    assert model(ids).dtype == torch.bfloat16


def test_frozen_rows_stay_frozen():
    model = nn.Sequential(nn.Embedding.from_pretrained(torch.randn(N, DIM)))
    mgqe.compress_(model, init="from_weight")
    assert not model[0].raw_weight.requires_grad


def test_hooks_move_to_the_new_layer():
    seen = []
    model = nn.Sequential(nn.Embedding(N, DIM))
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    mgqe.compress_(model, EVEN)
    model(torch.arange(3))
    handle.remove()
    model(torch.arange(3))
    assert seen == [MGQEmbedding]


def test_classes_with_a_forward_pass_of_their_own_are_left():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 4 * super().forward(ids)

    class Renamed(nn.Embedding):
        pass

    model = nn.ModuleDict({"a": Scaled(N, DIM), "b": Renamed(N, DIM), "c": nn.Embedding(N, DIM)})
    torch.nn.utils.parametrizations.weight_norm(model["c"])
    report = mgqe.compress_(model)
    assert report.compressed == ("b",)
    assert report.rows[0].why == "left: Scaled has a forward pass of its own"
    assert "no plain parameter" in report.rows[2].why


def test_existing_optimisers_keep_working():
    torch.manual_seed(0)
    model = Ranker()
    tables = [model.user.weight, model.encoder["item"].weight]
    rest = [p for p in model.parameters() if not any(p is t for t in tables)]
    optimizer = torch.optim.AdamW([{"params": tables, "lr": 0.01, "weight_decay": 0.1}, {"params": rest}], lr=0.002)
    model(*batch()).sum().backward()
    optimizer.step()
    moments = optimizer.state[tables[0]]["exp_avg"]
    mgqe.compress_(model, init="from_weight", counts={"user": COUNTS})
    assert optimizer.state[model.user.raw_weight]["exp_avg"] is moments
    assert mgqe.extend_optimizer(optimizer, model, lr=0.05) == 3
    assert mgqe.extend_optimizer(optimizer, model) == 0
    groups = optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [2, len(rest), 2, 1]
    assert [group["lr"] for group in groups] == [0.01, 0.002, 0.05, 0.05]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.01, 0.0, 0.0]
    book = model.user.quantizer.codebooks[0].detach().clone()
    optimizer.zero_grad()
    (model(*batch()).sum() + mgqe.quantization_loss(model)).backward()
    optimizer.step()
    assert not torch.equal(model.user.quantizer.codebooks[0], book)


def test_state_dict_and_device_moves_of_a_frozen_model():
    model, other = (ranker(config=EVEN, init="from_weight", counts=counts) for counts in ({"user": COUNTS}, {}))
    mgqe.compress_(fresh := Ranker(), EVEN, counts={"user": COUNTS}, init="from_weight")
    for each in (model, other, fresh):
        mgqe.freeze_(each)
    keys = [key for key in model.state_dict() if key.startswith("user")]
    names = ["codes_0", "codes_1", "centroids_0", "tier_map_bits_0", "tier_map_ranks_0"]
    assert sorted(keys) == sorted(f"user.{name}" for name in names)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(*batch()), model(*batch()))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*user\.codes_1"):
        other.load_state_dict(model.state_dict())
    damaged = model.state_dict()
    damaged["user.tier_map_bits_0"] = torch.zeros_like(damaged["user.tier_map_bits_0"])
    with pytest.raises(RuntimeError, match="user: not a table of this layout"):
        fresh.load_state_dict(damaged)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(*batch()), model(*batch()))
        assert copied.user._buffers["codes_0"].data_ptr() == copied.user.table.to_tensors()[0]["codes.0"].data_ptr()
    expected = model(*batch())
    model.bfloat16()
    assert model.user.table.config.centroid_dtype == "float32"
    assert model(*batch()).dtype == torch.bfloat16
    model.float()
    torch.testing.assert_close(model(*batch()), expected, rtol=0.1, atol=0.1)
    table = model.user.table
    table.append(torch.randn(3, DIM))
    assert model.user.num_embeddings == N + 3
    assert model.state_dict()["user.codes_1"].shape[0] == table.config.sizes[1]


def test_frozen_bags_are_those_of_torch():
    model = ranker(init="from_weight").eval()
    expected = model.tags(batch()[2])
    mgqe.freeze_(model)
    torch.testing.assert_close(model.tags(batch()[2]), expected)
    flat, offsets = torch.arange(10), torch.tensor([0, 3, 3])
    weights = torch.linspace(0, 1, 10)
    dense = F.embedding_bag(flat, model.tags.weight, offsets, mode="sum", per_sample_weights=weights)
    torch.testing.assert_close(model.tags(flat, offsets, weights), dense)


def test_correct_use_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ranker(init="from_weight")
        mgqe.freeze_(model)
        model(*batch())
        copy.deepcopy(model).eval()
