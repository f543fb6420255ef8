"""Losses that rank: by pairs, and by a softmax over the catalogue or a sample of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pointwise_loss(scores: Tensor) -> Tensor:
    """Mean binary cross-entropy of scores (n, c), whose first column is of positives and the others of negatives."""
    target = torch.zeros_like(scores)
    target[:, 0].fill_(1.0)
    return F.binary_cross_entropy_with_logits(scores, target)


def pairwise_loss(scores: Tensor) -> Tensor:
    """BPR: the mean of -log sigmoid(positive - negative) over the pairs; scores (n, c), the positive first."""
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean()


def shared_softmax_loss(
    hidden: Tensor, positive: Tensor, vectors: Tensor, targets: Tensor, negatives: Tensor
) -> Tensor:
    """Mean of -log(e^positive / (e^positive + sum over the negatives of e^score)).

    hidden (n, d); positive (n,), the scores of the targets (n,); vectors (c, d) of the negatives (c,), which all
    positions share. At a position whose target is a negative, that negative does not count.
    """
    scores = hidden @ vectors.T
    scores = scores.masked_fill(targets[:, None] == negatives, -torch.inf)
    return (torch.logaddexp(positive, scores.logsumexp(dim=1)) - positive).mean()
