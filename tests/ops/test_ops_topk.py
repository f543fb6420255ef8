"""mgqe.ops.topk: every kernel gives the bits of the torch twin; adversarial orders; buffer ends; forced paths."""

import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_tables import DTYPES, MIXED, mixed_table, pack_codes
from topk_checks import ISAS, available, check_all_paths, check_all_questions, same

from mgqe import ops
from mgqe.codec.packing import bits_for, pack, row_bytes
from mgqe.codec.tier_map import build_tier_map
from mgqe.codec.tiers import Tiers
from mgqe.ops import reference, reference_topk


@pytest.fixture(autouse=True)
def best_isa():
    yield
    if ops.native_available():
        ops.set_native_isa("auto")


def make_parts(sizes, counts, subspaces, pieces, width, dtype=torch.float32, shuffled=False, padding_idx=-1, seed=0):
    """Parts of a table; all tiers share a codebook of ``pieces`` pieces (1: one for all subspaces)."""
    made = torch.Generator().manual_seed(seed)
    m = len(sizes)
    codes = [torch.randint(k, (n, d), generator=made) for n, k, d in zip(sizes, counts, subspaces, strict=True)]
    shape = (pieces, max(counts), width)
    scale = torch.empty(0)
    if dtype == torch.int8:
        book = torch.randint(-127, 128, shape, generator=made, dtype=torch.int8)
        scale = torch.rand(pieces, generator=made) + 0.1
    else:
        book = torch.randn(shape, generator=made).to(dtype)
    bits, ranks, order = [], [], []
    if shuffled and m > 1:
        tier_of = torch.repeat_interleave(torch.arange(m), torch.tensor(sizes))
        tiers = Tiers.from_assignment(tier_of[torch.randperm(sum(sizes), generator=made)], num_tiers=m)
        if tiers.tier_of is not None:
            tier_map = build_tier_map(tiers)
            bits, ranks, order = list(tier_map.bits), list(tier_map.ranks), list(tier_map.order)
    widths = [bits_for(k) for k in counts]
    return ops.TableBuffers(
        codes=[pack(c, b) for c, b in zip(codes, widths, strict=True)],
        centroids=[book],
        scales=[scale],
        map_bits=bits,
        map_ranks=ranks,
        order=order,
        sizes=list(sizes),
        bits=widths,
        num_subspaces=list(subspaces),
        codebook_of=[0] * m,
        embedding_dim=width * (subspaces[0] if pieces == 1 else pieces),
        padding_idx=padding_idx,
    )


