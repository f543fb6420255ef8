"""The kernels for GPUs against their twins in torch: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which runs on CPUs by its interpreter: pip install triton")

from ops_tables import MIXED, mixed_table, table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from whole_tables import whole_table

import mgqe
from mgqe import ops
from mgqe.checks.waiting import as_on_gpu
from mgqe.codec.mixed import round_flat
from mgqe.nn.rows import NarrowRows
from mgqe.ops import _topk_gpu, reference, reference_topk, triton_kernels
from mgqe.ops.layout.pieces import pieces

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = DEVICE == "cuda"  # the interpreter rounds the product and the sum of an fma, which a GPU and the twin do once


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- codes ---------------------------------------------------------------------------------------------------


def even(rows, centroids, bias=None):
    subspaces, count, width = centroids.shape
    on = [None if t is None else t.to(DEVICE) for t in (rows, centroids, bias)]
    return triton_kernels.assign(*on[:2], [width] * subspaces, [count] * subspaces, [count] * subspaces, on[2]).cpu()


@pytest.mark.parametrize(
    ("n", "subspaces", "count", "width"), [(3, 1, 2, 1), (70, 3, 5, 4), (65, 2, 64, 3), (5, 1, 130, 2), (0, 2, 4, 2)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_codes_are_those_of_the_twin(n, subspaces, count, width, with_bias):
    rows, centroids = numbers(n, subspaces * width), numbers(subspaces, count, width, seed=1)
    bias = numbers(subspaces, count, seed=2) if with_bias else None
    assert torch.equal(even(rows, centroids, bias), reference.assign(rows, centroids, bias))


def test_the_most_centroids(monkeypatch):
    module = importlib.import_module("mgqe.ops.triton_kernels.assign")
    monkeypatch.setattr(module, "CENTROIDS", 8192)  # at a time, for the interpreter's sake
    rows, centroids = numbers(2, 1), numbers(1, 65_536, 1, seed=1)
    assert torch.equal(even(rows, centroids), reference.assign(rows, centroids, None))


class Made(TorchDispatchMode):
    """The most numbers of a tensor that is made within; the interpreter's own copies of arguments are none."""

    most, in_kernel = 0, False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not self.in_kernel:
            self.most = max(
                self.most, *(each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor)), 0
            )
        return out

    def watch(self, patch):
        from triton.runtime.interpreter import GridExecutor

        call = GridExecutor.__call__

        def launched(*args, **kwargs):
            self.in_kernel = True
            try:
                return call(*args, **kwargs)
            finally:
                self.in_kernel = False

        patch.setattr(GridExecutor, "__call__", launched)


def codes_of_even_subspaces(n):
    ops.assign(numbers(n, 2).to(DEVICE), numbers(1, 90, 2, seed=1).to(DEVICE))


def codes_of_unequal_subspaces(n):
    layout = pieces((1, 2), (6, 4), (64, 16))
    ops.assign_mixed(numbers(n, 3).to(DEVICE), numbers(64 + 32).to(DEVICE), layout)


@pytest.mark.parametrize("work", [codes_of_even_subspaces, codes_of_unequal_subspaces])
def test_no_tensor_of_distances_is_written(work, monkeypatch):
    """Nothing that is made has more numbers than rows and codebooks have; distances would be 64 * 80 and more."""
    made = Made()
    if DEVICE == "cpu":
        made.watch(monkeypatch)
    with as_on_gpu(), made:
        work(64)
    assert 64 <= made.most <= 3 * 64
    monkeypatch.setenv("MGQE_TRITON", "0")  # the twin does write them, so that this can fail
    twin = Made()
    with as_on_gpu(), twin:
        work(64)
    assert twin.most >= 64 * 64


def test_no_tensor_of_distances_is_written_in_training(monkeypatch):
    layer = mgqe.DPQEmbedding(64, 2, num_subspaces=1, num_centroids=60, warmup_steps=0)
    layer.start_quantizing()
    layer.to(DEVICE)
    made = Made()
    if DEVICE == "cpu":
        made.watch(monkeypatch)
    with as_on_gpu(), made:
        (layer(torch.arange(64, device=DEVICE)).square().sum() + mgqe.quantization_loss(layer)).backward()
    assert made.most <= 4 * 64


