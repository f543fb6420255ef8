"""GradientMoments: layers gather E[g g^T] of their vectors' gradients in the warm-up, and training does not notice."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from two_processes import two_processes

import mgqe
from mgqe.nn import metric as moments
from mgqe.nn.rows import CachedRows, CodeRows

N, DIM = 40, 4


def make(cls=mgqe.DPQEmbedding, gathers=True, **arguments):
    torch.manual_seed(0)
    arguments = {"num_centroids": 8, "num_subspaces": 2, "warmup_steps": 60, **arguments}
    layer = cls(N, DIM, **arguments)
    layer.gathers_metric = gathers
    return layer


def second_moment(gradients):
    return (gradients.T @ gradients / len(gradients)).double()


def assert_metric(layer, gradients, lookups=None):
    """The metric is the mean of g g^T over these (n, d), looked up in one step."""
    metric = layer.metric()
    assert metric.source == "gradients"
    torch.testing.assert_close(metric.matrix, second_moment(gradients), rtol=1e-5, atol=1e-7)
    assert metric.lookups == pytest.approx(len(gradients) if lookups is None else lookups, rel=1e-5)


# ---- by hand -------------------------------------------------------------------------------------------------


def test_a_loss_of_inner_products_gives_the_second_moment_of_its_queries():
    layer, queries = make(), torch.randn(30, DIM)
    (layer(torch.arange(30)) * queries).sum().backward()
    assert_metric(layer, queries)


def test_by_hand():
    layer = make()
    (layer(torch.tensor([3, 3])) * torch.tensor([[1.0, 2, 0, 0], [3, 0, 0, 0]])).sum().backward()
    expected = torch.zeros(DIM, DIM, dtype=torch.float64)
    expected[:2, :2] = torch.tensor([[5.0, 1], [1, 2]])  # ([[1, 2], [2, 4]] + [[9, 0], [0, 0]]) / 2
    assert torch.equal(layer.metric().matrix, expected)


def test_any_loss_and_several_passes_of_a_step():
    layer, head, ids = make(), nn.Linear(DIM, 3), torch.randint(N, (2, 5, 6))
    leaves = [layer.raw_weight.detach()[each].requires_grad_() for each in ids]
    loss = sum(head(layer(each)).square().mean() for each in ids)
    oracle = sum(head(leaf).square().mean() for leaf in leaves)
    gradients = torch.autograd.grad(oracle, leaves)
    loss.backward()
    assert_metric(layer, torch.cat(gradients).view(-1, DIM))


def test_later_steps_count_more():
    layer = make(warmup_steps=63)  # every step is gathered
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for scale in (1.0, 2.0):
        optimizer.zero_grad()
        (scale * layer(torch.tensor([1]))[:, 0]).sum().backward()
        optimizer.step()
    decay = 2 ** (-1 / 32)
    assert layer.metric().matrix[0, 0] == pytest.approx((decay * 1 + 4) / (decay + 1), rel=1e-6)
    assert layer.metric().lookups == pytest.approx(1)


def test_one_step_in_sixteen_is_gathered_in_a_long_warm_up():
    assert [moments.steps_between(passes) for passes in (0, 32, 63, 64, 300, 512, 10**9)] == [1, 1, 1, 2, 9, 16, 16]
    layer = make(warmup_steps=10**9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(33):
        optimizer.zero_grad()
        for _ in range(2):
            (layer(torch.tensor([1])) * step).sum().backward()
        optimizer.step()
    _, steps = layer.moments.sums.weight.tolist()
    assert steps == pytest.approx(sum(0.5 ** (k / 32) for k in range(3)))
    assert layer.metric().lookups == pytest.approx(2)  # in both passes of a step
    expected = (0 * 0.5 ** (2 / 32) + 16**2 * 0.5 ** (1 / 32) + 32**2) / steps
    assert layer.metric().matrix[0, 0] == pytest.approx(expected)


# ---- which vectors -------------------------------------------------------------------------------------------


@given(n=st.integers(1, 3000), limit=st.integers(1, 300), turn=st.integers(0, 10**6))
def test_sampled_places_are_different(n, limit, turn):
    places = moments.sample_places(n, limit, turn, torch.device("cpu"))
    if n <= limit:
        assert places is None
    else:
        assert len(set(places.tolist())) == limit
        assert int(places.min()) >= 0
        assert int(places.max()) < n


def test_turn_by_turn_all_places_come_once_and_no_period_is_met():
    turns = [moments.sample_places(6400, 256, turn, torch.device("cpu")) for turn in range(25)]
    assert torch.cat(turns).bincount().eq(1).all()
    for places in turns:  # 128 histories of 50
        assert places.remainder(50).bincount(minlength=50).float().sub(256 / 50).abs().max() < 2


def test_a_sample_stands_for_the_pass():
    layer, queries = make(), torch.randn(4000, DIM)
    (layer(torch.randint(N, (4000,))) * queries).sum().backward()
    metric = layer.metric()
    assert metric.lookups == pytest.approx(4000)
    assert (metric.matrix - second_moment(queries)).abs().max() < 0.4
    assert not torch.allclose(metric.matrix, second_moment(queries))


@pytest.mark.parametrize("zero_padding", [True, False])
def test_padding_is_left_out_whatever_its_gradients_are(zero_padding):
    layer = make(padding_idx=0)
    layer.zero_padding = zero_padding
    ids, queries = torch.tensor([[5, 0, 7], [0, 0, 9]]), torch.randn(2, 3, DIM)
    queries[1, 0] = math.nan
    layer(ids).backward(queries)
    assert_metric(layer, queries[ids != 0])


def test_a_pass_with_nan_counts_nothing_and_zeros_give_the_identity():
    layer, ids = make(), torch.arange(3)
    assert layer.metric().source == "identity"
    layer(ids).backward(torch.zeros(3, DIM))
    assert layer.metric().source == "identity"
    layer(ids).backward(torch.full((3, DIM), math.nan))
    layer(ids).backward(torch.tensor([[1.0] * DIM, [math.inf] * DIM, [0.0] * DIM]))
    assert layer.metric().source == "identity"
    layer(ids).backward(torch.ones(3, DIM))
    assert layer.metric().matrix[0, 0] == pytest.approx(0.5)  # three of zeros, three of ones
    assert torch.equal(layer.metric().matrix.isfinite(), torch.ones(DIM, DIM, dtype=torch.bool))


def test_what_is_not_gathered():
    layer, ids = make(), torch.arange(3)
    with torch.no_grad():
        layer(ids)
    layer.eval()
    layer(ids).sum().backward()
    layer.train()
    layer.start_quantizing()
    layer(ids).sum().backward()
    assert layer.metric().source == "identity"
    frozen = make(_freeze=True)
    frozen(ids)
    empty = make()
    empty(torch.empty(0, dtype=torch.int64)).sum().backward()
    silent = make(gathers=False)
    silent(ids).sum().backward()
    assert {each.metric().source for each in (frozen, empty, silent)} == {"identity"}


# ---- bags ----------------------------------------------------------------------------------------------------


def bag_oracle(layer, ids, weights, offsets, pull):
    """Gradients of each id's own vector, as autograd has them; ids (n,) in bags."""
    vectors = layer.raw_weight.detach()[ids].requires_grad_()
    options = {"mode": layer.mode, "include_last_offset": layer.include_last_offset}
    index = torch.arange(len(ids))
    keep = torch.ones(len(ids), dtype=torch.bool)
    if layer.padding_idx is not None:
        keep = ids != layer.padding_idx
        vectors, index = vectors.detach(), torch.where(keep, index, len(ids))
        vectors = torch.cat([vectors, torch.zeros(1, DIM)]).requires_grad_()
        options["padding_idx"] = len(ids)
    pooled = F.embedding_bag(index, vectors, offsets, per_sample_weights=weights, **options)
    return torch.autograd.grad((pooled * pull).sum(), vectors)[0][: len(ids)][keep]


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_bags_count_as_each_of_their_ids_would(mode, include_last_offset, padding_idx):
    mode, weights = ("sum", torch.rand(12)) if mode == "weighted" else (mode, None)
    layer = make(mgqe.DPQEmbeddingBag, mode=mode, include_last_offset=include_last_offset, padding_idx=padding_idx)
    ids = torch.tensor([1, 2, 3, 2, 2, 7, 7, 7, 30, 2, 9, 8])
    offsets = torch.tensor([0, 3, 3, 5, 6, 12] if include_last_offset else [0, 3, 3, 5, 6])
    pull = torch.randn(5, DIM)
    (layer(ids, offsets, weights) * pull).sum().backward()
    assert_metric(layer, bag_oracle(layer, ids, weights, offsets, pull))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_equal_length(mode):
    layer, ids, pull = make(mgqe.DPQEmbeddingBag, mode=mode), torch.randint(N, (600, 5)), torch.randn(600, DIM)
    (layer(ids) * pull).sum().backward()
    metric = layer.metric()
    assert metric.lookups == pytest.approx(3000)
    expected = second_moment(pull) * (1.0 if mode == "sum" else 1 / 25)
    assert ((metric.matrix - expected) / expected[0, 0]).abs().max() < 0.4


