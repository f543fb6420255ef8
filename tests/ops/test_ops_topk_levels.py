"""mgqe.ops.topk of tables whose coordinates share levels: products of bytes filter, and give the bits of the twin."""

import mmap
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from topk_checks import check_all_paths, check_all_questions

from mgqe import ops
from mgqe.codec.tiers import Tiers
from mgqe.table.compact import CompactTable


@pytest.fixture(autouse=True)
def best_isa():
    yield
    if ops.native_available():
        ops.set_native_isa("auto")


def levels_table(sizes, bits, turned=True, shuffled=False, padding_idx=-1, dim=None, seed=0):
    """Parts of a table whose tiers have ``bits``, (tiers, coordinates); codes of as many bits share their levels."""
    made = torch.Generator().manual_seed(seed)
    length, n = len(bits[0]), sum(sizes)
    dim = dim or length
    codes = [
        torch.stack([torch.randint(1 << b, (size,), generator=made) for b in of_tier], dim=1)
        for size, of_tier in zip(sizes, bits, strict=True)
    ]
    levels = {b: torch.randint(-127, 128, (1 << b,), generator=made).float() for b in range(9)}
    matrix = torch.randn(length, dim, generator=made) if turned else torch.eye(length) * torch.rand(length) + 0.01
    tiers = Tiers.from_sizes(sizes)
    if shuffled:
        tier_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        tiers = Tiers.from_assignment(tier_of[torch.randperm(n, generator=made)], num_tiers=len(sizes))
    table = CompactTable.from_mixed_codes(
        tiers,
        codes,
        [torch.cat([levels[b] for b in of_tier]) for of_tier in bits],
        range(len(sizes)),
        (1,) * length,
        bits,
        centroid_dtype="int8",
        mean=torch.randn(dim, generator=made),
        matrix=matrix,
        matrix_dtype="int8_columns",
    )
    return replace(table.snapshot.lookup.table, padding_idx=padding_idx)


SEARCHED = {
    "budget of 20%": {"sizes": (700, 4300), "bits": ((7,) * 64, (6, 7, 6, 6) * 16), "shuffled": True},
    "budget of 10%": {"sizes": (1500, 2000), "bits": ((6, 5, 5, 4) * 16, (6, 5, 3, 2) + (3,) * 60), "turned": False},
    "two rows together": {"sizes": (2011,), "bits": ((4, 3) * 30,)},
    "four rows together": {"sizes": (5003,), "bits": ((6, 7, 5, 0) * 4,)},
    "one word": {"sizes": (5003,), "bits": ((6,) * 9,)},
    "several vectors": {"sizes": (1600, 900), "bits": ((7, 6, 5) * 43, (1, 0, 7) * 43), "padding_idx": 40},
    "many vectors": {"sizes": (800,), "bits": ((7,) * 300,)},
    "padding": {"sizes": (900, 2000), "bits": ((5,) * 33, (7,) * 33), "shuffled": True, "padding_idx": 5},
    "sixes": {"sizes": (1200, 1300), "bits": ((6,) * 64, (6, 5) * 32)},
    "fives and sevens": {"sizes": (1200,), "bits": ((5, 7) * 32,)},
}


@pytest.mark.parametrize("queries", [1, 3, 9, 35])
@pytest.mark.parametrize("layout", SEARCHED.values(), ids=SEARCHED.keys())
def test_levels_give_the_bits_of_the_twin(layout, queries):
    parts = levels_table(**layout)
    made = torch.Generator().manual_seed(1)
    job = ops.TopKJob(torch.randn(queries, parts.embedding_dim, generator=made), 20)
    check_all_paths(parts, job, methods=("auto", "filter"), threads=(1 + queries % 2,))


@pytest.mark.parametrize("layout", ["padding", "two rows together", "budget of 20%"])
def test_exclusions_candidates_and_biases(layout):
    check_all_questions(levels_table(**SEARCHED[layout]))


