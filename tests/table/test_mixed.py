"""Mixed tables: numbers worked out by hand, codes of new vectors, and what cannot be right."""

import json

import pytest
import torch
from format_reader import FormatReader
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_safetensors import read_raw, write_raw
from sharded_table import write_shards
from table_cases import MIXED, MixedCase, build

import mgqe
from mgqe import CompactTable, Tiers
from mgqe.codec.packing import pack
from mgqe.files.container import ArtifactError
from mgqe.ops import reference

each_case = pytest.mark.parametrize("case", MIXED, ids=lambda case: case.name)
TURNED = [case for case in MIXED if case.dim is not None]


def small(**change):
    """Two tiers of three and two ids, widths 1 and 2, bits (2, 1) and (1, 0), d = 3."""
    given = {
        "tiers": Tiers.from_sizes((3, 2)),
        "codes": [torch.tensor([[0, 1], [3, 0], [2, 1]]), torch.tensor([[1, 0], [0, 0]])],
        "codebooks": [torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 20.0, 30.0, 40.0])],
        "codebook_of": (0, 0),
        "widths": (1, 2),
        "code_bits": ((2, 1), (1, 0)),
    }
    return CompactTable.from_mixed_codes(**{**given, **change})


MATRIX = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
MEAN = torch.tensor([100.0, 200.0, 300.0, 400.0])


def test_rows_by_hand():
    assert small().lookup(torch.arange(5)).tolist() == [[0, 30, 40], [3, 10, 20], [2, 30, 40], [1, 10, 20], [0, 10, 20]]
    assert small().nbytes_by_part() == {"codes": 5, "centroids": 32, "scales": 0, "tier_map": 0}


@pytest.mark.parametrize(("dtype", "nbytes"), [("float32", 48), ("float16", 24), ("int8", 12)])
def test_rows_with_a_matrix_by_hand(dtype, nbytes):
    table = small(mean=MEAN, matrix=MATRIX * 127, matrix_dtype=dtype)
    assert table.lookup(torch.tensor([1])).tolist() == [[100 + 3 * 127, 200 + 10 * 127, 300 + 40 * 127, 400 + 3 * 127]]
    parts = table.nbytes_by_part()
    assert (parts["mean"], parts["matrix"], parts.get("matrix_scales", 0)) == (16, nbytes, 12 if dtype == "int8" else 0)


def test_bags_of_a_table_with_a_matrix_by_hand():
    table = small(mean=MEAN, matrix=MATRIX)
    ids = torch.tensor([[1, 3]])  # coordinates (3, 10, 20) and (1, 10, 20)
    assert table.bag(ids).tolist() == [[204, 420, 680, 804]]
    assert table.bag(ids, mode="mean").tolist() == [[102, 210, 340, 402]]
    assert table.bag(ids, mode="max").tolist() == [[103, 210, 340, 403]]
    assert table.bag(ids, per_sample_weights=torch.tensor([[2.0, -1.0]])).tolist() == [[105, 210, 340, 405]]
    assert table.bag(ids[:, :0]).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@each_case
