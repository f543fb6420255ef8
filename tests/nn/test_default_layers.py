"""Layers without a budget and without capacity arguments: planned on their rows, with the bytes of the even shape."""

from __future__ import annotations

import copy

import pytest
import torch

import mgqe
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.planning.mixed import least_nbytes
from mgqe.nn.quantization import Quantization, default_budget

N, DIM = 600, 12
COUNTS = torch.arange(N) * 7 % 199 + 1
EVEN = (32, 64)  # what tiers of 60 and 540 ids have of 256 and 64 centroids

both = pytest.mark.parametrize("cls", [mgqe.MGQEmbedding, mgqe.DPQEmbedding])


def rows(n: int = N, d: int = DIM) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(n, d) * torch.linspace(1.0, 0.2, d)


def make(cls=mgqe.MGQEmbedding, n: int = N, d: int = DIM, **options):
    counts = {} if cls.one_tier or "tiers" in options else {"counts": torch.arange(n) * 7 % 199 + 1}
    return cls(n, d, **{"_weight": rows(n, d), "warmup_steps": 3, **counts, **options})


def even_nbytes(cls, n: int, d: int, padding_idx: int | None = None) -> int:
    """Bytes of the file with 256 and 64 centroids, or as many as tiers have ids, and two dimensions per subspace."""
    tiers = mgqe.Tiers.from_sizes([n]) if cls.one_tier else mgqe.Tiers.from_counts(torch.arange(n) * 7 % 199 + 1)
    return frozen_nbytes(tiers, Quantization().capacity_of(d, tiers), padding_idx, "float32")


