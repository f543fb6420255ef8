"""HR@k and NDCG@k from the rank of one held-out item a user, where draws count against the model; AUC and calibration.

With one relevant item a user, HR@k = [rank < k] and NDCG@k = [rank < k] / log2(rank + 2), rank from 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

FULL_CATALOGUE_CELLS = 2**24  # scores held at once when ranking the whole catalogue: 64 MiB of float32


def rank_among(positive: Tensor, others: Tensor) -> Tensor:
    """Rank of each positive among its own other candidates, 0 = best.

    positive: (n,) scores; others: (n, c) scores. Returns int64 (n,): the number of others that score at least as
    much. A NaN is the worst score: as the positive it loses to all others, as one of the others it never wins.
    """
    ranks = (others >= positive[:, None]).sum(dim=1)
    return torch.where(positive.isnan(), torch.full_like(ranks, others.shape[1]), ranks)


def hit_rate(ranks: Tensor, k: int) -> float:
    """HR@k: share of `ranks` (n,) below k. NaN when there are none."""
    return float((ranks < k).double().mean())


def ndcg(ranks: Tensor, k: int) -> float:
    """NDCG@k of one relevant item a user: mean of [rank < k] / log2(rank + 2). NaN when there are none."""
    gains = 1.0 / torch.log2(ranks.double() + 2.0)
    return float(torch.where(ranks < k, gains, torch.zeros_like(gains)).mean())


def summary(ranks: Tensor, k: int = 10, prefix: str = "") -> dict[str, float]:
    """{prefix}hr@k and {prefix}ndcg@k."""
    return {f"{prefix}hr@{k}": hit_rate(ranks, k), f"{prefix}ndcg@{k}": ndcg(ranks, k)}


def head_items(counts: Tensor, share: float = 0.1) -> Tensor:
    """bool (num_items,): the `share` of items with the largest counts, at least one; draws go to the lower row."""
    head = torch.zeros(counts.numel(), dtype=torch.bool)
    head[torch.argsort(counts, descending=True, stable=True)[: max(1, round(share * counts.numel()))]] = True
    return head


def tier_summary(ranks: Tensor, items: Tensor, counts: Tensor, k: int = 10) -> dict[str, float]:
    """`summary` of the ranks (n,) of head items, prefix `head_`, and of tail items, prefix `tail_`.

    items: (n,) the ranked items; counts: (num_items,) as for `head_items`. NaN where a tier has no items.
    """
    in_head = head_items(counts)[items]
    return {**summary(ranks[in_head], k, "head_"), **summary(ranks[~in_head], k, "tail_")}


Scorer = Callable[[Tensor, Tensor], Tensor]  # (users (n,), items (n, c)) -> scores (n, c)
CatalogueScorer = Callable[[Tensor], Tensor]  # users (n,) -> scores (n, num_items)


@torch.no_grad()
def sampled_ranks(score: Scorer, users: Tensor, positives: Tensor, negatives: Tensor, batch_size: int = 4096) -> Tensor:
    """Ranks of `positives` (n,) among `negatives` (n, c), users (n,): int64 (n,), `batch_size` users at a time.

    A negative that is the positive itself is left out: no item is its own rival.
    """
    ranks = []
    for at in range(0, users.numel(), batch_size):
        part = slice(at, at + batch_size)
        positive, others = positives[part, None], negatives[part]
        scores = score(users[part], torch.cat([positive, others], dim=1))
        ranks.append(rank_among(scores[:, 0], scores[:, 1:].masked_fill(others == positive, torch.nan)))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


@torch.no_grad()
def catalogue_ranks(
    score: CatalogueScorer,
    users: Tensor,
    positives: Tensor,
    seen_items: Tensor,
    seen_offsets: Tensor,
    num_items: int,
    also_seen: Tensor | None = None,
) -> Tensor:
    """Ranks of `positives` (n,) among all items but those `users` (n,) already have: int64 (n,).

    seen_items, seen_offsets: the training items of user u are seen_items[seen_offsets[u] : seen_offsets[u + 1]];
    also_seen: (n,) one more item a user to leave out (the validation item when testing). Memory is bounded by
    FULL_CATALOGUE_CELLS scores.
    """
    ranks = []
    batch_size = max(1, FULL_CATALOGUE_CELLS // max(1, num_items))
    for at in range(0, users.numel(), batch_size):
        part = slice(at, at + batch_size)
        owners, positive = users[part], positives[part, None]
        scores = score(owners)
        rows = torch.arange(owners.numel())
        best = scores.gather(1, positive).squeeze(1)
        lengths = seen_offsets[owners + 1] - seen_offsets[owners]
        # Positions of every seen item of every user of the batch: start of the run + place within it.
        row = rows.repeat_interleave(lengths)
        within = torch.arange(row.numel()) - (lengths.cumsum(0) - lengths)[row]
        # A NaN never wins, so that what is left out cannot count.
        scores[row, seen_items[seen_offsets[owners][row] + within]] = torch.nan
        if also_seen is not None:
            scores[rows, also_seen[part]] = torch.nan
        scores.scatter_(1, positive, torch.nan)
        rank = (scores >= best[:, None]).sum(dim=1)
        others = num_items - 1 - lengths - (0 if also_seen is None else 1)
        ranks.append(torch.where(best.isnan(), others, rank))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def auc(labels: Tensor, scores: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, draws counting half.

    labels: (n,) 1 or 0; scores: (n,). NaN without positives, without negatives, or where a score is NaN.
    """
    if scores.isnan().any():
        return float("nan")
    positive = labels > 0.5
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # Mean rank, from 1, of those that draw.
    ranks = counts.cumsum(0).double() - (counts.double() - 1.0) / 2.0
    wins = ranks[place[positive]].sum()
    num = positive.sum().double()
    return float((wins - num * (num + 1.0) / 2.0) / (num * (positive.numel() - num)))


def log_loss(labels: Tensor, logits: Tensor) -> float:
    """Mean binary cross-entropy in nats of `labels` (n,) in [0, 1] under sigmoid(`logits`), logits (n,)."""
    return float(F.binary_cross_entropy_with_logits(logits.double(), labels.double()))


def calibration_error(labels: Tensor, probabilities: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3).

    The sum over `bins` intervals of [0, 1], equally wide, of (share of the rows in it) * |mean label - mean
    probability|. labels, probabilities: (n,).
    """
    place = (probabilities.double() * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, labels.double() - probabilities.double())
    return float(gaps.abs().sum() / labels.numel())


def calibration_ratio(labels: Tensor, probabilities: Tensor) -> float:
    """Mean probability over mean label: above 1 when the model promises too much. labels, probabilities: (n,)."""
    return float(probabilities.double().mean() / labels.double().mean())
