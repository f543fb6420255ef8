"""Quantisers alone, and the functions that layers compose of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.codec.capacity import resolve_capacity
from mgqe.nn.pending import PendingLosses
from mgqe.nn.quantizers.autograd import MaskRows, ReadRows, RepeatVectors, loss_weights
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.build import make_quantizer

SIZES, DIM = (30, 70), 8


def make(name: str, share_codebook: bool = True) -> tuple[Quantizer, list[Tensor]]:
    torch.manual_seed(0)
    capacity = resolve_capacity(
        DIM,
        SIZES,
        num_subspaces=4,
        num_centroids=(8, 4),
        capacity="centroids",
        share_codebook=share_codebook,
        share_subspaces=False,
    )
    quantizer = make_quantizer(name, capacity, torch.zeros(0), "float32", 0.25, False)
    rows = [torch.randn(n, DIM) for n in SIZES]
    quantizer.start(rows, torch.Generator().manual_seed(0))
    return quantizer, rows


@pytest.mark.parametrize("name", ["vq", "sx"])
def test_vectors_are_the_centroids_of_the_codes(name: str) -> None:
    quantizer, rows = make(name)
    with torch.no_grad():
        vectors, loss = quantizer(torch.cat(rows), list(SIZES), torch.ones(100))
    assert loss is None
    book = quantizer.frozen_codebooks()[0]
    for g, (tier_rows, tier_vectors) in enumerate(zip(rows, torch.split(vectors, SIZES), strict=True)):
        codes = quantizer.codes(tier_rows, g).long()
        assert int(codes.max()) < (8, 4)[g]
        expected = torch.cat([book[j, codes[:, j]] for j in range(4)], dim=1)
        assert torch.equal(tier_vectors, expected)


@pytest.mark.parametrize("name", ["vq", "sx"])
@pytest.mark.parametrize("share_codebook", [True, False])
def test_dead_centroids_move_onto_rows_and_the_others_stay(name: str, share_codebook: bool) -> None:
    quantizer, rows = make(name, share_codebook=share_codebook)
    assert quantizer.revive(rows, torch.Generator().manual_seed(0)) >= 0
    before = [book.clone() for book in quantizer.frozen_codebooks()]
    version = quantizer.version()
    with torch.no_grad():
        for book in quantizer.parameters():
            book[:, -1] = 1e6  # far from all rows
    if name == "sx":
        for g in range(2):
            quantizer.get_buffer(f"mean_{g}")[:, -1] = 1e12  # no row chooses this key
    assert quantizer.version() > version
    assert quantizer.revive(rows, torch.Generator().manual_seed(0)) >= 4
    for book, old in zip(quantizer.frozen_codebooks(), before, strict=True):
        assert book.abs().max() < 100
        assert torch.equal(book[:, 0], old[:, 0])


@pytest.mark.parametrize("name", ["vq", "sx"])
def test_reset_gives_zeros(name: str) -> None:
    quantizer, _ = make(name)
    quantizer.reset_parameters()
    assert not any(parameter.any() for parameter in quantizer.parameters())


def test_shares_of_the_loss_add_up_to_one_per_dimension() -> None:
    weights = loss_weights(torch.tensor([3, 0, 1]), torch.empty(3, 2))
    assert weights.tolist() == [3 / 8, 0, 1 / 8]
    assert not loss_weights(torch.tensor([0, 0]), torch.empty(2, 2)).any()
    assert loss_weights(None, torch.empty(4, 2)).tolist() == [1 / 8] * 4


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_are_read_as_nn_embedding_reads_them(sparse: bool) -> None:
    weight, index = torch.randn(6, 3, requires_grad=True), torch.tensor([4, 0, 2])
    pull = torch.randn(3, 3)
    gradients = []
    for rows in (ReadRows.apply(weight, index, sparse, 0), F.embedding(index, weight, 0, sparse=sparse)):
        (rows * pull).sum().backward()
        gradients.append(weight.grad)
        weight.grad = None
    if sparse:
        assert gradients[0].coalesce().indices().tolist() == gradients[1].coalesce().indices().tolist() == [[2, 4]]
    else:
        gradients[1][0] = pull[1]  # left out of sparse gradients alone
    assert torch.equal(gradients[0].to_dense(), gradients[1].to_dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("divided", [False, True])
def test_gradients_of_repeated_vectors_are_summed_by_id(dtype: torch.dtype, divided: bool) -> None:
    vectors = torch.randn(3, 4, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    inverse, counts = torch.tensor([0, 2, 0, 1, 2]), torch.tensor([2, 1, 2])
    out = RepeatVectors.apply(vectors, inverse, counts if divided else None, dtype)
    assert out.dtype == dtype
    assert torch.equal(out, vectors.to(dtype)[inverse])
    pull = torch.randn(5, 4).to(dtype)
    (gradient,) = torch.autograd.grad((out * pull).sum(), vectors, create_graph=True)
    expected = torch.zeros_like(vectors).index_add(0, inverse, pull.to(vectors.dtype))
    torch.testing.assert_close(gradient, expected / counts.unsqueeze(1) if divided else expected)


def test_masked_rows_get_no_gradient_and_zeros_if_asked() -> None:
    rows, mask = torch.ones(2, 3, requires_grad=True), torch.tensor([False, True])
    assert torch.equal(MaskRows.apply(rows, mask, False), rows)
    out = MaskRows.apply(rows, mask, True)
    assert out.sum() == 3
    out.sum().backward()
    assert rows.grad is not None
    assert rows.grad.sum(1).tolist() == [3, 0]


def test_a_pending_loss_is_read_until_it_is_counted() -> None:
    losses, weight = PendingLosses(), torch.ones((), requires_grad=True)
    assert losses.read() is None
    losses.begin_pass()
    losses.add(weight * 2)
    losses.add(weight * 3)
    total = losses.read()
    assert total is not None
    assert total == 5
    assert losses.read() == 5
    total.backward()
    assert losses.read() is None
    losses.begin_pass()
    losses.add(weight * 7)
    losses.end_step()
    assert losses.read() is None
    assert losses.ended_pass == losses.latest_pass
