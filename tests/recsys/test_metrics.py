"""Ranking metrics against values worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgqe.recsys.tasks import metrics
from mgqe.recsys.tasks.metrics import (
    RankMetric,
    auc,
    auc_placements,
    calibration_error,
    calibration_ratio,
    catalogue_ranks,
    log_loss,
    rank_among,
    rank_figures,
    sampled_ranks,
    standard_error,
    uncut_gains,
)

NAN = math.nan


def test_rank_by_hand() -> None:
    positive = torch.tensor([3.0, 3.0, 3.0, NAN, 3.0, -math.inf])
    others = torch.tensor(
        [[1.0, 2.0, 2.9], [4.0, 2.0, 3.0], [3.0, 3.0, 3.0], [1.0, NAN, 2.0], [NAN, NAN, 1.0], [NAN, -math.inf, 0.0]]
    )
    # Nobody above; one above and one draw; all draws; NaN loses to all; NaN never wins; -inf still beats NaN.
    assert rank_among(positive, others).tolist() == [0, 2, 3, 3, 0, 2]


def test_metrics_by_hand() -> None:
    ranks = torch.tensor([0, 1, 9, 10])
    assert RankMetric("hr").figure(ranks) == RankMetric("recall").figure(ranks) == 0.75
    assert RankMetric("ndcg").figure(ranks) == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(11)) / 4)
    assert RankMetric("mrr").figure(ranks) == pytest.approx((1 + 1 / 2 + 1 / 10) / 4)
    assert rank_figures(ranks, 1, "x_") == {"x_hr@1": 0.25, "x_ndcg@1": 0.25}
    assert math.isnan(RankMetric("hr").figure(ranks[:0]))


def test_figures_are_read_from_names() -> None:
    assert RankMetric.parse(" Recall@20") == RankMetric("recall", 20)
    assert RankMetric.parse_list("ndcg@5,mrr@7,ndcg@5") == (RankMetric("ndcg", 5), RankMetric("mrr", 7))
    assert RankMetric.parse_list("") == ()
    for text in ("recall", "recall@0", "map@10", "ndcg@ten", "@10"):
        with pytest.raises(ValueError, match="expected a figure such as hr@20, ndcg@20, recall@20, mrr@20, got"):
            RankMetric.parse(text)


@pytest.mark.parametrize("value", [0.0, 1.5, NAN])
def test_a_constant_scorer_has_no_hits(value: float) -> None:
    users, positives = torch.arange(7), torch.zeros(7, dtype=torch.int64)
    negatives = torch.arange(1, 100).expand(7, -1)
    ranks = sampled_ranks(lambda u, i: torch.full(i.shape, value), users, positives, negatives)
    assert ranks.tolist() == [99] * 7
    nobody = torch.zeros(8, dtype=torch.int64)
    ranks = catalogue_ranks(lambda u: torch.full((len(u), 100), value), users, positives, nobody[:0], nobody, 100)
    assert ranks.tolist() == [99] * 7


def test_sampled_ranks_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 30, generator=generator).round(decimals=1)
    users = torch.arange(50)
    positives = torch.randint(30, (50,), generator=generator)
    negatives = torch.randint(30, (50, 9), generator=generator)

    def score(users: Tensor, items: Tensor) -> Tensor:
        return scores[users].gather(1, items)

    whole = sampled_ranks(score, users, positives, negatives)
    monkeypatch.setattr(metrics, "SAMPLED_CELLS", 7 * 10)
    assert torch.equal(whole, sampled_ranks(score, users, positives, negatives))
    by_hand = [
        sum(bool(scores[u, n] >= scores[u, positives[u]]) for n in negatives[u].tolist() if n != positives[u])
        for u in range(50)
    ]
    assert whole.tolist() == by_hand


@pytest.mark.parametrize("cells", [1, 100, 10**6])
def test_catalogue_ranks_against_a_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FULL_CATALOGUE_CELLS", cells)
    generator = torch.Generator().manual_seed(1)
    num_users, num_items = 12, 25
    scores = torch.randn(num_users, num_items, generator=generator).round(decimals=1)
    scores[3, 4] = NAN
    seen = [torch.randperm(num_items, generator=generator)[: user % 6].tolist() for user in range(num_users)]
    seen_items = torch.tensor([item for items in seen for item in items])
    seen_offsets = torch.tensor([0, *(sum(map(len, seen[: user + 1])) for user in range(num_users))])
    users = torch.tensor([3, 0, 11, 5])
    left = [[item for item in range(num_items) if item not in seen[user]] for user in users.tolist()]
    positives = torch.tensor([items[0] for items in left])
    also = torch.tensor([items[-1] for items in left])
    for extra in (None, also):
        expected = []
        for row, user in enumerate(users.tolist()):
            others = [i for i in left[row] if i != positives[row] and (extra is None or i != extra[row])]
            best = scores[user, positives[row]]
            expected.append(
                len(others) if math.isnan(best) else sum(bool(scores[user, item] >= best) for item in others)
            )
        found = catalogue_ranks(
            lambda u: scores[u].clone(), users, positives, seen_items, seen_offsets, num_items, extra
        )
        assert found.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_catalogue_ranks_with_equal_items_repeats_and_several_positives(seed: int) -> None:
    rng = random.Random(seed)
    num_items, num_users, num_columns = rng.randint(3, 9), rng.randint(1, 5), rng.randint(1, 4)
    column_of = torch.tensor([rng.randrange(num_columns) for _ in range(num_items)])
    num_columns = int(column_of.max()) + 1
    values = [*range(4), NAN]
    scores = torch.tensor([[float(rng.choice(values)) for _ in range(num_columns)] for _ in range(num_users)])
    # A user may have had an item twice, and may take one again that is then to be found.
    seen = [[rng.randrange(num_items) for _ in range(rng.randint(0, 4))] for _ in range(num_users)]
    users = torch.tensor(sorted(rng.sample(range(num_users), rng.randint(1, num_users))))
    wanted = [rng.sample(range(num_items), rng.randint(1, 3)) for _ in users]
    expected = []
    for user, items in zip(users.tolist(), wanted, strict=True):
        rivals = [item for item in range(num_items) if item not in {*items, *seen[user]}]
        for item in items:
            best = scores[user, column_of[item]]
            wins = sum(bool(scores[user, column_of[other]] >= best) for other in rivals)
            expected.append(len(rivals) if math.isnan(best) else wins)

    def offsets(lists: list[list[int]]) -> torch.Tensor:
        return torch.tensor([0, *itertools.accumulate(map(len, lists))])

    flat = [torch.tensor(list(itertools.chain(*lists)), dtype=torch.int64) for lists in (wanted, seen)]
    with patch.object(metrics, "FULL_CATALOGUE_CELLS", rng.choice([1, 2 * num_columns, 2**24])):
        found = catalogue_ranks(
            lambda u: scores[u].clone(),
            users,
            flat[0],
            flat[1],
            offsets(seen),
            num_items,
            offsets=offsets(wanted),
            column_of=column_of,
        )
    assert found.tolist() == expected


def test_ndcg_without_a_cut_by_hand() -> None:
    assert uncut_gains(torch.tensor([0, 2, 6])).tolist() == pytest.approx([1, 1 / 2, 1 / 3])


def test_auc_by_hand() -> None:
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    # Positives 3 and 1 against 2, 1 and 0: the first wins all three, the second one and a half.
    assert auc(labels, torch.tensor([3.0, 2.0, 1.0, 1.0, 0.0])) == pytest.approx(4.5 / 6)
    assert auc(labels, torch.zeros(5)) == 0.5
    assert auc(labels, labels) == 1.0
    assert auc(labels, -labels) == 0.0
    assert math.isnan(auc(torch.ones(3), torch.arange(3.0)))
    assert math.isnan(auc(torch.zeros(3), torch.arange(3.0)))
    assert math.isnan(auc(labels, torch.tensor([NAN, 2.0, 1.0, 1.0, 0.0])))


def test_auc_is_the_share_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, generator=generator) < 0.3).float()
    scores = torch.randint(20, (200,), generator=generator).float()
    gaps = scores[labels == 1][:, None] - scores[labels == 0]
    wins = (gaps > 0).double() + 0.5 * (gaps == 0).double()
    assert auc(labels, scores) == pytest.approx(float(wins.mean()), abs=1e-6)


def test_log_loss_by_hand() -> None:
    found = log_loss(torch.tensor([1.0, 0.0]), torch.tensor([math.log(3.0), math.log(3.0)]))  # probabilities 3/4
    assert found == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert log_loss(torch.tensor([0.0]), torch.tensor([1000.0])) == pytest.approx(1000.0)  # no infinity


def test_calibration_by_hand() -> None:
    labels = torch.tensor([0.0, 1.0, 1.0, 1.0])
    probabilities = torch.tensor([0.1, 0.3, 0.7, 1.0])
    # Two bins: mean label .5 against .2, and 1 against .85, each with half of the rows.
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx((0.3 + 0.15) / 2, abs=1e-7)
    assert calibration_error(labels, labels) == 0.0
    # One probability for all is calibrated in whatever order the rows come.
    assert calibration_error(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.full((4,), 0.25)) == 0.0
    assert calibration_ratio(labels, probabilities) == pytest.approx(2.1 / 3, abs=1e-7)


def test_placements_have_the_auc_as_their_mean_and_ties_count_half() -> None:
    labels, scores = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([0.9, 0.4, 0.4, 0.1, 0.95])
    of_positives, of_negatives = auc_placements(labels, scores)
    assert of_positives.tolist() == pytest.approx([2 / 3, 1.5 / 3])
    assert of_negatives.tolist() == pytest.approx([0.75, 1.0, 0.0])
    assert float(of_positives.mean()) == pytest.approx(float(of_negatives.mean())) == pytest.approx(auc(labels, scores))


def test_the_standard_error_is_that_of_paired_differences() -> None:
    before, after = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.5, 1.5, 0.5, 1.5])
    assert standard_error((before.double(),), (after.double(),)) == 0.0  # each example gains alike
    noisy = torch.tensor([1.0, 1.0, 0.0, 2.0]).double()  # differences 1, 0, 0, 1 have the variance 1 / 3
    assert standard_error((before.double(),), (noisy,)) == pytest.approx((1 / 3 / 4) ** 0.5)
    both = standard_error((before.double(), before.double()), (noisy, noisy))
    assert both == pytest.approx((2 / 3 / 4) ** 0.5)


def test_the_values_of_users_have_ndcg_as_their_mean() -> None:
    ranks, owners = torch.tensor([0, 3, 12, 1]), torch.tensor([0, 0, 1, 2])
    assert RankMetric("ndcg").values(ranks).tolist() == pytest.approx([1.0, 1 / math.log2(5), 0.0, 1 / math.log2(3)])
    assert RankMetric("ndcg").figure(ranks, owners) == rank_figures(ranks, owners=owners)["ndcg@10"]
