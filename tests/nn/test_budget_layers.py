"""Layers with a budget beyond the contract of all layers: checkpoints with their plan, casts, bags, loops."""

from __future__ import annotations

import io
import warnings
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import mgqe
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import Sample, least_nbytes
from mgqe.nn.rows import CachedRows, CodeRows, SketchRows

N, DIM = 1500, 8
COUNTS = torch.arange(N) * 7 % 199 + 1
IDS = torch.arange(N)


def make(cls=mgqe.MGQEmbedding, seed: int = 0, **options):
    """A layer that is not planned yet, with rows of unequal spread in each dimension."""
    torch.manual_seed(seed)
    rows = torch.randn(N, DIM) * torch.linspace(2.0, 0.1, DIM) @ torch.randn(DIM, DIM)
    counts = {} if cls.one_tier else {"counts": COUNTS}
    return cls(N, DIM, _weight=rows, **{"budget": "25%", "warmup_steps": 3, **counts, **options})


def planned(cls=mgqe.MGQEmbedding, seed: int = 0, **options):
    layer = make(cls, seed, **options)
    layer.start_quantizing()
    return layer


def same_bits(layer, ids=IDS) -> None:
    """The eval-mode forward pass is the look-up of the frozen table."""
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(ids), layer.freeze().lookup(ids).to(layer.vector_dtype))


def test_centroids_revive_as_often_as_the_plan_needs(monkeypatch):
    """256 centroids look at all of 40,000 rows, in 3 times as many passes as 16,384 rows take."""
    monkeypatch.setattr("mgqe.codec.kmeans.ROWS_PER_CENTROID", 256)
    monkeypatch.setattr("mgqe.codec.planning.mixed.WHOLE_ROWS", 50_000)  # of shapes the best one, and not the fastest
    rows = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    layer = mgqe.DPQEmbedding(40_000, 2, budget=90_000, _weight=rows)
    fresh = mgqe.DPQEmbedding(40_000, 2, budget=90_000)
    warm_up = {name: value.clone() for name, value in fresh.state_dict().items()}
    assert layer.schedule.revive_every == 100
    layer.start_quantizing()
    assert layer.capacity.num_centroids == (256,)
    assert layer.schedule.revive_every == 300
    fresh.load_state_dict(layer.state_dict())
    assert fresh.schedule.revive_every == 300
    fresh.load_state_dict(warm_up)
    assert fresh.schedule.revive_every == 100


def load_into(layer, state) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    layer.load_state_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("start", [make, planned], ids=["unplanned", "another plan"])
@pytest.mark.parametrize("cls", [mgqe.MGQEmbedding, mgqe.DPQEmbedding])
def test_a_plan_comes_with_the_checkpoint(cls, start):
    layer, other = planned(cls), start(cls, seed=1)
    if start is planned:
        assert layer.capacity != other.capacity
    load_into(other, layer.state_dict())
    assert other.capacity == layer.capacity
    assert other.tiers == layer.tiers
    assert other.freeze().equal(layer.freeze())
    same_bits(other)


