"""HR, NDCG, recall and MRR at k from the ranks of held-out items, ties counting against the model; AUC; calibration.

A rank, from 0, is the number of rivals with at least the same score; other items of the user in the same part are no
rivals. With one relevant item per user, HR@k = recall@k = [rank < k], NDCG@k = [rank < k] / log2(rank + 2), and MRR@k =
[rank < k] / (rank + 1). With several, they are all in the user's list: HR@k = [at least one is among the first k],
NDCG@k is the DCG of the list over that of the best possible list, recall@k is the share of them among the first k, and
MRR@k is of the first of them. Each figure is a mean over users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("hr", "ndcg", "recall", "mrr")
FULL_CATALOGUE_CELLS = 2**24  # scores in memory when the whole catalogue is ranked: 64 MiB of float32
# Scores in memory among sampled items, each with a vector of its own: 100 MiB of 64 dimensions.
SAMPLED_CELLS = 4096 * 101


def rank_among(positive: Tensor, others: Tensor) -> Tensor:
    """Rank of each positive among its other candidates, 0 is best: int64 (n,).

    positive: (n,) scores; others: (n, c) scores. The rank is the number of others with at least the same score. NaN is
    the worst score: as the positive it loses to all others, as one of the others it never wins.
    """
    ranks = (others >= positive[:, None]).sum(dim=1)
    return torch.where(positive.isnan(), torch.full_like(ranks, others.shape[1]), ranks)


def _gains(positions: Tensor, k: int, kind: str) -> Tensor:
    """What items at positions (n,), from 0, are worth: float64 (n,); nothing from k on."""
    places = positions.double()
    worth = {"ndcg": 1.0 / torch.log2(places + 2.0), "mrr": 1.0 / (places + 1.0)}.get(kind, torch.ones_like(places))
    return torch.where(positions < k, worth, torch.zeros_like(worth))


def _list_positions(ranks: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Positions, from 0, of relevant items in their users' lists, which hold rivals and relevant items.

    ranks: int64 (n,) among the rivals; owners: int64 (n,), the user of each. Returns the positions and their users,
    both (n,), sorted by user, then by position: of two relevant items, the one with fewer rivals before it is first.
    """
    order = ranks.argsort(stable=True)
    order = order[owners[order].argsort(stable=True)]
    users, counts = torch.unique_consecutive(owners[order], return_counts=True)
    within = torch.arange(order.numel()) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return ranks[order] + within, torch.arange(users.numel()).repeat_interleave(counts)


@dataclass(frozen=True)
class RankMetric:
    """A figure of ranks at a depth, such as recall@20. kind: one of KINDS."""

    kind: str
    k: int = 10

    @classmethod
    def parse(cls, text: str) -> RankMetric:
        """From `recall@20`, in letters of any case; ValueError for anything else."""
        kind, at, k = text.strip().lower().partition("@")
        if kind not in KINDS or not at or not k.isascii() or not k.isdigit() or int(k) < 1:
            known = ", ".join(f"{known}@20" for known in KINDS)
            raise ValueError(f"expected a figure such as {known}, got {text!r}: all are of the whole catalogue")
        return cls(kind, int(k))

    @classmethod
    def parse_list(cls, text: str) -> tuple[RankMetric, ...]:
        """From `recall@20,ndcg@20`, each once; none from an empty text."""
        return tuple(dict.fromkeys(cls.parse(part) for part in text.split(",") if part.strip()))

    @classmethod
    def asked(cls, metrics: str, select_by: str) -> tuple[RankMetric, ...]:
        """What the settings `metrics` and `select_by` name, but for select_by=ndcg@10, which is shown in any case."""
        chosen = cls.parse(select_by)
        return cls.parse_list(metrics if chosen == cls("ndcg") else f"{metrics},{chosen}")

    def __str__(self) -> str:
        return f"{self.kind}@{self.k}"

    def values(self, ranks: Tensor, owners: Tensor | None = None) -> Tensor:
        """The figure of each user, float64 (u,); owners: int64 (n,), the user of each rank, all different if None."""
        if owners is None:
            return _gains(ranks, self.k, self.kind)
        positions, users = _list_positions(ranks, owners)
        num = torch.bincount(users)
        if self.kind == "mrr":
            return _gains(positions[num.cumsum(0) - num], self.k, self.kind)
        gains = torch.zeros(num.numel(), dtype=torch.float64).index_add_(0, users, _gains(positions, self.k, self.kind))
        if self.kind == "hr":
            return gains.clamp(max=1)
        if self.kind == "recall":
            return gains / num
        return gains / _gains(torch.arange(self.k), self.k, "ndcg").cumsum(0)[num.clamp(max=self.k) - 1]

    def figure(self, ranks: Tensor, owners: Tensor | None = None) -> float:
        """The mean over users; NaN if there are none."""
        return float(self.values(ranks, owners).mean())