def test_ties_go_to_the_lowest_index_also_across_blocks():
    centroids = torch.tensor([1.0, 3.0, 1.0, 3.0] * 40).reshape(1, 160, 1)
    assert even(torch.tensor([[1.2], [2.0], [3.5]]), centroids).flatten().tolist() == [0, 0, 1]
    assert even(torch.tensor([[2.0]]), centroids.flip(1)).item() == 0


def test_numbers_that_are_no_numbers():
    inf, nan = float("inf"), float("nan")
    centroids = torch.tensor([nan, inf, 2.0, -inf, 1.0]).reshape(1, 5, 1)
    rows = torch.tensor([[1.4], [nan], [inf], [-inf], [3e38]])
    assert torch.equal(even(rows, centroids), reference.assign(rows, centroids, None))
    assert even(rows, torch.full((1, 3, 1), nan)).flatten().tolist() == [0] * 5
    assert even(torch.tensor([[0.0]]), torch.tensor([nan, inf]).reshape(1, 2, 1)).item() == 1


def test_rows_far_from_all_centroids():
    rows, centroids = numbers(40, 3) * 1e9, numbers(1, 20, 3, seed=1)
    assert torch.equal(even(rows, centroids), reference.assign(rows, centroids, None))


@pytest.mark.parametrize("bits", [(3, 0, 5, 1), (7, 2, 1, 4)])
def test_codes_of_unequal_subspaces(bits):
    layout = pieces((1, 4, 2, 6), bits, (128, 8, 32, 16))
    z = numbers(37, 13)
    book = numbers(sum(p.width * p.num_centroids for p in layout), seed=3)
    z[5, :3] = float("nan")
    with as_on_gpu():
        codes = ops.assign_mixed(z.to(DEVICE), book.to(DEVICE), layout).cpu()
    assert torch.equal(codes, reference.assign_mixed(z, book, layout))


# ---- rows times a matrix -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "length", "dim"), [(1, 1, 1), (33, 5, 70), (3, 40, 7)])
def test_rows_times_a_matrix(n, length, dim):
    rows, mean, matrix = numbers(n, length), numbers(dim, seed=1), numbers(length, dim, seed=2)
    with as_on_gpu():
        made = ops.transform(rows.to(DEVICE), mean.to(DEVICE), matrix.to(DEVICE)).cpu()
    expected = reference.transform(rows, mean, matrix)
    assert torch.equal(made, expected) if EXACT else torch.allclose(made, expected, atol=1e-5)


# ---- look-ups ------------------------------------------------------------------------------------------------

EVEN = {
    "float32": {},
    "float16": {"dtype": torch.float16},
    "int8": {"dtype": torch.int8},
    "shuffled": {"shuffled": True},
    "several words of the map": {
        "shuffled": True,
        "sizes": (30, 300, 100),
        "counts": (256, 64, 2),
        "subspaces": (4,) * 3,
    },
    "an empty tier": {"shuffled": True, "sizes": (30, 0, 90), "counts": (256, 64, 8), "subspaces": (4,) * 3},
    "padding": {"padding_idx": 7},
    "one codebook for all subspaces": {"pieces": 1},
    "tiers of other subspaces": {"subspaces": (8, 4), "pieces": 8, "width": 3},
    "codebooks of their own": {"own_books": True},
    "many centroids": {"sizes": (9, 20), "counts": (3000, 5)},
}


def on_device(parts):
    moved = {
        name: [t.to(DEVICE) for t in getattr(parts, name)]
        for name in ("codes", "centroids", "scales", "map_bits", "map_ranks")
    }
    singles = {
        name: None if (t := getattr(parts, name)) is None else t.to(DEVICE)
        for name in ("mean", "matrix", "matrix_scales", "column_scales")
    }
    return ops.TableBuffers(**{**vars(parts), **moved, **singles})


def check_lookup(parts, exact=True):
    ids = torch.arange(2 * parts.num_embeddings) * 7 % parts.num_embeddings
    with as_on_gpu():
        prepared = ops.PreparedLookup(on_device(parts))
        assert prepared.gpu_table is not None
        rows = prepared(ids.to(DEVICE).view(2, -1)).cpu().flatten(0, 1)
    expected = reference.lookup(ids, parts)
    assert torch.equal(rows, expected) if exact or EXACT else torch.allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("arguments", EVEN.values(), ids=EVEN)