def test_a_checkpoint_of_a_warm_up_takes_a_plan_away():
    layer, fresh = planned(seed=1), make()
    load_into(layer, fresh.state_dict())
    assert not layer.quantizing
    assert not layer.quantizer.is_planned
    fresh.start_quantizing()
    layer.start_quantizing()
    assert layer.capacity == fresh.capacity
    same_bits(layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", [mgqe.MGQEmbedding, mgqe.DPQEmbedding])
def test_a_cast_leaves_the_plan_in_float32(cls, dtype):
    layer = planned(cls)
    before = {name: buffer.clone() for name, buffer in layer.quantizer.named_buffers()}
    layer.to(dtype)
    assert layer.raw_weight.dtype == dtype
    for name, buffer in layer.quantizer.named_buffers():
        assert torch.equal(buffer, before[name])
        assert buffer.dtype == before[name].dtype
    same_bits(layer)
    layer.train()(IDS).sum().backward()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("cls", [mgqe.MGQEmbeddingBag, mgqe.DPQEmbeddingBag])
def test_bags_agree_with_frozen_bags_to_rounding(cls, mode):
    """As of other layers, whose sums torch adds up in an order of its own; here the frozen one also multiplies once."""
    layer = planned(cls, mode=mode, padding_idx=3).eval()
    ids = torch.randint(0, N, (40, 6), generator=torch.Generator().manual_seed(1))
    ids[::5, 2] = 3
    frozen = layer.freeze().bag(ids, mode=mode)
    torch.testing.assert_close(layer(ids), frozen, rtol=1e-5, atol=1e-6 * float(frozen.abs().max()))
    # Of one id each, a bag is the vector, to the bit.
    distinct = torch.arange(10, 100)
    assert torch.equal(layer(distinct[:, None]), layer.freeze().lookup(distinct))


def test_the_weight_is_what_look_ups_return():
    layer = planned().eval()
    assert torch.equal(layer.weight, layer(IDS))


def test_sparse_gradients_of_rows_and_codebooks():
    layer = planned(sparse=True).train()
    layer(torch.tensor([3, 7, 3])).sum().backward()
    mgqe.quantization_loss(layer).backward()
    rows, book = layer.raw_weight.grad, layer.quantizer.codebooks[0].grad
    assert rows.is_sparse
    assert rows.coalesce().indices().tolist() == [[3, 7]]
    assert book.is_sparse
    dense = planned().train()
    dense(torch.tensor([3, 7, 3])).sum().backward()
    mgqe.quantization_loss(dense).backward()
    torch.testing.assert_close(book.to_dense(), dense.quantizer.codebooks[0].grad)
    torch.optim.SparseAdam(layer.parameters(), lr=0.01).step()
    same_bits(layer)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_gradient_penalty_on_the_vectors(sparse):
    """With constant pulls w_j on v^2 the rows' gradients are 2 w v; that of their squares' sum is 8 w^2 v."""
    layer = planned(sparse=sparse).train()
    pull = torch.tensor([[1.0], [3.0]])
    vectors = layer(torch.tensor([7, 9]))
    (gradient,) = torch.autograd.grad((pull * vectors.square()).sum(), [layer.raw_weight], create_graph=True)
    gradient.square().sum().backward()
    grad = layer.raw_weight.grad.to_dense() if sparse else layer.raw_weight.grad
    torch.testing.assert_close(grad[[7, 9]], 8 * pull.square() * vectors.detach())


def test_rows_are_planned_as_max_norm_shortens_them():
    layer = make(max_norm=1.0)
    shortened = torch.nn.Embedding(N, DIM, max_norm=1.0, _weight=layer.raw_weight.detach().clone())
    shortened(IDS)
    plain = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget="25%", _weight=shortened.weight)
    for each in (layer, plain):
        torch.manual_seed(3)
        each.start_quantizing()
    assert layer.capacity == plain.capacity
    torch.testing.assert_close(layer.quantizer.transform.mean, plain.quantizer.transform.mean)


def test_max_norm_shortens_the_rows_that_are_coded():
    layer = planned(max_norm=1.0)
    same_bits(layer)
    layer.train()(IDS)
    assert layer.raw_weight.norm(dim=1).max() <= 1.0 + 1e-5


# ---- rows that are not a parameter of N rows -----------------------------------------------------------------------


def sketch(seed: int = 0, **options):
    """A layer whose rows are computed from a sketch that has been clustered."""
    torch.manual_seed(seed)
    arguments = {"counts": COUNTS, "budget": "25%", "warmup_steps": 3, **options}
    layer = mgqe.MGQEmbedding(N, DIM, rows=SketchRows(buckets=128, num_centroids=32), **arguments)
    torch.nn.init.normal_(layer.store.centroids)
    torch.nn.init.normal_(layer.raw_weight, std=0.1)
    return layer


@pytest.mark.parametrize("budget", ["25%", None])
def test_rows_of_a_sketch_are_planned_as_the_same_rows_in_full(budget):
    layer = sketch(budget=budget)
    rows = layer.store.read(layer.raw_weight, IDS)
    full = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget=budget, _weight=rows)
    for each in (layer, full):
        torch.manual_seed(3)
        each.start_quantizing()
    assert layer.capacity.widths
    assert layer.freeze().equal(full.freeze())
    same_bits(layer)


