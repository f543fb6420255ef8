"""Baselines: values computed by hand, errors that fall with bytes, and files that must be refused."""

import io
import itertools
import json
import struct

import pytest
import torch
from make_golden import golden_tables
from raw_safetensors import read_raw, write_raw

import mgqe
from mgqe.baselines import (
    CCEmbedding,
    FullEmbedding,
    HashEmbedding,
    LowRankEmbedding,
    PQEmbedding,
    QREmbedding,
    RecJPQEmbedding,
    ScalarQuantizedEmbedding,
    SVDEmbedding,
)
from mgqe.baselines.hashing import bucket_of
from mgqe.baselines.recjpq import interaction_codes, left_factors, quantile_codes
from mgqe.baselines.scalar import fit_grids


def with_weight(layer, weight):
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def squared_error(layer):
    return float((layer.freeze().to_dense() - layer.weight.detach()).square().mean())


# Full and low-rank


def test_svd_keeps_the_first_singular_vectors():
    # Singular values 3 and 1, along (1, 0) and (0, 1): rank 1 keeps the first column.
    layer = with_weight(SVDEmbedding(3, 2, rank=1), torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert torch.allclose(layer.freeze().lookup(torch.arange(3)), torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    weight = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    layer = with_weight(SVDEmbedding(50, 12, rank=5), weight)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    best = u[:, :5] * s[:5] @ v[:5]
    assert torch.allclose(layer.freeze().lookup(torch.arange(50)), best, atol=1e-5)


@pytest.mark.parametrize("layer", [LowRankEmbedding(30, 8, rank=3), SVDEmbedding(30, 8, rank=3)])
def test_factors_are_stored_in_float16_where_that_is_wanted(layer):
    whole = layer.freeze()
    layer.stored_dtype = "float16"
    halves = layer.freeze()
    assert halves.factors.dtype == halves.projection.dtype == torch.float16
    assert torch.equal(halves.factors, whole.factors.half())
    assert torch.equal(halves.projection, whole.projection.half())
    assert 2 * halves.nbytes == whole.nbytes
    file = io.BytesIO()
    mgqe.save(halves, file)
    file.seek(0)
    assert mgqe.load(file).equal(halves)


def test_rows_are_stored_in_float16_where_that_is_wanted():
    layer = FullEmbedding(30, 8, padding_idx=3, stored_dtype="float16")
    table = layer.freeze()
    assert torch.equal(table.weight, layer.weight.detach().half())
    assert table.padding_idx == 3
    file = io.BytesIO()
    assert mgqe.save(table, file) == FullEmbedding.frozen_nbytes(30, 8, "float16")
    assert FullEmbedding(30, 8).freeze().weight.dtype == torch.float32
    with pytest.raises(ValueError, match="stored_dtype must be one of"):
        FullEmbedding(30, 8, stored_dtype="int8")


@pytest.mark.parametrize("layer", [LowRankEmbedding, SVDEmbedding])
def test_what_float16_cannot_hold_is_refused(layer):
    with pytest.raises(ValueError, match=r"stored_dtype must be one of \['float32', 'float16'\], or None, got 'half'"):
        layer(5, 8, rank=2, stored_dtype="half")
    with pytest.raises(ValueError, match="stored_dtype must be one of"):
        layer.within(50, 8, 4000, stored_dtype="half")
    large = layer(5, 8, rank=2, stored_dtype="float16")
    with torch.no_grad():
        next(large.parameters()).fill_(1e5)
    with pytest.raises(ValueError, match=r"factors holds \S+, too large for float16: use stored_dtype='float32'"):
        large.freeze()


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_of_no_table_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be from 1 to embedding_dim=8, got {rank}"):
        SVDEmbedding(5, 8, rank=rank)


def test_full_is_nn_embedding():
    torch.manual_seed(0)
    ours = FullEmbedding(10, 4, padding_idx=2, max_norm=1.5)
    torch.manual_seed(0)
    theirs = torch.nn.Embedding(10, 4, padding_idx=2, max_norm=1.5)
    ids = torch.tensor([[1, 2], [9, 1]])
    assert torch.equal(ours(ids), theirs(ids))
    assert ours.freeze().nbytes == 10 * 4 * 4


def test_from_pretrained_works():
    layer = FullEmbedding.from_pretrained(torch.eye(3), freeze=True)
    assert not layer.weight.requires_grad
    assert torch.equal(layer.freeze().to_dense(), torch.eye(3))


def test_low_rank_by_hand():
    layer = LowRankEmbedding(2, 3, rank=2)
    with torch.no_grad():
        layer.factors.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        layer.projection.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]))
    expected = [[2.0, 2.0, 1.0], [-0.5, -1.0, 0.0]]
    assert layer(torch.arange(2)).tolist() == expected
    table = layer.freeze()
    assert table.to_dense().tolist() == expected
    assert table.nbytes_by_part() == {"factors": 16, "projection": 24}


