"""mgqe.ops.bag: hand-worked values, nn.functional.embedding_bag, kernel against twin bit for bit, refused input."""

import mmap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import ALL, each, instruction_set
from ops_tables import DTYPES, MIXED, dense, hand_worked, mixed_table, table
from table_cases import CASES, build

from mgqe import ops
from mgqe.ops import reference, reference_bag

MODES = [("sum", False), ("sum", True), ("mean", False), ("max", False)]
each_mode = pytest.mark.parametrize(("mode", "weighted"), MODES)


@pytest.fixture(params=[*ALL, "none"])
def isa(request, monkeypatch):
    """Every instruction set of this machine; "none" is the torch twin."""
    if request.param == "none":
        monkeypatch.setattr("mgqe.ops._bag.library", lambda: None)
        yield request.param
        return
    with instruction_set(request.param):
        yield request.param


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def twin(parts, ids, offsets, mode, weights=None):
    if parts.matrix is not None and mode != "max":
        # Coordinates are pooled, and a 1 with them.
        pooled = reference_bag.bag(
            lambda some: F.pad(reference.coordinates(some, parts), (0, 1), value=1.0),
            ids,
            offsets,
            parts.num_coordinates + 1,
            mode,
            weights,
            parts.padding_idx,
        )
        return reference.transform(pooled[:, :-1], pooled[:, -1:] * parts.mean, parts.matrix_values())
    return reference_bag.bag(
        lambda some: reference.lookup(some, parts), ids, offsets, parts.embedding_dim, mode, weights, parts.padding_idx
    )


def bags_of(n, bags, made):
    """Offsets of ``bags`` bags of uneven lengths, some empty."""
    cuts = torch.randint(0, n + 1, (max(0, bags - 1),), generator=made).sort().values
    return torch.cat([torch.zeros(min(1, bags), dtype=torch.int64), cuts])


def check_pooling(parts, rows, n, bags, seed=0, prepared=None, every_isa=False):
    """All modes against the twin, bit for bit, and against torch's own bag on decoded rows."""
    made = torch.Generator().manual_seed(seed)
    prepared = prepared or ops.PreparedLookup(parts)
    ids = torch.randint(max(1, parts.num_embeddings), (n if parts.num_embeddings else 0,), generator=made)
    offsets, weights = bags_of(ids.shape[0], bags, made), torch.randn(ids.shape[0], generator=made)
    padding = None if parts.padding_idx < 0 else parts.padding_idx
    for mode, weighted in MODES:
        given = weights if weighted else None
        pooled = twin(parts, ids, offsets, mode, given)
        for name in each() if every_isa else ("the one in force",):
            assert torch.equal(ops.bag(prepared, ids, offsets, mode, given), pooled), (name, mode)
        expected = F.embedding_bag(ids, rows, offsets, mode=mode, per_sample_weights=given, padding_idx=padding)
        largest = float(rows.abs().max()) if rows.numel() else 0.0
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=max(1e-3, 1e-5 * largest))


def test_hand_worked(isa):
    prepared = hand_worked()
    ids, offsets = torch.tensor([1, 3, 2, 3, 2, 2, 0]), torch.tensor([0, 3, 4, 4, 6])
    # Bags: (1, 3, padding), (3), (), (padding, padding), (0).
    assert ops.bag(prepared, ids, offsets).tolist() == [[4, 40], [3, 30], [0, 0], [0, 0], [0, 0]]
    assert ops.bag(prepared, ids, offsets, "mean").tolist() == [[2, 20], [3, 30], [0, 0], [0, 0], [0, 0]]
    assert ops.bag(prepared, ids, offsets, "max").tolist() == [[3, 30], [3, 30], [0, 0], [0, 0], [0, 0]]
    weights = torch.tensor([2.0, -1.0, 9.0, 0.5, 9.0, 9.0, 9.0])
    assert ops.bag(prepared, ids, offsets, "sum", weights).tolist() == [[-1, -10], [1.5, 15], [0, 0], [0, 0], [0, 0]]
    grid = torch.tensor([[1, 1, 3, 3], [2, 0, 1, 2]])
    assert ops.bag(prepared, grid, mode="mean").tolist() == [[2, 20], [0.5, 5]]
    last = torch.tensor([0, 3, 4, 7])
    assert ops.bag(prepared, ids, last, include_last_offset=True).tolist() == [[4, 40], [3, 30], [0, 0]]