def test_a_maximum_gives_the_trace_that_its_ids_have():
    layer = make(mgqe.DPQEmbeddingBag, mode="max")
    ids, offsets, pull = torch.arange(10), torch.tensor([0, 4, 4]), torch.randn(3, DIM)
    (layer(ids, offsets) * pull).sum().backward()
    oracle = second_moment(bag_oracle(layer, ids, None, offsets, pull))
    assert float(layer.metric().matrix.trace()) == pytest.approx(float(oracle.trace()), rel=1e-5)


# ---- tied weights --------------------------------------------------------------------------------------------


def test_rows_that_an_output_layer_reads_are_lookups_of_their_own():
    layer, ids, queries = make(), torch.tensor([1, 1, 2]), torch.randn(3, DIM)
    hidden = torch.randn(7, DIM)
    looked_up = layer(ids)
    logits = F.linear(hidden, layer.weight)
    loss = (looked_up * queries).sum() + F.cross_entropy(logits, torch.arange(7))
    loss.backward()
    of_rows = (logits.softmax(1) - F.one_hot(torch.arange(7), N)).T.detach() @ hidden / 7
    assert_metric(layer, torch.cat([queries, of_rows]))


def test_rows_that_got_no_gradient_are_no_lookups_and_neither_is_padding():
    layer, queries = make(padding_idx=3), torch.randn(4, DIM)
    layer(torch.tensor([1])).detach()
    (layer.weight[torch.tensor([9, 11, 12, 3])] * queries).sum().backward()
    assert_metric(layer, queries[:3])