LAYOUTS = {
    "bytes": {"sizes": (5000,), "counts": (256,), "subspaces": (8,), "pieces": 8, "width": 3},
    "two tiers, shuffled": {
        "sizes": (700, 4300),
        "counts": (256, 64),
        "subspaces": (8, 8),
        "pieces": 8,
        "width": 2,
        "shuffled": True,
    },
    "frequency order": {"sizes": (700, 4300), "counts": (256, 64), "subspaces": (16, 16), "pieces": 16, "width": 2},
    "fewer subspaces": {
        "sizes": (1500, 3000, 900),
        "counts": (100, 100, 40),
        "subspaces": (8, 4, 2),
        "pieces": 8,
        "width": 2,
    },
    "32 codes": {
        "sizes": (300, 2900),
        "counts": (256, 64),
        "subspaces": (32, 32),
        "pieces": 32,
        "width": 1,
        "shuffled": True,
    },
    "40 codes": {"sizes": (2100,), "counts": (200,), "subspaces": (40,), "pieces": 40, "width": 1},
    "72 codes of 7 bits": {"sizes": (2100,), "counts": (128,), "subspaces": (72,), "pieces": 72, "width": 1},
    "16 centroids": {"sizes": (5003,), "counts": (16,), "subspaces": (8,), "pieces": 8, "width": 2},
    "odd numbers": {
        "sizes": (4001, 13),
        "counts": (37, 5),
        "subspaces": (3, 3),
        "pieces": 3,
        "width": 5,
        "shuffled": True,
    },
    "one codebook": {
        "sizes": (1200, 2000),
        "counts": (256, 30),
        "subspaces": (6, 6),
        "pieces": 1,
        "width": 2,
        "shuffled": True,
    },
    "wide codes": {"sizes": (2000, 1500), "counts": (1000, 65_536), "subspaces": (3, 3), "pieces": 3, "width": 1},
    "float16": {"sizes": (3000,), "counts": (256,), "subspaces": (8,), "pieces": 8, "width": 2, "dtype": torch.float16},
    "int8": {
        "sizes": (500, 3000),
        "counts": (256, 16),
        "subspaces": (8, 4),
        "pieces": 8,
        "width": 2,
        "dtype": torch.int8,
    },
    "an empty tier": {"sizes": (3, 0, 2000), "counts": (4, 4, 4), "subspaces": (2, 2, 2), "pieces": 2, "width": 3},
    "padding": {
        "sizes": (900, 2000),
        "counts": (64, 16),
        "subspaces": (4, 4),
        "pieces": 4,
        "width": 2,
        "shuffled": True,
        "padding_idx": 5,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
def test_every_layout_and_path_gives_the_bits_of_the_twin(layout, cosine):
    parts = make_parts(**LAYOUTS[layout])
    queries = torch.randn(3, parts.embedding_dim, generator=torch.Generator().manual_seed(1))
    check_all_paths(parts, ops.TopKJob(queries, 20, cosine))


@pytest.mark.parametrize("bits", [8, 7], ids=["bytes", "packed"])
@pytest.mark.parametrize("subspaces", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 20, 24, 31, 33, 64, 65, 68])
def test_rows_of_every_length_in_bytes(subspaces, bits):
    # Each length has its own way from rows to columns.
    parts = make_parts((2600,), (2**bits,), (subspaces,), subspaces, 1)
    queries = torch.randn(1, subspaces, generator=torch.Generator().manual_seed(1))
    check_all_paths(parts, ops.TopKJob(queries, 5))


@pytest.mark.parametrize("layout", ["bytes", "two tiers, shuffled", "padding", "32 codes"])
def test_exclusions_candidates_and_biases_on_every_path(layout):
    parts = make_parts(**LAYOUTS[layout])
    check_all_questions(parts)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_table_any_question(data):
    m = data.draw(st.integers(1, 3))
    subspaces = data.draw(st.sampled_from([1, 2, 3, 5, 8, 9, 12, 16, 17, 24, 33]))
    repeat = data.draw(st.sampled_from([1, 1, 2]))
    pieces = data.draw(st.sampled_from([subspaces * repeat, subspaces * repeat, 1]))
    width = data.draw(st.sampled_from([1, 2, 3]))
    parts = make_parts(
        sizes=data.draw(st.lists(st.integers(0, 2500), min_size=m, max_size=m).filter(sum)),
        counts=data.draw(st.lists(st.sampled_from([2, 5, 16, 33, 64, 100, 128, 256, 300]), min_size=m, max_size=m)),
        subspaces=[subspaces] * m,
        pieces=pieces,
        width=width,
        dtype=data.draw(st.sampled_from([torch.float32, torch.float16, torch.int8])),
        shuffled=data.draw(st.booleans()),
        padding_idx=data.draw(st.sampled_from([-1, 0])),
        seed=data.draw(st.integers(0, 1000)),
    )
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    # Whole numbers make ties.
    queries = torch.randint(-2, 3, (2, parts.embedding_dim), generator=made).float()
    if data.draw(st.booleans()):
        queries += torch.randn(queries.shape, generator=made)
    n = parts.num_embeddings
    k = data.draw(st.sampled_from([1, 2, 10, 100, n])) % n + 1
    cosine = data.draw(st.booleans())
    bias = None
    if not cosine and data.draw(st.booleans()):
        values = torch.randn(n, generator=made) * data.draw(st.sampled_from([0.0, 0.1, 10.0]))
        bias = ops.bias_levels(ops.PreparedLookup(parts), values)
    hidden = torch.rand(n, generator=made) < 0.5 if data.draw(st.booleans()) else None
    job = ops.TopKJob(queries, k, cosine, bias, hidden=hidden)
    check_all_paths(parts, job, methods=(data.draw(st.sampled_from(["auto", "scan", "filter", "blocks"])),))


MIXED_SEARCHES = {
    **MIXED,
    # Enough rows for the filter to have something to pass over, and whole tiles.
    "many rows": {"sizes": (700, 5300), "bits": ((8, 7, 6, 5), (8, 5, 3, 0)), "shuffled": True},
    "many rows of bytes": {"sizes": (5000,), "bits": ((8,) * 9,), "widths": (1, 1, 2, 2, 3, 3, 5, 7, 9)},
    "codes that share words": {"sizes": (3000,), "bits": ((3, 8, 8, 8, 8, 8, 8, 8, 8, 8, 1),), "widths": (2,) * 11},
    "padding": {"sizes": (900, 2000), "shuffled": True, "padding_idx": 5, "own_books": True},
}


@pytest.mark.parametrize("matrix", [None, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("layout", MIXED_SEARCHES.values(), ids=MIXED_SEARCHES.keys())
def test_mixed_tables(layout, matrix):
    for dtype in (torch.float32, torch.int8):
        parts, _, _ = mixed_table(dtype=dtype, matrix=matrix, **layout)
        made = torch.Generator().manual_seed(1)
        queries = torch.nn.functional.normalize(torch.randn(3, parts.embedding_dim, generator=made))
        for cosine in (False, True):
            check_all_paths(parts, ops.TopKJob(queries, 20, cosine), threads=(1 + cosine,))


@pytest.mark.parametrize("matrix", [None, torch.float16], ids=str)
def test_exclusions_candidates_and_biases_of_mixed_tables(matrix):
    parts, _, _ = mixed_table(matrix=matrix, dim=11, **MIXED_SEARCHES["padding"])
    check_all_questions(parts)


def test_a_mixed_search_worked_out_by_hand():
    # Rows (3, 0) + z (2, 1), z = 0, 1, -2: (3, 0), (5, 1), (-1, -2); the query (1, 1) has products 3, 6 and -3.
    codes = torch.tensor([[0], [1], [2]], dtype=torch.uint8)
    parts = ops.TableBuffers(
        [codes], [torch.tensor([0.0, 1.0, -2.0, 9.0])], [torch.empty(0)], [], [], [], [3], [2], [1], [0], 2, -1,
        widths=[1], code_bits=[2], mean=torch.tensor([3.0, 0.0]), matrix=torch.tensor([[2.0, 1.0]]),
    )  # fmt: skip
    scores, ids, _ = check_all_paths(parts, ops.TopKJob(torch.ones(1, 2), 3))
    assert (scores.tolist(), ids.tolist()) == ([[6.0, 3.0, -3.0]], [[1, 0, 2]])
    _, ids, _ = check_all_paths(parts, ops.TopKJob(torch.ones(1, 2), 3, cosine=True))
    assert ids.tolist() == [[1, 0, 2]]  # 6 / sqrt(26) > 3 / 3 > -3 / sqrt(5)


def test_equal_widths_and_bits_give_the_scores_of_an_even_table():
    for bits in (4, 8, 9):
        parts = make_parts((300, 900), (2**bits,) * 2, (8, 8), 8, 3)
        mixed, unpacked, _ = mixed_table((300, 900), ((bits,) * 8,) * 2, (3,) * 8)
        mixed.centroids[0] = parts.centroids[0].flatten()
        for g in range(2):
            parts.codes[g] = pack(unpacked[g], bits)
        queries = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
        for cosine in (False, True):
            expected = reference_topk.topk(parts, ops.TopKJob(queries, 25, cosine))
            assert same(check_all_paths(mixed, ops.TopKJob(queries, 25, cosine)), expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_mixed_table_any_question(data):
    widths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=20))
    sizes = data.draw(st.lists(st.integers(0, 1800), min_size=1, max_size=3).filter(sum))
    most = data.draw(st.sampled_from([4, 8, 8, 11]))
    each = st.tuples(*[st.integers(0, most)] * len(widths))
    parts, _, _ = mixed_table(
        tuple(sizes),
        data.draw(st.lists(each, min_size=len(sizes), max_size=len(sizes))),
        widths,
        data.draw(st.sampled_from(list(DTYPES.values()))),
        data.draw(st.sampled_from([None, *DTYPES.values()])),
        data.draw(st.integers(1, 40)),
        data.draw(st.booleans()),
        data.draw(st.sampled_from([-1, 0])),
        data.draw(st.booleans()),
        data.draw(st.integers(0, 1000)),
    )
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    queries = torch.randint(-2, 3, (2, parts.embedding_dim), generator=made).float()
    n = parts.num_embeddings
    cosine, bias = data.draw(st.booleans()), None
    if not cosine and data.draw(st.booleans()):
        bias = ops.bias_levels(ops.PreparedLookup(parts), torch.randn(n, generator=made) * 10)
    hidden = torch.rand(n, generator=made) < 0.5 if data.draw(st.booleans()) else None
    job = ops.TopKJob(queries, data.draw(st.sampled_from([1, 2, 10, 100, n])) % n + 1, cosine, bias, hidden=hidden)
    check_all_paths(parts, job, methods=(data.draw(st.sampled_from(["auto", "scan", "filter", "blocks"])),))


def ordered(parts, query, descending):
    """The same rows, sorted by their score with a query."""
    n = parts.num_embeddings
    _, ids, _ = reference_topk.topk(parts, ops.TopKJob(query[None], n))
    order = ids[0] if descending else ids[0].flip(0)
    return ops.TableBuffers(**{**vars(parts), "codes": [parts.codes[0][order].contiguous()]})


@pytest.mark.parametrize("descending", [True, False])
def test_rows_in_the_best_and_the_worst_order(descending):
    parts = make_parts(sizes=(20_000,), counts=(256,), subspaces=(8,), pieces=8, width=2)
    query = torch.randn(16, generator=torch.Generator().manual_seed(3))
    parts = ordered(parts, query, descending)
    check_all_paths(parts, ops.TopKJob(query[None], 50))
    if not available("avx512"):
        return
    _, _, scored = ops.topk(ops.PreparedLookup(parts), ops.TopKJob(query[None], 50), "filter")
    assert scored < 15_000


@pytest.mark.parametrize("matrix", [None, torch.float16], ids=str)
def test_the_filter_passes_over_rows_whose_codes_have_unequal_bits(matrix):
    parts, _, _ = mixed_table((20_000,), ((8, 7, 5, 4, 8, 3),), (1, 2, 3, 4, 2, 5), matrix=matrix, dim=16)
    query = torch.randn(1, parts.embedding_dim, generator=torch.Generator().manual_seed(3))
    prepared = ops.PreparedLookup(parts)
    for isa in ("avx2", "avx512", "neon"):
        if available(isa):
            assert ops.topk(prepared, ops.TopKJob(query, 50), "scan")[2] == 20_000
            assert ops.topk(prepared, ops.TopKJob(query, 50), "filter")[2] < 10_000


def test_rows_that_all_tie_come_back_by_id():
    parts = make_parts(sizes=(3000, 3000), counts=(1, 1), subspaces=(4, 4), pieces=4, width=2, shuffled=True)
    job = ops.TopKJob(torch.ones(1, 8), 40)
    _, ids, _ = check_all_paths(parts, job)
    assert ids[0].tolist() == list(range(40))


def refused(parts, job, says):
    """Every path and the twin refuse the job with this error."""
    names = [name for name in ISAS if available(name)]
    prepared = ops.PreparedLookup(parts)
    for isa in names:
        ops.set_native_isa(isa)
        for method in ("auto", "scan", "filter", "blocks"):
            with pytest.raises(ValueError, match=says):
                ops.topk(prepared, job, method)
    with pytest.raises(ValueError, match=says):
        reference_topk.check_range(parts, job)


def test_a_query_whose_scores_may_overflow_is_named():
    parts = make_parts(sizes=(3000,), counts=(16,), subspaces=(4,), pieces=4, width=2)
    queries = torch.ones(3, 8)
    queries[1] = 3e38
    queries[2, ::2] = -3e38
    refused(parts, ops.TopKJob(queries, 10), "scores of query 1 may leave float32")
    few = ops.IdLists(torch.tensor([5, 6]), torch.tensor([[0, 2]] * 3))
    refused(parts, ops.TopKJob(queries, 10, candidates=few), "query 1")
    refused(parts, ops.TopKJob(queries, 10, excluded=few), "query 1")
    bias = ops.bias_levels(ops.PreparedLookup(parts), torch.full((3000,), 3.4e38))
    refused(parts, ops.TopKJob(queries[:1] * 1e36, 10, bias=bias), "query 0")
    check_all_paths(parts, ops.TopKJob(queries[:1] * 1e36, 10))
    check_all_paths(parts, ops.TopKJob(queries / 1e39, 10, cosine=True))


def test_a_query_beyond_the_first_lot_is_named():
    parts = make_parts(sizes=(50, 30), counts=(16, 4), subspaces=(4, 4), pieces=4, width=2, shuffled=True)
    queries = torch.ones(150, 8)
    queries[140] = 3e38
    refused(parts, ops.TopKJob(queries, 10), "query 140 ")


def test_a_query_of_a_mixed_table_whose_scores_may_overflow_is_named():
    parts, _, _ = mixed_table(matrix=torch.float32, dim=8)
    queries = torch.ones(3, 8)
    queries[1] = 3e38
    refused(parts, ops.TopKJob(queries, 10), "scores of query 1 may leave float32")
    check_all_paths(parts, ops.TopKJob(queries / 1e39, 10))
    # The mean's share alone, which every row has.
    parts.mean.fill_(1e30)
    refused(parts, ops.TopKJob(torch.full((1, 8), 1e9), 10), "scores of query 0 may leave float32")


def test_a_row_of_a_table_with_a_matrix_whose_squares_overflow_has_no_cosine():
    parts, _, _ = mixed_table((300, 300), ((4,), (4,)), (1,), matrix=torch.float32, dim=2, shuffled=True, padding_idx=2)
    parts.centroids[0].fill_(1.0)
    parts.centroids[0][5] = 2e19
    for codes in parts.codes:
        codes.copy_(pack_codes(torch.zeros(len(codes), 1, dtype=torch.int64), (4,)))
    queries = torch.nn.functional.normalize(torch.randn(3, 2, generator=torch.Generator().manual_seed(6)))
    tier, rank = (int(x) for x in reference.tiers_and_ranks(torch.tensor([2]), parts))
    parts.codes[tier][rank] = 5  # padding: zeros whatever its codes say
    check_all_paths(parts, ops.TopKJob(queries, 100, cosine=True), threads=(1,))
    tier, rank = (int(x) for x in reference.tiers_and_ranks(torch.tensor([77]), parts))
    parts.codes[tier][rank] = 5
    refused(parts, ops.TopKJob(queries, 100, cosine=True), "squared length of row 77 leaves float32")


def test_tiny_and_zero_queries():
    parts = make_parts(sizes=(3000,), counts=(256,), subspaces=(4,), pieces=4, width=2)
    queries = torch.stack([torch.zeros(8), torch.full((8,), 1e-42), torch.full((8,), 1e-20)])
    _, ids, _ = check_all_paths(parts, ops.TopKJob(queries, 10))
    assert ids[0].tolist() == list(range(10))


@pytest.mark.parametrize("scale", [1e-24, 3e-23, 1e-20, 1e-16, 1e17, 1e18])
@pytest.mark.parametrize("k", [10, 3000])
def test_rows_so_short_or_long_that_squares_lose_digits(scale, k):
    parts = make_parts(sizes=(3000,), counts=(256,), subspaces=(4,), pieces=4, width=2)
    parts.centroids[0].mul_(scale)
    queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    check_all_paths(parts, ops.TopKJob(queries, k), threads=(1,))
    check_all_paths(parts, ops.TopKJob(queries / queries.norm(dim=1, keepdim=True), k, cosine=True), threads=(1,))


def test_a_row_whose_squares_overflow_has_no_cosine():
    parts = make_parts((3000, 3000), (16, 16), (4, 4), 4, 1, shuffled=True, padding_idx=2)
    parts.centroids[0].fill_(1.0)
    parts.centroids[0][:, 5] = 1.5e19
    for codes in parts.codes:
        codes.copy_(pack(torch.zeros(len(codes), 4, dtype=torch.int32), 4))
    queries = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(6)))
    # No row has that centroid twice: all squares are in float32, though those of other codes would not be.
    check_all_paths(parts, ops.TopKJob(queries, 100, cosine=True), threads=(1,))
    tiers = reference.tiers_and_ranks(torch.tensor([2, 77]), parts)
    for tier, rank in zip(*tiers, strict=True):
        parts.codes[tier][rank] = pack(torch.full((1, 4), 5), 4)
    refused(parts, ops.TopKJob(queries, 100, cosine=True), "squared length of row 77 leaves float32")