def test_a_plan_reads_no_more_rows_of_a_sketch_than_its_sample_has(monkeypatch):
    monkeypatch.setattr("mgqe.codec.planning.mixed.Sample.of", partial(Sample.of, limit=100))
    layer, read = sketch(), []
    rows_of = layer.store.read
    layer.store.read = lambda weight, ids: read.append(len(ids)) or rows_of(weight, ids)
    layer.start_quantizing()
    assert read == [200, 100]  # two tiers, and one


def test_a_sketch_trains_through_its_plan_and_its_checkpoint_has_it():
    layer, other = sketch(), sketch(seed=1)
    train(layer, layer)
    assert layer.quantizing
    assert layer.metric().source == "gradients"
    same_bits(layer)
    load_into(other, layer.state_dict())
    assert other.freeze().equal(layer.freeze())


def test_the_checkpoint_of_an_even_sketch_loads_into_a_layer_without_a_capacity():
    even, layer = sketch(budget=None, num_centroids=(128, 64)), sketch(seed=1, budget=None)
    even.start_quantizing()
    load_into(layer, even.state_dict())
    assert layer.freeze().equal(even.freeze())


def cached(seed: int = 0, **options):
    """A layer that has places for 350 of its 1,500 rows, so that some are encoded before there is a plan."""
    torch.manual_seed(seed)
    options = {"rows": CachedRows(head_rows=50, cache_rows=300), "warmup_steps": 20, **options}
    return mgqe.MGQEmbedding(N, DIM, counts=COUNTS, **{"budget": "25%", **options})


def test_a_cache_that_holds_all_rows_is_planned_as_full_rows_are():
    rows, tables = make().raw_weight.detach(), []
    for storage in ("float32", CachedRows(head_rows=N)):
        layer = cached(rows=storage)
        places = IDS if storage == "float32" else layer.store.place_of.long()
        layer.raw_weight.data[places] = rows
        torch.manual_seed(2)
        tables.append(layer.freeze())
    assert tables[1].equal(tables[0])


def test_a_cache_trains_through_its_plan_and_its_checkpoint_has_it():
    layer, other = cached(), cached(seed=1)
    assert layer.store.head_rows == 50
    train(layer, layer, steps=40)
    assert layer.quantizing
    assert layer.store.emptied > 4
    assert layer.metric().source == "gradients"
    assert layer.store.codes_held.shape == (N, len(layer.capacity.widths))
    assert layer.freeze().nbytes <= 0.25 * 4 * N * DIM
    same_bits(layer)
    load_into(other, layer.state_dict())
    same_bits(other)
    assert other.freeze().equal(layer.freeze())


def test_the_checkpoint_of_a_cache_in_its_warm_up_loads_into_one_that_has_a_plan():
    layer, other = cached(), cached(seed=1)
    train(layer, layer, steps=15)
    train(other, other, steps=40)
    assert layer.store.has_codes
    load_into(other, layer.state_dict())
    assert not other.quantizing
    with torch.no_grad():
        assert torch.equal(other(IDS), layer(IDS))
    torch.manual_seed(3)
    expected = layer.freeze()
    torch.manual_seed(3)
    assert other.freeze().equal(expected)


def test_what_a_cache_gave_up_costs_its_plan_little():
    """Codes of the warm-up lose 2% of these rows' squares, which is added to what the plan loses."""
    rows, lost = make().raw_weight.detach(), []
    for storage in ("float32", CachedRows(head_rows=0, cache_rows=300)):
        layer = cached(rows=storage, sparse=True, budget="12%")
        for ids in IDS.split(100):
            layer(ids).sum().backward()
            places = ids if storage == "float32" else layer.store.places(layer.raw_weight, ids)
            layer.raw_weight.data[places] = rows[ids]
            torch._C._increment_version([layer.raw_weight])  # as an optimiser's step does
        lost.append((layer.freeze().to_dense() - rows).square().sum() / rows.square().sum())
    assert 0.001 < lost[0] < lost[1] < lost[0] + 0.025


