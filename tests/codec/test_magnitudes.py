"""Means that are large against the spread, and numbers whose squares leave float32, from training to the table."""

import pytest
import torch

import mgqe
from mgqe import baselines, ops
from mgqe.codec.equations import round_centroids
from mgqe.codec.kmeans import KMEANS, THOROUGH, draw_pieces, kmeans, revive
from mgqe.codec.tensors import store_centroids
from mgqe.codec.tiers import Tiers

MEANS = [0.0, 10.0, 100.0, 1000.0]
SCALES = [1e-30, 1e-20, 1e18, 1e20, 1e30, 1e37]


def rows_of(n=400, dim=8, mean=0.0, spread=0.1, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * spread + mean


def lost(rows, decoded):
    """The share of the variance that decoded rows lack, in float64."""
    rows, decoded = rows.double(), decoded.double()
    return float((rows - decoded).square().sum() / (rows - rows.mean(0)).square().sum())


def table_at(mean, dtype="float32"):
    books = [rows_of(4 * 64, 2, mean, seed=1).reshape(4, 64, 2)]
    codes = torch.randint(64, (500, 4), generator=torch.Generator().manual_seed(2))
    return mgqe.CompactTable.from_codes(Tiers.from_sizes([500]), [codes], books, [0], [64], centroid_dtype=dtype)


# ---- the mean ----


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("mean", MEANS)
def test_append_and_update_give_representable_rows_back(mean, dtype):
    table = table_at(mean, dtype)
    rows = table.to_dense()
    assert torch.equal(table.lookup(table.append(rows)), rows)
    table.update(torch.arange(500), rows.flip(0))
    assert torch.equal(table.lookup(torch.arange(500)), rows.flip(0))


@pytest.mark.parametrize("mean", MEANS)
def test_assigned_codes_are_the_nearest(mean):
    table = table_at(mean)
    rows = rows_of(500, 8, mean, seed=3)
    centroids = torch.as_tensor(table.to_tensors()[0]["centroids.0"]).double()
    distances = (rows.double().reshape(500, 4, 1, 2) - centroids).square().sum(-1)
    picked = distances.gather(2, table.assign(rows).long()[..., None])[..., 0]
    assert torch.equal(picked, distances.amin(-1))
    assert torch.equal(torch.ops.mgqe.assign(rows, centroids.float(), None), table.assign(rows))  # as compiled code


@pytest.mark.parametrize("effort", [KMEANS, THOROUGH], ids=["once", "thorough"])
@pytest.mark.parametrize(("pieces", "subspaces"), [(4, 4), (1, 4)])
def test_kmeans_loses_no_more_where_the_mean_is_large(effort, pieces, subspaces):
    losses = []
    for mean in MEANS:
        rows = rows_of(3000, 8, mean)
        book = kmeans([(rows, subspaces)], torch.empty(pieces, 0, 2), 32, torch.Generator().manual_seed(0), effort)
        losses.append(lost(rows, ops.gather(ops.assign(rows, book.expand(4, -1, -1).contiguous()), book)))
    assert max(losses) < 1.03 * losses[0]


@pytest.mark.parametrize("make", [mgqe.DPQEmbedding, baselines.PQEmbedding], ids=["vq", "pq"])
def test_freezing_loses_no_more_where_the_mean_is_large(make):
    losses = []
    for mean in MEANS:
        torch.manual_seed(0)
        layer = make(400, 8, num_subspaces=4, num_centroids=32)
        weight = layer.raw_weight if isinstance(layer, mgqe.DPQEmbedding) else layer.weight
        with torch.no_grad():
            weight.copy_(rows_of(mean=mean))
        losses.append(lost(weight.detach(), layer.freeze().to_dense()))
    assert max(losses) < 1.1 * losses[0]


def test_sx_values_start_at_the_means_of_the_rows_that_choose_them():
    layer = mgqe.DPQEmbedding(400, 8, num_subspaces=4, num_centroids=16, quantizer="sx")
    rows = rows_of(mean=1000.0)
    with torch.no_grad():
        layer.raw_weight.copy_(rows)
    mgqe.start_quantizing(layer)
    codes = layer.quantizer.codes(rows, 0)
    for j in range(4):
        for k in codes[:, j].unique().tolist():
            mean = rows[codes[:, j] == k, 2 * j : 2 * j + 2].double().mean(0)
            torch.testing.assert_close(layer.quantizer.values_[0][j, k].double(), mean, rtol=0, atol=1e-4)


# ---- the size ----


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_of_any_size_freeze_alike(dtype):
    losses = []
    for scale in [1.0, *SCALES]:
        torch.manual_seed(0)
        layer = mgqe.DPQEmbedding(400, 8, num_subspaces=4, num_centroids=32, centroid_dtype=dtype)
        with torch.no_grad():
            layer.raw_weight.copy_(rows_of(spread=scale))
        losses.append(lost(layer.raw_weight.detach(), layer.freeze().to_dense()))
    assert max(losses) == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_rows_of_any_size_are_appended(scale):
    books = [rows_of(64, 8, spread=scale).reshape(4, 32, 4)]
    codes = torch.randint(32, (50, 4), generator=torch.Generator().manual_seed(2))
    table = mgqe.CompactTable.from_codes(Tiers.from_sizes([50]), [codes], books, [0], [32])
    rows = table.to_dense()
    assert torch.equal(table.lookup(table.append(rows)), rows)


def test_the_largest_vector_gets_the_centroid_in_its_direction():
    books = [torch.tensor([[[-4.0, -4.0], [4.0, 4.0]]])]
    table = mgqe.CompactTable.from_codes(Tiers.from_sizes([2]), [torch.tensor([[0], [1]])], books, [0], [2])
    assert table.assign(torch.tensor([[3e38, 3e38], [-3e38, -3e38]])).tolist() == [[1], [0]]


@pytest.mark.parametrize("effort", [KMEANS, THOROUGH], ids=["once", "thorough"])
def test_kmeans_at_any_size_finds_the_same_clusters(effort):
    rows = rows_of(600, 4)
    books = {}
    for scale in (2.0**-100, 1.0, 2.0**100):
        made = torch.Generator().manual_seed(0)
        held = torch.randn(2, 3, 2, generator=made) * scale
        books[scale] = kmeans([(rows * scale, 2)], held, 16, made, effort) / scale
    for book in books.values():
        torch.testing.assert_close(book, books[1.0], rtol=1e-3, atol=1e-3)


def test_revived_centroids_of_huge_rows_are_finite():
    pieces = rows_of(5, 4, spread=1e30).reshape(5, 2, 2)
    assert bool(draw_pieces(pieces, 2, 16, torch.Generator().manual_seed(0)).isfinite().all())
    book = torch.zeros(2, 16, 2)
    assert revive(book, torch.zeros(2, 16), pieces.flatten(1), torch.Generator().manual_seed(0)) == 32
    assert bool(book.isfinite().all())


def test_int8_scales_of_the_largest_float_decode_to_finite_centroids():
    largest = torch.finfo(torch.float32).max
    book = torch.tensor([[[largest, -largest]]])
    values, scales = store_centroids(book, "int8")
    decoded = values.float() * scales[:, None, None]
    assert bool(decoded.isfinite().all())
    assert torch.equal(round_centroids(book, "int8"), decoded)


def test_centroids_too_large_for_float16_are_refused():
    layer = mgqe.DPQEmbedding(40, 4, num_subspaces=2, num_centroids=8, centroid_dtype="float16")
    with torch.no_grad():
        layer.raw_weight.fill_(1e20)
    with pytest.raises(ValueError, match="65504"):
        layer.freeze()


def test_sx_names_the_row_whose_products_overflow():
    layer = mgqe.DPQEmbedding(40, 4, num_subspaces=2, num_centroids=8, quantizer="sx")
    with torch.no_grad():
        layer.raw_weight[17, 2] = 1e20
    with pytest.raises(ValueError, match=r"row 17 .*products with keys overflow float32"):
        layer.freeze()


def test_scalar_grids_of_huge_weights():
    layer = baselines.ScalarQuantizedEmbedding(50, 4, bits=8, granularity="dimension")
    with torch.no_grad():
        layer.weight.copy_(rows_of(50, 4, spread=1e30))
    assert lost(layer.weight.detach(), layer.freeze().to_dense()) < 1e-3


def test_a_scalar_grid_that_float32_cannot_span_is_refused():
    layer = baselines.ScalarQuantizedEmbedding(50, 4, bits=8)
    with torch.no_grad():
        layer.weight.copy_(rows_of(50, 4))
        layer.weight[:2, 1] = torch.tensor([3e38, -3e38])
    with pytest.raises(ValueError, match="range is beyond float32"):
        layer.freeze()
