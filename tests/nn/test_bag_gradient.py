"""The weights of a bag keep their gradient when the table under them is frozen: nn.EmbeddingBag's, in float64."""

import pytest
import torch
import torch.nn.functional as F
from contract import BUDGET, ROWS, SUBJECTS
from convert_models import N, ranker
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_tables import hand_worked
from torch import nn

import mgqe
from mgqe import CompactEmbeddingBag, ops

each_table = pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.freezes], ids=lambda subject: subject.name)


@pytest.fixture(autouse=True)
def budgets_above_the_full_table(monkeypatch):
    monkeypatch.setattr("mgqe.nn.quantization.budget_bytes", lambda *_: BUDGET)


def expected_gradient(rows, ids, offsets, weights, grad, padding_idx=None, include_last_offset=False):
    """Of torch's own bag, in float64."""
    weights = weights.detach().double().requires_grad_()
    F.embedding_bag(
        ids,
        rows.double(),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    ).backward(grad.double())
    return weights.grad


def gradient_of(function, weights, grad):
    weights = weights.detach().clone().requires_grad_()
    function(weights).backward(grad)
    return weights.grad


def test_values_by_hand():
    # Rows 0 to 3 are [0, 0], [1, 10], [2, 20], [3, 30]; row 2 is padding.
    ids, offsets = torch.tensor([1, 3, 2, 3, 0]), torch.tensor([0, 3, 3, 5])
    weights = torch.tensor([5.0, -1.0, 7.0, 0.0, 2.0], requires_grad=True)
    pooled = ops.bag(hand_worked(), ids, offsets, "sum", weights)
    pooled.backward(torch.tensor([[1.0, 0.0], [9.0, 9.0], [1.0, 1.0], [9.0, 9.0]]))
    assert pooled.tolist() == [[2, 20], [0, 0], [0, 0], [0, 0]]
    assert weights.grad.tolist() == [1, 3, 0, 33, 0]


def test_padding_has_no_gradient_even_under_an_infinite_one():
    ids, weights = torch.tensor([[2, 1]]), torch.ones(1, 2, requires_grad=True)
    ops.bag(hand_worked(), ids, None, "sum", weights).backward(torch.tensor([[torch.inf, 0.0]]))
    assert weights.grad[0, 0] == 0


