"""HR@k, NDCG@k and recall@k from the ranks of held-out items, where draws count against the model; AUC and calibration.

A rank, from 0, is the number of rivals that score at least as much; an item that the same user has in the same part is
no rival. With one relevant item per user, HR@k = [rank < k] and NDCG@k = [rank < k] / log2(rank + 2). With several, the
user's list holds them all: HR@k = [one or more are among the first k], NDCG@k is the list's DCG over that of the best
possible list, recall@k the share of them among the first k. Each is a mean over users.
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
    """HR@k of one relevant item per user: share of `ranks` (n,) below k. NaN when there are none."""
    return float((ranks < k).double().mean())


def ndcg(ranks: Tensor, k: int) -> float:
    """NDCG@k of one relevant item per user: mean of [rank < k] / log2(rank + 2). NaN when there are none."""
    return float(_gains(ranks, k).mean())


def _gains(places: Tensor, k: int) -> Tensor:
    """What items at places (n,), from 0, add to DCG@k: float64 (n,)."""
    gains = 1.0 / torch.log2(places.double() + 2.0)
    return torch.where(places < k, gains, torch.zeros_like(gains))


def list_positions(ranks: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Places, from 0, of relevant items in their users' lists, which hold rivals and relevant items.

    ranks: int64 (n,) among the rivals; owners: int64 (n,) the user of each. Returns the places and their users, both
    (n,), sorted by user, then by place: of two relevant items the one with fewer rivals before it comes first.
    """
    order = ranks.argsort(stable=True)
    order = order[owners[order].argsort(stable=True)]
    users, counts = torch.unique_consecutive(owners[order], return_counts=True)
    within = torch.arange(order.numel()) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return ranks[order] + within, torch.arange(users.numel()).repeat_interleave(counts)


def rank_figures(ranks: Tensor, k: int = 10, prefix: str = "", owners: Tensor | None = None) -> dict[str, float]:
    """{prefix}hr@k and {prefix}ndcg@k, and with `owners` (n,), the user of each rank, {prefix}recall@k.

    Without `owners` each rank is of another user.
    """
    if owners is None:
        return {f"{prefix}hr@{k}": hit_rate(ranks, k), f"{prefix}ndcg@{k}": ndcg(ranks, k)}
    places, users = list_positions(ranks, owners)
    num = torch.bincount(users)
    hits, gains = (torch.zeros(num.numel(), dtype=torch.float64) for _ in range(2))
    hits.index_add_(0, users, (places < k).double())
    gains.index_add_(0, users, _gains(places, k))
    best = _gains(torch.arange(k), k).cumsum(0)[num.clamp(max=k) - 1]
    return {
        f"{prefix}hr@{k}": float((hits > 0).double().mean()),
        f"{prefix}ndcg@{k}": float((gains / best).mean()),
        f"{prefix}recall@{k}": float((hits / num).mean()),
    }


def head_items(counts: Tensor, share: float = 0.1) -> Tensor:
    """bool (num_items,): the `share` of items with the largest counts, at least one; draws go to the lower row."""
    head = torch.zeros(counts.numel(), dtype=torch.bool)
    head[torch.argsort(counts, descending=True, stable=True)[: max(1, round(share * counts.numel()))]] = True
    return head


def head_and_tail_figures(
    ranks: Tensor, items: Tensor, counts: Tensor, k: int = 10, owners: Tensor | None = None
) -> dict[str, float]:
    """`summary` of the ranks (n,) of head items, prefix `head_`, and of tail items, prefix `tail_`.

    items: (n,) the ranked items; counts: (num_items,) as for `head_items`; owners as for `summary`: each tier is
    judged as if its items were the only relevant ones. NaN where a tier has no items.
    """
    in_head = head_items(counts)[items]
    return {
        name: value
        for prefix, tier in (("head_", in_head), ("tail_", ~in_head))
        for name, value in rank_figures(ranks[tier], k, prefix, None if owners is None else owners[tier]).items()
    }


Scorer = Callable[[Tensor, Tensor], Tensor]  # (users (n,), items (n, c)) -> scores (n, c)
CatalogueScorer = Callable[[Tensor], Tensor]  # users (n,) -> scores (n, num_items)


@torch.no_grad()
def sampled_ranks(
    score: Scorer,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    batch_size: int = 4096,
    owners: Tensor | None = None,
) -> Tensor:
    """Ranks of `positives` (n,) among `negatives` (u, c) of `users` (u,): int64 (n,), `batch_size` at a time.

    owners: int64 (n,), the place of each positive's user; without it, each user has one positive. A negative that is
    the positive itself is left out: no item is its own rival.
    """
    ranks = []
    owners = torch.arange(users.numel()) if owners is None else owners
    for whose, positive in zip(
        torch.split(owners, batch_size), torch.split(positives[:, None], batch_size), strict=True
    ):
        others = negatives[whose]
        scores = score(users[whose], torch.cat([positive, others], dim=1))
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
    offsets: Tensor | None = None,
) -> Tensor:
    """Ranks of `positives` (n,) among all items but those `users` (u,) already have: int64 (n,).

    seen_items, seen_offsets: what user u had before is seen_items[seen_offsets[u] : seen_offsets[u + 1]];
    also_seen: (u,) one more item per user that they already have.
    offsets: (u + 1,), the positives of users[i] are positives[offsets[i] : offsets[i + 1]], one or more, none of which
    is another's rival; without it, each user has one. Memory is bounded by FULL_CATALOGUE_CELLS scores.
    """
    ranks = []
    offsets = torch.arange(users.numel() + 1) if offsets is None else offsets
    batch_size = max(1, FULL_CATALOGUE_CELLS // max(1, num_items))
    for at in range(0, users.numel(), batch_size):
        owners = users[at : at + batch_size]
        bounds = offsets[at : at + len(owners) + 1]
        positive, num = positives[bounds[0] : bounds[-1]], bounds.diff()
        whose = torch.arange(owners.numel()).repeat_interleave(num)
        scores = score(owners)
        best = scores[whose, positive]
        lengths = seen_offsets[owners + 1] - seen_offsets[owners]
        # Positions of every seen item of every user of the batch: start of the run + place within it.
        row = torch.arange(owners.numel()).repeat_interleave(lengths)
        within = torch.arange(row.numel()) - (lengths.cumsum(0) - lengths)[row]
        # A NaN never wins, so that what is left out cannot count.
        scores[row, seen_items[seen_offsets[owners][row] + within]] = torch.nan
        if also_seen is not None:
            scores[torch.arange(len(owners)), also_seen[at : at + batch_size]] = torch.nan
        scores[whose, positive] = torch.nan
        rank = torch.cat(
            [
                (_rows(scores, rows) >= values[:, None]).sum(dim=1)
                for rows, values in zip(torch.split(whose, batch_size), torch.split(best, batch_size), strict=True)
            ]
        )
        others = (num_items - num - lengths - int(also_seen is not None))[whose]
        ranks.append(torch.where(best.isnan(), others, rank))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def _rows(scores: Tensor, rows: Tensor) -> Tensor:
    """scores[rows], without a copy where these are all the rows in order."""
    everything = rows.numel() == len(scores) and bool((rows == torch.arange(len(scores))).all())
    return scores if everything else scores[rows]


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
