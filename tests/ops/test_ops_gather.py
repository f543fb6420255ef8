"""mgqe.ops.gather and scatter: hand-worked values, twins, all codebook layouts, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe import ops
from mgqe.ops import reference

# (num_subspaces of the codes, pieces, width): own codebooks, finer ones, one shared.
LAYOUTS = [(4, 4, 2), (2, 8, 3), (3, 1, 5), (1, 1, 4), (1, 6, 1), (8, 8, 8), (2, 4, 16), (5, 1, 16)]


def problem(n, layout, num_centroids=11, seed=0):
    num_subspaces, pieces, width = layout
    made = torch.Generator().manual_seed(seed)
    codes = torch.randint(num_centroids, (n, num_subspaces), generator=made, dtype=torch.int32)
    return codes, torch.randn(pieces, num_centroids, width, generator=made)


def test_hand_worked_gather():
    codebook = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]], [[7.0], [8.0]]])
    assert ops.gather(torch.tensor([[0, 1, 1, 0]]), codebook).tolist() == [[1, 4, 6, 7]]
    # Two coarse subspaces over four pieces: each code picks from two of them.
    assert ops.gather(torch.tensor([[0, 1], [1, 1]]), codebook).tolist() == [[1, 3, 6, 8], [2, 4, 6, 8]]
    # One codebook for all subspaces.
    assert ops.gather(torch.tensor([[1, 0, 1]]), codebook[:1]).tolist() == [[2, 1, 2]]


def test_hand_worked_scatter():
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    codes = torch.tensor([[0, 1], [0, 0], [1, 1]])
    sums, counts = ops.scatter(grad, codes, None, 2, 2, 1)
    assert sums.squeeze(-1).tolist() == [[4, 5], [4, 8]]
    assert counts.tolist() == [[2, 1], [1, 2]]
    sums, counts = ops.scatter(grad, codes, torch.tensor([1.0, 0.5, 2.0]), 1, 2, 1)
    assert sums.squeeze(-1).tolist() == [[1 + 1.5 + 2, 2 + 10 + 12]]
    assert counts.tolist() == [[2, 5]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_equals_twin(layout):
    codes, codebook = problem(57, layout)
    rows = ops.gather(codes, codebook)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, reference.gather(codes, codebook))
    grad, weights = torch.randn_like(rows), torch.rand(57)
    for w in (None, weights):
        got = ops.scatter(grad, codes, w, *codebook.shape)
        expected = reference.scatter(grad, codes, w, *codebook.shape)
        assert torch.allclose(got[0], expected[0], atol=1e-4)
        assert torch.allclose(got[1], expected[1], atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter_is_the_transpose_of_gather(layout):
    codes, codebook = problem(57, layout)
    codebook = codebook.double().float().requires_grad_()
    rows = ops.gather(codes, codebook)
    grad = torch.randn_like(rows)
    rows.backward(grad)
    assert torch.equal(codebook.grad, ops.scatter(grad, codes, None, *codebook.shape)[0])
    inner = (codebook.double() * codebook.grad.double()).sum()
    assert torch.allclose(inner, (rows.double() * grad.double()).sum(), atol=1e-3)


def test_scatter_is_differentiable_in_what_it_sums():
    codes = torch.tensor([[0, 1], [1, 1], [0, 1]])
    rows = torch.randn(3, 4, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0])
    pull = torch.randn(2, 2, 2)
    (ops.scatter(rows, codes, weights, 2, 2, 2)[0] * pull).sum().backward()
    expected = weights[:, None] * ops.reference.gather(codes, pull)
    assert torch.allclose(rows.grad, expected)


def test_gradient_of_a_half_precision_codebook():
    codes, codebook = problem(20, (4, 4, 2))
    half = codebook.bfloat16().requires_grad_()
    ops.gather(codes, half).sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", [(4, 4, 8), (4, 1, 8)])
def test_scatter_does_not_depend_on_threads(layout):
    codes, codebook = problem(6000, layout, num_centroids=50)
    grad, weights = torch.randn(6000, 32), torch.rand(6000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.scatter(grad, codes, weights, *codebook.shape))
            rows = ops.gather(codes, codebook)
            assert torch.equal(rows, reference.gather(codes, codebook))
    finally:
        torch.set_num_threads(before)
    for sums, counts in results[1:]:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(counts, results[0][1])


def test_empty_batch():
    codes, codebook = problem(0, (4, 4, 2))
    assert ops.gather(codes, codebook).shape == (0, 8)
    sums, counts = ops.scatter(torch.empty(0, 8), codes, None, 4, 11, 2)
    assert not sums.any()
    assert not counts.any()


def test_any_integer_type_and_stride_of_codes():
    codes, codebook = problem(20, (4, 4, 2))
    expected = ops.gather(codes, codebook)
    for dtype in (torch.int64, torch.int16, torch.uint8):
        assert torch.equal(ops.gather(codes.to(dtype), codebook), expected)
    assert torch.equal(ops.gather(codes.T.contiguous().T, codebook), expected)


@pytest.mark.parametrize("bad", [-1, 11, 2**31 - 1, -(2**31)])
def test_codes_out_of_range_are_refused(bad):
    codes, codebook = problem(20, (4, 4, 2))
    codes[13, 2] = bad
    with pytest.raises(IndexError, match=f"code {bad} is out of range.*11 centroids"):
        ops.gather(codes, codebook)
    with pytest.raises(IndexError, match=f"code {bad} "):
        ops.scatter(torch.zeros(20, 8), codes, None, 4, 11, 2)


def test_bad_input_is_refused():
    codes, codebook = problem(20, (4, 4, 2))
    with pytest.raises(ValueError, match="multiple of 4, got 3"):
        ops.gather(codes, codebook[:3])
    with pytest.raises(ValueError, match="pieces, num_centroids, width"):
        ops.gather(codes, codebook[0])
    with pytest.raises(ValueError, match="codes must have shape"):
        ops.gather(codes[0], codebook)
    with pytest.raises(TypeError, match="codes must be integers"):
        ops.gather(codes.float(), codebook)
    with pytest.raises(TypeError, match="float64"):
        ops.gather(codes, codebook.double())
    with pytest.raises(ValueError, match="grad must have shape"):
        ops.scatter(torch.zeros(20, 7), codes, None, 4, 11, 2)
    with pytest.raises(ValueError, match="weights must have shape"):
        ops.scatter(torch.zeros(20, 8), codes, torch.ones(3), 4, 11, 2)
    with pytest.raises(ValueError, match="must be positive"):
        ops.scatter(torch.zeros(20, 8), codes, None, 4, 0, 2)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 30),
    num_subspaces=st.integers(1, 6),
    repeat=st.integers(1, 3),
    shared=st.booleans(),
    width=st.integers(1, 18),
    num_centroids=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_any_layout_agrees_with_the_twin(n, num_subspaces, repeat, shared, width, num_centroids, seed):
    layout = (num_subspaces, 1 if shared else num_subspaces * repeat, width)
    codes, codebook = problem(n, layout, num_centroids, seed)
    rows = ops.gather(codes, codebook)
    assert torch.equal(rows, reference.gather(codes, codebook))
    sums, counts = ops.scatter(rows, codes, None, *codebook.shape)
    # Every entry was summed as often as it was counted.
    assert torch.allclose(sums, codebook * counts[..., None], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("num_subspaces", "pieces", "width"), [(4, 4, 2), (3, 3, 5), (2, 4, 3), (4, 1, 8), (1, 1, 1)])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_decode_error(n, num_subspaces, pieces, width):
    made = torch.Generator().manual_seed(n)
    dim = max(num_subspaces, pieces) * width
    rows, codebook = torch.randn(n, dim, generator=made), torch.randn(pieces, 7, width, generator=made)
    codes = torch.randint(7, (n, num_subspaces), generator=made, dtype=torch.int32)
    weights = torch.rand(n, generator=made)
    decoded = ops.gather(codes, codebook)
    vectors, errors, losses = ops.decode_error(rows, codes, codebook, weights)
    assert torch.equal(vectors, decoded)
    assert torch.equal(errors, weights[:, None] * (rows - decoded))
    assert torch.allclose(losses, weights * (rows - decoded).square().sum(1), rtol=1e-5)
    for got, twin in zip((vectors, errors, losses), reference.decode_error(rows, codes, codebook, weights)):
        assert torch.allclose(got, twin, rtol=1e-5)


def test_decode_error_keeps_rows_that_are_not_finite_visible():
    rows = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0], [3.0, 4.0]])
    codes = torch.zeros(3, 2, dtype=torch.int32)
    for function in (ops.decode_error, reference.decode_error):
        vectors, errors, losses = function(rows, codes, torch.full((2, 1, 1), 5.0), torch.ones(3))
        assert vectors.isnan().tolist() == [[False, True], [True, False], [False, False]]
        assert errors[2].tolist() == [-2.0, -1.0]
        assert losses[2] == 5.0
    with pytest.raises(IndexError, match="code 9"):
        ops.decode_error(rows, codes + 9, torch.zeros(2, 1, 1), torch.ones(3))
    with pytest.raises(ValueError, match="rows must be"):
        ops.decode_error(rows[:2], codes, torch.zeros(2, 1, 1), torch.ones(3))