def train(layer, optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.zero_grad()
        (layer(torch.randint(layer.num_embeddings, (64,))).square().mean() + mgqe.quantization_loss(layer)).backward()
        optimizer.step()


@both
def test_a_default_is_the_budget_of_its_bytes_to_the_bit(cls):
    layers = [make(cls), make(cls, budget=even_nbytes(cls, N, DIM))]
    for layer in layers:
        train(layer, torch.optim.Adam(layer.parameters(), lr=0.01), 0, 6)
        assert layer.quantizing
    first, second = (layer.state_dict() for layer in layers)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert layers[0].freeze().equal(layers[1].freeze())


@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize(
    ("n", "d"), [(2, 8), (2, 1), (300, 1), (1000, 1), (50, 8), (100, 16), (101, 15), (5000, 32), (2000, 3)]
)
@pytest.mark.parametrize("cls", [mgqe.MGQEmbedding, mgqe.DPQEmbedding, mgqe.MGQEmbeddingBag, mgqe.DPQEmbeddingBag])
def test_files_are_no_larger_than_even_ones(cls, n, d, padding_idx, tmp_path):
    layer = make(cls, n, d, padding_idx=padding_idx)
    even = even_nbytes(cls, n, d, padding_idx)
    assert (layer.planner is not None) == (least_nbytes(n, d, padding_idx) <= even < 4 * n * d)
    assert mgqe.save(layer.freeze(), tmp_path / "table") <= even


@both
def test_rows_lose_less_than_in_the_even_shape(cls):
    """At least as good at its bytes: less than half of the squares that the even shape loses."""
    centroids = 256 if cls.one_tier else EVEN
    lost = [
        float((make(cls, **options).freeze().to_dense() - rows()).square().sum())
        for options in ({}, {"num_centroids": centroids, "num_subspaces": DIM // 2})
    ]
    assert lost[0] < 0.5 * lost[1]


@pytest.mark.parametrize(
    "options",
    [
        {"tiers": (60, 540)},
        {"tiers": mgqe.Tiers.from_counts(COUNTS)},
        {"tiers": [N]},
        {"num_centroids": EVEN},
        {"num_subspaces": 6},
        {"fractions": (0.2, 0.8)},
        {"capacity": "subspaces"},
        {"share_codebook": False},
        {"share_subspaces": True},
        {"centroid_dtype": "float16"},
        {"quantizer": "sx"},
        {"rows": "cached"},
        {"config": Quantization(num_centroids=EVEN)},
    ],
    ids=lambda options: ", ".join(options),
)
def test_what_is_given_is_what_there_is(options):
    layer = make(**{"_weight": None, **options})
    assert layer.planner is None
    assert not layer.capacity.widths
    assert layer.capacity.num_subspaces[0] == 6
    if "tiers" in options:
        assert layer.capacity.num_centroids == (EVEN if layer.tiers.num_tiers == 2 else (256,))
        assert layer.tiers.sizes == ((60, 540) if layer.tiers.num_tiers == 2 else (N,))


@pytest.mark.parametrize("options", [{"commitment": 0.5}, {"rows": "bfloat16"}, {"config": Quantization()}])
def test_what_a_budget_does_not_choose_may_be_given(options):
    layer = make(**options)
    assert layer.planner.nbytes == even_nbytes(mgqe.MGQEmbedding, N, DIM)
    assert layer.gathers_metric


def test_the_bytes_follow_the_type_of_the_rows():
    """Rows of 16 bits take half of the bytes: where the even shape takes no less, codes save nothing."""
    even = even_nbytes(mgqe.DPQEmbedding, N, DIM)
    assert default_budget(Quantization(), None, (N, DIM, None), even + 1) == even
    assert default_budget(Quantization(), None, (N, DIM, None), even) is None
    assert make(mgqe.DPQEmbedding).planner.nbytes == even
    assert even > 2 * N * DIM
    half = mgqe.DPQEmbedding(N, DIM, dtype=torch.float16)
    assert half.planner is None
    assert half.capacity.num_centroids == (256,)


# ---- checkpoints of earlier versions, whose default was the even shape -----------------------------------------


def even(cls, **options):
    """What a layer without capacity arguments was."""
    return make(cls, num_centroids=256 if cls.one_tier else EVEN, **options)


@pytest.mark.parametrize("stop", [2, 5], ids=["in the warm-up", "after it"])
@both
def test_training_goes_on_from_an_even_checkpoint_to_the_bit(cls, stop):
    whole = even(cls)
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, optimizer, 0, stop)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, stop, 9)
    layer = make(cls)
    resumed = torch.optim.Adam(layer.parameters(), lr=0.01)
    layer.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(layer, resumed, stop, 9)
    assert list(layer.state_dict()) == list(whole.state_dict())
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in whole.state_dict().items())
    assert layer.schedule.revive_every == whole.schedule.revive_every
    assert layer.capacity == whole.capacity
    assert layer.tiers == whole.tiers
    assert layer.freeze().equal(whole.freeze())


def test_an_even_checkpoint_is_assigned_to_a_layer_without_storage():
    old = even(mgqe.MGQEmbedding)
    old.start_quantizing()
    layer = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, device="meta")
    layer.load_state_dict(old.state_dict(), assign=True)
    assert layer.freeze().equal(old.freeze())


@pytest.mark.parametrize(
    ("saved", "options"),
    [
        ({"num_centroids": (16, 8)}, {}),
        ({"num_subspaces": 4}, {}),
        ({"share_codebook": False}, {}),
        ({"num_centroids": EVEN}, {"budget": "20%"}),
    ],
    ids=["other centroids", "other subspaces", "codebooks of their own", "a budget that was given"],
)
def test_other_even_checkpoints_are_refused_with_the_remedy(saved, options):
    state = {f"item.{name}": value for name, value in make(**saved).state_dict().items()}
    model = torch.nn.ModuleDict({"item": make(**options)})
    planner = model["item"].planner
    with pytest.raises(RuntimeError, match=r"item: the checkpoint has codebooks .* num_subspaces= and num_centroids="):
        model.load_state_dict(state)
    assert model["item"].planner is planner
    model["item"].start_quantizing()
    assert model["item"].quantizer.is_planned


@both
def test_a_plan_comes_with_the_checkpoint(cls):
    layer, other = make(cls), make(cls)
    layer.start_quantizing()
    other.load_state_dict(layer.state_dict())
    assert other.freeze().equal(layer.freeze())