def test_lookups_of_even_tables(arguments):
    check_lookup(table(**arguments)[0])


@pytest.mark.parametrize("arguments", MIXED.values(), ids=MIXED)
def test_lookups_of_mixed_tables(arguments):
    check_lookup(mixed_table(**arguments)[0])


@pytest.mark.parametrize(
    "more", [{"matrix": torch.float32, "dim": 40}, {"matrix": torch.int8, "dim": 9, "padding_idx": 3}]
)
def test_lookups_through_a_matrix(more):
    check_lookup(mixed_table(**{"sizes": (9, 40), **more})[0], exact=False)


@pytest.mark.parametrize("shuffled", [False, True])
def test_lookups_of_whole_numbers(shuffled):
    tiers = torch.arange(98) * 5 % 3 if shuffled else [5, 90, 3]
    bits = [(3, 8, 0, 5), (2, 6, 1, 8), (0, 4, 4, 4)]
    check_lookup(whole_table([2, 1, 4, 30], bits, tiers, 41, padding_idx=2).snapshot.lookup.table)


def test_ids_outside_the_table():
    parts, *_ = table(sizes=(5, 9))
    with as_on_gpu():
        prepared = ops.PreparedLookup(on_device(parts), torch.zeros(parts.embedding_dim, device=DEVICE))
        assert prepared(torch.tensor([99], device=DEVICE)).abs().sum() == 0
        with pytest.raises(IndexError, match="id 14"):
            ops.PreparedLookup(on_device(parts))(torch.tensor([14], device=DEVICE))


# ---- bags ----------------------------------------------------------------------------------------------------

BAGS = {
    "even": table(padding_idx=7, sizes=(9, 40))[0],
    "steps of int8, shuffled": table(sizes=(9, 40), dtype=torch.int8, shuffled=True)[0],
    "through a matrix": mixed_table(matrix=torch.float32, dim=9, sizes=(9, 40), shuffled=True, padding_idx=3)[0],
    "whole numbers": whole_table([2, 1, 4], [(3, 8, 0), (2, 6, 1)], [9, 40], 7, padding_idx=2).snapshot.lookup.table,
}


def check_bags(parts, ids, offsets, mode, weights=None):
    """Against the native kernel."""
    expected = ops.bag(ops.PreparedLookup(parts), ids, offsets, mode, weights)
    with as_on_gpu():
        prepared = ops.PreparedLookup(on_device(parts))
        on = [None if t is None else t.to(DEVICE) for t in (ids, offsets, weights)]
        made = ops.bag(prepared, on[0], on[1], mode, on[2]).cpu()
    if parts.mean is None or EXACT:
        assert torch.equal(made.nan_to_num(7.0), expected.nan_to_num(7.0))
    else:
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5, equal_nan=True)
    return made