UNTURNED = [case for case in CASES if not case.is_mixed or case.dim is None]  # whose bags are sums of rows


@pytest.mark.parametrize("case", UNTURNED, ids=lambda case: case.name)
def test_every_layout(case, isa, two_threads):
    built = build(case)
    prepared = built.table.snapshot.lookup
    check_pooling(prepared.table, built.dense, 3000, 101, prepared=prepared)
    check_pooling(prepared.table, built.dense, 70, 4, seed=1, prepared=prepared)


@pytest.mark.parametrize("width", [2, 4, 5, 8, 16])
@pytest.mark.parametrize(
    "layout",
    [
        {"sizes": (77,), "counts": (256,), "subspaces": (8,), "pieces": 8},
        {"sizes": (20, 100, 300), "counts": (256, 64, 32), "subspaces": (12,) * 3, "pieces": 12, "padding_idx": 0},
        {"shuffled": True, "padding_idx": 5},
        {"pieces": 1, "counts": (100, 20), "subspaces": (16, 16)},
        {"own_books": True, "dtype": torch.int8, "subspaces": (20, 20), "pieces": 20},
        {"dtype": torch.float16, "counts": (2, 8)},
        {"counts": (1000, 64)},
    ],
    ids=["bytes", "packed", "map", "one book for all", "int8", "float16", "wide codes"],
)
def test_every_way_of_the_kernel(layout, width, isa, two_threads):
    parts, unpacked, tiers = table(width=width, **layout)
    # Enough ids for the codebooks to be copied into the layout of the registers, and too few.
    for n in (4500, 50):
        check_pooling(parts, dense(parts, unpacked, tiers), n, n // 20)


@pytest.mark.parametrize("matrix", [None, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("layout", MIXED.values(), ids=MIXED.keys())
def test_mixed_tables(layout, matrix, two_threads):
    for dtype, more in ((torch.float32, {}), (torch.int8, {"shuffled": True, "padding_idx": 4, "own_books": True})):
        parts, unpacked, tiers = mixed_table(dtype=dtype, matrix=matrix, **layout, **more)
        rows = dense(parts, unpacked, tiers)
        check_pooling(parts, rows, 100, 60, every_isa=True)


@pytest.mark.parametrize("matrix", [None, torch.float16], ids=str)
def test_long_bags_of_mixed_tables(matrix, two_threads):
    parts, unpacked, tiers = mixed_table(matrix=matrix, dim=21, padding_idx=4)
    for n, bags in ((700, 3), (5000, 100)):
        check_pooling(parts, dense(parts, unpacked, tiers), n, bags, every_isa=True)


def test_a_mean_is_in_a_bag_as_often_as_rows(isa):
    # Rows 0 and 1 are (7, 5) + 1 and + 2 times (1, 10); row 2 is padding.
    codes = torch.tensor([[0], [1], [1]], dtype=torch.uint8)
    parts = ops.TableBuffers(
        [codes], [torch.tensor([1.0, 2.0])], [torch.empty(0)], [], [], [], [3], [1], [1], [0], 2, 2,
        widths=[1], code_bits=[1], mean=torch.tensor([7.0, 5.0]), matrix=torch.tensor([[1.0, 10.0]]),
    )  # fmt: skip
    prepared, ids, offsets = ops.PreparedLookup(parts), torch.tensor([0, 2, 1, 1, 2, 0]), torch.tensor([0, 3, 4, 4, 5])
    # Bags: (0, padding, 1), (1), (), (padding), (0).
    zeros, row = [0.0, 0.0], [8.0, 15.0]
    assert ops.bag(prepared, ids, offsets).tolist() == [[17, 40], [9, 25], zeros, zeros, row]
    assert ops.bag(prepared, ids, offsets, "mean").tolist() == [[8.5, 20], [9, 25], zeros, zeros, row]
    assert ops.bag(prepared, ids, offsets, "max").tolist() == [[9, 25], [9, 25], zeros, zeros, row]
    weights = torch.tensor([2.0, 9.0, -1.0, 0.5, 9.0, 4.0])
    assert ops.bag(prepared, ids, offsets, "sum", weights).tolist() == [[7, 5], [4.5, 12.5], zeros, zeros, [32, 60]]


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3),
    dtype=st.sampled_from(list(DTYPES)),
    matrix=st.sampled_from([None, *DTYPES.values()]),
    dim=st.integers(1, 90),
    shuffled=st.booleans(),
    n=st.integers(0, 200),
    bags=st.integers(1, 90),
    data=st.data(),
)
def test_any_bags_of_any_mixed_table(widths, sizes, dtype, matrix, dim, shuffled, n, bags, data):
    each = st.tuples(*[st.integers(0, 10)] * len(widths))
    bits = data.draw(st.lists(each, min_size=len(sizes), max_size=len(sizes)))
    padding_idx = data.draw(st.integers(-1, sum(sizes) - 1))
    parts, unpacked, tiers = mixed_table(
        tuple(sizes),
        bits,
        widths,
        DTYPES[dtype],
        matrix,
        dim,
        shuffled,
        padding_idx,
        seed=data.draw(st.integers(0, 99)),
    )
    check_pooling(parts, dense(parts, unpacked, tiers), n, bags)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3),
    data=st.data(),
    width=st.sampled_from([1, 2, 3, 4, 8, 16, 17]),
    subspaces=st.integers(1, 13),
    layout=st.sampled_from(["own", "shared", "one book"]),
    dtype=st.sampled_from(list(DTYPES)),
    shuffled=st.booleans(),
    n=st.integers(0, 6000),
    bags=st.integers(0, 200),
    threads=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_any_bags_of_any_table(sizes, data, width, subspaces, layout, dtype, shuffled, n, bags, threads, seed):
    counts = [data.draw(st.integers(2, 300)) for _ in sizes]
    padding_idx = data.draw(st.integers(-1, sum(sizes) - 1))
    parts, unpacked, tiers = table(
        tuple(sizes),
        counts,
        [subspaces] * len(sizes),
        1 if layout == "shared" else subspaces,
        width,
        DTYPES[dtype],
        shuffled,
        padding_idx,
        layout == "own",
        seed,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_pooling(parts, dense(parts, unpacked, tiers), n if bags else 0, bags, seed)
    finally:
        torch.set_num_threads(before)


@each_mode
@pytest.mark.parametrize("lengths", [[1500, 0, 0, 1], [0] * 500 + [1200, 900], [1] * 3000, [0] * 4000])
def test_uneven_bags_over_threads(lengths, mode, weighted):
    parts, _, _ = table(sizes=(100, 400), subspaces=(8, 8), pieces=8, shuffled=True)
    prepared, n = ops.PreparedLookup(parts), sum(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    ids, weights = torch.randint(500, (n,)), torch.randn(n) if weighted else None
    expected = twin(parts, ids, offsets, mode, weights)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(ops.bag(prepared, ids, offsets, mode, weights), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("subspaces", [4, 8, 12, 5])
def test_nothing_is_read_beyond_the_codes(bits, subspaces, isa):
    # The codes end where a mapped page ends: reading on would be reading unmapped memory, most often a crash.
    parts, unpacked, tiers = table((50,), (2**bits,), (subspaces,), subspaces, 4)
    size = parts.codes[0].numel()
    page = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    codes = torch.frombuffer(page, dtype=torch.uint8)[len(page) - size :].view(50, -1)
    codes.copy_(parts.codes[0])
    parts.codes[0] = codes
    check_pooling(parts, dense(parts, unpacked, tiers), 2500, 50)


@pytest.mark.parametrize("n", [100, 5000])
def test_codes_beyond_the_codebook_stay_inside_it(n, isa):
    parts, _, _ = table((20,), (100,), (4,), 4, 8)
    parts.codes[0].fill_(255)
    last = parts.centroids[0][:, -1].reshape(-1)
    pooled = ops.bag(ops.PreparedLookup(parts), torch.arange(n).remainder(20).view(-1, 1))
    assert torch.equal(pooled, last.expand(n, -1))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("bad", [-1, 330, 2**62, -(2**63)])
def test_ids_out_of_range_are_refused(bad, shuffled, isa):
    parts, _, _ = table(shuffled=shuffled)
    ids = torch.zeros(10, 10, dtype=torch.int64)
    ids[5, 7] = bad
    with pytest.raises(IndexError, match=rf"id {bad} is out of range \(valid ids: 0 to 329\)"):
        ops.bag(ops.PreparedLookup(parts), ids)


def test_unknown_ids_count_as_the_fallback_row(isa):
    parts, unpacked, tiers = table()
    fallback = torch.randn(32)
    prepared = ops.PreparedLookup(parts, fallback)
    rows = torch.cat([dense(parts, unpacked, tiers), fallback[None]])
    ids = torch.tensor([[3, -1, 5], [400, 2**40, 2]])
    expected = F.embedding_bag(torch.where((ids >= 0) & (ids < 330), ids, 330), rows, mode="sum")
    torch.testing.assert_close(ops.bag(prepared, ids), expected)


def test_nothing_to_pool(isa):
    prepared = hand_worked()
    none = torch.empty(0, dtype=torch.int64)
    for mode, _ in MODES:
        assert ops.bag(prepared, none, none, mode).shape == (0, 2)
        assert torch.equal(ops.bag(prepared, none, torch.zeros(3, dtype=torch.int64), mode), torch.zeros(3, 2))
        assert torch.equal(ops.bag(prepared, none.view(3, 0), mode=mode), torch.zeros(3, 2))
        assert ops.bag(prepared, none.view(0, 3), mode=mode).shape == (0, 2)
        assert ops.bag(prepared, none, torch.tensor([0]), mode, include_last_offset=True).shape == (0, 2)


@pytest.mark.parametrize(
    ("offsets", "says"),
    [
        ([1, 2], "must start at 0, got 1"),
        ([-1, 2], "must start at 0, got -1"),
        ([0, 3, 2], "must not decrease, got 2 at 2 after 3"),
        ([0, 6], "must not exceed the number of ids, 5, got 6"),
        ([], "name no bag, but there are 5 ids"),
    ],
)
def test_offsets_that_do_not_cut_the_ids(offsets, says, isa):
    ids = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=says):
        ops.bag(hand_worked(), ids, torch.tensor(offsets, dtype=torch.int64))


def test_refused_arguments():
    prepared, ids, offsets = hand_worked(), torch.tensor([0, 1, 2]), torch.tensor([0, 2])

    def refused(error, says, *arguments, **more):
        with pytest.raises(error, match=says):
            ops.bag(prepared, *arguments, **more)

    refused(ValueError, "mode must be one of sum, mean, max, got 'median'", ids, offsets, "median")
    refused(ValueError, "without offsets", ids)
    refused(ValueError, "leave offsets out", ids.view(1, 3), offsets)
    refused(ValueError, "with offsets", torch.tensor(1), offsets)
    refused(TypeError, "ids must be", [0, 1], offsets)
    refused(TypeError, "ids must have an integer dtype", ids.float(), offsets)
    refused(TypeError, "offsets must have an integer dtype", ids, offsets.float())
    refused(TypeError, "offsets must be", ids, [0, 2])
    refused(ValueError, r"shape \(B,\)", ids, offsets.view(1, 2))
    refused(ValueError, r"shape \(B \+ 1,\)", ids, offsets[:0], include_last_offset=True)
    refused(ValueError, "last offset must be the number of ids, 3, got 2", ids, offsets, include_last_offset=True)
    refused(ValueError, 'for mode="sum" only', ids, offsets, "mean", torch.ones(3))
    refused(ValueError, r"shaped like ids \(3,\), got \(2,\)", ids, offsets, "sum", torch.ones(2))
    refused(TypeError, "per_sample_weights must be", ids, offsets, "sum", torch.ones(3, dtype=torch.int64))
    refused(TypeError, "per_sample_weights must be", ids, offsets, "sum", torch.ones(3, dtype=torch.float64))


def test_other_types_and_strides():
    prepared = hand_worked()
    expected = ops.bag(prepared, torch.tensor([[1, 3], [0, 1], [3, 3]]))
    ids = torch.tensor([[1, 0, 3], [3, 1, 3]])
    assert torch.equal(ops.bag(prepared, ids.T), expected)
    assert torch.equal(ops.bag(prepared, ids.T.to(torch.uint8)), expected)
    flat, offsets = torch.tensor([1, 3, 0, 1, 3, 3], dtype=torch.int32), torch.tensor([0, 9, 2, 9, 4, 9])[::2].int()
    assert torch.equal(ops.bag(prepared, flat, offsets), expected)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 4.0, 1.0])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        given = weights.to(dtype).requires_grad_()
        pooled = ops.bag(prepared, flat, offsets, "sum", given)
        assert torch.equal(pooled, torch.tensor([[7.0, 70], [1, 10], [15, 150]]))
        assert pooled.requires_grad  # the weights have a gradient, the table has none