@pytest.mark.parametrize("rank", [0, 9, -1])
def test_low_rank_refuses(rank):
    with pytest.raises(ValueError, match="rank must be from 1 to embedding_dim=8"):
        LowRankEmbedding(5, 8, rank=rank)


@pytest.mark.parametrize("make", [LowRankEmbedding, HashEmbedding, QREmbedding, RecJPQEmbedding, CCEmbedding])
def test_composed_rows_start_with_variance_one(make):
    torch.manual_seed(0)
    rows = make(20_000, 128)(torch.arange(20_000)).detach()
    assert float(rows.var()) == pytest.approx(1, rel=0.15)


# Scalar


def test_one_bit_by_hand():
    """With two levels the best grid does not span the range, but goes through the middle of each cluster."""
    layer = with_weight(ScalarQuantizedEmbedding(4, 1, bits=1), torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert layer.freeze().to_dense().flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def test_codes_by_hand():
    weight = torch.tensor([[-1.0, 10.0], [0.0, 10.0], [1.0, 10.0], [2.0, 10.0]])
    table = with_weight(ScalarQuantizedEmbedding(4, 2, bits=2), weight).freeze()
    tensors, _ = table.to_tensors()
    assert tensors["step"].tolist() == [1.0, 0.0]
    assert tensors["offset"].tolist() == [-1.0, 10.0]
    assert tensors["codes"].tolist() == [[0], [1], [2], [3]]  # a constant column has step 0 and code 0
    assert torch.equal(table.to_dense(), weight)


@pytest.mark.parametrize("granularity", ["row", "dimension"])
def test_error_falls_with_bits(granularity):
    torch.manual_seed(0)
    weight = torch.randn(500, 16) * torch.rand(500, 1)
    errors = [
        squared_error(with_weight(ScalarQuantizedEmbedding(500, 16, bits=b, granularity=granularity), weight))
        for b in range(1, 9)
    ]
    assert all(more < 0.5 * less for less, more in itertools.pairwise(errors))


@pytest.mark.parametrize("granularity", ["row", "dimension"])
@pytest.mark.parametrize("bits", [2, 4])
def test_grids_beat_the_whole_range(granularity, bits):
    torch.manual_seed(0)
    weight = torch.randn(300, 32)
    step, offset = fit_grids(weight, bits, granularity)
    axis = 1 if granularity == "row" else 0
    low, high = weight.amin(axis, keepdim=True), weight.amax(axis, keepdim=True)
    plain = (high - low) / (2**bits - 1)
    naive = ((weight - low) / plain).round() * plain + low
    layer = with_weight(ScalarQuantizedEmbedding(300, 32, bits=bits, granularity=granularity), weight)
    assert squared_error(layer) < 0.95 * float((naive - weight).square().mean())
    assert (step >= 0).all()
    assert offset.shape == step.shape == ((300,) if granularity == "row" else (32,))


def test_scalar_bytes():
    rows = ScalarQuantizedEmbedding(100, 10, bits=3, granularity="row").freeze()
    columns = ScalarQuantizedEmbedding(100, 10, bits=3).freeze()
    assert rows.nbytes_by_part() == {"codes": 400, "step": 200, "offset": 200}
    assert columns.nbytes_by_part() == {"codes": 400, "step": 40, "offset": 40}


def test_scalar_refusals():
    for bits in (0, 9):
        with pytest.raises(ValueError, match="bits must be a whole number from 1 to 8"):
            ScalarQuantizedEmbedding(5, 4, bits=bits)
    with pytest.raises(ValueError, match="granularity must be one of"):
        ScalarQuantizedEmbedding(5, 4, granularity="table")
    layer = with_weight(ScalarQuantizedEmbedding(2, 4, granularity="row"), torch.full((2, 4), 1e6))
    with pytest.raises(ValueError, match='granularity="dimension"'):
        layer.freeze()


# Post-training PQ


def test_pq_finds_clusters():
    """Rows with 4 distinct points per subspace are decoded exactly, in whatever order the centroids are."""
    torch.manual_seed(0)
    points = torch.randn(4, 2, 3)
    picks = torch.randint(0, 4, (200, 2))
    weight = torch.cat([points[picks[:, j], j] for j in range(2)], dim=1)
    errors = [
        squared_error(with_weight(PQEmbedding(200, 6, num_subspaces=2, num_centroids=4, seed=seed), weight))
        for seed in range(8)
    ]
    assert min(errors) < 1e-10


def test_pq_error_falls_with_centroids():
    torch.manual_seed(0)
    weight = torch.randn(400, 8)
    errors = [
        squared_error(with_weight(PQEmbedding(400, 8, num_subspaces=4, num_centroids=k), weight))
        for k in (2, 8, 32, 128)
    ]
    assert all(more < 0.6 * less for less, more in itertools.pairwise(errors))


def test_pq_is_decided_by_its_seed():
    weight = torch.randn(100, 8)

    def table(seed):
        return with_weight(PQEmbedding(100, 8, num_subspaces=4, num_centroids=8, seed=seed), weight).freeze()

    assert table(1).equal(table(1))
    assert not table(1).equal(table(2))


@pytest.mark.parametrize("centroid_dtype", ["float32", "float16", "int8"])
def test_pq_codes_are_the_nearest_of_the_stored_centroids(centroid_dtype):
    torch.manual_seed(0)
    layer = PQEmbedding(60, 6, num_subspaces=3, num_centroids=10, centroid_dtype=centroid_dtype)
    table = layer.freeze()
    codes = table.codes(torch.arange(60))
    rows = layer.weight.detach().view(60, 3, 2)
    tensors, _ = table.to_tensors()
    book = tensors["centroids.0"].float()
    if centroid_dtype == "int8":
        book = book * tensors["scales.0"][:, None, None]
    distance = (rows[:, :, None] - book[None]).square().sum(-1)
    chosen = distance.gather(2, codes.long()[..., None])[..., 0]
    assert (chosen <= distance.amin(-1) + 1e-5).all()


def test_pq_ignores_the_padding_row():
    weight = torch.ones(3, 2)
    weight[0] = 1e6
    layer = PQEmbedding(3, 2, padding_idx=0, num_subspaces=1, num_centroids=2)
    table = with_weight(layer, weight).freeze()
    assert torch.allclose(table.to_dense()[1:], weight[1:], atol=0.05)
    assert not table.to_dense()[0].any()


def test_pq_refusals():
    with pytest.raises(ValueError, match="not divisible"):
        PQEmbedding(50, 8, num_subspaces=3)
    with pytest.raises(ValueError, match="cannot use num_centroids=60"):
        PQEmbedding(50, 8, num_centroids=60)
    with pytest.raises(ValueError, match="centroid_dtype must be one of"):
        PQEmbedding(50, 8, centroid_dtype="float64")


# Hashing and quotient-remainder


def test_hash_by_hand():
    layer = HashEmbedding(100, 3, num_buckets=7, num_hashes=2, seed=5)
    ids = torch.tensor([0, 42, 99])
    first, second = (bucket_of(ids, 7, 5, j) for j in range(2))
    assert torch.equal(layer(ids), layer.weight[first] + layer.weight[second])
    assert layer.freeze().nbytes == 7 * 3 * 4


@pytest.mark.parametrize("which", [0, 1])
def test_hashes_are_even_and_differ(which):
    ids = torch.arange(100_000)
    buckets = bucket_of(ids, 100, 0, which)
    counts = torch.bincount(buckets, minlength=100)
    assert ((counts - 1000).abs() < 160).all()  # five standard deviations
    other = bucket_of(ids, 100, 1, which)
    assert abs(int((buckets == other).sum()) - 1000) < 160


def test_hash_refusals():
    for options in ({"num_buckets": 0}, {"num_hashes": 0}, {"num_hashes": 17}, {"seed": -1}, {"seed": 2**31}):
        with pytest.raises(ValueError, match=next(iter(options))):
            HashEmbedding(10, 4, **options)


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_qr_by_hand(operation):
    layer = QREmbedding(10, 4, num_remainders=4, operation=operation)
    q, r = layer.quotients[7 // 4], layer.remainders[7 % 4]
    expected = {"mult": q * r if q.shape == r.shape else None, "add": q + r, "concat": torch.cat([q, r])}
    assert torch.equal(layer(torch.tensor(7)), expected[operation])
    assert layer.quotients.shape[0] == 3
    width = 2 if operation == "concat" else 4
    assert layer.freeze().nbytes == (3 + 4) * width * 4


def test_qr_rows_differ():
    rows = QREmbedding(97, 4)(torch.arange(97))
    assert len({tuple(row) for row in rows.tolist()}) == 97


def test_qr_refusals():
    with pytest.raises(ValueError, match="operation must be one of"):
        QREmbedding(10, 4, operation="max")
    with pytest.raises(ValueError, match="num_remainders"):
        QREmbedding(10, 4, num_remainders=0)
    with pytest.raises(ValueError, match="embedding_dim of 2"):
        QREmbedding(10, 1, operation="concat")


# RecJPQ


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_pairs(rows=60, columns=40, n=500):
    return tuple(torch.randint(0, size, (n,), generator=generator(size)) for size in (rows, columns))


def test_quantile_codes_by_hand():
    """Each bin has equally many ids, by rank: the distance of a factor from the others does not matter."""
    factors = torch.tensor([[5.0, 0.0], [-1.0, 0.3], [900.0, 0.1], [4.0, 0.2], [6.0, 0.4], [-2.0, 0.5]]).double()
    codes = quantile_codes(factors, 3, generator())
    assert codes[:, 0].tolist() == [1, 0, 2, 1, 2, 0]
    assert codes[:, 1].tolist() == [0, 1, 0, 1, 2, 2]


def test_quantile_codes_split_equal_factors_evenly():
    factors = torch.zeros(30, 2, dtype=torch.float64)
    factors[0] = 1.0
    codes = quantile_codes(factors, 3, generator())
    assert codes[0].tolist() == [2, 2]
    assert torch.bincount(codes[:, 0]).tolist() == torch.bincount(codes[:, 1]).tolist() == [10, 10, 10]
    assert not torch.equal(codes[:, 0], codes[:, 1])


def test_left_factors_are_those_of_the_svd():
    ids, other_ids = some_pairs()
    matrix = torch.zeros(60, 40, dtype=torch.float64)
    matrix[ids, other_ids] = 1.0  # repeats count once
    expected = torch.linalg.svd(matrix).U[:, :5]
    vectors = left_factors(ids, other_ids * 2**40, 60, 5, generator())  # ids of the other side may be of any size
    assert vectors.shape == (60, 5)
    assert torch.allclose((vectors * expected).sum(0).abs(), torch.ones(5, dtype=torch.float64), atol=1e-3)


def test_codes_of_two_blocks_by_hand():
    """Ids 0 to 3 share their users, 4 to 6 share others, 7 has none: the first two dimensions tell them apart."""
    ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6])
    other_ids = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2, 2, 2])
    assert left_factors(ids, other_ids, 8, 4, generator()).shape == (8, 2)  # no more than the rank
    codes = interaction_codes(8, (ids, other_ids), 4, 2, seed=0)
    assert len({int(code) for code in codes[:4, 0]}) == 1
    assert not (codes[4:, 0] == codes[0, 0]).any()
    assert len({int(code) for code in codes[4:7, 1]}) == 1
    assert (codes.sum(0) == 4).all()  # dimensions beyond the rank are even too


