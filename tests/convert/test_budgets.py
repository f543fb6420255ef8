"""compress_ with a budget for trained tables: gradients, queries, and the model's loss as a judge."""

import pytest
import torch
from torch import nn

import mgqe
from mgqe.codec.planning.problem import SHAPES

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


def test_the_report_says_what_each_table_was_planned_by():
    _, report = compressed(lambda model: {"queries": {"item": model.user.weight * model.weights}})
    user, item = (next(row.why for row in report.rows if row.path == path) for path in ("user", "item"))
    assert "(identity, one tier" in user  # it has neither counts nor queries
    assert "(queries, " in item
    assert ("one tier" in item) == ("; " not in item)  # tiers are listed, divided by semicolons


def test_the_model_is_as_it_was_while_candidates_are_judged():
    model = Scorer()
    rows = model.item.weight.detach().clone()
    calibration = mgqe.calibrate(model, batches(), loss, progress=False)
    with pytest.raises(ValueError, match="too few"):
        mgqe.compress_(model, budget=900, init="from_weight", calibration=calibration)
    assert torch.equal(model.item.weight, rows)
    assert type(model.item) is nn.Embedding


@pytest.mark.parametrize(
    ("settings", "counts", "remedy"),
    [
        ({"init": "warmup", "budget": "10%"}, COUNTS, 'give init="from_weight"'),
        ({"init": "warmup"}, COUNTS, 'give init="from_weight"'),
        ({"num_centroids": 64, "centroid_dtype": "int8"}, COUNTS, "Leave num_centroids, centroid_dtype out"),
        ({"quantizer": "sx", "budget": "10%"}, COUNTS, 'Give quantizer="vq"'),
        ({}, mgqe.Tiers.from_counts(COUNTS), "instead of Tiers"),
    ],
)
def test_evidence_that_nothing_is_planned_by_is_refused(settings, counts, remedy):
    model = Scorer()
    config = mgqe.CompressConfig(**{"init": "from_weight", **settings}, rules={"user": None})
    calibration = mgqe.calibrate(model, batches(1), loss, progress=False)
    for evidence, name in (
        ({"queries": {"item": torch.randn(50, D)}}, "queries for 'item'"),
        ({"calibration": calibration}, "calibration=.*item"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{remedy}"):
            mgqe.compress_(model, config, counts={"item": counts}, **evidence)
    assert type(model.item) is nn.Embedding


def test_evidence_for_some_tables_is_enough():
    """The users' capacity is given, and the items' is open."""
    model = Scorer()
    config = mgqe.CompressConfig(init="from_weight", rules={"user": {"num_centroids": 64}})
    calibration = mgqe.calibrate(model, batches(1), loss, progress=False)
    report = mgqe.compress_(model, config, counts={"item": COUNTS}, calibration=calibration)
    assert report.compressed == ("user", "item")


def test_queries_that_do_not_fit_are_refused():
    queries = {"item": torch.randn(50, D)}
    with pytest.raises(ValueError, match="did you mean 'item'"):
        mgqe.compress_(Scorer(), budget="10%", init="from_weight", queries={"itme": queries["item"]})
    for wrong, message in ((torch.full((3, D), torch.nan), "NaN"), (torch.zeros(3, D), "zeros")):
        with pytest.raises(ValueError, match=message):
            mgqe.compress_(Scorer(), budget="10%", init="from_weight", queries={"item": wrong})


@pytest.mark.parametrize("settings", [{"budget": "10%"}, {}])
def test_a_metric_of_rows_of_another_width_is_refused_by_path(settings):
    def narrow(model, batch):
        return (model["item"](batch) @ torch.ones(8)).square().mean()

    other = nn.ModuleDict({"item": nn.Embedding(N, 8)})
    calibration = mgqe.calibrate(other, [torch.arange(64)], narrow, progress=False)
    for evidence, message in (
        (
            {"queries": {"item": torch.randn(50, 8)}},
            r"item: queries must have shape \(n, 16\), as many dimensions as rows, got \(n, 8\): give a sample",
        ),
        (
            {"calibration": calibration},
            r"item: the metric must be .* shape \(16, 16\), .* got \(8, 8\): measure it with mgqe.calibrate",
        ),
    ):
        model = Scorer()
        with pytest.raises(ValueError, match=message):
            mgqe.compress_(model, init="from_weight", **settings, **evidence)
        assert type(model.item) is nn.Embedding


def test_fewer_queries_than_dimensions_are_enough():
    model = Scorer()
    queries = {"item": torch.eye(D)[:4]}
    report = mgqe.compress_(model, counts={"item": COUNTS}, budget="15%", init="from_weight", queries=queries)
    assert "(queries, " in report.rows[1].why
    errors = model.item.freeze().to_dense() - model.item.raw_weight.detach()
    assert errors[:, :4].square().mean() < 0.1 * errors[:, 4:].square().mean()


def test_without_a_budget_the_bytes_of_the_even_shape_go_where_scores_feel_them():
    errors, sizes = [], []
    for evidence in (
        lambda model: {},
        lambda model: {"calibration": mgqe.calibrate(model, batches(), loss, progress=False)},
        lambda model: {
            "queries": {"item": model.user.weight * model.weights, "user": model.item.weight * model.weights}
        },
    ):
        model = Scorer()
        report = mgqe.compress_(model, counts={"item": COUNTS}, init="from_weight", **evidence(model))
        assert report.compressed == ("user", "item")
        errors.append(error(model))
        sizes.append(report.bytes_after)
    even = mgqe.compress_(Scorer(), mgqe.CompressConfig(num_centroids=(256, 64)), counts={"item": COUNTS})
    assert max(errors[1:]) < 0.2 * errors[0]
    assert max(sizes) <= even.bytes_after


# ---- a judge -------------------------------------------------------------------------------------------------------


def judged(judge, model=None, **settings):
    model = Scorer() if model is None else model
    report = mgqe.compress_(
        model, counts={"item": COUNTS}, init="from_weight", judge=judge, **{"budget": "15%", **settings}
    )
    return model, report


def test_the_judge_sees_each_candidates_rows_and_the_best_is_kept():
    model = Scorer().train()
    trained, seen = model.item.weight.detach().clone(), []

    def judge(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        assert type(model.item) is nn.Embedding
        seen.append((model.item.weight.clone(), torch.rand(())))
        return torch.tensor(1.0 if len(seen) == 3 else 0.0)

    judged(judge, model, calibration=mgqe.calibrate(model, batches(), loss, progress=False))
    assert len(seen) == 2 * len(SHAPES) + 1  # gradients and the identity; and bytes in proportion to the tables
    assert not any(torch.equal(rows, trained) for rows, _ in seen)
    assert len({float(draw) for _, draw in seen}) == 1
    assert torch.equal(model.item.raw_weight, trained)
    assert model.training
    torch.testing.assert_close(model.item.eval()(torch.arange(N)), seen[2][0])


def test_the_judge_may_disagree_with_the_loss():
    """The loss feels the first four dimensions, and the judge the others, for which the identity does better."""
    trained = Scorer().item.weight.detach()

    def judge(model):
        return -float((model.item.weight - trained)[:, 4:].square().mean())

    kinds = []
    for settings in ({}, {"judge": judge}):
        model = Scorer()
        calibration = mgqe.calibrate(model, batches(), loss, progress=False)
        report = mgqe.compress_(model, budget="15%", init="from_weight", calibration=calibration, **settings)
        kinds.append(["identity" in row.why for row in report.rows])
    assert kinds == [[False, False], [True, True]]


def test_the_judge_serves_tables_without_a_budget():
    seen = []
    model, _ = judged(lambda model: seen.append(model.user.weight.clone()) or 0.0, budget=None)
    assert len(seen) == 1 + len(SHAPES)  # the users' table, which has no counts, and then the items'
    assert torch.equal(seen[-1], model.user.raw_weight)
    assert not torch.equal(seen[0], model.user.raw_weight)


@pytest.mark.parametrize(
    ("figure", "error", "message"),
    [
        (lambda: float("nan"), ValueError, r"NaN for the candidate 'identity, tiers 0.1/0.9, counts\^0.5'"),
        (lambda: None, TypeError, "must return a number, higher is better, got NoneType"),
        (lambda: torch.ones(2), TypeError, "got Tensor"),
        (lambda: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_a_judge_that_fails_leaves_the_model_as_it_was(figure, error, message):
    model = Scorer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        judged(lambda _: figure(), model)
    assert type(model.item) is nn.Embedding
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_judge_that_would_judge_nothing_is_refused():
    with pytest.raises(ValueError, match=r'judge= would not be used.*init="from_weight"'):
        mgqe.compress_(Scorer(), budget="15%", judge=lambda model: 0.0)
    with pytest.raises(TypeError, match="judge must be a function of the model that returns a number, got float"):
        judged(0.5)


# ---- tables that are to be trained ---------------------------------------------------------------------------------


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


# ---- tables that stay as they are ------------------------------------------------------------------------------


def trained(*tables, **settings):
    """The report's reasons, of trained tables {path: (rows, dim)} that share a budget."""
    made = torch.Generator().manual_seed(0)
    model = nn.ModuleDict(
        {path: nn.Embedding(n, d, _weight=torch.randn(n, d, generator=made)) for path, n, d in tables}
    )
    report = mgqe.compress_(model, init="from_weight", **settings)
    return model, {row.path: row for row in report.rows}


def test_a_small_table_stays_and_the_other_gets_its_bytes():
    """10% of 320,448 bytes are 32,044; 7 x 16 floats take 448 of them, and the header of a file would take more."""
    _, rows = trained(("day", 7, 16), ("item", 5000, 16), budget="10%")
    assert rows["day"].why == "left: codes and centroids would take no fewer bytes"
    assert 31_000 < rows["item"].bytes_after <= 32_044 - 448


def test_most_of_all_bytes_leave_the_smaller_table():
    """90% of 384,000 bytes: one of the tables goes in as it is, beside the codes of the other, 8 bits for 32."""
    _, rows = trained(("large", 5000, 16), ("small", 1000, 16), budget="90%")
    assert rows["small"].why == "left: the budget has room for it as it is"
    assert rows["large"].compressed
    assert 80_000 < rows["large"].bytes_after <= 345_600 - 64_000


def test_one_row_stays_whatever_it_holds():
    model = nn.ModuleDict({"item": nn.Embedding(3000, 16), "mask": nn.Embedding(1, 16), "bias": nn.Embedding(2, 1)})
    nn.init.constant_(model["mask"].weight, -torch.inf)
    nn.init.constant_(model["bias"].weight, torch.nan)
    report = mgqe.compress_(model, budget="10%", init="from_weight")
    assert [row.compressed for row in report.rows] == [True, False, False]
    assert {row.why for row in report.rows[1:]} == {"left: codes and centroids would take no fewer bytes"}
    with pytest.raises(ValueError, match="mask: counts has 2 entries"):
        trained(("mask", 1, 16), ("item", 3000, 16), counts={"mask": torch.ones(2)}, budget="10%")


def test_zeros_are_compressed_to_the_least_and_the_other_table_gets_the_rest():
    """Zeros need no codes, only a header."""
    model = nn.ModuleDict({"new": nn.Embedding(3000, 16), "item": nn.Embedding(3000, 16)})
    nn.init.zeros_(model["new"].weight)
    report = mgqe.compress_(model, budget="10%", init="from_weight")
    new, item = report.rows
    assert new.compressed
    assert new.bytes_after < 1000
    assert 34_000 < new.bytes_after + item.bytes_after <= 38_400
    tables = mgqe.freeze_(model)
    assert tables["new"].to_dense().abs().max() == 0


def test_a_model_is_judged_with_the_tables_that_stay():
    class WithDays(Scorer):
        def __init__(self):
            super().__init__()
            self.day = nn.Embedding(7, D)

        def forward(self, users, items):
            return super().forward(users, items) + 0.01 * self.day(items % 7).sum(-1)

    model = WithDays()
    days = model.day.weight.detach().clone()
    calibration = mgqe.calibrate(model, batches(), loss, progress=False)
    report = mgqe.compress_(model, counts={"item": COUNTS}, budget="15%", init="from_weight", calibration=calibration)
    rows = {row.path: row for row in report.rows}
    assert report.compressed == ("user", "item")
    assert rows["day"].why == "left: codes and centroids would take no fewer bytes"
    assert report.bytes_after <= 0.15 * report.bytes_before
    assert torch.equal(model.day.weight, days)


def test_trained_tables_need_no_even_plans(monkeypatch):
    monkeypatch.setattr("mgqe.convert.budget.Problem.of", None)
    _, rows = trained(("day", 7, 16), ("item", 3000, 16), budget="10%")
    assert rows["item"].compressed
