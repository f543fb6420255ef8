"""mgqe.ops.assign: hand-worked values, native against the twin, ties, NaN, independence of the batch."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe import ops
from mgqe.ops import reference

CENTROID_COUNTS = [2, 3, 5, 16, 17, 64, 100, 256, 257, 1000, 4096, 65536]
WIDTHS = [1, 2, 3, 4, 8, 16, 5]


def isas():
    """Every instruction set this processor has."""
    if not ops.native_available():
        return []
    before, found = ops.native_isa(), []
    for name in ("scalar", "avx2", "avx512", "neon"):
        try:
            ops.set_native_isa(name)
            found.append(name)
        except ValueError:
            pass
    ops.set_native_isa(before)
    return found


@pytest.fixture(params=isas())
def isa(request):
    before = ops.native_isa()
    ops.set_native_isa(request.param)
    yield request.param
    ops.set_native_isa(before)


def problem(n, num_subspaces, num_centroids, width, seed=0):
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, num_subspaces * width, generator=made)
    return rows, torch.randn(num_subspaces, num_centroids, width, generator=made)


def test_hand_worked_nearest():
    centroids = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [4.0, 0.0]], [[2.0, 2.0], [-1.0, 0.0], [9.0, 9.0]]])
    rows = torch.tensor([[0.4, 0.4, 1.9, 2.5], [3.0, 0.0, -5.0, 0.0], [0.6, 0.6, 8.0, 7.0]])
    codes = ops.assign(rows, centroids)
    assert codes.dtype == torch.int32
    assert codes.tolist() == [[0, 0], [2, 1], [1, 2]]


def test_hand_worked_bias():
    # Scores bias - <x, c>: 0 - 1 and 0.5 - 2, so k = 1; with a bias of 5 there, k = 0.
    centroids = torch.tensor([[[1.0], [2.0]]])
    assert ops.assign(torch.ones(1, 1), centroids, torch.tensor([[0.0, 0.5]])).tolist() == [[1]]
    assert ops.assign(torch.ones(1, 1), centroids, torch.tensor([[0.0, 5.0]])).tolist() == [[0]]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_centroids", CENTROID_COUNTS)
def test_native_equals_twin(isa, num_centroids, width):
    n = 3 if num_centroids > 1000 else 13
    rows, centroids = problem(n, 2, num_centroids, width)
    assert torch.equal(ops.assign(rows, centroids), reference.assign(rows, centroids, None))


@pytest.mark.parametrize("num_centroids", [5, 64, 257])
def test_native_equals_twin_with_bias(isa, num_centroids):
    rows, centroids = problem(33, 3, num_centroids, 4)
    bias = torch.randn(3, num_centroids)
    assert torch.equal(ops.assign(rows, centroids, bias), reference.assign(rows, centroids, bias))


def test_half_the_squared_lengths_as_a_bias_give_the_nearest(isa):
    rows, centroids = problem(50, 2, 37, 5)
    bias = 0.5 * centroids.square().sum(-1)
    assert torch.equal(ops.assign(rows, centroids), ops.assign(rows, centroids, bias))


def test_it_is_the_euclidean_nearest():
    rows, centroids = problem(200, 4, 64, 4)
    parts = rows.reshape(200, 4, 4).double()
    distances = (parts[:, :, None] - centroids.double()).square().sum(-1)
    picked = distances.gather(2, ops.assign(rows, centroids).long()[..., None])[..., 0]
    assert torch.allclose(picked, distances.amin(-1), atol=1e-5)


def test_lowest_index_wins_ties(isa):
    centroids = torch.randn(1, 1, 3).expand(1, 100, 3)
    assert ops.assign(torch.randn(40, 3), centroids).unique().tolist() == [0]
    # Equal pairs far apart: lanes, vectors and tiles all differ.
    half = torch.randn(2, 700, 2)
    codes = ops.assign(torch.randn(64, 4), torch.cat([half, half], dim=1))
    assert int(codes.max()) < 700


def test_signed_zeros_tie(isa):
    bias = torch.tensor([[0.0, -0.0, 0.0, -0.0, -0.0]])
    assert ops.assign(torch.zeros(1, 1), torch.zeros(1, 5, 1), bias).tolist() == [[0]]


def test_nan_and_infinity(isa):
    nan, inf = float("nan"), float("inf")
    cases = {
        (nan, 1.0, 0.5): 2,
        (nan, nan, nan): 0,
        (inf, inf, inf): 0,
        (nan, inf, inf): 1,  # +inf is a score, NaN is none
        (nan, inf, -inf): 2,
        (1.0, nan, -inf): 2,
    }
    bias = torch.tensor(list(cases))
    centroids = torch.zeros(len(cases), 3, 1)
    rows = torch.zeros(2, len(cases))
    for codes in (ops.assign(rows, centroids, bias), reference.assign(rows, centroids, bias)):
        assert codes.tolist() == [list(cases.values())] * 2


def test_nan_row_gets_code_zero_and_spoils_nothing(isa):
    rows, centroids = problem(20, 2, 64, 8)
    clean = ops.assign(rows, centroids)
    rows[7] = float("nan")
    dirty = ops.assign(rows, centroids)
    assert dirty[7].tolist() == [0, 0]
    keep = torch.arange(20) != 7
    assert torch.equal(dirty[keep], clean[keep])


@pytest.mark.parametrize(("num_centroids", "width"), list(itertools.product([3, 64, 257, 3000], [1, 5, 8])))
def test_a_row_alone_gets_the_same_code(isa, num_centroids, width):
    rows, centroids = problem(67, 2, num_centroids, width)
    together = ops.assign(rows, centroids)
    for i in (0, 1, 7, 8, 63, 64, 66):
        assert torch.equal(ops.assign(rows[i : i + 1], centroids), together[i : i + 1])
    assert torch.equal(ops.assign(rows.flip(0), centroids).flip(0), together)


def test_twin_does_not_depend_on_the_batch(monkeypatch):
    rows, centroids = problem(67, 2, 257, 5)
    together = reference.assign(rows, centroids, None)
    monkeypatch.setattr(reference, "_SCORES_AT_ONCE", 2000)
    assert torch.equal(reference.assign(rows, centroids, None), together)


def test_threads_change_nothing():
    rows, centroids = problem(1500, 4, 300, 4)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.assign(rows, centroids))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_empty_batch():
    assert ops.assign(torch.empty(0, 8), torch.randn(2, 16, 4)).shape == (0, 2)


def test_non_contiguous_inputs():
    rows, centroids = problem(30, 3, 20, 4)
    expected = ops.assign(rows, centroids)
    assert torch.equal(ops.assign(rows.T.contiguous().T, centroids), expected)
    assert torch.equal(ops.assign(rows, centroids.transpose(1, 2).contiguous().transpose(1, 2)), expected)
    wide = torch.zeros(60, 24)
    wide[::2, ::2] = rows
    assert torch.equal(ops.assign(wide[::2, ::2], centroids), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_exactly(dtype):
    rows, centroids = problem(30, 3, 20, 4)
    rows, centroids = rows.to(dtype), centroids.to(dtype)
    assert torch.equal(ops.assign(rows, centroids), ops.assign(rows.float(), centroids.float()))


def test_gradients_are_not_followed():
    rows, centroids = problem(5, 2, 8, 4)
    codes = ops.assign(rows.requires_grad_(), torch.nn.Parameter(centroids))
    assert not codes.requires_grad


@pytest.mark.parametrize(
    ("rows", "centroids", "bias", "error", "says"),
    [
        (torch.zeros(2, 7), torch.zeros(2, 4, 4), None, ValueError, "7 dimensions"),
        (torch.zeros(8), torch.zeros(2, 4, 4), None, ValueError, "expected rows"),
        (torch.zeros(2, 8), torch.zeros(4, 4), None, ValueError, "expected rows"),
        (torch.zeros(2, 8), torch.zeros(2, 0, 4), None, ValueError, "1 to 65536"),
        (torch.zeros(2, 8), torch.zeros(2, 65537, 4), None, ValueError, "65537"),
        (torch.zeros(2, 8), torch.zeros(2, 4, 4), torch.zeros(4, 2), ValueError, "bias"),
        (torch.zeros(2, 8).long(), torch.zeros(2, 4, 4), None, TypeError, "int64"),
        (torch.zeros(2, 8).double(), torch.zeros(2, 4, 4), None, TypeError, "float64"),
        (torch.zeros(2, 8), torch.zeros(2, 4, 4).int(), None, TypeError, "centroids"),
    ],
)
def test_bad_input_is_refused(rows, centroids, bias, error, says):
    with pytest.raises(error, match=says):
        ops.assign(rows, centroids, bias)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 40),
    num_subspaces=st.integers(1, 5),
    num_centroids=st.integers(2, 300),
    width=st.integers(1, 20),
    coarse=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_agrees_with_the_twin(n, num_subspaces, num_centroids, width, coarse, seed):
    rows, centroids = problem(n, num_subspaces, num_centroids, width, seed)
    if coarse:  # small integers: many exact ties
        rows, centroids = rows.round(), centroids.round()
    assert torch.equal(ops.assign(rows, centroids), reference.assign(rows, centroids, None))


# ---- means that are large against the spread, and numbers whose squares leave float32 ----


def exact_distances(rows, centroids):
    """Squared distances (n, D, K) in float64."""
    parts = rows.double().reshape(rows.shape[0], centroids.shape[0], 1, centroids.shape[2])
    return (parts - centroids.double()).square().sum(-1)


def nearest_share(rows, centroids, codes):
    """The share of codes whose centroid is as near as any, by distances in float64."""
    distances = exact_distances(rows, centroids)
    return float((distances.gather(2, codes.long()[..., None])[..., 0] == distances.amin(-1)).double().mean())


def around(mean, spread, shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread + mean


MEANS = [0.0, 10.0, 100.0, 1000.0]


@pytest.mark.parametrize("width", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("mean", MEANS)
def test_all_codes_are_nearest_whatever_the_mean(isa, mean, width):
    centroids = around(mean, 0.1, (3, 256, width), 1)
    rows = around(mean, 0.1, (500, 3 * width), 2)
    codes = ops.assign(rows, centroids)
    assert nearest_share(rows, centroids, codes) == 1.0
    assert torch.equal(codes, reference.assign(rows, centroids, None))


@pytest.mark.parametrize("mean", MEANS)
def test_a_centroid_is_its_own_nearest(isa, mean):
    centroids = around(mean, 0.1, (4, 256, 4), 3)
    codes = torch.randint(256, (500, 4), generator=torch.Generator().manual_seed(4)).int()
    assert torch.equal(ops.assign(ops.gather(codes, centroids), centroids), codes)


def test_centroids_around_two_far_means(isa):
    """No one shift brings them near to zero: a codebook that subspaces of unequal means share, or a row of zeros."""
    means = torch.where(torch.arange(64) < 32, -1000.0, 1000.0)[None, :, None]
    centroids = around(0.0, 0.1, (2, 64, 3), 5) + means
    centroids[:, 0] = 0
    rows = ops.gather(torch.randint(64, (300, 2), generator=torch.Generator().manual_seed(6)), centroids)
    rows += around(0.0, 0.02, rows.shape, 7)
    codes = ops.assign(rows, centroids)
    assert nearest_share(rows, centroids, codes) == 1.0
    assert torch.equal(codes, reference.assign(rows, centroids, None))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e18, 1e20, 1e30, 1e38])
def test_squares_that_leave_float32(isa, scale):
    centroids = around(0.0, 0.3, (2, 50, 4), 8) * scale
    rows = around(0.0, 0.3, (200, 8), 9) * scale
    codes = ops.assign(rows, centroids)
    assert nearest_share(rows, centroids, codes) == 1.0
    assert torch.equal(codes, reference.assign(rows, centroids, None))


@pytest.mark.parametrize("size", [1e10, 1e20, 3e38])
def test_rows_very_far_from_all_centroids(isa, size):
    """Their distances in float64 are all equal; which centroid lies in their direction is not."""
    centroids = torch.tensor([[[-4.0, -4.0], [-4.0, 4.0], [4.0, -4.0], [4.0, 4.0]]])
    rows = torch.tensor([[-size, -size], [-size, size], [size, -size], [size, size], [size, 0.0]])
    assert ops.assign(rows, centroids).tolist() == [[0], [1], [2], [3], [2]]
    assert reference.assign(rows, centroids, None).tolist() == [[0], [1], [2], [3], [2]]


def test_products_with_a_bias_may_overflow_float32(isa):
    centroids = torch.tensor([[[3e38, -3e38], [3e38, 3e38], [1.0, 1.0]]])
    rows = torch.tensor([[1e20, 2e20], [2e20, 1e20], [-1e20, -1e20]])
    bias = torch.zeros(1, 3)
    assert ops.assign(rows, centroids, bias).tolist() == [[1], [1], [0]]
    assert reference.assign(rows, centroids, bias).tolist() == [[1], [1], [0]]


@settings(max_examples=60, deadline=None)
@given(
    mean=st.sampled_from([0.0, 1.0, 1e3, 1e6, 1e19, 3e38]),
    spread=st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e5, 1e25]),
    row_mean=st.sampled_from([0.0, 1.0, 1e3, 1e12, 3e38]),
    outlier=st.sampled_from([0.0, 1.0, 1e10, 3e38, float("inf"), float("nan")]),
    num_centroids=st.integers(1, 70),
    width=st.integers(1, 9),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_numbers_agree_with_the_twin(mean, spread, row_mean, outlier, num_centroids, width, biased, seed):
    centroids = around(mean, spread, (2, num_centroids, width), seed)
    centroids[0, seed % num_centroids] = outlier
    rows = around(row_mean, spread, (20, 2 * width), seed + 1)
    rows[3], rows[4, 0], rows[5] = float("inf"), float("nan"), 0.0
    bias = around(0.0, spread, (2, num_centroids), seed + 2) if biased else None
    expected = reference.assign(rows, centroids, bias)
    for name in isas():
        before = ops.native_isa()
        ops.set_native_isa(name)
        codes = ops.assign(rows, centroids, bias)
        ops.set_native_isa(before)
        assert torch.equal(codes, expected), name