def test_codes_of_more_factors_than_subspaces_by_hand():
    """Three groups of ids that share no users have two factors that differ: one code tells them apart, not one bin."""
    ids = torch.arange(12)
    pairs = torch.cat([ids, ids]), torch.cat([2 * (ids // 4), 2 * (ids // 4) + 1])
    codes = interaction_codes(12, pairs, 1, 3, seed=0, num_factors=3)
    assert codes.shape == (12, 1)
    groups = [set(part.tolist()) for part in codes[:, 0].split(4)]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(set.union(*groups)) == 3
    for message in ("num_factors=3 is not a multiple of num_subspaces=2", "num_factors=0"):
        with pytest.raises(ValueError, match=message.replace("=0", ".* 1")):
            interaction_codes(12, pairs, 2, 3, seed=0, num_factors=int(message[12]))


@pytest.mark.parametrize(("num_centroids", "dtype"), [(256, torch.uint8), (257, torch.int16)])
@pytest.mark.parametrize("pairs", [None, some_pairs(rows=600), tuple(torch.empty(2, 0, dtype=torch.int32))])
def test_codes_are_even_small_and_decided_by_the_seed(pairs, num_centroids, dtype):
    def codes(seed):
        return interaction_codes(600, pairs, 4, num_centroids, seed)

    assert codes(0).dtype == dtype
    assert torch.equal(codes(0), codes(0))
    assert not torch.equal(codes(0), codes(1))
    for column in codes(0).unbind(1):
        assert sorted(set(torch.bincount(column.long(), minlength=num_centroids).tolist())) == [2, 3]


def test_recjpq_by_hand():
    layer = RecJPQEmbedding(6, 4, padding_idx=1, num_subspaces=2, num_centroids=3)
    layer.codes.copy_(torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0], [1, 2], [2, 1]]))
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0).view(2, 3, 2))
    expected = [[0.0, 1.0, 10.0, 11.0], [0.0] * 4, [4.0, 5.0, 6.0, 7.0]]
    assert layer(torch.arange(3)).tolist() == expected
    table = layer.freeze()
    assert table.lookup(torch.arange(3)).tolist() == expected
    assert table.nbytes_by_part() == {"codes": 6, "centroids": 48, "scales": 0, "tier_map": 0}
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert set(layer.state_dict()) == {"weight", "codes"}