def test_a_codebook_without_differences():
    parts = make_parts(sizes=(3000,), counts=(16,), subspaces=(4,), pieces=4, width=2)
    for value in (0.0, 1.5):
        parts.centroids[0].fill_(value)
        for cosine in (False, True):
            check_all_paths(parts, ops.TopKJob(torch.randn(2, 8), 10, cosine))


def test_codes_beyond_the_codebook_read_as_its_last_centroid():
    parts = make_parts(sizes=(3000,), counts=(100,), subspaces=(8,), pieces=8, width=2)
    parts.codes[0][17] = 255
    check_all_paths(parts, ops.TopKJob(torch.randn(2, 16), 10))


@pytest.mark.parametrize(("k", "d"), [(64, 8), (64, 3), (256, 8), (16, 5), (256, 16), (64, 33), (4, 3), (300, 4)])
def test_nothing_is_read_beyond_a_mapped_file(k, d):
    """Codes that end where a page ends: a read beyond would be a bus error."""
    bits, n = bits_for(k), 1500
    size = n * row_bytes(d, bits)
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    libc = __import__("ctypes").CDLL(None)
    assert libc.mprotect(__import__("ctypes").c_void_p(whole.data_ptr() + room), mmap.PAGESIZE, 0) == 0
    parts = make_parts(sizes=(n,), counts=(k,), subspaces=(d,), pieces=d, width=2)
    codes = whole[room - size : room].view(n, -1)
    codes.copy_(parts.codes[0])
    parts = ops.TableBuffers(**{**vars(parts), "codes": [codes]})
    check_all_paths(parts, ops.TopKJob(torch.randn(2, 2 * d), 10))