def test_bags_agree_with_sums_of_rows(case, mode):
    built = build(case)
    ids = torch.randint(len(built.dense), (30, 7), generator=torch.Generator().manual_seed(2))
    offsets = torch.arange(30) * 7
    given = {"mode": mode, "padding_idx": case.padding_idx}
    expected = torch.nn.functional.embedding_bag(ids.flatten(), built.dense, offsets, **given)
    torch.testing.assert_close(built.table.bag(ids, mode=mode), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(built.table.bag(ids.flatten(), offsets, mode), built.table.bag(ids, mode=mode))


def test_assign_by_hand():
    table = small()
    vectors = torch.tensor([[2.6, 29.0, 12.0], [0.5, 31.0, 50.0]])
    assert table.assign(vectors, 0).tolist() == [[3, 0], [0, 1]]  # 0.5 is a tie: the lower code
    assert table.assign(vectors).tolist() == [[1, 0], [0, 0]]
    turned = small(mean=MEAN, matrix=MATRIX)
    assert turned.assign(MEAN + vectors @ MATRIX, 0).tolist() == [[3, 0], [0, 1]]
    # What no coordinate reaches counts for nothing: of (3, 1) along (1, 1) the nearest point is (2, 2).
    assert turned.assign(MEAN + torch.tensor([[3.0, 10.0, 40.0, 1.0]]), 0).tolist() == [[2, 0]]


@pytest.mark.parametrize("case", [c for c in MIXED if c.dim is None], ids=lambda case: case.name)
def test_assign_finds_the_nearest_decoded_centroids(case):
    """No other code of the tier decodes closer."""
    built = build(case)
    vectors = torch.randn(40, built.dense.shape[1], generator=torch.Generator().manual_seed(3))
    for g, bits in enumerate(case.code_bits):
        codes = built.table.assign(vectors, g)
        first = 0
        for j, width in enumerate(case.widths):
            every = torch.zeros(1 << bits[j], len(bits), dtype=torch.int64)
            every[:, j] = torch.arange(1 << bits[j])
            other = CompactTable.from_tensors(*built.table.to_tensors())
            part = slice(first, first + width)
            decoded = other.lookup(other.append_packed(pack(every, bits), g))[:, part]
            distances = torch.cdist(vectors[:, part].double(), decoded.double())
            chosen = distances.gather(1, codes[:, j, None].long()).squeeze(1)
            assert torch.all(chosen <= distances.amin(1) + 1e-6)
            first += width


@pytest.mark.parametrize("case", TURNED, ids=lambda case: case.name)
def test_rows_that_were_decoded_are_coded_as_they_were(case):
    built = build(case)
    for g in range(len(case.sizes)):
        ids = built.tiers.members(g)
        ids = ids[ids != (-1 if case.padding_idx is None else case.padding_idx)]
        again = built.table.append(built.dense[ids], g)
        assert torch.equal(built.table.lookup(again), built.dense[ids])


def test_stats_count_the_centroids_that_a_code_can_name():
    head, tail = small().codebook_stats()
    assert (head.num_subspaces, head.num_centroids, head.reachable, head.used) == (2, 4, 2.5, 2.5)
    assert (tail.num_centroids, tail.reachable, tail.used, tail.usage) == (2, 1.5, 1.5, 1.0)


def test_repr_says_bits_and_coordinates():
    text = repr(small(mean=MEAN, matrix=MATRIX))
    assert "3 ids x 3 bits; 2 ids x 1 bits; float32 centroids; 3 coordinates turned" in text
    assert "matrix 24" in text


@each_case
@pytest.mark.parametrize("mmap", [True, False])
def test_shards_load_as_the_whole_table(case, mmap, tmp_path):
    built = build(case)
    n = len(built.dense)
    write_shards(tmp_path / "t", built.table, built.tiers, (0, 4, 4, n))
    loaded = mgqe.load(tmp_path / "t", mmap=mmap)
    assert loaded.equal(built.table)
    assert torch.equal(loaded.lookup(torch.arange(n)), built.dense)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"codes": [torch.zeros(3, 2).long()]}, ValueError, "codes must have one entry per tier, 2, got 1"),
        ({"code_bits": ((2, 1),)}, ValueError, "code_bits must have one entry per tier, 2, got 1"),
        ({"codebook_of": (0,)}, ValueError, "codebook_of must have one entry per tier, 2, got 1"),
        ({"codebook_of": (0, 1)}, ValueError, r"codebook_of must name all codebooks, 0 \.\. 0"),
        ({"codebooks": []}, ValueError, "codebook_of must name all codebooks"),
        (
            {"codes": [torch.zeros(3, 1).long(), torch.zeros(2, 2).long()]},
            ValueError,
            r"tier 0 must have shape \(3, 2\)",
        ),
        (
            {"codes": [torch.tensor([[4, 0]] * 3), torch.zeros(2, 2).long()]},
            ValueError,
            "tier 0: a code of subspace 0 ",
        ),
        (
            {"codes": [torch.tensor([[0, -1]] * 3), torch.zeros(2, 2).long()]},
            ValueError,
            "tier 0: a code of subspace 1 ",
        ),
        ({"codes": [torch.zeros(3, 2).long(), torch.tensor([[0, 1]] * 2)]}, ValueError, "does not fit 0 bits"),
        (
            {"codes": [torch.zeros(3, 2), torch.zeros(2, 2).long()]},
            TypeError,
            "codes of tier 0: codes must be integers",
        ),
        ({"code_bits": ((2,), (1, 0))}, ValueError, "code_bits of tier 0 must have one entry per subspace, 2"),
        ({"code_bits": ((17, 1), (1, 0))}, ValueError, "bits of a code must be 0 to 16, got 17"),
        ({"code_bits": ((2.5, 1), (1, 0))}, TypeError, r"code_bits\[0\]"),
        ({"widths": (1, 3)}, ValueError, r"codebook 0 must be flat, \(10,\)"),
        ({"widths": ()}, ValueError, "widths must be the coordinates of each subspace"),
        ({"widths": (0, 3)}, ValueError, "widths must be the coordinates of each subspace, at least 1"),
        ({"codebooks": [torch.zeros(2, 4)]}, ValueError, r"codebook 0 must be flat, \(8,\).*got \(2, 4\)"),
        ({"codebooks": [torch.full((8,), torch.nan)]}, ValueError, "codebook 0 holds NaN"),
        ({"centroid_dtype": "bfloat16"}, ValueError, "centroid_dtype must be one of"),
        ({"padding_idx": 5}, ValueError, "padding_idx"),
        ({"mean": MEAN}, ValueError, "a mean and a matrix, or neither, got a mean"),
        ({"matrix": MATRIX}, ValueError, "a mean and a matrix, or neither, got a matrix"),
        ({"mean": MEAN, "matrix": MATRIX[:2]}, ValueError, "widths must sum to the rows of the matrix, 2"),
        ({"mean": MEAN[:3], "matrix": MATRIX}, ValueError, r"expected a mean \(d,\) and a matrix \(L, d\)"),
        ({"mean": MEAN, "matrix": MATRIX / 0}, ValueError, "not finite"),
        ({"mean": MEAN / 0, "matrix": MATRIX}, ValueError, "not finite"),
        ({"mean": MEAN, "matrix": MATRIX * 1e5}, ValueError, "not finite"),
        ({"mean": MEAN, "matrix": MATRIX, "matrix_dtype": "bfloat16"}, ValueError, "matrix_dtype must be one of"),
    ],
)
def test_refusals(change, error, match):
    with pytest.raises(error, match=match):
        small(**change)


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("mean", [1, 2, 3, float("inf")], "tensor 'mean' holds NaN or infinity"),
        ("matrix_scales", [1, 0, 1], "tensor 'matrix_scales' holds a scale that is not positive"),
        ("matrix_scales", [1, -1, 1], "tensor 'matrix_scales' holds a scale that is not positive"),
        ("matrix_scales", [1, float("nan"), 1], "tensor 'matrix_scales' holds NaN or infinity"),
        ("codes.0", [8, 0, 0], "tensor 'codes.0' has spare bits that are not zero"),
        ("codes.1", [0, 2], "tensor 'codes.1' has spare bits that are not zero"),
        ("scales.0", [0, 1], "tensor 'scales.0' holds a scale that is not positive"),
    ],
)
def test_damaged_values_are_found(name, values, match):
    tensors, config = small(mean=MEAN, matrix=MATRIX, matrix_dtype="int8", centroid_dtype="int8").to_tensors()
    CompactTable.from_tensors(tensors, config).validate()
    damaged = torch.tensor(values).to(tensors[name].dtype).reshape(tensors[name].shape)
    with pytest.raises(ValueError, match=match):
        CompactTable.from_tensors({**tensors, name: damaged}, config).validate()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"widths": [1, 4]}, "'widths' must sum to embedding_dim=4, or to 1 .. 4 with a matrix, got 5"),
        ({"widths": []}, "'code_bits' must have 0 entries, got 4"),
        ({"widths": [3]}, "'code_bits' must"),
        ({"code_bits": [2, 1, 1]}, "'code_bits' must"),
        ({"code_bits": [2, 1, 1, 17]}, r"must be a whole number in 0 \.\. 16, got 17"),
        ({"code_bits": [3, 1, 1, 0]}, "codebooks must have shapes"),
        ({"code_bits": [2, 1, 1, 1]}, None),
        ({"code_bits": [2, 1, 8, 1]}, "codebooks must have shapes|must have shape"),
        ({"matrix_dtype": None}, "'widths' must sum to embedding_dim=4"),
        ({"matrix_dtype": "int8"}, "matrix"),
        ({"matrix_dtype": "bfloat16"}, "'matrix_dtype' must be"),
        ({"num_subspaces": [2, 2]}, "num_subspaces"),
        ({"embedding_dim": 5}, "'mean' must have shape"),
    ],
)
def test_configurations_that_contradict_the_tensors(change, match, tmp_path):
    mgqe.save(small(mean=MEAN, matrix=MATRIX), tmp_path / "good")
    metadata, parts = read_raw(tmp_path / "good")
    config = {**json.loads(metadata["config"]), **change}
    write_raw(tmp_path / "bad", {**metadata, "config": json.dumps(config)}, parts)
    if match is None:
        assert mgqe.load(tmp_path / "bad").num_embeddings == 5  # more bits in the same bytes: other codes, all valid
        return
    with pytest.raises(ArtifactError, match=match):
        mgqe.load(tmp_path / "bad")


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    more=st.none() | st.integers(0, 3),
    separate=st.booleans(),
    shuffled=st.booleans(),
    dtypes=st.tuples(*[st.sampled_from(["float32", "float16", "int8"])] * 2),
    seed=st.integers(0, 1000),
)
def test_any_table_reads_as_the_format_says(
    tmp_path_factory, data, sizes, widths, more, separate, shuffled, dtypes, seed
):
    """Every bit is that of a reader in plain Python, written from docs/format.md; also of ids appended to the file."""
    bits = tuple(tuple(data.draw(st.integers(0, 6)) for _ in widths) for _ in sizes)
    books = tuple(range(len(sizes))) if separate else (0,) * len(sizes)
    dim = None if more is None else sum(widths) + more
    padding_idx = data.draw(st.none() | st.integers(0, sum(sizes) - 1)) if sum(sizes) else None
    case = MixedCase("any", tuple(sizes), tuple(widths), bits, books, shuffled, dtypes[0], padding_idx, dim, dtypes[1])
    table, path = build(case, seed).table, tmp_path_factory.mktemp("any") / "table"
    mgqe.save(table, path)
    vectors = torch.randn(3, table.embedding_dim, generator=torch.Generator().manual_seed(seed))
    for tier in range(len(sizes)):
        assert torch.equal(mgqe.append(path, vectors, tier), table.append(vectors, tier))
    loaded, reader = mgqe.load(path), FormatReader(path)
    assert loaded.equal(table)
    rows = loaded.lookup(torch.arange(table.num_embeddings))
    assert rows.tolist() == [reader.row(i) for i in range(table.num_embeddings)]
    assert torch.equal(reference.lookup(torch.arange(table.num_embeddings), loaded.snapshot.lookup.table), rows)


