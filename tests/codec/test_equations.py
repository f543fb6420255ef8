"""The papers' equations against values worked out by hand."""

from __future__ import annotations

import torch

from mgqe.codec.equations import (
    codebook_loss,
    commitment_loss,
    fold_normalization,
    mix_values,
    nearest_codes,
    normalize_responses,
    responses,
    round_centroids,
    soft_to_hard,
    straight_through,
    tier_codebook,
)

# Two subspaces of two dimensions, three centroids each.
BOOK = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [-1.0, -1.0], [3.0, 0.0]]])


def test_nearest_codes_by_hand():
    rows = torch.tensor([[0.9, 0.1, 2.5, 0.0], [0.0, 1.1, -0.4, 0.3]])
    assert nearest_codes(rows, BOOK, 2, 3).tolist() == [[1, 2], [2, 1]]
    # With only the first two centroids, (0, 1.1) is nearer to (0, 0) than to (1, 0).
    assert nearest_codes(rows, BOOK, 2, 2).tolist() == [[1, 0], [0, 1]]


def test_a_coarser_tier_reads_neighbouring_subspaces_with_one_code():
    book = tier_codebook(BOOK, 1, 2)
    assert book.tolist() == [[[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, -1.0, -1.0]]]
    assert tier_codebook(BOOK[:1], 3, 2).shape == (3, 2, 2)


def test_straight_through_is_exact_forward_and_copies_the_gradient():
    rows = torch.tensor([[0.1, 1e8]], requires_grad=True)
    quantized = torch.tensor([[0.3, 1.0]])
    out = straight_through(rows, quantized)
    assert torch.equal(out, quantized)
    (out * torch.tensor([[2.0, -3.0]])).sum().backward()
    assert rows.grad.tolist() == [[2.0, -3.0]]


def test_losses_weigh_distinct_ids_by_their_counts():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    centroids = torch.tensor([[0.0, 0.0], [0.0, 2.0]], requires_grad=True)
    counts = torch.tensor([3, 1])
    # (3 * 1 + 1 * 4) / (4 ids * 2 dimensions)
    loss = commitment_loss(rows, centroids, counts)
    assert loss.item() == 7 / 8
    loss.backward()
    assert centroids.grad is None
    assert rows.grad.tolist() == [[2 * 3 / 8, 0.0], [0.0, -2 * 2 / 8]]
    loss = codebook_loss(rows.detach().requires_grad_(), centroids, counts)
    assert loss.item() == 7 / 8
    loss.backward()
    assert centroids.grad.tolist() == [[-2 * 3 / 8, 0.0], [0.0, 2 * 2 / 8]]


def test_losses_of_a_batch_of_padding_only_are_zero():
    assert commitment_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1)).item() == 0.0


def test_responses_and_mixture_by_hand():
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    scores = responses(rows, BOOK)
    assert scores.tolist() == [[[0.0, 1.0, 4.0], [7.0, -7.0, 9.0]]]
    weights = soft_to_hard(scores, scores.argmax(-1), 1.0)
    assert mix_values(weights, BOOK).tolist() == [[0.0, 2.0, 3.0, 0.0]]


def test_soft_backward_of_sx():
    scores = torch.tensor([[[0.0, 0.0]]], requires_grad=True)
    weights = soft_to_hard(scores, torch.tensor([[1]]), temperature=0.5)
    assert weights.tolist() == [[[0.0, 1.0]]]
    weights[0, 0, 0].backward()
    # softmax(r / tau) at equal scores: p (1 - p) / tau = 0.25 / 0.5
    assert scores.grad.tolist() == [[[0.5, -0.5]]]


def test_folded_normalization_chooses_the_same_codes():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 4, generator=generator)
    keys = torch.randn(2, 5, 2, generator=generator)
    mean, variance = torch.randn(2, 5, generator=generator), torch.rand(2, 5, generator=generator) + 0.1
    normalized = normalize_responses(responses(rows, keys), mean, variance)
    folded, bias = fold_normalization(keys, mean, variance)
    assert torch.equal((responses(rows, folded) - bias).argmax(-1), normalized.argmax(-1))


def test_rounding_of_centroids_by_hand():
    book = torch.tensor([[[127.0, 0.4], [-1.5, 0.6]], [[0.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    rounded = round_centroids(book, "int8")
    assert rounded.tolist() == [[[127.0, 0.0], [-2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    rounded.sum().backward()
    assert torch.equal(book.grad, torch.ones_like(book))
    assert round_centroids(torch.tensor([[[1.0001]]]), "float16").item() == 1.0
    assert round_centroids(book, "float32") is book
