"""CompactTable: rows against plain loops, counted bytes, copies, refusals."""

import copy
import io
import math
import pickle

import pytest
import torch
from table_cases import CASES, build

from mgqe.codec.tiers import Tiers
from mgqe.table.compact import CompactTable

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_rows(case):
    built = build(case)
    table = built.table
    assert (table.num_embeddings, table.embedding_dim) == tuple(built.dense.shape)
    ids = torch.arange(table.num_embeddings)
    rows = table.lookup(ids)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, built.dense)
    assert torch.equal(table.to_dense(chunk=7), built.dense)
    shuffled = torch.randint(0, max(1, len(ids)), (4, 3))[:, : 3 if len(ids) else 0]
    assert torch.equal(table.lookup(shuffled), built.dense[shuffled])


@each_case
def test_codes_and_tiers(case):
    built = build(case)
    table = built.table
    assert table.tiers == built.tiers
    codes = table.codes(torch.arange(table.num_embeddings))
    assert codes.dtype == torch.int32
    for g, subspaces in enumerate(case.num_subspaces):
        mine = codes[built.tiers.members(g)]
        assert torch.equal(mine[:, :subspaces].long(), built.codes[g])
        assert (mine[:, subspaces:] == -1).all()


@each_case
def test_bytes_are_those_held(case):
    table = build(case).table
    tensors, _ = table.to_tensors()
    parts = table.nbytes_by_part()
    turned = ("mean", "matrix", "matrix_scales", "column_scales")
    expected = [name for name in turned if name in tensors]
    assert set(parts) == {"codes", "centroids", "scales", "tier_map", *expected}
    assert table.nbytes == sum(parts.values()) == sum(t.untyped_storage().nbytes() for t in tensors.values())
    if case.is_mixed:
        bits_per_row = [sum(bits) for bits in case.code_bits]
        assert (expected == []) == (case.dim is None)
        assert parts.get("column_scales", 0) == (4 * table.embedding_dim if case.is_whole else 0)
        assert parts.get("matrix_scales", 0) == (4 * sum(case.widths) if case.matrix_dtype == "int8" else 0)
    else:
        bits = [max(1, math.ceil(math.log2(k))) for k in case.num_centroids]
        bits_per_row = [d * b for d, b in zip(case.num_subspaces, bits, strict=True)]
    assert parts["codes"] == sum(n * math.ceil(b / 8) for n, b in zip(case.sizes, bits_per_row, strict=True))
    size = {"float32": 4, "float16": 2, "int8": 1}[case.centroid_dtype]
    assert parts["centroids"] == size * sum(math.prod(shape) for shape in case.codebooks)
    scales = [len(case.widths) if case.is_mixed else shape[0] for shape in case.codebooks]
    assert parts["scales"] == (4 * sum(scales) if size == 1 and not (case.is_mixed and case.is_whole) else 0)
    assert (parts["tier_map"] == 0) == (table.tiers.tier_of is None)


@each_case
def test_copies(case):
    table = build(case).table
    buffer = io.BytesIO()
    torch.save(table, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(table),
        pickle.loads(pickle.dumps(table)),
        torch.load(buffer, weights_only=False),
        table.to("cpu"),
    ):
        assert table.equal(other)
        assert torch.equal(table.to_dense(), other.to_dense())
    assert not table.equal(build(case, seed=1).table)
    assert not table.equal(None)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32]
)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 4)])
def test_ids_of_any_integer_type_and_shape(dtype, shape):
    built = build(CASES[0])
    ids = torch.full(shape, 5).to(dtype)
    rows = built.table.lookup(ids)
    assert rows.shape == (*shape, 8)
    assert torch.equal(rows, built.dense[5].expand(*shape, 8))
    assert built.table.codes(ids).shape == (*shape, 4)


@each_case
def test_bad_ids(case):
    table = build(case).table
    n = table.num_embeddings
    for bad in (-1, n, 2**40, -(2**63), 2**63 - 1):
        with pytest.raises(IndexError, match=str(bad)):
            table.lookup(torch.tensor([0, bad] if n else [bad]))
        with pytest.raises(IndexError, match=str(bad)):
            table.codes(torch.tensor(bad))
    for wrong in (torch.tensor([1.0]), torch.tensor([True]), torch.tensor([1j])):
        with pytest.raises(TypeError, match="integer"):
            table.lookup(wrong)
    with pytest.raises(TypeError, match="integers"):
        table.lookup([0.5])


def test_lookup_of_strided_ids():
    built = build(CASES[0])
    ids = torch.arange(40).view(8, 5).t()[::2]
    assert torch.equal(built.table.lookup(ids), built.dense[ids])


def test_stats():
    tiers = Tiers.from_sizes((4, 3))
    codes = [torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]]), torch.tensor([[0, 0], [0, 1], [1, 1]])]
    table = CompactTable.from_codes(tiers, codes, [torch.randn(2, 8, 1)], (0, 0), (8, 2))
    head, tail = table.codebook_stats()
    assert (head.num_ids, head.num_subspaces, head.num_centroids, head.reachable) == (4, 2, 8, 4)
    assert head.used == 2.5
    assert head.usage == 2.5 / 4
    assert head.perplexity == pytest.approx((4 + 1) / 2)
    assert (tail.num_ids, tail.num_centroids, tail.reachable, tail.usage) == (3, 2, 2, 1.0)
    assert tail.perplexity == pytest.approx(math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))