@pytest.mark.parametrize("name", ["mean", "matrix", "matrix_scales"])
def test_nothing_is_appended_by_a_damaged_matrix(name, tmp_path):
    path = tmp_path / "a"
    table = small(mean=MEAN, matrix=MATRIX * 100, matrix_dtype="int8")
    mgqe.save(table, path)
    content, values = path.read_bytes(), table.to_tensors()[0][name].numpy().tobytes()
    at = content.index(values)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ArtifactError, match=f"tensor '{name}', block 0"):
        mgqe.append(path, MEAN[None])


def test_another_matrix_is_another_base(tmp_path):
    """Segments are for the table whose mean and matrix give their codes a meaning."""
    path = tmp_path / "a"
    mgqe.save(small(mean=MEAN, matrix=MATRIX), path)
    mgqe.append(path, MEAN[None])
    other = tmp_path / "b"
    mgqe.save(small(mean=MEAN, matrix=2 * MATRIX), other)
    path.write_bytes(other.read_bytes())
    with pytest.warns(RuntimeWarning, match="left out: appended to another table"):
        assert mgqe.load(path).num_embeddings == 5


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_codes_of_unsigned_dtypes_make_the_same_table(dtype):
    codes = [torch.tensor([[0, 1], [3, 0], [2, 1]]), torch.tensor([[1, 0], [0, 0]])]
    assert small(codes=[each.to(dtype) for each in codes]).equal(small(codes=codes))
    even = [torch.tensor([[0], [2], [1]])], [torch.tensor([[[0.0], [1.0], [2.0]]])], (0,), (3,)
    made = CompactTable.from_codes(Tiers.from_sizes((3,)), [even[0][0].to(dtype)], *even[1:])
    assert made.equal(CompactTable.from_codes(Tiers.from_sizes((3,)), *even))
    with pytest.raises(ValueError, match="num_centroids=3, but a code 3"):
        CompactTable.from_codes(Tiers.from_sizes((1,)), [torch.tensor([[3]]).to(dtype)], *even[1:])
