"""The contract of contract.py, run over every embedding class."""

import copy
import gc
import io
import pickle

import pytest
import torch
from contract import BUDGET, DIM, ROWS, SUBJECTS, gradient_sizes, relative_error, shuffled_counts

import mgqe

OURS = [s for s in SUBJECTS if not s.is_torch]
FREEZING = [s for s in SUBJECTS if s.freezes]
HALVES = [torch.bfloat16, torch.float16]

each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
each_of_ours = pytest.mark.parametrize("subject", OURS, ids=lambda s: s.name)
each_freezing = pytest.mark.parametrize("subject", FREEZING, ids=lambda s: s.name)
ALL_IDS = torch.arange(ROWS)


@pytest.fixture(autouse=True)
def budgets_above_the_full_table(monkeypatch):
    monkeypatch.setattr("mgqe.nn.quantization.budget_bytes", lambda *_: BUDGET)


@each_subject
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (0,), (3, 0), (2, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_shapes(subject, training, shape, dtype):
    layer = subject.make().train(training)
    ids = torch.randint(0, ROWS, shape).to(dtype)
    rows = layer(ids)
    assert rows.shape == (*shape, DIM)
    assert rows.dtype == torch.float32
    if not training:
        assert torch.equal(rows, layer(ids.flatten()).view(*shape, DIM))


@each_of_ours
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int8])
def test_other_integers(subject, dtype):
    layer = subject.make().eval()
    assert torch.equal(layer(torch.tensor([4, 0, 9]).to(dtype)), layer(torch.tensor([4, 0, 9])))


@each_subject
def test_ids_by_keyword(subject):
    """torch calls them input, and so do callers that name their arguments, as torchrec does."""
    layer = subject.make().eval()
    assert torch.equal(layer(input=ALL_IDS), layer(ALL_IDS))


@each_subject
def test_attributes_and_repr(subject):
    layer = subject.make(padding_idx=-2)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (ROWS, DIM, ROWS - 2)
    assert f"{ROWS}, {DIM}" in repr(layer)
    assert f"padding_idx={ROWS - 2}" in repr(layer)
    assert subject.make().padding_idx is None


@each_subject
def test_positional_arguments_are_those_of_torch(subject):
    torch.manual_seed(0)
    options = {k: v(ROWS) if callable(v) else v for k, v in subject.options.items()}
    layer = subject.cls(ROWS, DIM, 3, None, 2.0, True, False, **options)
    assert (layer.padding_idx, layer.scale_grad_by_freq, layer.sparse) == (3, True, False)
    layer(torch.tensor([1, 1, 2])).sum().backward()


@each_subject
@pytest.mark.parametrize("training", [True, False])
def test_padding(subject, training):
    layer = subject.make(padding_idx=5).train(training)
    rows = layer(torch.tensor([[5, 1], [2, 5]]))
    assert not rows[0, 0].any()
    assert not rows[1, 1].any()
    assert rows[0, 1].any()
    layer(torch.tensor([5, 5, 5])).sum().backward()
    assert all(size == 0 for size in gradient_sizes(layer))


@each_subject
@pytest.mark.parametrize("training", [True, False])
def test_bad_ids(subject, training):
    layer = subject.make().train(training)
    for bad in (-1, ROWS, 2**40):
        with pytest.raises(IndexError, match=None if subject.is_torch else f"{bad} is out of range"):
            layer(torch.tensor([0, bad]))
    with pytest.raises(RuntimeError if subject.is_torch else TypeError):
        layer(torch.tensor([0.0]))
    layer(torch.tensor([0]))


@each_of_ours
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"rows": -1}, ValueError),
        ({"dim": 0}, ValueError),
        ({"dim": -4}, ValueError),
        ({"padding_idx": ROWS}, ValueError),
        ({"padding_idx": -ROWS - 1}, ValueError),
        ({"dtype": torch.int32}, TypeError),
    ],
)
def test_bad_construction(subject, arguments, error):
    with pytest.raises(error):
        subject.make(**arguments)


@each_subject
def test_same_seed_same_layer(subject):
    first, second = subject.make(seed=3).eval(), subject.make(seed=3).eval()
    assert torch.equal(first(ALL_IDS), second(ALL_IDS))
    assert not torch.equal(first(ALL_IDS), subject.make(seed=4).eval()(ALL_IDS))


@each_subject
def test_eval_changes_nothing(subject):
    layer = subject.make().eval()
    before = copy.deepcopy(layer.state_dict())
    first = layer(ALL_IDS)
    assert torch.equal(layer(ALL_IDS), first)
    assert torch.equal(layer(torch.tensor([7, 3, 7])), first[[7, 3, 7]])
    after = layer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@each_subject
def test_state_dict(subject):
    layer, other = subject.make(seed=1), subject.make(seed=2)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(layer.eval()(ALL_IDS), other.eval()(ALL_IDS))