def test_stats_of_a_codebook_that_subspaces_share():
    table = CompactTable.from_codes(
        Tiers.from_sizes((2,)), [torch.tensor([[0, 1], [2, 1]])], [torch.randn(1, 8, 2)], (0,), (8,)
    )
    (stats,) = table.codebook_stats()
    assert (stats.num_subspaces, stats.used, stats.reachable, stats.usage) == (2, 3, 4, 0.75)


def test_stats_of_no_rows():
    assert build(CASES[-1]).table.codebook_stats()[0].usage == 1.0


def test_int8_rounds_half_to_even():
    book = torch.tensor([[[127.0], [0.5], [1.5], [-2.5], [-127.0]], [[0.0]] * 5])
    table = CompactTable.from_codes(
        Tiers.from_sizes((5,)), [torch.arange(5)[:, None].expand(5, 2)], [book], (0,), (5,), None, "int8"
    )
    tensors, _ = table.to_tensors()
    assert tensors["scales.0"].tolist() == [1.0, 1.0]  # a piece of zeros has scale 1
    assert tensors["centroids.0"][0, :, 0].tolist() == [127, 0, 2, -2, -127]


def test_repr_says_sizes():
    text = repr(build(CASES[1]).table)
    assert "CompactTable(47 x 8" in text
    assert "7 ids of 4 codes of 4 bits" in text
    assert "bytes = " in text


def test_does_not_hold_the_callers_tensors():
    built = build(CASES[2])
    before = built.table.to_dense()
    built.codebooks[0].zero_()
    built.codes[0].zero_()
    assert torch.equal(built.table.to_dense(), before)


def test_no_gradient_comes_out():
    book = torch.randn(2, 4, 2, requires_grad=True)
    table = CompactTable.from_codes(Tiers.from_sizes((1,)), [torch.zeros(1, 2, dtype=torch.int64)], [book], (0,), (4,))
    assert not table.lookup(torch.tensor([0])).requires_grad


CODES = [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64)]
BOOK = torch.zeros(2, 8, 3)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"codes": CODES[:1]}, ValueError, "codes must have one entry per tier, 2, got 1"),
        ({"codebook_of": (0,)}, ValueError, "codebook_of must have one entry"),
        ({"num_centroids": (8, 4, 2)}, ValueError, "num_centroids must have one entry"),
        ({"codes": [CODES[0], CODES[0]]}, ValueError, r"tier 1 must have shape \(4, num_subspaces\)"),
        ({"codes": [CODES[0][:, :0], CODES[1]]}, ValueError, "tier 0 must have shape"),
        ({"codes": [CODES[0], CODES[1].float()]}, TypeError, "integers"),
        ({"codes": [CODES[0], CODES[1] + 4]}, ValueError, "tier 1 has num_centroids=4, but a code 4"),
        ({"codes": [CODES[0], CODES[1] - 1]}, ValueError, "code -1"),
        ({"codes": [CODES[0], CODES[1][:, :1].expand(4, 4)]}, ValueError, "tier 1 has 4 subspaces"),
        ({"num_centroids": (9, 4)}, ValueError, "tier 0 has num_centroids=9, but its codebook holds 8"),
        ({"num_centroids": (0, 4)}, ValueError, "num_centroids"),
        ({"codebook_of": (0, 1)}, ValueError, "codebook_of must name"),
        ({"codebook_of": (1, 1)}, ValueError, "codebook_of"),
        ({"codebooks": []}, ValueError, "codebooks must"),
        ({"codebooks": [BOOK[0]]}, ValueError, "codebooks must"),
        ({"codebooks": [BOOK, BOOK]}, ValueError, "unexpected tensors"),
        ({"codebooks": [BOOK / 0]}, ValueError, "NaN"),
        ({"codebooks": [BOOK + 1e5], "centroid_dtype": "float16"}, ValueError, "65504"),
        ({"centroid_dtype": "bfloat16"}, ValueError, "centroid_dtype must be one of"),
        ({"padding_idx": 7}, ValueError, "padding_idx"),
        ({"padding_idx": -1}, ValueError, "padding_idx"),
    ],
)
def test_refusals(change, error, match):
    given = {
        "tiers": Tiers.from_sizes((3, 4)),
        "codes": CODES,
        "codebooks": [BOOK],
        "codebook_of": (0, 0),
        "num_centroids": (8, 4),
    }
    CompactTable.from_codes(**given)
    with pytest.raises(error, match=match):
        CompactTable.from_codes(**{**given, **change})


def test_compiles_whole():
    built = build(CASES[0])
    compiled = torch.compile(built.table.lookup, fullgraph=True, backend="eager")
    ids = torch.tensor([0, 46, 3])
    assert torch.equal(compiled(ids), built.dense[ids])


def test_bags():
    built = build(CASES[0])
    ids = torch.tensor([[0, 5, 46], [3, 3, 3]], dtype=torch.uint16)
    torch.testing.assert_close(built.table.bag(ids), built.dense[ids.long()].sum(1))
    torch.testing.assert_close(built.table.bag(ids, mode="max"), built.dense[ids.long()].amax(1))
    last = built.table.bag(ids.long().flatten(), torch.tensor([0, 2, 6]), "mean", include_last_offset=True)
    torch.testing.assert_close(last[1], built.dense[[46, 3, 3, 3]].mean(0))
    with_fallback = built.table.with_fallback(torch.ones(8))
    torch.testing.assert_close(with_fallback.bag(torch.tensor([[2, 47, -1]])), built.dense[2:3] + 2)
