"""The operators as torch.library sees them: opcheck, torch.compile(fullgraph=True), fake tensors, export."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mgqe import ops
from mgqe.checks.waiting import as_on_gpu
from mgqe.ops import _lookup


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Every test compiles anew; the lambdas below would otherwise reach the limit of recompilations."""
    torch._dynamo.reset()


def arguments():
    made = torch.Generator().manual_seed(0)
    rows, centroids = torch.randn(6, 8, generator=made), torch.randn(2, 16, 4, generator=made)
    codes = torch.randint(16, (6, 2), generator=made, dtype=torch.int32)
    packed = torch.randint(256, (10, 1), generator=made, dtype=torch.uint8)
    ids = torch.tensor([3, 1, 3, 9, 0, 9])
    table = ([packed], [centroids], [torch.empty(0)], [], [], [], [10], [4], [2], [0], 8, 2)
    return {
        "assign": [(rows, centroids, None), (rows, centroids, torch.randn(2, 16, generator=made))],
        "gather": [(codes, centroids), (codes, centroids.clone().requires_grad_())],
        "scatter": [(rows, codes, None, 2, 16, 4), (rows, codes, torch.rand(6, generator=made), 2, 16, 4)],
        "unique": [(ids, 10)],
        "lookup": [(ids, *table), (ids.reshape(2, 3), *table)],
    }


def look_up(ids, *table):
    """ops.lookup with the operator's arguments."""
    return ops.lookup(ids, ops.TableBuffers(*table))


CASES = [(name, i) for name, cases in arguments().items() for i in range(len(cases))]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_opcheck(name, case):
    torch.library.opcheck(getattr(torch.ops.mgqe, name).default, arguments()[name][case])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_compiles_as_one_graph(name, case):
    given = arguments()[name][case]
    function = look_up if name == "lookup" else getattr(ops, name)
    # aot_eager traces forward and backward like the default backend, without needing a C++ compiler.
    compiled = torch.compile(lambda *a: function(*a), fullgraph=True, backend="aot_eager")
    expected, got = function(*given), compiled(*given)
    if name == "unique":
        # The shape may not depend on the values: padded with repeats that are counted zero times.
        size = expected[0].shape[0]
        assert got[0].shape == got[2].shape == given[0].shape
        assert torch.equal(got[0][:size], expected[0])
        assert torch.equal(got[1], expected[1])
        assert torch.equal(got[2][:size], expected[2])
        assert not got[2][size:].any()
        assert (got[0][size:] == got[0][0]).all()
        return
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (expected, got)), strict=True):
        assert torch.equal(one, other)


def test_compiled_gradient_equals_eager():
    codes, codebook = arguments()["gather"][0]
    grads = []
    for function in (ops.gather, torch.compile(ops.gather, fullgraph=True, backend="aot_eager")):
        leaf = codebook.clone().requires_grad_()
        function(codes, leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_prepared_look_up_compiles():
    ids, *table = arguments()["lookup"][0]
    prepared = ops.PreparedLookup(ops.TableBuffers(*table))
    compiled = torch.compile(lambda i: prepared(i) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), prepared(ids) * 2)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "as on a gpu"])