def test_a_layer_that_starts_over_plans_anew():
    for layer in (planned(), cached()):
        train(layer, layer, steps=30)
        layer.reset_parameters()
        assert not layer.quantizing
        assert not layer.capacity.widths
        train(layer, layer, steps=30)
        assert layer.capacity.widths
        same_bits(layer)


def passes(layer, number: int) -> None:
    """Training passes whose steps change no row."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    layer.train()
    for _ in range(number):
        loss = layer(IDS).square().sum() + mgqe.quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_plan_is_made_anew_for_what_rows_learn_later(monkeypatch):
    """After 3 passes of warm-up in the 4th, and again in the 6th and the 9th; not where the metric was given."""
    monkeypatch.setattr("mgqe.nn.schedule.AGAIN_FROM", 3)
    layer, given = make(), make()
    given.set_metric(Metric.identity(DIM))
    errors = {}
    for each in (layer, given):
        passes(each, 4)
        assert each.quantizing
        later = make(seed=1).raw_weight.detach()
        with torch.no_grad():
            each.raw_weight.copy_(later)
        passes(each, 1)
        first = each.quantizer.matrix.clone()
        passes(each, 1)
        assert torch.equal(first, each.quantizer.matrix) == (each is given)
        same_bits(each)
        errors[each] = float((each(IDS) - later).square().sum() / later.square().sum())
    assert errors[layer] < 0.1 * errors[given]


def test_codes_that_are_given_leave_nothing_to_a_budget():
    with pytest.raises(ValueError, match=r"leave budget= out .* or start from them with rows=CachedRows"):
        mgqe.DPQEmbedding(N, DIM, rows=CodeRows(torch.zeros(N, DIM, dtype=torch.int64)), budget="60%")


WIDE = 16  # dimensions


def warned(rows, steps: int = 3, **options) -> list[str]:
    """The warnings of a layer that starts on these rows after so many training passes that change nothing."""
    layer = mgqe.MGQEmbedding(N, WIDE, counts=COUNTS, budget="25%", _weight=rows.clone(), **options)
    for _ in range(steps):
        layer(IDS[:50]).sum().backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer.start_quantizing()
    return [str(warning.message) for warning in caught]


def test_rows_that_have_learnt_nothing_are_warned_of():
    rows = torch.randn(N, WIDE, generator=torch.Generator().manual_seed(0))
    (text,) = warned(rows)
    assert "MGQEmbedding of 1500 x 16 spends its budget after 3 training passes" in text
    assert "Warm up for at least half of the training (warmup_steps=)" in text
    (text,) = warned(rows.index_fill(0, torch.tensor([7]), torch.nan), padding_idx=7)
    assert "drawn at random" in text


def test_rows_that_have_learnt_or_were_given_are_not():
    random = torch.randn(N, WIDE, generator=torch.Generator().manual_seed(0))
    assert warned(random * torch.linspace(1.0, 0.4, WIDE)) == []  # flatness .87, more than trained tables have
    assert warned(random, steps=0) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = mgqe.MGQEmbedding.from_pretrained(random, counts=COUNTS, budget="25%", freeze=False)
        layer(IDS[:50])  # the first pass starts the codebooks
    assert layer.quantizing


def test_sx_has_an_even_plan():
    layer = mgqe.DPQEmbedding(N, DIM, quantizer="sx", budget="60%")
    assert layer.planner is None
    assert not layer.capacity.widths


def train(layer, forward, steps: int = 8) -> list[float]:
    torch.manual_seed(5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, N, (64,))
        loss = forward(ids).square().mean() + mgqe.quantization_loss(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_gradient_checkpointing_changes_nothing():
    """The plan is made in the midst of the steps, while the passes of a checkpoint run twice."""
    plain, saved = make(), make()
    expected = train(plain, lambda ids: plain(ids).tanh())
    assert train(saved, lambda ids: checkpoint(lambda i: saved(i).tanh(), ids, use_reentrant=False)) == expected
    assert plain.quantizing
    assert saved.freeze().equal(plain.freeze())
    same_bits(plain)


def test_training_passes_compile():
    plain, compiled = planned(), planned()
    expected = train(plain, plain)
    # The compiled pass adds up in another order, and Adam's first steps magnify how that rounds.
    assert train(compiled, torch.compile(compiled, backend="eager")) == pytest.approx(expected, rel=1e-4)
    same_bits(compiled)


def test_queries_spend_the_bits_on_what_inner_products_feel():
    made = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(1500, 16, generator=made), torch.randn(300, 16, generator=made)
    queries[:, 4:] = 0.0
    plain = mgqe.DPQEmbedding.from_pretrained(rows, budget="12%").freeze()
    by_queries = mgqe.DPQEmbedding.from_pretrained(rows, budget="12%", queries=queries).freeze()
    lost = [((table.to_dense() - rows) @ queries.T).square().mean() for table in (plain, by_queries)]
    assert lost[1] < 0.2 * lost[0]


def test_a_measured_metric_spends_the_bits_as_queries_do():
    """``set_metric`` takes what ``mgqe.calibrate`` has measured of rows that are compressed by themselves."""
    rows = torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(300, DIM) * (torch.arange(DIM) < 2)
    batch = (IDS[:300], queries)
    table = torch.nn.Embedding.from_pretrained(rows)
    measured = mgqe.calibrate(table, [batch], lambda model, b: (model(b[0]) * b[1]).sum(), progress=False).metrics[""]
    options = {"counts": COUNTS, "budget": "25%"}
    layer, plain = (mgqe.MGQEmbedding.from_pretrained(rows, **options) for _ in range(2))
    layer.set_metric(measured)
    by_queries = mgqe.MGQEmbedding.from_pretrained(rows, queries=queries, **options)
    for each in (layer, plain, by_queries):
        each.start_quantizing()
    assert layer.capacity == by_queries.capacity != plain.capacity
    torch.testing.assert_close(layer.quantizer.transform.mean, by_queries.quantizer.transform.mean)
    with pytest.raises(
        ValueError, match=r"shape \(8, 8\), as wide as the rows, got \(3, 3\): measure it with mgqe.calibrate"
    ):
        layer.set_metric(Metric.identity(3))
    with pytest.raises(ValueError, match="make the layer with budget="):
        mgqe.DPQEmbedding(N, DIM, num_centroids=4).set_metric(measured)


@pytest.mark.parametrize("n", [1, 2, 300])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("counts", ["none", "alike", "of one id"])
@pytest.mark.parametrize("zeros", [False, True])
def test_the_smallest_tables_are_planned_and_frozen(n, dim, counts, zeros):
    torch.manual_seed(0)
    rows = torch.zeros(n, dim) if zeros else torch.randn(n, dim)
    known = {"none": {}, "alike": {"counts": torch.ones(n)}, "of one id": {"counts": torch.arange(n) == n - 1}}[counts]
    known = {name: values.long() for name, values in known.items()}
    least = least_nbytes(n, dim, None)
    if least >= rows.nbytes:
        with pytest.raises(ValueError, match="budget"):
            (mgqe.MGQEmbedding if known else mgqe.DPQEmbedding)(n, dim, budget=least, **known)
        return
    layer = (mgqe.MGQEmbedding if known else mgqe.DPQEmbedding)(n, dim, _weight=rows, budget=least, **known)
    layer.start_quantizing()
    table = layer.freeze()
    assert table.nbytes <= least
    with torch.no_grad():
        assert torch.equal(layer.eval()(torch.arange(n)), table.lookup(torch.arange(n)))


def test_queries_that_do_not_fit_are_refused():
    rows = torch.randn(1500, 16)
    with pytest.raises(ValueError, match=r"shape \(n, 16\), as many dimensions as rows, got \(n, 8\)"):
        mgqe.DPQEmbedding.from_pretrained(rows, budget="12%", queries=torch.randn(9, 8))
    with pytest.raises(ValueError, match="budget="):
        mgqe.DPQEmbedding.from_pretrained(rows, num_centroids=256, queries=torch.randn(9, 16))
    with pytest.raises(TypeError, match="float"):
        mgqe.DPQEmbedding.from_pretrained(rows, budget="12%", queries=torch.ones(9, 16, dtype=torch.int64))