@pytest.mark.parametrize("bits", [(8, 8, 8), (3, 8, 8), (7, 2, 0, 6, 5), (12, 3), (1,)])
def test_nothing_is_read_beyond_a_mapped_file_of_a_mixed_table(bits):
    n = 1500
    parts, _, _ = mixed_table((n,), (bits,), (2,) * len(bits))
    size = parts.codes[0].numel()
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    libc = __import__("ctypes").CDLL(None)
    assert libc.mprotect(__import__("ctypes").c_void_p(whole.data_ptr() + room), mmap.PAGESIZE, 0) == 0
    parts.codes[0] = whole[room - size : room].view(n, -1).copy_(parts.codes[0])
    check_all_paths(parts, ops.TopKJob(torch.randn(2, 2 * len(bits)), 10))


def test_unknown_ids_are_named():
    prepared = ops.PreparedLookup(make_parts(sizes=(50,), counts=(4,), subspaces=(2,), pieces=2, width=2))
    bad = ops.IdLists(torch.tensor([3, 50]), torch.tensor([[0, 2]]))
    for job in (ops.TopKJob(torch.ones(1, 4), 3, excluded=bad), ops.TopKJob(torch.ones(1, 4), 3, candidates=bad)):
        with pytest.raises(IndexError, match="id 50"):
            ops.topk(prepared, job)