@pytest.mark.parametrize("parts", BAGS.values(), ids=BAGS)
@pytest.mark.parametrize(("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False), ("max", False)])
def test_bags(parts, mode, weighted):
    ids = torch.arange(23) * 7 % parts.num_embeddings
    offsets = torch.tensor([0, 0, 7, 8, 8, 9, 12, 12, 13, 20, 23])  # of two programs
    made = check_bags(parts, ids, offsets, mode, torch.linspace(-1, 1, 23) if weighted else None)
    assert not made[[0, 3, 6, 10]].any()
    assert made[[1, 2, 5, 9]].any(dim=1).all()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_more_coordinates_and_columns_than_a_program_has_at_a_time(mode, monkeypatch):
    module = importlib.import_module("mgqe.ops.triton_kernels.bag_codes")
    monkeypatch.setattr(module, "MAX_COORDINATES", 16)
    monkeypatch.setattr(module, "MAX_COLUMNS", 16)
    ids, offsets = torch.arange(9) * 7 % 49, torch.tensor([0, 2, 2])
    check_bags(mixed_table(sizes=(9, 40))[0], ids, offsets, mode)  # of 17 coordinates
    check_bags(mixed_table(sizes=(9, 40), matrix=torch.float32, dim=18)[0], ids, offsets, mode)
    check_bags(whole_table([9, 8], [(3, 8), (2, 6)], [9, 40], 18).snapshot.lookup.table, ids, offsets, mode)


def test_bags_worked_by_hand():
    """Rows 0 to 3 are (0, 1) + (0 to 3) (2, -1); row 2 is padding, which no weight brings back."""
    codes, book = torch.tensor([[0], [1], [2], [3]], dtype=torch.uint8), torch.tensor([0.0, 1.0, 2.0, 3.0])
    parts = ops.TableBuffers(
        [codes], [book], [torch.empty(0)], [], [], [], [4], [2], [1], [0], 2, 2,
        widths=[1], code_bits=[2], mean=torch.tensor([0.0, 1.0]), matrix=torch.tensor([[2.0, -1.0]]),
    )  # fmt: skip
    ids, nan = torch.tensor([1, 3, 2, 2, 2, 0]), float("nan")
    offsets = torch.tensor([0, 3, 3, 5])  # (1, 3, padding), (), (padding, padding), (0)
    assert check_bags(parts, ids, offsets, "sum").tolist() == [[8, -2], [0, 0], [0, 0], [0, 1]]
    assert check_bags(parts, ids, offsets, "mean").tolist() == [[4, -1], [0, 0], [0, 0], [0, 1]]
    weights = torch.tensor([2.0, -1.0, nan, nan, float("inf"), 3.0])
    assert check_bags(parts, ids, offsets, "sum", weights).tolist() == [[-2, 2], [0, 0], [0, 0], [0, 3]]
    assert check_bags(parts, torch.tensor([[1, 1, 3], [2, 0, 3]]), None, "mean")[1].tolist() == [3, -0.5]
    nothing = torch.empty(0, dtype=torch.int64)
    assert check_bags(parts, nothing, torch.tensor([0, 0]), "sum").tolist() == [[0, 0], [0, 0]]
    assert check_bags(parts, nothing, nothing, "mean").shape == (0, 2)
    bad = torch.tensor([0.0, nan, 0.0, 0.0, 0.0, 0.0])
    assert check_bags(parts, ids, offsets, "sum", bad).isnan().tolist() == [[True, True]] + [[False, False]] * 3


@pytest.mark.parametrize("parts", BAGS.values(), ids=BAGS)
def test_bags_refuse_what_the_cpu_refuses(parts):
    ids = torch.tensor([3, 5, 8], device=DEVICE)
    with as_on_gpu():
        prepared = ops.PreparedLookup(on_device(parts))
        for offsets, words in (([1], "start at 0"), ([0, 2, 1], "must not decrease"), ([0, 4], "must not exceed")):
            with pytest.raises(ValueError, match=words):
                ops.bag(prepared, ids, torch.tensor(offsets, device=DEVICE))
        with pytest.raises(IndexError, match="id 49"):
            ops.bag(prepared, torch.tensor([[1, 49]], device=DEVICE))


def test_weights_of_bags_have_their_gradient():
    parts, ids = BAGS["through a matrix"], torch.tensor([5, 3, 9, 1])
    offsets, weights = torch.tensor([0, 2]), torch.tensor([1.0, 2.0, -1.0, 0.5], device=DEVICE, requires_grad=True)
    with as_on_gpu():
        ops.bag(
            ops.PreparedLookup(on_device(parts)), ids.to(DEVICE), offsets.to(DEVICE), "sum", weights
        ).sum().backward()
    expected = reference.lookup(ids, parts).sum(1)
    assert expected[1] == 0  # the padding
    assert torch.allclose(weights.grad.cpu(), expected, atol=1e-4)


# ---- top-K ---------------------------------------------------------------------------------------------------

SEARCHED = {
    "tiers of other subspaces": table(sizes=(9, 60), subspaces=(8, 4), pieces=8, width=3, shuffled=True)[0],
    "padding": table(sizes=(9, 60), padding_idx=7)[0],
    "one tier": table(sizes=(69,), counts=(4,), subspaces=(2,))[0],
    "mixed": mixed_table(sizes=(9, 60))[0],
    "through a matrix": mixed_table(sizes=(9, 60), matrix=torch.float32, dim=9)[0],
}


@pytest.mark.parametrize("first_rows", [8, 1 << 16], ids=["by thresholds", "at once"])
@pytest.mark.parametrize("parts", SEARCHED.values(), ids=SEARCHED)
@pytest.mark.parametrize("cosine", [False, True])
def test_top_k(parts, cosine, first_rows, monkeypatch):
    monkeypatch.setattr(_topk_gpu, "FIRST_ROWS", first_rows)
    queries = numbers(3, parts.embedding_dim)
    queries /= queries.norm(dim=1, keepdim=True)
    check_top_k(parts, ops.TopKJob(queries, 12, cosine, hidden=torch.arange(69) % 7 == 0))


def check_top_k(parts, job):
    expected = reference_topk.topk(parts, job)
    tensors = {name: None if (t := getattr(job, name)) is None else t.to(DEVICE) for name in ("queries", "hidden")}
    lists = {
        name: None if (t := getattr(job, name)) is None else ops.IdLists(t.ids.to(DEVICE), t.spans.to(DEVICE))
        for name in ("excluded", "candidates")
    }
    bias = None if job.bias is None else ops.BiasLevels(*(t.to(DEVICE) for t in vars(job.bias).values()))
    with as_on_gpu():
        scores, ids, _ = ops.topk(
            ops.PreparedLookup(on_device(parts)), ops.TopKJob(**{**vars(job), **tensors, **lists, "bias": bias})
        )
    assert torch.equal(ids.cpu(), expected[1])
    assert torch.allclose(scores.cpu(), expected[0], atol=1e-6)


# Of 69 rows 32 differ, so that most scores are ties; the rows of a block of 8 are fewer than k.
TIED = table(sizes=(9, 60), counts=(4, 2), subspaces=(2, 2), pieces=2, width=2)[0]
SOME = ops.IdLists(torch.tensor([5, 9, 60, 61, 62, 5, 3]), torch.tensor([[0, 4], [4, 4], [4, 7]]))
OPTIONS = {
    "ties": {},
    "one per row": {"hidden": torch.stack([torch.arange(69) % p == 0 for p in (2, 3, 5)])},
    "excluded": {"excluded": SOME},
    "candidates": {"candidates": SOME},
    "bias": {"bias": ops.BiasLevels(torch.arange(69) % 5 - 2.0, torch.empty(0), torch.empty(0))},
    "nothing allowed": {"hidden": torch.ones(69, dtype=torch.bool)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_top_k_by_thresholds(options, monkeypatch):
    monkeypatch.setattr(_topk_gpu, "FIRST_ROWS", 8)
    check_top_k(TIED, ops.TopKJob(numbers(3, 4), 20, **options))


def test_top_k_where_more_rows_beat_the_threshold_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(_topk_gpu, "FIRST_ROWS", 8)
    rising = ops.BiasLevels(torch.arange(69.0), torch.empty(0), torch.empty(0))
    whole = _topk_gpu._Search.__init__
    monkeypatch.setattr(_topk_gpu._Search, "__init__", lambda self, *a: (whole(self, *a), setattr(self, "room", 5))[0])
    check_top_k(TIED, ops.TopKJob(numbers(20, 4), 3, bias=rising))


# ---- layers --------------------------------------------------------------------------------------------------

LAYERS = {
    "default": {"counts": torch.arange(60, 0, -1)},
    "even": {"counts": torch.arange(60) * 7 % 31, "num_centroids": (6, 4), "padding_idx": 3},
    "sx": {"counts": torch.arange(60, 0, -1), "num_centroids": 4, "quantizer": "sx"},
}


@pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)
def test_layers_are_those_of_the_cpu(arguments):
    torch.manual_seed(0)
    layer = mgqe.MGQEmbedding(60, 8, warmup_steps=0, **arguments)
    layer.start_quantizing()
    ids = torch.arange(60)
    twin = copy.deepcopy(layer).to(DEVICE)
    with as_on_gpu():
        vectors = twin(ids.to(DEVICE))
        (vectors.square().sum() + mgqe.quantization_loss(twin)).backward()
        frozen = twin.eval().freeze()
        seen = twin(ids.to(DEVICE)).cpu()
    (layer(ids).square().sum() + mgqe.quantization_loss(layer)).backward()
    assert torch.allclose(twin.raw_weight.grad.cpu(), layer.raw_weight.grad, atol=1e-4)
    table = layer.eval().freeze()
    same = (table.lookup(ids) - frozen.lookup(ids)).abs().amax(1) < 1e-5
    assert same.float().mean() > 0.95  # but for codes that rounding decides, where statistics are folded into keys
    assert torch.allclose(seen, frozen.lookup(ids), atol=1e-5)


# ---- steps of all tiers at once ------------------------------------------------------------------------------

TIERED = {
    "one codebook": {"fractions": (0.5, 0.5), "num_centroids": (70, 6)},
    "codebooks of their own": {"num_centroids": (6, 20), "share_codebook": False},
    "fewer subspaces, finer codebook": {"capacity": "subspaces", "num_subspaces": (4, 2), "num_centroids": 6},
    "one tier, padding": {"fractions": (1.0,), "num_centroids": 8, "padding_idx": 3},
    "int8": {"num_centroids": (6, 4), "centroid_dtype": "int8"},
    "a plan": {"budget": "40%"},
    "default": {},
}


def a_step(layer, ids):
    """Vectors, loss and gradients."""
    vectors = layer(ids)
    loss = mgqe.quantization_loss(layer)
    (vectors * torch.linspace(-1, 1, vectors.shape[1], device=vectors.device)).sum().add(3 * loss).backward()
    return [vectors.detach(), loss.detach(), *(p.grad.to_dense() for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("arguments", TIERED.values(), ids=TIERED)
def test_a_step_is_that_of_the_twin(arguments, monkeypatch):
    torch.manual_seed(0)
    counts = torch.arange(150) * 7 % 31
    layer = mgqe.MGQEmbedding(150, 8, counts=counts, warmup_steps=0, sparse="budget" in arguments, **arguments)
    layer.start_quantizing()
    layer.to(DEVICE)
    with torch.no_grad():
        layer.raw_weight[5] *= 1e12  # far from all centroids
    ids = (torch.arange(90) * 11 % 40).to(DEVICE)
    twin = copy.deepcopy(layer)
    with as_on_gpu():
        mine = a_step(layer, ids)
        monkeypatch.setenv("MGQE_TRITON", "0")
        theirs = a_step(twin, ids)
    assert (
        torch.equal(mine[0], theirs[0])
        if EXACT or "num_centroids" in arguments
        else torch.allclose(mine[0], theirs[0], atol=1e-5)
    )
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


SOFT = {
    "one codebook": {"fractions": (0.5, 0.5), "num_centroids": (70, 6)},
    "codebooks of their own, sparse": {"num_centroids": (6, 20), "share_codebook": False, "sparse": True},
    "fewer subspaces, finer codebook": {"capacity": "subspaces", "num_subspaces": (4, 2), "num_centroids": 6},
    "one codebook for all subspaces": {"num_subspaces": 2, "num_centroids": (9, 3), "share_subspaces": True},
    "one tier, padding": {"fractions": (1.0,), "num_centroids": 8, "padding_idx": 3},
    "int8": {"num_centroids": (6, 4), "centroid_dtype": "int8"},
    "narrow keys": {"rows": NarrowRows(key_dim=2), "num_subspaces": 2, "num_centroids": (6, 4)},
}


@pytest.mark.parametrize("arguments", SOFT.values(), ids=SOFT)
def test_a_step_of_sx_is_that_of_the_twin(arguments, monkeypatch):
    torch.manual_seed(0)
    counts = torch.arange(150) * 7 % 31
    layer = mgqe.MGQEmbedding(150, 8, counts=counts, warmup_steps=0, quantizer="sx", **arguments)
    layer.start_quantizing()
    layer.to(DEVICE)
    ids = (torch.arange(90) * 11 % 40).to(DEVICE)
    twin = copy.deepcopy(layer)
    with as_on_gpu():
        mine = a_step(layer, ids)
        monkeypatch.setenv("MGQE_TRITON", "0")
        theirs = a_step(twin, ids)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert mine[2].abs().sum() > 0
    for a, b in zip(layer.quantizer.buffers(), twin.quantizer.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # statistics have moved alike


def test_a_batch_of_one_row_takes_the_running_statistics(monkeypatch):
    torch.manual_seed(0)
    layer = mgqe.MGQEmbedding(60, 8, counts=torch.arange(60) % 7, warmup_steps=0, quantizer="sx", num_centroids=(6, 4))
    layer.start_quantizing()
    layer.to(DEVICE)
    twin, before = copy.deepcopy(layer), [each.clone() for each in layer.quantizer.buffers()]
    ids = torch.tensor([5, 5, 5], device=DEVICE)
    with as_on_gpu():
        mine = a_step(layer, ids)
        monkeypatch.setenv("MGQE_TRITON", "0")
        theirs = a_step(twin, ids)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(layer.quantizer.buffers(), before, strict=True))


def test_rows_of_sx_that_are_no_numbers(monkeypatch):
    """By hand: keys 0 and 1 of one number, rows -1 and 3. Responses to key 1 have mean 1 and variance 4, to key 0 none.

    Normalised responses of the rows to key 1 are -1 and 1, to key 0 both 0: codes 0 and 1.
    """
    layer = mgqe.DPQEmbedding(3, 1, num_subspaces=1, num_centroids=2, quantizer="sx", warmup_steps=0)
    layer.start_quantizing()
    with torch.no_grad():
        layer.raw_weight.copy_(torch.tensor([[-1.0], [3.0], [float("nan")]]))
        layer.quantizer.keys[0].copy_(torch.tensor([[[0.0], [1.0]]]))
        layer.quantizer.values_[0].copy_(torch.tensor([[[5.0], [7.0]]]))
        layer.quantizer.get_buffer("mean_0").zero_()
    layer.to(DEVICE)
    with as_on_gpu():
        assert layer(torch.tensor([0, 1, 0], device=DEVICE)).flatten().tolist() == [5.0, 7.0, 5.0]
        torch.testing.assert_close(layer.quantizer.get_buffer("mean_0").cpu(), torch.tensor([[0.0, 0.1]]))
        vectors = layer(torch.tensor([0, 2], device=DEVICE)).flatten()
    assert vectors[1].isnan()


@pytest.mark.parametrize("factor", [1.0, 0.0, 1e-44, 3e38], ids=["usual", "zeros", "denormal", "large"])
def test_codebooks_are_rounded_as_by_the_twin(factor):
    layouts = [pieces((1, 4, 2), (3, 0, 5), (8, 2, 300)), pieces((3,), (2,), (4,))]
    sizes = [sum(p.width * p.num_centroids for p in layout) for layout in layouts]
    values, units = numbers(sum(sizes)).clamp_(-1, 1) * factor, torch.ones(sum(sizes))
    values[-2] = float("nan")
    starts = (0, sizes[0])
    spans = [
        (start + p.entry, start + p.entry + p.width * p.num_centroids)
        for start, layout in zip(starts, layouts, strict=True)
        for p in layout
    ]
    made = triton_kernels.round_subspaces(values.to(DEVICE), units.to(DEVICE), torch.tensor(spans, device=DEVICE)).cpu()
    parts = zip(torch.split(values, sizes), layouts, strict=True)
    assert torch.equal(
        made.nan_to_num(7), torch.cat([round_flat(v, layout, "int8") for v, layout in parts]).nan_to_num(7)
    )


def test_ids_out_of_range_are_noted():
    layer = mgqe.DPQEmbedding(60, 4, num_centroids=4, warmup_steps=100).to(DEVICE)
    with as_on_gpu():
        vectors = layer(torch.tensor([[3, -7], [59, 64]], device=DEVICE).T)
        assert torch.equal(vectors.detach(), layer.raw_weight.detach()[torch.tensor([[3, 59], [0, 59]], device=DEVICE)])
    with pytest.raises(IndexError, match="id -7 is out of range"):
        layer.check_ids()
    layer.check_ids()
    with as_on_gpu():
        layer(torch.tensor([2000], device=DEVICE))
    with pytest.raises(IndexError, match="id 2000 is out of range"):
        layer.check_ids()


def test_a_second_derivative_of_sx_is_that_of_the_twin(monkeypatch):
    torch.manual_seed(0)
    layer = mgqe.MGQEmbedding(60, 8, counts=torch.arange(60) % 7, warmup_steps=0, quantizer="sx", num_centroids=(6, 4))
    layer.start_quantizing()
    layer.to(DEVICE)
    found = []
    for triton_on in ("1", "0"):
        monkeypatch.setenv("MGQE_TRITON", triton_on)
        each = copy.deepcopy(layer)
        with as_on_gpu():
            loss = each(torch.arange(30, device=DEVICE)).square().sum()
            (slope,) = torch.autograd.grad(loss, each.raw_weight, create_graph=True)
            slope.square().sum().backward()
        found.append([p.grad for p in each.parameters()] + list(each.quantizer.buffers()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_second_derivative_is_that_of_the_twin(monkeypatch):
    torch.manual_seed(0)
    layer = mgqe.MGQEmbedding(
        60, 8, counts=torch.arange(60) % 7, warmup_steps=0, capacity="subspaces", num_subspaces=(4, 2)
    )
    layer.start_quantizing()
    layer.to(DEVICE)
    found = []
    for triton_on in ("1", "0"):
        monkeypatch.setenv("MGQE_TRITON", triton_on)
        each = copy.deepcopy(layer)
        with as_on_gpu():
            each(torch.arange(30, device=DEVICE)).square().sum()
            (slope,) = torch.autograd.grad(mgqe.quantization_loss(each), each.raw_weight, create_graph=True)
            slope.square().sum().backward()
        found.append([p.grad for p in each.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# ---- Adagrad -------------------------------------------------------------------------------------------------

# Runs of a row: short, longer than a block, and longer than what one turn of the second kernel takes.
ROWS_OF_GRADIENTS = {
    "distinct": torch.arange(40) * 7 % 50,
    "runs": torch.arange(100) % 3 * 11,
    "one row": torch.full((700,), 4),
    "no rows": torch.arange(0),
    "one": torch.tensor([2]),
}


@pytest.mark.parametrize("rows", ROWS_OF_GRADIENTS.values(), ids=ROWS_OF_GRADIENTS)
@pytest.mark.parametrize(("dtype", "decay"), [(torch.float32, 0.0), (torch.float32, 0.1), (torch.float16, 0.0)])
def test_rowwise_adagrad(rows, dtype, decay, monkeypatch):
    gradients = [torch.sparse_coo_tensor(rows[None], numbers(len(rows), 5, seed=s).to(dtype), (50, 5)) for s in (1, 2)]
    found = []
    for triton_on in ("1", "0"):
        monkeypatch.setenv("MGQE_TRITON", triton_on)
        parameter = torch.nn.Parameter(numbers(50, 5).to(DEVICE, dtype))
        optimizer = mgqe.RowwiseAdagrad([parameter], lr=0.1, weight_decay=decay)
        with as_on_gpu():
            for gradient in gradients:
                parameter.grad = gradient.to(DEVICE)
                optimizer.step()
        found.append([parameter.detach(), optimizer.state[parameter].get("sum", torch.zeros(50))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_adagrad_of_whole_tensors(monkeypatch):
    found = []
    for triton_on in ("1", "0"):
        monkeypatch.setenv("MGQE_TRITON", triton_on)
        parameter = torch.nn.Parameter(numbers(3, 70, 7).to(DEVICE))
        optimizer = mgqe.RowwiseAdagrad([parameter], lr=0.1, weight_decay=0.01)
        with as_on_gpu():
            for seed in (1, 2):
                parameter.grad = (
                    numbers(3, 70, 7, seed=seed).to(DEVICE).masked_fill_(torch.arange(7, device=DEVICE) == 3, 0.0)
                )
                optimizer.step()
        found.append(parameter.detach())
    torch.testing.assert_close(*found)


def test_rounding_at_random_keeps_small_steps():
    """Of bfloat16 rows: each number becomes one of its two neighbours, and the mean is exact."""
    parameter = torch.nn.Parameter(torch.ones(400, 4, dtype=torch.bfloat16, device=DEVICE))
    optimizer = mgqe.RowwiseAdagrad([parameter], lr=0.001)
    with as_on_gpu():
        parameter.grad = torch.sparse_coo_tensor(
            torch.arange(400)[None], torch.ones(400, 4, dtype=torch.bfloat16), (400, 4)
        ).to(DEVICE)
        optimizer.step()
    below = 1 - 2**-8  # the bfloat16 under 1
    assert set(parameter.detach().flatten().tolist()) == {1.0, below}
    assert parameter.detach().double().mean().item() == pytest.approx(0.999, abs=2e-4)