@each_of_ours
def test_state_dict_into_another_state(subject):
    """A checkpoint decides the state: a layer in its warm-up takes up one that has left it."""
    layer = subject.make(seed=1)
    fresh = type(subject)(**{**vars(subject), "quantizing": False}).make(seed=2)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(ALL_IDS), fresh.eval()(ALL_IDS))


@each_subject
def test_copies(subject):
    layer = subject.make(padding_idx=2)
    layer(ALL_IDS).sum().backward()  # leaves whatever a training pass leaves behind
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(layer.eval()(ALL_IDS), copied.eval()(ALL_IDS))
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(2)
        assert not torch.equal(layer(ALL_IDS), copied(ALL_IDS))


@each_subject
@pytest.mark.parametrize("sparse", [False, True])
def test_learns(subject, sparse):
    """A few steps towards given rows lower the error; with sparse gradients too."""
    layer = subject.make(sparse=sparse)
    target = torch.randn(ROWS, DIM)
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0)
    errors = []
    for _ in range(30):
        optimizer.zero_grad()
        ids = torch.cat([ALL_IDS, ALL_IDS[:10]])
        error = (layer(ids) - target[ids]).square().mean()
        (error + mgqe.quantization_loss(layer)).backward()
        optimizer.step()
        errors.append(float(error))
    assert max(gradient_sizes(layer)) > 0
    assert errors[-1] < 0.8 * errors[0]
    sparse_gradients = [p.grad.is_sparse for p in layer.parameters() if p.grad is not None]
    assert any(sparse_gradients) == sparse


@each_subject
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_dtypes(subject, dtype):
    layer = subject.make(dtype=dtype, padding_idx=1)
    rows = layer(torch.tensor([[1, 2], [3, 2]]))
    assert rows.dtype == dtype
    assert rows.isfinite().all()
    rows.float().square().sum().backward()
    assert max(gradient_sizes(layer)) > 0
    converted = subject.make(padding_idx=1).to(dtype).eval()
    assert converted(ALL_IDS).dtype == dtype


@each_subject
def test_max_norm(subject):
    if not subject.max_norm:
        with pytest.raises(ValueError, match="max_norm"):
            subject.make(max_norm=0.5)
    elif not subject.quantizing:  # quantised rows are centroids, whose norm is not the rows'
        rows = subject.make(max_norm=0.5)(ALL_IDS)
        assert (rows.norm(dim=-1) <= 0.5 + 1e-4).all()


@each_subject
@pytest.mark.parametrize("training", [True, False])
def test_compiles(subject, training):
    """In eval mode as one graph; in training with the same gradients, whatever ids come more than once."""
    torch._dynamo.reset()
    layer = subject.make(padding_idx=0).train(training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=not training)
    ids = torch.tensor([[3, 0, 3], [8, 49, 2]])
    rows, expected = compiled(ids), twin(ids)
    assert relative_error(rows, expected) < 1e-6
    if training:
        (rows.square().sum() + mgqe.quantization_loss(layer)).backward()
        (expected.square().sum() + mgqe.quantization_loss(twin)).backward()
        for got, wanted in zip(layer.parameters(), twin.parameters(), strict=True):
            if wanted.grad is not None:
                assert torch.allclose(got.grad, wanted.grad, rtol=1e-4, atol=1e-6)
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(layer.buffers(), twin.buffers(), strict=True))


@each_freezing
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_frozen_table(subject, padding_idx, tmp_path):
    layer = subject.make(padding_idx=padding_idx).eval()
    table = layer.freeze()
    nbytes = mgqe.save(table, tmp_path / "table")
    loaded = mgqe.load(tmp_path / "table")
    assert loaded.equal(table)
    assert (loaded.num_embeddings, loaded.embedding_dim, loaded.padding_idx) == (ROWS, DIM, padding_idx)
    rows = loaded.lookup(ALL_IDS)
    assert rows.dtype == torch.float32
    assert relative_error(rows, layer(ALL_IDS)) <= subject.agreement
    assert torch.equal(rows, loaded.to_dense())
    if padding_idx is not None:
        assert not rows[padding_idx].any()
    tensors, _ = table.to_tensors()
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    assert table.nbytes == sum(table.nbytes_by_part().values()) == held
    assert held < nbytes == (tmp_path / "table").stat().st_size < held + 2500


@each_freezing
@pytest.mark.parametrize("dtype", HALVES)
def test_frozen_table_of_half_precision(subject, dtype, tmp_path):
    layer = subject.make(dtype=dtype).eval()
    mgqe.save(layer.freeze(), tmp_path / "table")
    rows = mgqe.load(tmp_path / "table").lookup(ALL_IDS)
    assert rows.dtype == torch.float32
    assert relative_error(rows.to(dtype), layer(ALL_IDS)) <= subject.half_agreement