@each_table
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["grid", "offsets", "last offset"])
def test_every_frozen_table(subject, dtype, layout):
    table = subject.make(padding_idx=3).eval().freeze()
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(ROWS, (12,), generator=made)
    ids[[1, 7]] = 3
    weights = torch.randn(12, generator=made).to(dtype)
    offsets = {"grid": None, "offsets": torch.tensor([0, 0, 5, 6]), "last offset": torch.tensor([0, 0, 5, 12])}[layout]
    if layout == "grid":
        ids, weights = ids.view(4, 3), weights.view(4, 3)
    last = layout == "last offset"
    grad = torch.randn(3 if last else 4, table.embedding_dim, generator=made)
    got = gradient_of(lambda w: table.bag(ids, offsets, "sum", w, last), weights, grad)
    assert got.dtype == dtype
    assert got.shape == ids.shape
    want = expected_gradient(table.to_dense(), ids, offsets, weights, grad, 3, last)
    torch.testing.assert_close(got, want.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=0, max_size=6),
    padding_idx=st.one_of(st.none(), st.integers(0, ROWS - 1)),
    last=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_bags(lengths, padding_idx, last, seed):
    made = torch.Generator().manual_seed(seed)
    table = mgqe.MGQEmbedding(ROWS, 8, padding_idx=padding_idx, num_centroids=4, tiers=[ROWS]).freeze()
    n = sum(lengths)
    ids, weights = torch.randint(ROWS, (n,), generator=made), torch.randn(n, generator=made)
    offsets = F.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))
    offsets = offsets if last else offsets[:-1]
    grad = torch.randn(len(lengths), 8, generator=made)
    got = gradient_of(lambda w: table.bag(ids, offsets, "sum", w, last), weights, grad)
    want = expected_gradient(table.to_dense(), ids, offsets, weights, grad, padding_idx, last)
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("convert", [mgqe.freeze_, lambda model: None], ids=["frozen", "quantising"])
def test_a_converted_bag_gives_the_gradient_that_it_gave_before(convert, dtype):
    torch.manual_seed(0)
    model = nn.ModuleDict({"tags": nn.EmbeddingBag(N, 16, mode="sum", padding_idx=5, dtype=dtype)})
    mgqe.compress_(model, init="from_weight")
    ids, offsets = torch.tensor([1, 5, 9, 9, 5, 1999]), torch.tensor([0, 4, 4])
    weights = torch.randn(6, dtype=dtype)
    grad = torch.randn(3, 16, dtype=dtype)
    before = gradient_of(lambda w: model["tags"](ids, offsets, w), weights, grad)
    convert(model)
    after = gradient_of(lambda w: model["tags"](ids, offsets, w), weights, grad)
    assert after.dtype == dtype
    torch.testing.assert_close(after, before, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_portable_and_compiled_bags_give_it_too():
    model = ranker(init="from_weight")
    mgqe.freeze_(model)
    bag, ported = model.tags, mgqe.portable(model).tags
    assert isinstance(bag, CompactEmbeddingBag)
    ids, weights = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.randn(2, 3)
    offsets, grad = torch.tensor([0, 2, 6]), torch.randn(2, 16)
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager")
    want = gradient_of(lambda w: bag(ids, None, w), weights, grad)
    for other in (ported, compiled):
        torch.testing.assert_close(gradient_of(lambda w, f=other: f(ids, None, w), weights, grad), want)
    bag.include_last_offset = ported.include_last_offset = True
    want = gradient_of(lambda w: bag(ids.flatten(), offsets, w), weights.flatten(), grad)
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager")
    for other in (ported, compiled):
        got = gradient_of(lambda w, f=other: f(ids.flatten(), offsets, w), weights.flatten(), grad)
        torch.testing.assert_close(got, want)


def test_an_unknown_id_has_the_gradient_of_the_fallback():
    table = mgqe.MGQEmbedding(ROWS, 8, tiers=[ROWS], num_centroids=4).freeze().with_fallback(torch.arange(8.0))
    got = gradient_of(
        lambda w: table.bag(torch.tensor([[ROWS + 7]]), None, "sum", w), torch.ones(1, 1), torch.ones(1, 8)
    )
    assert got.tolist() == [[28.0]]


def test_what_a_table_becomes_later_does_not_change_a_gradient():
    table = mgqe.MGQEmbedding(ROWS, 8, tiers=[ROWS], num_centroids=4).freeze()
    ids, grad = torch.tensor([[1, 2]]), torch.ones(1, 8)
    want = gradient_of(lambda w: table.bag(ids, None, "sum", w), torch.ones(1, 2), grad)
    weights = torch.ones(1, 2, requires_grad=True)
    pooled = table.bag(ids, None, "sum", weights)
    table.update(torch.tensor([1]), table.lookup(torch.tensor([2])) + 1)
    pooled.backward(grad)
    assert torch.equal(weights.grad, want)


def test_the_gradient_has_a_gradient():
    table = mgqe.MGQEmbedding(ROWS, 8, tiers=[ROWS], num_centroids=4).freeze()
    ids, scale = torch.tensor([[1, 2]]), torch.randn(1, 8, requires_grad=True)
    weights = torch.ones(1, 2, requires_grad=True)
    (first,) = torch.autograd.grad((table.bag(ids, None, "sum", weights) * scale).sum(), weights, create_graph=True)
    first.sum().backward()
    torch.testing.assert_close(scale.grad, table.lookup(ids).sum(1))


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    table = mgqe.MGQEmbedding(ROWS, 8, tiers=[ROWS], num_centroids=4).freeze()
    ids = torch.tensor([[1, 2]])
    assert not table.bag(ids, None, "sum", torch.ones(1, 2)).requires_grad
    with torch.no_grad():
        assert not table.bag(ids, None, "sum", torch.ones(1, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("tied", ["weight", "both"])
def test_what_reads_a_frozen_table_as_its_weight_passes_gradients_through(tied):
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(N, 16), "out": nn.Linear(16, N, bias=tied == "both")})
    model["out"].weight = model["embed"].weight
    mgqe.compress_(model, init="from_weight")
    mgqe.freeze_(model)
    hidden = torch.randn(2, 16, requires_grad=True)
    model["out"](hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, model["embed"].weight.sum(0).expand(2, 16), rtol=1e-4, atol=1e-3)
    if tied == "both":
        assert model["out"].bias.grad.tolist() == [2.0] * N


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted):
    parts = hand_worked().table.arguments()
    weights = torch.randn(5, requires_grad=True) if weighted else None
    ids, offsets = torch.tensor([1, 3, 2, 3, 0]), torch.tensor([0, 3, 3, 5])
    torch.library.opcheck(torch.ops.mgqe.bag.default, (ids, offsets, weights, "sum", True, *parts))


def test_vectors_of_rows_of_16_bits_keep_their_type_when_frozen():
    model = nn.ModuleDict({"table": mgqe.MGQEmbedding(ROWS, 8, tiers=[ROWS], num_centroids=4, rows="bfloat16")})
    head = nn.Linear(8, 1)
    before = head(model["table"](torch.arange(3)))
    mgqe.freeze_(model)
    after = head(model["table"](torch.arange(3)))  # bfloat16 vectors would be refused here
    assert after.dtype == before.dtype