def test_spans_outside_their_list_are_refused():
    prepared = ops.PreparedLookup(make_parts(sizes=(50,), counts=(4,), subspaces=(2,), pieces=2, width=2))
    for span in ([0, 3], [-1, 1], [2, 1], [-(2**62), 2**62]):
        lists = ops.IdLists(torch.tensor([3, 4]), torch.tensor([span]))
        for job in (
            ops.TopKJob(torch.ones(1, 4), 3, excluded=lists),
            ops.TopKJob(torch.ones(1, 4), 3, candidates=lists),
        ):
            with pytest.raises(ValueError, match="spans of an id list must lie within its 2 ids"):
                ops.topk(prepared, job)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"queries": torch.ones(1, 3)}, "queries"),
        ({"hidden": torch.zeros(49, dtype=torch.bool)}, "hidden"),
        ({"hidden": torch.zeros(2, 50, dtype=torch.bool)}, "hidden"),
        ({"bias": ops.BiasLevels(torch.ones(49), torch.zeros(50, dtype=torch.uint8), torch.ones(256))}, "bias"),
        ({"bias": ops.BiasLevels(torch.ones(50), torch.zeros(49, dtype=torch.uint8), torch.ones(256))}, "bias levels"),
        ({"excluded": ops.IdLists(torch.tensor([1]), torch.tensor([[0, 1], [0, 1]]))}, "spans"),
    ],
)
def test_tensors_that_are_too_small_are_refused(wrong, says):
    if says == "bias levels" and not ops.native_available():
        pytest.skip("the torch twin has no levels")
    prepared = ops.PreparedLookup(make_parts(sizes=(50,), counts=(4,), subspaces=(2,), pieces=2, width=2))
    with pytest.raises(ValueError, match=f"the search's .*{says} do not fit 1 queries of a table of 50 x 4"):
        ops.topk(prepared, ops.TopKJob(**{"queries": torch.ones(1, 4), "k": 3, **wrong}))


@settings(max_examples=60)
@given(st.lists(st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 1e-40, 1.5, 3e38]), min_size=4, max_size=30), st.data())
def test_keys_of_score_and_id_order_as_sorting_does(scores, data):
    order = data.draw(st.permutations(range(len(scores))))
    ids = torch.tensor([[-1 if score == -math.inf else 7 * i for score, i in zip(scores, order, strict=True)]])
    values = torch.tensor([scores])
    keys = torch.where(ids < 0, reference_topk.LEAST_KEY, reference_topk.keys_of(values, ids))
    mine = reference_topk.of_keys(torch.topk(keys, 4).values)
    sorted_ones = reference_topk._merge(values, ids, 4)
    assert torch.equal(mine[0], sorted_ones[0])
    assert torch.equal(mine[1], sorted_ones[1])
