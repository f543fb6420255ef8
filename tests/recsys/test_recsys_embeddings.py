"""Descriptions of embeddings, and what the factory makes of them."""

from __future__ import annotations

import pytest
import torch

import mgqe
from mgqe.recsys.models.embeddings import FrozenEmbedding, Spec, build
from mgqe.recsys.models.methods import METHODS

COUNTS = torch.arange(60, 0, -1)
SPECS = (
    "full",
    "full:d=4",
    "mgqe:D=4,K=4/2",
    "mgqe:D=4,K=4/2,centroids=int8,fractions=0.2/0.8",
    "dpq:D=4,K=8",
    "dpq:D=4,K=8,quantizer=sx",
    "pq:D=4,K=8",
    "scalar:bits=4",
    "lowrank:r=2",
    "hash:buckets=10,hashes=2",
    "qr:remainders=8",
    "recjpq:D=4,K=8,centroids=int8",
    "cce:columns=2,K=8,clusterings=2",
    "additive:M=3,K=8,centroids=int8,temperature=0.5",
)


@pytest.mark.parametrize("text", SPECS)
def test_build_train_freeze(text: str) -> None:
    spec = Spec.parse(text)
    assert str(Spec.parse(str(spec))) == str(spec)
    dim = spec.dim or 8
    torch.manual_seed(0)
    module = build(spec, "item", 60, dim, COUNTS, std=0.1, seed=7)
    ids = torch.arange(60)
    vectors = module(ids)
    assert vectors.shape == (60, dim)
    assert 0.05 < float(vectors.detach().std()) < 0.2
    vectors.square().sum().backward()
    assert any(parameter.grad is not None for parameter in module.parameters())
    frozen = FrozenEmbedding(module.eval().freeze())
    assert frozen(ids.view(6, 10)).shape == (6, 10, dim)


# Sizes of the files' tensors against 4 * N * d of a full table, in percent, on 5,000 ids with d = 64.
VARIANTS = {
    "mgqe:D=16,K=64/16,quantizer=sx": 3.66,
    "mgqe:D=16/8,K=64,capacity=subspaces": 2.96,
    "mgqe:D=16/8/4,K=64,capacity=subspaces,fractions=0.05/0.25/0.7": 2.04,
    "mgqe:D=16/8,K=64,capacity=subspaces,share_codebook=false": 3.28,
    "mgqe:D=16,K=64/16,share_codebook=false": 3.75,
    "mgqe:D=16,K=256/64/16,fractions=0.1/0.2/0.7": 5.11,
    "mgqe:D=16,K=32/64/16,fractions=0.01/0.09/0.9": 3.66,
    "mgqe:D=16,K=256/128/64/16,fractions=0.1/0.2/0.3/0.4": 5.77,
    "mgqe:D=16,K=256/32,share_subspaces=true": 4.28,
    "mgqe:D=16,K=256/64/16,fractions=0.01/0.09/0.9,share_subspaces=true": 3.44,
    "recjpq:D=16,K=256": 7.54,
}


@pytest.mark.parametrize("text", VARIANTS)
def test_variants_train_freeze_and_take_their_bytes(text: str) -> None:
    n, dim = 5000, 64
    ids = torch.arange(n)
    counts = (1e5 / (1 + (ids * 7) % n) ** 1.1).long()  # a power law, ids in no order
    torch.manual_seed(0)
    module = build(Spec.parse(f"{text},centroids=int8"), "item", n, dim, counts, std=0.1, seed=7)
    mgqe.start_quantizing(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    target = 0.1 * torch.randn(n, dim)
    errors = []
    for _ in range(4):
        optimizer.zero_grad()
        error = (module(ids[:1000]) - target[:1000]).square().mean()
        (error + mgqe.quantization_loss(module)).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0]
    table = module.eval().freeze()
    assert torch.equal(table.lookup(ids), module(ids))
    assert 100 * table.nbytes / (4 * n * dim) == pytest.approx(VARIANTS[text], abs=0.01)