def rank_figures(ranks: Tensor, k: int = 10, prefix: str = "", owners: Tensor | None = None) -> dict[str, float]:
    """{prefix}hr@k and {prefix}ndcg@k, and with `owners` (n,), the user of each rank, {prefix}recall@k.

    Without `owners`, each rank is that of a different user, whose recall is HR.
    """
    metrics = [RankMetric(kind, k) for kind in (("hr", "ndcg") if owners is None else ("hr", "ndcg", "recall"))]
    return {f"{prefix}{metric}": metric.figure(ranks, owners) for metric in metrics}


def uncut_gains(ranks: Tensor) -> Tensor:
    """1 / log2(rank + 2), of which the mean is NDCG without a k: every rank counts, the first ones most.

    It tells plans of one model apart by less noise than NDCG@k, which is zero for most users.
    """
    return 1.0 / torch.log2(ranks.double() + 2.0)


def log_ranks(ranks: Tensor) -> Tensor:
    """ln(rank + 1): from 0, which is best; ranks far from the first count as much as these."""
    return (ranks.double() + 1.0).log()


def auc_placements(labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of each positive the share of negatives below it, of each negative that of positives above it; ties are half.

    Both, float64, have the AUC as their mean (DeLong et al., 1988, whose variance `standard_error` works out).
    """
    positives, negatives = scores[labels > 0].double(), scores[labels <= 0].double()

    def below(these: Tensor, others: Tensor) -> Tensor:
        others = others.sort().values
        counts = torch.searchsorted(others, these) + torch.searchsorted(others, these, right=True)
        return counts / (2.0 * max(1, others.numel()))

    return below(positives, negatives), 1.0 - below(negatives, positives)


def standard_error(before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> float:
    """Of the difference of two figures, each a mean of values of the same examples: paired.

    before, after: the values of the examples; several tensors are of independent samples, whose variances add up.
    """
    variance = sum(float((b - a).var()) / b.numel() for a, b in zip(before, after, strict=True) if b.numel() > 1)
    return float(variance**0.5)


def head_items(counts: Tensor, share: float = 0.1) -> Tensor:
    """The `share` of items with the largest counts, at least one: bool (num_items,). Of equal ones, lower rows win."""
    head = torch.zeros(counts.numel(), dtype=torch.bool)
    head[torch.argsort(counts, descending=True, stable=True)[: max(1, round(share * counts.numel()))]] = True
    return head


def head_and_tail_figures(
    ranks: Tensor, items: Tensor, counts: Tensor, k: int = 10, owners: Tensor | None = None, prefix: str = ""
) -> dict[str, float]:
    """`rank_figures` of the ranks (n,) of head items, `head_{prefix}`, and of tail items, `tail_{prefix}`.

    items: (n,), the ranked items; counts: (num_items,) as for `head_items`; owners as for `rank_figures`. The items of
    the other group do not count as relevant. NaN for a group without items.
    """
    in_head = head_items(counts)[items]
    return {
        name: value
        for part, group in (("head_", in_head), ("tail_", ~in_head))
        for name, value in rank_figures(
            ranks[group], k, part + prefix, None if owners is None else owners[group]
        ).items()
    }


Scorer = Callable[[Tensor, Tensor], Tensor]  # (users (n,), items (n, c)) -> scores (n, c)
# Users (n,) -> scores (n, c), a column for each item or for each distinct row of items.
CatalogueScorer = Callable[[Tensor], Tensor]


@torch.no_grad()
def sampled_ranks(
    score: Scorer, users: Tensor, positives: Tensor, negatives: Tensor, owners: Tensor | None = None
) -> Tensor:
    """Ranks of `positives` (n,) among `negatives` (u, c) of `users` (u,): int64 (n,), SAMPLED_CELLS scores at a time.

    owners: int64 (n,), the position in `users` of each positive's user; without it, each user has one positive. A
    negative that is the positive itself is left out, since no item is its own rival.
    """
    ranks = []
    owners = torch.arange(users.numel()) if owners is None else owners
    batch_size = min(4096, max(1, SAMPLED_CELLS // (1 + negatives.shape[1])))
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
    column_of: Tensor | None = None,
) -> Tensor:
    """Ranks of `positives` (n,) among all items without those that `users` (u,) have seen: int64 (n,).

    seen_items, seen_offsets: user u has seen seen_items[seen_offsets[u] : seen_offsets[u + 1]];
    also_seen: (u,), one more item that each user has seen.
    offsets: (u + 1,), the positives of users[i] are positives[offsets[i] : offsets[i + 1]], one or more, which are no
    rivals of each other; without it, each user has one.
    column_of: (num_items,), the column of each item in what `score` gives, where equal items share one; without it,
    column i is item i's. At most FULL_CATALOGUE_CELLS scores are in memory.
    """
    ranks = []
    offsets = torch.arange(users.numel() + 1) if offsets is None else offsets
    column_of = torch.arange(num_items) if column_of is None else column_of
    items_of_column = torch.bincount(column_of)
    batch_size = max(1, FULL_CATALOGUE_CELLS // max(1, items_of_column.numel()))
    for start in range(0, users.numel(), batch_size):
        owners = users[start : start + batch_size]
        bounds = offsets[start : start + len(owners) + 1]
        positive = positives[bounds[0] : bounds[-1]]
        whose = torch.arange(owners.numel()).repeat_interleave(bounds.diff())
        scores = score(owners)
        best = scores[whose, column_of[positive]]
        # What each user has no ranks for: (row, item), each once, since a user may have had an item twice.
        row, seen = ranges(seen_offsets[owners], seen_offsets[owners + 1])
        pairs = [row * num_items + seen_items[seen], whose * num_items + positive]
        if also_seen is not None:
            pairs.append(torch.arange(len(owners)) * num_items + also_seen[start : start + batch_size])
        pair = torch.unique(torch.cat(pairs))
        row, left_out = pair // num_items, column_of[pair % num_items]
        ends = torch.searchsorted(row, torch.arange(owners.numel() + 1))
        of, at = ranges(ends[whose], ends[whose + 1])
        no_rivals = torch.zeros(whose.numel(), dtype=torch.int64)
        no_rivals.index_add_(0, of, (scores[row, left_out][at] >= best[of]).long())
        others = num_items - ends.diff()[whose]
        ranks.append(torch.where(best.isnan(), others, items_from(scores, whose, best, items_of_column) - no_rivals))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def items_from(scores: Tensor, rows: Tensor, least: Tensor, items_of_column: Tensor) -> Tensor:
    """How many items have at least the score least[i] in row rows[i] of scores (b, c): int64 (n,). NaN never has.

    items_of_column: int64 (c,). NumPy compares and counts a row in a fifth of the time of torch's comparison and sum.
    """
    table, others = scores.numpy(), (items_of_column != 1).nonzero().squeeze(1).numpy()
    more = items_of_column.numpy()[others] - 1
    counts = np.empty(rows.numel(), dtype=np.int64)
    for i, (row, value) in enumerate(zip(rows.tolist(), least.tolist(), strict=True)):
        reached = table[row] >= value
        counts[i] = np.count_nonzero(reached) + more[reached[others]].sum()
    return torch.from_numpy(counts)


def ranges(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """(r, place) of all places from starts[r] to ends[r] - 1, range after range: int64 (n,) each."""
    lengths = ends - starts
    which = torch.arange(lengths.numel()).repeat_interleave(lengths)
    return which, torch.arange(which.numel()) + (starts - (lengths.cumsum(0) - lengths))[which]


def auc(labels: Tensor, scores: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, where ties count half.

    labels: (n,), 1 or 0; scores: (n,). NaN without positives, without negatives, or if a score is NaN.
    """
    from torchmetrics.functional.classification import binary_auroc  # 2 seconds, which other tasks do not need

    positive = labels > 0.5
    if scores.isnan().any() or positive.all() or not positive.any():
        return float("nan")
    return float(binary_auroc(scores.double(), positive.long(), validate_args=False))


def log_loss(labels: Tensor, logits: Tensor) -> float:
    """Mean binary cross-entropy, in nats, of `labels` (n,) in [0, 1] under sigmoid(`logits`), logits (n,)."""
    return float(F.binary_cross_entropy_with_logits(logits.double(), labels.double()))


def calibration_error(labels: Tensor, probabilities: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3).

    The sum over `bins` intervals of [0, 1], equally wide, of (share of the rows in it) * |mean label - mean
    probability|. labels: (n,), 1 or 0; probabilities: (n,).
    """
    from torchmetrics.functional.classification import binary_calibration_error

    return float(binary_calibration_error(probabilities.double(), labels.long(), bins, validate_args=False))


def calibration_ratio(labels: Tensor, probabilities: Tensor) -> float:
    """Mean probability over mean label; above 1 if the model predicts too much. labels, probabilities: (n,)."""
    return float(probabilities.double().mean() / labels.double().mean())