@each_freezing
def test_frozen_table_takes_ids_of_any_kind(subject):
    table = subject.make().freeze()
    rows = table.to_dense()
    for shape in [(), (2, 3), (0,)]:
        ids = torch.full(shape, 6, dtype=torch.uint8)
        assert torch.equal(table.lookup(ids), rows[6].expand(*shape, DIM))
    for bad in (-1, ROWS):
        with pytest.raises(IndexError, match=f"{bad} is out of range"):
            table.lookup(torch.tensor([bad]))
    with pytest.raises(TypeError, match="integer"):
        table.lookup(torch.tensor([1.0]))


@each_freezing
def test_frozen_table_stands_alone(subject):
    layer = subject.make().eval()
    table = layer.freeze()
    before = table.to_dense()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(table.to_dense(), before)
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table)), table.to("cpu")):
        assert copied.equal(table)
        assert torch.equal(copied.to_dense(), before)
    assert not table.equal(layer.freeze())
    assert not table.lookup(ALL_IDS).requires_grad
    assert f"{table.nbytes:,} bytes" in repr(table)


@each_freezing
def test_frozen_table_compiles(subject):
    torch._dynamo.reset()
    table = subject.make(padding_idx=3).freeze()
    ids = torch.tensor([[3, 0], [49, 2]])
    compiled = torch.compile(table.lookup, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(ids), table.lookup(ids))


@each_freezing
def test_after_training_too(subject):
    """The equality survives training, in which rows, centroids and statistics move."""
    layer = subject.make(padding_idx=4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for step in range(20):
        optimizer.zero_grad()
        ids = torch.randint(0, ROWS, (16,), generator=torch.Generator().manual_seed(step))
        loss = (layer(ids) - torch.sin(ids.float())[:, None]).square().mean()
        (loss + mgqe.quantization_loss(layer)).backward()
        optimizer.step()
    layer.eval()
    table = layer.freeze()
    assert relative_error(table.lookup(ALL_IDS), layer(ALL_IDS)) <= subject.agreement


@each_freezing
def test_freezing_nan_is_refused(subject):
    layer = subject.make()
    with torch.no_grad():
        next(layer.parameters())[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        layer.freeze()


@each_subject
def test_no_rows(subject, tmp_path):
    layer = subject.make(rows=0)
    for training in (True, False):
        assert layer.train(training)(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, DIM)
        with pytest.raises((IndexError, RuntimeError) if subject.is_torch else IndexError):
            layer(torch.tensor([0]))
    if subject.freezes:
        mgqe.save(layer.freeze(), tmp_path / "table")
        table = mgqe.load(tmp_path / "table")
        assert table.num_embeddings == 0
        assert table.lookup(torch.empty(0, dtype=torch.int32)).shape == (0, DIM)
        with pytest.raises(IndexError):
            table.lookup(torch.tensor([0]))


@each_freezing
def test_one_row(subject):
    options = {"counts": torch.ones(1)} if "counts" in subject.options else {}
    layer = subject.make(rows=1, **options).eval()
    assert layer.freeze().lookup(torch.zeros(3, dtype=torch.int64)).shape == (3, DIM)


def test_the_counts_are_in_no_order():
    assert mgqe.Tiers.from_counts(shuffled_counts(ROWS)).tier_of is not None


@each_freezing
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_frozen_tables(subject, mode):
    table = subject.make(padding_idx=3).freeze()
    ids, offsets = torch.tensor([1, 3, 1, 49, 3, 3, 0, 7], dtype=torch.int32), torch.tensor([0, 2, 2, 4, 6])
    expected = torch.nn.functional.embedding_bag(
        ids.long(), table.to_dense(), offsets, mode=mode, padding_idx=3, include_last_offset=False
    )
    torch.testing.assert_close(table.bag(ids, offsets, mode), expected)
    weights = torch.linspace(-1, 1, 8)
    weighted = torch.nn.functional.embedding_bag(
        ids.long(), table.to_dense(), offsets, mode="sum", padding_idx=3, per_sample_weights=weights
    )
    torch.testing.assert_close(table.bag(ids, offsets, per_sample_weights=weights), weighted)
    with pytest.raises(IndexError, match="id 50 is out of range"):
        table.bag(torch.tensor([[1, 50]]))
    with pytest.raises(ValueError, match="must not decrease"):
        table.bag(ids, torch.tensor([0, 5, 4]))


@each_subject
def test_a_step_leaves_no_tensors_to_the_garbage_collector(subject):
    """A graph that holds itself would keep its tensors until the next collection, tens of steps later."""
    layer = subject.make().train()

    def step():
        loss = layer(ALL_IDS).square().sum()
        if not subject.is_torch:
            loss = loss + mgqe.quantization_loss(layer)
        loss.backward()

    step()  # what is made once
    while gc.collect():  # what other tests left, as long as there is any
        pass
    gc.disable()
    try:
        step()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