def test_weights_that_are_no_numbers_do_what_arithmetic_does(isa):
    ids, offsets = torch.tensor([1, 3, 1, 0]), torch.tensor([0, 1, 3])
    weights = torch.tensor([float("nan"), 1.0, float("inf"), float("inf")])
    pooled = ops.bag(hand_worked(), ids, offsets, "sum", weights)
    assert pooled[0].isnan().all()
    assert (pooled[1] == torch.inf).all()
    assert pooled[2].isnan().all()


def test_damaged_tier_map_is_an_error_not_a_crash():
    if not ops.native_available():
        pytest.skip("only the native kernel checks what it reads")
    parts, _, _ = table(shuffled=True)
    parts.map_ranks[0].fill_(2**31 - 1)
    with pytest.raises(ValueError, match="tier map is damaged"):
        ops.bag(ops.PreparedLookup(parts), torch.arange(330).view(33, 10))


def opcheck_arguments():
    made = torch.Generator().manual_seed(0)
    packed = torch.randint(256, (10, 1), generator=made, dtype=torch.uint8)
    parts = ([packed], [torch.randn(2, 16, 4, generator=made)], [torch.empty(0)], [], [], [], [10], [4], [2], [0], 8, 2)
    ids, offsets = torch.tensor([3, 1, 3, 9, 0, 9]), torch.tensor([0, 2, 6])
    return [
        (ids, offsets, None, "mean", False, *parts),
        (ids, offsets, torch.rand(6, generator=made), "sum", True, *parts),
        (ids.view(2, 3), None, None, "max", False, *parts),
    ]


@pytest.mark.parametrize("case", range(3))
def test_operator(case):
    arguments = opcheck_arguments()[case]
    torch.library.opcheck(torch.ops.mgqe.bag.default, arguments)
    torch._dynamo.reset()
    ids, offsets, weights, mode, include_last_offset, *parts = arguments
    prepared = ops.PreparedLookup(ops.TableBuffers(*parts))

    def pooled(ids, offsets, weights):
        return ops.bag(prepared, ids, offsets, mode, weights, include_last_offset) * 2

    compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, offsets, weights), pooled(ids, offsets, weights))