def test_a_tier_too_small_for_its_centroids_is_refused() -> None:
    with pytest.raises(ValueError, match="tier 0 has 50 ids and cannot use num_centroids=256"):
        build(Spec.parse("mgqe:K=256/64/16,fractions=0.01/0.09/0.9"), "item", 5000, 64, torch.ones(5000), 0.1, 0)


def test_spec_parts() -> None:
    spec = Spec.parse(" mgqe : K=64/16, d=32, D=8, item.K=32/8, share_subspaces=true ".replace(" : ", ":"))
    assert spec.dim == 32
    assert spec.keywords("user") == {"num_subspaces": 8, "num_centroids": (64, 16), "share_subspaces": True}
    assert spec.keywords("item")["num_centroids"] == (32, 8)
    assert spec.warm_up() == Spec("full", (), 32)
    assert Spec.parse("lowrank:r=8").warm_up() == Spec.parse("lowrank:r=8")
    assert Spec.parse("mgqe:D=8,K=4") == Spec.parse("mgqe:K=4,D=8")


BAD = {
    "fulll": "no embedding 'fulll' (did you mean 'full'?)",
    "mgqe:D": "expected key=value, got 'D'",
    "mgqe:D=": "expected key=value",
    "mgqe:D=8,D=4": "D is given twice",
    "full:d=0": "d must be a whole number of 1 or more",
    "full:d=x": "d must be a whole number of 1 or more",
    "lowrank:rang=8": "no option 'rang' (did you mean 'rank'?)",
    "full:D=8": "no option 'D'",
    "mgqe:warmup_steps=3": "no option 'warmup_steps'",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_specs(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Spec.parse(text)
    assert BAD[text] in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("mgqe:D=3", "not divisible"), ("mgqe:D=4,K=512", "cannot use"), ("dpq:K=1", "num_centroids must be from 2")],
)
def test_bad_values_name_the_table(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(Spec.parse(text), "item", 60, 8, COUNTS, 0.1, 0)
    assert f"embedding {Spec.parse(text)}, item table of 60 ids" in str(error.value)


def test_every_method_has_help_and_a_class() -> None:
    for name, method in METHODS.items():
        assert method.summary
        assert issubclass(method.layer, torch.nn.Module)
        assert str(Spec.parse(name)) == name


def test_low_rank_rows_start_small_by_their_own_factors() -> None:
    """The projection keeps its size, or rows would need many more steps to grow than those of a full table."""
    layer = build(Spec.parse("lowrank:r=4"), "item", 60, 8, COUNTS, 0.01, 0)
    assert float(layer(torch.arange(60)).detach().std()) == pytest.approx(0.01)
    assert float(layer.projection.detach().std()) == pytest.approx(0.5, rel=0.3)
    layer = build(Spec.parse("qr:remainders=8"), "item", 60, 8, COUNTS, 0.01, 0)
    assert float(layer.quotients.detach().std()) == pytest.approx(0.1, rel=0.3)


def test_recjpq_gets_the_interactions() -> None:
    pairs = (torch.arange(60).repeat(3), torch.arange(180) % 7)
    spec = Spec.parse("recjpq:D=4,K=8")
    first, again, random = (build(spec, "item", 60, 8, COUNTS, 0.1, 7, p) for p in (pairs, pairs, None))
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, random.codes)
    with pytest.raises(ValueError, match="item table of 59 ids: pairs"):
        build(spec, "item", 59, 8, COUNTS[:59], 0.1, 7, pairs)


def test_quantised_layers_stay_in_their_warm_up() -> None:
    module = build(Spec.parse("mgqe:D=4,K=4/2"), "item", 60, 8, COUNTS, 0.1, 0)
    for _ in range(3):
        module.train()(torch.arange(60))
    assert not module.quantizing
    assert mgqe.start_quantizing(module) == 1