def test_recjpq_divides_gradients_by_frequency():
    layer = RecJPQEmbedding(6, 2, scale_grad_by_freq=True, num_subspaces=1, num_centroids=6)
    layer(torch.tensor([4, 4, 4, 2])).sum().backward()
    grad = layer.weight.grad[0][layer.codes[:, 0].long()]
    assert torch.allclose(grad, torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 0.0])[:, None].expand(6, 2))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"pairs": (torch.tensor([0, 50]), torch.tensor([0, 1]))}, ValueError, "holds id 50, but the table has 50"),
        ({"pairs": (torch.tensor([0, -1]), torch.tensor([0, 1]))}, ValueError, "holds id -1"),
        ({"pairs": (torch.tensor([0.0]), torch.tensor([0]))}, TypeError, "integers such as torch.int64, got"),
        ({"pairs": (torch.tensor([0]), torch.tensor([True]))}, TypeError, "integers such as torch.int64, got"),
        ({"pairs": (torch.tensor([0, 1]), torch.tensor([0]))}, ValueError, r"one length \(n,\), got shapes \(2,\)"),
        ({"pairs": (torch.zeros(2, 2).long(), torch.zeros(2, 2).long())}, ValueError, "one length"),
        ({"pairs": torch.tensor([0, 1])}, TypeError, "pairs must be two tensors"),
        ({"pairs": ([0, 1], [0, 1])}, TypeError, "pairs must be two tensors"),
        ({"num_subspaces": 3}, ValueError, "not divisible"),
        ({"num_centroids": 51}, ValueError, "cannot use num_centroids=51"),
        ({"num_centroids": (4, 4)}, ValueError, "one per tier"),
        ({"centroid_dtype": "int4"}, ValueError, "centroid_dtype must be one of"),
        ({"seed": -1}, ValueError, "seed must be a whole number from 0"),
    ],
)
def test_recjpq_refusals(options, error, match):
    with pytest.raises(error, match=match):
        RecJPQEmbedding(50, 8, **options)