def test_before_ids_have_trained_the_weight_is_the_parameter():
    layer = make()
    assert layer.weight is layer.raw_weight
    layer(torch.arange(3))
    assert layer.weight is not layer.raw_weight
    assert layer.weight.data_ptr() == layer.raw_weight.data_ptr()
    assert layer.eval().weight is layer.raw_weight


# ---- training is what it was ---------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, gathers, **arguments):
        super().__init__()
        self.item = make(gathers=gathers, warmup_steps=12, **arguments)
        self.bag = make(mgqe.DPQEmbeddingBag, gathers=gathers, warmup_steps=12, **arguments)
        self.dropout = nn.Dropout(0.2)

    def forward(self, ids):
        hidden = self.dropout(self.item(ids).mean(1) + self.bag(ids) + self.item(ids[:, 0]))
        return hidden if self.item.row_storage == "CachedRows" else F.linear(hidden, self.item.weight)


ARGUMENTS = {
    "plain": {},
    "sparse": {"sparse": True},
    "max_norm": {"max_norm": 1.0},
    "padding": {"padding_idx": 1},
    "scale_grad_by_freq": {"scale_grad_by_freq": True},
    "sx": {"quantizer": "sx"},
    "bfloat16": {"rows": "bfloat16"},
    "narrow": {"rows": "narrow", "quantizer": "sx"},
    "cached": {"rows": CachedRows(cache_rows=30)},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_training_is_the_same_bit_for_bit(arguments):
    states = []
    for gathers in (False, True):
        model = Tied(gathers, **arguments)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        torch.manual_seed(1)
        for _ in range(16):
            ids = torch.randint(N, (8, 3))
            optimizer.zero_grad()
            (model(ids).square().mean() + mgqe.quantization_loss(model)).backward()
            optimizer.step()
        assert model.item.quantizing
        assert (model.item.metric().source, model.bag.metric().source) == (("identity", "gradients")[gathers],) * 2
        states.append((model.state_dict(), torch.random.get_rng_state()))
    (plain, plain_rng), (gathered, gathered_rng) = states
    for key, value in plain.items():
        assert torch.equal(value, gathered[key]), key
    assert torch.equal(plain_rng, gathered_rng)
    extra = {f"{layer}.{name}" for layer in ("item", "bag") for name in ("metric_sum", "metric_weight")}
    assert gathered.keys() - plain.keys() == extra


@pytest.mark.parametrize("arguments", [*ARGUMENTS.values(), {"rows": "sketch"}], ids=[*ARGUMENTS, "sketch"])
def test_the_metric_is_that_of_the_vectors_whatever_holds_the_rows(arguments):
    layer, ids, queries = make(**arguments), torch.tensor([2, 5, 5, 9, 30]), torch.randn(5, DIM)
    vectors = layer(ids)
    (vectors * queries).sum().backward()
    assert_metric(layer, queries)


def test_layers_that_have_codes_from_the_beginning_have_nothing_to_gather():
    layer = make(rows=CodeRows(torch.randint(8, (N, 2))))
    layer(torch.arange(5)).sum().backward()
    assert layer.metric().source == "identity"


# ---- what surrounds a pass -----------------------------------------------------------------------------------


def test_gradient_checkpointing_counts_once():
    layer, queries = make(), torch.randn(5, DIM)
    out = checkpoint(lambda ids: layer(ids).sin(), torch.arange(5), use_reentrant=False)
    (out * queries).sum().backward()
    assert_metric(layer, queries * layer.raw_weight[:5].detach().cos())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_layers_gather_too(backend):
    torch._dynamo.reset()
    layer, queries = make(), torch.randn(5, DIM)
    compiled = torch.compile(layer, backend=backend)
    (compiled(torch.arange(5)).sin() * queries).sum().backward()
    assert_metric(layer, queries * layer.raw_weight[:5].detach().cos())


def test_one_graph_serves_gathered_steps_and_others():
    torch._dynamo.reset()
    layer = make(warmup_steps=10**9)
    counter, frames = CompileCounter(), []
    compiled = torch.compile(layer, backend=counter)
    for _ in range(35):
        compiled(torch.arange(5)).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1
    assert layer.moments.sums.weight[1] > 2


@pytest.mark.parametrize("inside", [False, True])
def test_mixed_precision(inside):
    layer, head = make(), nn.Linear(DIM, DIM, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.arange(6))
        loss = head(out).float().sum() * 2.0**16
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    row = head.weight.detach().bfloat16().float().sum(0) * 2.0**16
    torch.testing.assert_close(layer.metric().matrix, torch.outer(row, row).double(), rtol=2e-2, atol=1e-2 * 2.0**32)


def test_half_precision_layers_keep_their_sums_in_float32():
    layer = make()
    (layer(torch.arange(4)) * 1e-6).sum().backward()
    exact = layer.metric().matrix
    assert torch.equal(layer.half().metric().matrix, exact)  # 1e-12, which float16 has not
    assert layer.raw_weight.dtype == torch.float16
    assert layer.moments.sums.moment.dtype == torch.float32
    (layer(torch.arange(4)) * 1e-6).sum().backward()
    assert layer.metric().matrix[0, 0] == pytest.approx(1e-12, rel=0.05)


def test_a_gradient_of_a_gradient():
    layer, queries = make(), torch.randn(4, DIM)
    out = layer(torch.arange(4))
    (gradient,) = torch.autograd.grad((out.pow(3) * queries).sum(), layer.raw_weight, create_graph=True)
    assert_metric(layer, 3 * out.detach().square() * queries)
    gradient.square().sum().backward()


# ---- checkpoints and copies ----------------------------------------------------------------------------------


def trained(**arguments):
    layer = make(**arguments)
    layer(torch.arange(7)).backward(torch.randn(7, DIM))
    return layer


def test_checkpoints_hold_the_sums():
    layer = trained()
    state = layer.state_dict()
    for gathers in (True, False):
        again = make(gathers=gathers)
        again.load_state_dict(state)
        assert again.gathers_metric
        assert torch.equal(again.metric().matrix, layer.metric().matrix)
        assert again.state_dict().keys() == state.keys()


def test_checkpoints_from_before_load_and_leave_no_metric():
    state = trained(gathers=False).state_dict()
    layer = trained()
    layer.load_state_dict(state)
    assert layer.metric().source == "identity"
    layer(torch.arange(7)).backward(torch.randn(7, DIM))
    assert layer.metric().source == "gradients"
    del state["steps"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"steps"\. $'):
        layer.load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_go_on_by_themselves(copied):
    layer = trained()
    before = layer.metric().matrix
    twin = copied(layer)
    assert torch.equal(twin.metric().matrix, before)
    twin(torch.arange(3)).sum().backward()
    assert torch.equal(layer.metric().matrix, before)
    assert not torch.equal(twin.metric().matrix, before)


def test_turning_off_forgets_and_so_does_a_reset():
    layer = trained()
    layer.reset_parameters()
    assert layer.metric().source == "identity"
    layer = trained()
    layer.gathers_metric = False
    assert "metric_sum" not in layer.state_dict()
    layer.gathers_metric = True
    assert layer.metric().source == "identity"


def test_a_layer_from_the_meta_device():
    with torch.device("meta"):
        layer = make()
    layer(torch.arange(3, device="meta")).sum().backward()
    layer.to_empty(device="cpu").reset_parameters()
    (layer(torch.arange(3)) * torch.ones(DIM)).sum().backward()
    assert_metric(layer, torch.ones(3, DIM))


# ---- several processes ---------------------------------------------------------------------------------------


class FakeRanks:
    """The sum over two processes, of which the other one has gathered twice as much."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tensor):
        self.calls += 1
        tensor.mul_(3)


def test_what_one_process_gathers_is_shared_every_few_steps_and_at_the_end():
    layer, total = make(warmup_steps=6), FakeRanks()
    gathered = layer.moments
    for step in range(6):
        gathered.begin_pass(True, 6, total, is_last=False)
        gathered._add(torch.ones(2, DIM), moments.lookups_of_vectors(torch.arange(2), None, 256, 0))
        assert total.calls == (2 if step >= 4 else 0)  # two tensors each
        assert float(gathered.sums.weight[1]) == pytest.approx(
            0 if step < 4 else 3 * sum(0.5 ** (k / 32) for k in range(4))
        )
    gathered.begin_pass(True, 6, total, is_last=True)
    assert gathered.sums.weight.tolist() == pytest.approx(
        [6 * sum(0.5 ** (k / 32) for k in range(6)), 3 * sum(0.5 ** (k / 32) for k in range(6))]
    )
    assert layer.metric().lookups == pytest.approx(2)
    assert torch.allclose(layer.metric().matrix, torch.ones(DIM, DIM, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_have_one_metric_of_both(tmp_path):
    first, second = two_processes("metric", tmp_path)
    for name in ("item", "bag"):
        metrics, own = ([each[kind][name] for each in (first, second)] for kind in ("metrics", "own"))
        assert torch.equal(*metrics)
        assert not torch.allclose(*own, rtol=1e-2)
        torch.testing.assert_close(metrics[0], (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-9)