def test_a_table_that_a_layer_keeps_is_laid_out_for_no_call(on_gpu, monkeypatch):
    if on_gpu:
        pytest.importorskip("triton", reason="needs Triton, which runs on CPUs by its interpreter: pip install triton")
    ids, *table = arguments()["lookup"][0]
    laid_out, place = [], _lookup.gpu_table
    monkeypatch.setattr(_lookup, "gpu_table", lambda parts: (laid_out.append(parts), place(parts))[1])
    with as_on_gpu() if on_gpu else nullcontext():
        prepared = ops.PreparedLookup(ops.TableBuffers(*table), torch.full((8,), 7.0))
        look_up = torch.compile(lambda i: prepared(i), fullgraph=True, backend="aot_eager")
        pool = torch.compile(lambda i: ops.bag(prepared, i), fullgraph=True, backend="aot_eager")
        for some in (ids, ids.flip(0)):
            assert torch.equal(look_up(some), prepared(some))
            assert torch.equal(pool(some.view(2, 3)), ops.bag(prepared, some.view(2, 3)))
        assert len(laid_out) == 1
        assert torch.equal(look_up(torch.tensor([11])), torch.full((1, 8), 7.0))
        with pytest.raises(IndexError, match="id 11 is out of range"):  # a graph's own operator knows no fallback
            torch.ops.mgqe.lookup(torch.tensor([11]), *table)
        # What differs in a tensor or in a number is laid out anew, and so is a table that its layer has let go of.
        moved = [table[0], [table[1][0] + 1], *table[2:]]
        assert torch.equal(torch.ops.mgqe.lookup(ids, *moved), ops.PreparedLookup(ops.TableBuffers(*moved))(ids))
        padded = [*table[:-1], 3]
        assert not torch.ops.mgqe.lookup(torch.tensor([3]), *padded).any()
        count = len(laid_out)
        prepared = look_up = pool = None
        torch._dynamo.reset()
        gc.collect()
        torch.ops.mgqe.lookup(ids, *table)
        assert len(laid_out) == count + 1


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "as on a gpu"])
def test_a_table_that_nobody_keeps_is_laid_out_for_no_call_but_the_first(on_gpu, monkeypatch):
    """As that of an exported program: until its codes are gone, and anew after it was written to."""
    if on_gpu:
        pytest.importorskip("triton", reason="needs Triton, which runs on CPUs by its interpreter: pip install triton")
    ids, *table = arguments()["lookup"][0]
    laid_out, place, before = [], _lookup.gpu_table, dict(_lookup._OF_OPERATORS)
    monkeypatch.setattr(_lookup, "gpu_table", lambda parts: (laid_out.append(0), place(parts))[1])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.codes, self.book = torch.nn.Buffer(table[0][0]), torch.nn.Buffer(table[1][0])

        def forward(self, ids):
            return ops.lookup(ids, ops.TableBuffers([self.codes], [self.book], *table[2:]))

    with as_on_gpu() if on_gpu else nullcontext():
        program = torch.export.export(Model(), (ids,)).module()
        expected = ops.PreparedLookup(ops.TableBuffers(*table))(ids)
        laid_out.clear()
        assert all(torch.equal(program(ids), expected) for _ in range(3))
        assert len(laid_out) == 1
        program.load_state_dict(
            {name: value * 2 if name == "book" else value for name, value in program.state_dict().items()}
        )
        assert all(torch.equal(program(ids), 2 * expected) for _ in range(2))
        assert len(laid_out) == 2
    assert _lookup._OF_OPERATORS.keys() > before.keys()
    held = [weakref.ref(program.codes), weakref.ref(program.book)]
    program = table = None
    gc.collect()
    assert [each() for each in held] == [None, None]
    assert _lookup._OF_OPERATORS.keys() == before.keys()


def test_dynamic_batch_compiles_once():
    centroids = torch.randn(2, 16, 4)
    compiled = torch.compile(lambda r: ops.assign(r, centroids), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (5, 9, 17):
        rows = torch.randn(n, 8)
        assert torch.equal(compiled(rows), ops.assign(rows, centroids))


def test_errors_reach_the_caller_of_compiled_code():
    compiled = torch.compile(lambda i: ops.unique(i, 10), fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match="id 10 is out of range"):
        compiled(torch.tensor([1, 10, 2]))


def test_fake_tensors_have_the_right_shapes():
    with FakeTensorMode():
        codes = ops.assign(torch.empty(7, 8), torch.empty(2, 16, 4))
        assert codes.shape == (7, 2)
        assert codes.dtype == torch.int32
        assert ops.gather(codes, torch.empty(2, 16, 4)).shape == (7, 8)
        with pytest.raises(ValueError, match="expected 2"):
            ops.assign(torch.empty(7, 9), torch.empty(2, 16, 4))


def test_export():
    centroids = torch.randn(2, 16, 4)

    class Model(torch.nn.Module):
        def forward(self, rows):
            return ops.assign(rows, centroids)

    rows = torch.randn(3, 8)
    exported = torch.export.export(Model(), (rows,))
    assert torch.equal(exported.module()(rows), ops.assign(rows, centroids))