# Files


def config(**entries):
    return lambda config, tensors: config.update(entries)


def with_tensor(name, **change):
    def apply(config, tensors):
        dtype, shape, content = tensors[name]
        tensors[name] = (change.get("dtype", dtype), change.get("shape", shape), change.get("content", content))

    return apply


def drop(name):
    return lambda config, tensors: tensors.pop(name)


def nan_in(name, letter="f"):
    def apply(config, tensors):
        dtype, shape, content = tensors[name]
        bad = struct.pack("<" + letter, float("nan"))
        tensors[name] = (dtype, shape, bad + content[len(bad) :])

    return apply


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("full-bfloat16", config(num_embeddings=6), "'weight' must have shape"),
        ("full-bfloat16", config(num_embeddings="5"), "'num_embeddings'"),
        ("full-bfloat16", config(padding_idx=5), "'padding_idx'"),
        ("full-bfloat16", config(extra=0), "unexpected config entries"),
        ("full-bfloat16", drop("weight"), "'weight' is missing"),
        ("full-bfloat16", with_tensor("weight", dtype="U8", shape=[10, 3]), "'weight' must be torch.float32 or"),
        ("low-rank", config(rank=3), "'factors' must have shape"),
        ("low-rank", config(rank=0), "'rank'"),
        ("low-rank", config(embedding_dim=5), "'projection' must have shape"),
        ("low-rank", nan_in("projection", "e"), "'projection' holds NaN"),
        ("scalar-row", config(bits=0), "'bits'"),
        ("scalar-row", config(bits=9), "'bits'"),
        ("scalar-row", config(bits=5), "'codes' must have shape"),
        ("scalar-row", config(granularity="dimension"), "'step' must be torch.float32"),
        ("scalar-row", config(granularity=None), "'granularity' must be one of"),
        ("scalar-row", nan_in("offset", "e"), "'offset' holds NaN"),
        ("scalar-row", with_tensor("codes", content=b"\xff" * 8), "'codes' has spare bits"),
        ("scalar-dimension", nan_in("step"), "'step' holds NaN"),
        ("hash", config(num_buckets=0), "'num_buckets'"),
        ("hash", config(num_buckets=6), "'weight' must have shape"),
        ("hash", config(num_hashes=10**30), "'num_hashes'"),
        ("hash", config(seed=-1), "'seed'"),
        ("hash", nan_in("weight"), "'weight' holds NaN"),
        ("quotient-remainder", config(operation="mult"), "'quotients' must have shape"),
        ("quotient-remainder", config(operation="max"), "'operation' must be one of"),
        ("quotient-remainder", config(num_remainders=0), "'num_remainders'"),
        ("quotient-remainder", config(num_embeddings=13), "'quotients' must have shape"),
        ("quotient-remainder", nan_in("remainders"), "'remainders' holds NaN"),
        ("cce", config(num_columns=4), "'num_columns' must divide embedding_dim=6, got 4"),
        ("cce", config(num_centroids=4), "'clusters' must have shape"),
        ("cce", config(num_centroids=17), "'codes' must have shape"),
        ("cce", config(clustered=-1), "'clustered'"),
        ("cce", nan_in("helpers", "e"), "'helpers' holds NaN"),
        ("cce", with_tensor("codes", content=b"\x07" * 9), "'codes' holds a code that is not below num_centroids=5"),
        ("cce", with_tensor("codes", content=b"\xff" * 9), "'codes' has spare bits"),
        ("additive-int8", config(num_codebooks=2), "'codes' must have shape|'codebooks' must have shape"),
        ("additive-int8", config(centroid_dtype="float32"), "'codebooks' must be torch.float32"),
        ("additive-int8", drop("scales"), "'scales' is missing"),
        ("additive-int8", nan_in("scales"), "'scales' holds NaN"),
        ("additive-float16", nan_in("codebooks", "e"), "'codebooks' holds NaN"),
        ("additive-float16", with_tensor("codes", content=b"\xff" * 7), "'codes' has spare bits"),
    ],
)
def test_bad_files(name, change, match, tmp_path):
    mgqe.save(golden_tables()[f"{name}.safetensors"], tmp_path / "a")
    metadata, tensors = read_raw(tmp_path / "a")
    entries = json.loads(metadata["config"])
    change(entries, tensors)
    metadata["config"] = json.dumps(entries)
    write_raw(tmp_path / "a", metadata, tensors)
    with pytest.raises(mgqe.ArtifactError, match=match):
        mgqe.load(tmp_path / "a")


def test_half_precision_weights_keep_their_dtype():
    layer = FullEmbedding(6, 4, dtype=torch.bfloat16)
    table = layer.freeze()
    assert table.nbytes == 6 * 4 * 2
    assert torch.equal(table.lookup(torch.arange(6)), layer.weight.detach().float())


def test_a_kind_cannot_be_registered_twice():
    from mgqe.baselines import FullTable
    from mgqe.table.io import register_kind

    class Impostor(FullTable):
        kind = "full"

    assert register_kind(FullTable) is FullTable
    with pytest.raises(ValueError, match="'full' is taken by FullTable"):
        register_kind(Impostor)