def test_one_query_with_a_bias():
    parts = levels_table(**SEARCHED["budget of 10%"])
    bias = torch.randn(parts.num_embeddings, generator=torch.Generator().manual_seed(3)) * 50
    levels = ops.bias_levels(ops.PreparedLookup(parts), bias)
    check_all_paths(parts, ops.TopKJob(torch.randn(1, 64), 15, bias=levels))


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-34, 1e-20, 1e30])
@pytest.mark.parametrize("bias", [None, 1e-6, 1e6])
def test_queries_and_biases_of_any_size(scale, bias):
    parts = levels_table((2500,), ((6, 5, 7) * 5,))
    made = torch.Generator().manual_seed(2)
    of_rows = None
    if bias:
        of_rows = ops.bias_levels(ops.PreparedLookup(parts), torch.randn(2500, generator=made) * bias)
    check_all_paths(parts, ops.TopKJob(torch.randn(3, 15, generator=made) * scale, 10, bias=of_rows), threads=(1,))


def test_a_query_that_has_one_coordinate():
    parts = levels_table((3000,), ((6,) * 16,), turned=False)
    queries = torch.eye(16)[:3].contiguous()
    check_all_paths(parts, ops.TopKJob(queries, 50), threads=(1,))


def test_few_rows_are_scored():
    parts = levels_table((20_000,), ((6, 5) * 32,), turned=False)
    prepared = ops.PreparedLookup(parts)
    if not ops.native_available() or ops.native_isa() not in ("avx2", "avx512", "neon"):
        pytest.skip("no filter")
    for number in (1, 16):
        queries = torch.randn(number, 64, generator=torch.Generator().manual_seed(1))
        assert ops.topk(prepared, ops.TopKJob(queries, 50))[2] < 5000 * number


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_levels_any_question(data):
    length = data.draw(st.integers(1, 80))
    sizes = data.draw(st.lists(st.integers(0, 1800), min_size=1, max_size=3).filter(sum))
    bits = tuple(
        tuple(data.draw(st.lists(st.integers(0, 7), min_size=length, max_size=length))) for _ in range(len(sizes))
    )
    parts = levels_table(
        tuple(sizes),
        bits,
        turned=(turned := data.draw(st.booleans())),
        shuffled=data.draw(st.booleans()) and min(sizes) > 0,
        padding_idx=data.draw(st.sampled_from([-1, 0])),
        dim=length + data.draw(st.integers(0, 9)) if turned else None,
        seed=data.draw(st.integers(0, 1000)),
    )
    made = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    number = data.draw(st.sampled_from([1, 2, 7, 18]))
    queries = torch.randint(-2, 3, (number, parts.embedding_dim), generator=made).float()
    if data.draw(st.booleans()):
        queries += torch.randn(queries.shape, generator=made)
    n, bias = parts.num_embeddings, None
    if data.draw(st.booleans()):
        scale = data.draw(st.sampled_from([0.0, 1.0, 1e4]))
        bias = ops.bias_levels(ops.PreparedLookup(parts), torch.randn(n, generator=made) * scale)
    hidden = torch.rand(n, generator=made) < 0.5 if data.draw(st.booleans()) else None
    job = ops.TopKJob(queries, data.draw(st.sampled_from([1, 2, 10, 100, n])) % n + 1, False, bias, hidden=hidden)
    check_all_paths(parts, job, methods=(data.draw(st.sampled_from(["auto", "filter"])),))


@pytest.mark.parametrize("bits", [(7,) * 64, (6,) * 40, (5, 3) * 8, (1,) * 9, (7, 6) * 40], ids=len)
@pytest.mark.parametrize("rows", [1500, 1501, 1503])
def test_nothing_is_read_beyond_a_mapped_file(bits, rows):
    """Codes that end where a page ends: a read beyond would be a bus error."""
    parts = levels_table((rows,), (bits,))
    size = parts.codes[0].numel()
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    libc = __import__("ctypes").CDLL(None)
    assert libc.mprotect(__import__("ctypes").c_void_p(whole.data_ptr() + room), mmap.PAGESIZE, 0) == 0
    codes = whole[room - size : room].view(rows, -1)
    codes.copy_(parts.codes[0])
    parts = replace(parts, codes=[codes])
    check_all_paths(parts, ops.TopKJob(torch.randn(2, parts.embedding_dim), 10), methods=("auto",))
