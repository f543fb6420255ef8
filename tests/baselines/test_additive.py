"""Additive codes: choices and gradients worked out by hand, the start on residuals, bytes, and what is refused."""

import itertools
import math

import pytest
import torch

from mgqe.baselines import AdditiveEmbedding
from mgqe.baselines.additive import decode, encode, mix

BOOKS = torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]])


def filled(rows, books, **options) -> AdditiveEmbedding:
    layer = AdditiveEmbedding(
        len(rows), rows.shape[1], num_codebooks=len(books), num_centroids=books.shape[1], **options
    )
    with torch.no_grad():
        layer.weight.copy_(rows)
        layer.codebooks.copy_(books)
    return layer


def test_codes_by_hand():
    """8.5 is nearest to 10, which leaves -1.5, nearest to -1; 0.3 is nearest to 0, which leaves 0.3, nearest to 1."""
    rows = torch.tensor([[8.5], [0.3]])
    assert encode(rows, BOOKS).tolist() == [[1, 0], [0, 1]]
    assert decode(encode(rows, BOOKS), BOOKS).tolist() == [[9.0], [1.0]]
    layer = filled(rows, BOOKS)
    assert layer.train()(torch.tensor([1, 0, 1])).tolist() == [[1.0], [9.0], [1.0]]
    assert layer.eval()(torch.arange(2)).tolist() == [[9.0], [1.0]]
    assert layer.freeze().to_dense().tolist() == [[9.0], [1.0]]


def test_the_gradient_is_the_softmax_s():
    """One codebook of 0 and 1, and a row at 1/4: squared distances 1/16 and 9/16, in units of 1/16 scores -1 and -9.

    p_1 = 1 / (1 + e^8), and d(score_1 - score_0) / dr = 2 * 16, so that de / dr = p_0 p_1 32.
    """
    rows = torch.tensor([[0.25]], requires_grad=True)
    books = torch.tensor([[[0.0], [1.0]]], requires_grad=True)
    vector = mix(rows, books, 1.0)
    assert vector.tolist() == [[0.0]]
    vector.sum().backward()
    second = 1 / (1 + math.exp(8))
    assert float(rows.grad) == pytest.approx(32 * second * (1 - second), rel=1e-4)
    # To the chosen codeword passes 1, and both get what moves the softmax: d score_k / dC_k = 2 * 16 * (r - C_k).
    pull = second * (1 - second)
    assert books.grad.flatten().tolist() == pytest.approx([1 - pull * 32 * 0.25, pull * 32 * -0.75], rel=1e-4)


def test_the_unit_of_the_softmax_makes_it_independent_of_scale():
    rows, books = torch.randn(20, 3), torch.randn(2, 4, 3)
    grads = []
    for scale in (1.0, 1e-3):
        scaled = (scale * rows).requires_grad_()
        mix(scaled, scale * books, 0.7).sum().backward()
        grads.append(scaled.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_rows_that_are_codewords_have_finite_gradients():
    rows = torch.tensor([[0.0], [1.0]], requires_grad=True)
    mix(rows, torch.tensor([[[0.0], [1.0]]]), 1.0).sum().backward()
    assert rows.grad.isfinite().all()


def test_the_start_is_residual_quantisation():
    """Four rows that are sums of one of two words and one of two smaller ones: two codebooks hold them exactly."""
    rows = torch.tensor([[10.0, 1.0], [10.0, -1.0], [-10.0, 1.0], [-10.0, -1.0]])
    layer = filled(rows, torch.zeros(2, 2, 2))
    layer.start_quantizing()
    assert torch.equal(layer.eval()(torch.arange(4)), rows)


def test_error_falls_with_codebooks():
    torch.manual_seed(0)
    rows, errors = torch.randn(300, 8), []
    for num in (1, 2, 4, 8):
        layer = filled(rows, torch.zeros(num, 16, 8), centroid_dtype="int8")
        layer.start_quantizing()
        errors.append(float((layer.freeze().to_dense() - rows).square().mean()))
    assert all(more < 0.75 * less for less, more in itertools.pairwise(errors))


def test_the_padding_row_is_not_quantised():
    rows = torch.tensor([[1e6], [1.0], [3.0]])
    layer = filled(rows, torch.zeros(1, 2, 1), padding_idx=0)
    layer.start_quantizing()
    assert layer.eval()(torch.arange(3)).tolist() == [[0.0], [1.0], [3.0]]


def test_gradients_are_divided_by_frequency():
    plain, divided = (
        filled(torch.tensor([[0.25], [0.7]]), BOOKS[:1] / 10, scale_grad_by_freq=s) for s in (False, True)
    )
    for layer in (plain, divided):
        layer(torch.tensor([0, 0, 0])).sum().backward()
    assert float(plain.codebooks.grad[0, 0]) == pytest.approx(3 * float(divided.codebooks.grad[0, 0]))


@pytest.mark.parametrize(("kind", "books", "scales"), [("float32", 384, 0), ("float16", 192, 0), ("int8", 96, 12)])
def test_bytes(kind, books, scales):
    """Three codes of 2 bits take a byte per row; three codebooks of four words of 8 numbers."""
    layer = AdditiveEmbedding(100, 8, num_codebooks=3, num_centroids=4, centroid_dtype=kind)
    parts = {"codes": 100, "codebooks": books, **({"scales": scales} if scales else {})}
    assert layer.freeze().nbytes_by_part() == parts


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_codebooks": 0}, "num_codebooks must be a whole number from 1"),
        ({"num_centroids": 51}, "num_centroids must be a whole number from 1 to 50, got 51"),
        ({"centroid_dtype": "int4"}, "centroid_dtype must be one of"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"seed": -1}, "seed must be a whole number from 0"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        AdditiveEmbedding(50, 8, **options)
