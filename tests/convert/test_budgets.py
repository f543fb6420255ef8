"""compress_ with a budget for trained tables: gradients, queries, and the model's loss as a judge."""

import pytest
import torch
from torch import nn

import mgqe

N, D = 1200, 16
COUNTS = torch.arange(N, 0, -1)


class Scorer(nn.Module):
    """Scores <user, item>, of which only the first dimensions matter."""

    def __init__(self):
        super().__init__()
        made = torch.Generator().manual_seed(0)
        self.user = nn.Embedding(400, D, _weight=torch.randn(400, D, generator=made))
        self.item = nn.Embedding(N, D, _weight=torch.randn(N, D, generator=made))
        self.register_buffer("weights", (torch.arange(D) < 4).float())

    def forward(self, users, items):
        return (self.user(users) * self.weights * self.item(items)).sum(-1)


def batches(number=8, seed=1):
    made = torch.Generator().manual_seed(seed)
    model = Scorer()
    drawn = [
        (torch.randint(400, (512,), generator=made), torch.randint(N, (512,), generator=made)) for _ in range(number)
    ]
    return [(users, items, model(users, items).detach()) for users, items in drawn]


def loss(model, batch):
    users, items, target = batch
    return (model(users, items) - target).square().mean() + 0.01 * model(users, items).mean()


def error(model):
    fresh = batches(seed=2)
    with torch.no_grad():
        return float(sum((model(u, i) - t).square().mean() for u, i, t in fresh) / len(fresh))


def compressed(evidence):
    model = Scorer()
    report = mgqe.compress_(model, counts={"item": COUNTS}, budget="15%", init="from_weight", **evidence(model))
    return model, report


def test_gradients_and_queries_spend_bits_on_what_scores_feel():
    plain, report = compressed(lambda model: {})
    by_gradients, _ = compressed(lambda model: {"calibration": mgqe.calibrate(model, batches(), loss, progress=False)})
    by_queries, _ = compressed(
        lambda model: {
            "queries": {"item": model.user.weight * model.weights, "user": model.item.weight * model.weights}
        }
    )
    assert report.bytes_after <= 0.15 * report.bytes_before
    assert error(by_gradients) < 0.2 * error(plain)
    assert error(by_queries) < 0.2 * error(plain)


def test_the_report_names_what_was_chosen_and_files_take_no_more():
    model, report = compressed(lambda model: {"calibration": mgqe.calibrate(model, batches(), loss, progress=False)})
    assert "gradients" in str(report)
    assert report.bytes_after <= 0.15 * report.bytes_before
    before = [model(u, i) for u, i, _ in batches(2)]
    mgqe.freeze_(model)
    assert all(torch.equal(a, model(u, i)) for a, (u, i, _) in zip(before, batches(2), strict=True))


def test_the_model_is_as_it_was_while_candidates_are_judged():
    model = Scorer()
    rows = model.item.weight.detach().clone()
    calibration = mgqe.calibrate(model, batches(), loss, progress=False)
    with pytest.raises(ValueError, match="too few"):
        mgqe.compress_(model, budget=900, init="from_weight", calibration=calibration)
    assert torch.equal(model.item.weight, rows)
    assert type(model.item) is nn.Embedding


def test_evidence_is_for_trained_tables_with_a_budget():
    model = Scorer()
    queries = {"item": torch.randn(50, D)}
    with pytest.raises(ValueError, match="from_weight"):
        mgqe.compress_(model, budget="10%", queries=queries)
    with pytest.raises(ValueError, match="did you mean 'item'"):
        mgqe.compress_(model, budget="10%", init="from_weight", queries={"itme": queries["item"]})
    for wrong, message in ((torch.full((3, D), torch.nan), "NaN"), (torch.zeros(3, D), "zeros")):
        with pytest.raises(ValueError, match=message):
            mgqe.compress_(Scorer(), budget="10%", init="from_weight", queries={"item": wrong})


def test_tables_to_be_trained_get_bytes_and_plan_when_the_warm_up_ends():
    model = Scorer()
    report = mgqe.compress_(model, mgqe.CompressConfig(warmup_steps=2), counts={"item": COUNTS}, budget="15%")
    assert "when the warm-up ends" in str(report)
    for batch in batches(3):
        (loss(model, batch) + mgqe.quantization_loss(model)).backward()
    frozen = model.item.freeze()
    assert model.item.quantizing
    assert frozen.config.widths
    assert report.bytes_after <= 0.15 * report.bytes_before
