"""calibrate: the metric of every table of a trained model, and a judge for other tables; the model stays as it is."""

from __future__ import annotations

import copy
import math
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import mgqe
from mgqe.convert import progress

N, DIM = 30, 4


class Ranker(nn.Module):
    def __init__(self, n: int = N) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.item = nn.Embedding(n, DIM, padding_idx=0)
        self.tags = nn.EmbeddingBag(n, DIM, mode="mean")
        self.norm = nn.BatchNorm1d(DIM)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(DIM, n, bias=False)
        self.out.weight = self.item.weight

    def forward(self, ids):
        return self.out(self.dropout(self.norm(self.item(ids).sum(1) + self.tags(ids))))


def loss_fn(model, batch):
    ids, target = batch
    return F.cross_entropy(model(ids), target)


def make_batches(number=5, seed=3):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(N, shape, generator=generator)  # noqa: E731
    return [(draw(6, 3), draw(6)) for _ in range(number)]


class Sum(nn.Module):
    """<v, row> summed over ids, by one table, whose gradients are the v."""

    def __init__(self, table=None):
        super().__init__()
        self.table = nn.Embedding(N, DIM) if table is None else table

    def forward(self, ids, vectors):
        return (self.table(ids) * vectors).sum()


def call(model, batch):
    return model(*batch)


def sums(number=3, size=5):
    torch.manual_seed(5)
    return [(torch.randint(N, (size,)), torch.randn(size, DIM)) for _ in range(number)]


def second_moment(gradients):
    return (gradients.T @ gradients / len(gradients)).double()


# ---- the metric ----------------------------------------------------------------------------------------------


def test_by_hand():
    model, batch = Sum(), (torch.tensor([3, 3]), torch.tensor([[1.0, 2, 0, 0], [3, 0, 0, 0]]))
    calibration = mgqe.calibrate(model, [batch], call, progress=False)
    expected = torch.zeros(DIM, DIM, dtype=torch.float64)
    expected[:2, :2] = torch.tensor([[5.0, 1], [1, 2]])
    assert torch.equal(calibration.metrics["table"].matrix, expected)
    assert calibration.metrics["table"].lookups == 2
    assert (calibration.num_batches, calibration.num_skipped) == (1, 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_against_autograd(frozen):
    model, batches = Ranker(), make_batches()
    model.item.weight.requires_grad_(not frozen)
    calibration = mgqe.calibrate(model, batches, loss_fn, progress=False)
    twin = copy.deepcopy(model).eval()
    twin.requires_grad_(True)
    twin.out.weight = nn.Parameter(twin.item.weight.detach().clone())
    of_item, of_tags, losses = [], [], []
    for ids, target in batches:
        vectors = twin.item(ids).detach().requires_grad_()
        tag_vectors = F.embedding(ids, twin.tags.weight).detach().requires_grad_()
        loss = F.cross_entropy(twin.out(twin.norm(vectors.sum(1) + tag_vectors.mean(1))), target)
        gradients = torch.autograd.grad(loss, [vectors, tag_vectors, twin.out.weight])
        of_item += [gradients[0][ids != 0], gradients[2][1:]]  # without padding
        of_tags.append(gradients[1].view(-1, DIM))
        losses.append(loss.item())
    for path, gradients in (("item", of_item), ("tags", of_tags)):
        metric = calibration.metrics[path]
        assert metric.source == "gradients"
        torch.testing.assert_close(metric.matrix, second_moment(torch.cat(gradients)), rtol=1e-4, atol=1e-8)
        assert metric.lookups == pytest.approx(len(torch.cat(gradients)) / len(batches))
    assert calibration.mean_loss == pytest.approx(sum(losses) / len(losses))


def test_the_metric_is_that_of_a_layer_in_its_warm_up():
    layer = mgqe.DPQEmbedding(N, DIM, num_centroids=8)
    model, batches = Sum(layer), sums(1)
    layer.gathers_metric = True
    calibration = mgqe.calibrate(model, batches, call, progress=False)
    assert layer.metric().source == "identity"
    call(model, batches[0]).backward()
    torch.testing.assert_close(calibration.metrics["table"].matrix, layer.metric().matrix, rtol=1e-6, atol=1e-7)
    assert calibration.metrics["table"].lookups == layer.metric().lookups


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("rows", ["float32", "bfloat16", "cached", "narrow", "sketch"])
def test_quantised_layers(rows, started):
    quantizer = "sx" if rows == "narrow" else "vq"
    model = Sum(mgqe.DPQEmbedding(N, DIM, num_centroids=8, rows=rows, quantizer=quantizer))
    if started:
        mgqe.start_quantizing(model)
    before = copy.deepcopy(model.state_dict())
    calibration = mgqe.calibrate(model, batches := sums(), call, progress=False)
    expected = second_moment(torch.cat([vectors for _, vectors in batches]))
    torch.testing.assert_close(calibration.metrics["table"].matrix, expected, rtol=1e-5, atol=1e-6)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_quantised_bags_and_tied_outputs():
    model, batches = Ranker(1000), make_batches()
    expected = mgqe.calibrate(model, batches, loss_fn, progress=False).metrics
    assert mgqe.compress_(model, mgqe.CompressConfig(num_centroids=8)).compressed == ("item", "tags")
    calibration = mgqe.calibrate(model, batches, loss_fn, progress=False)
    for path, metric in expected.items():
        torch.testing.assert_close(calibration.metrics[path].matrix, metric.matrix, rtol=1e-4, atol=1e-8)
        assert calibration.metrics[path].lookups == metric.lookups


def test_a_table_at_several_paths_and_two_modules_of_one_weight():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Embedding(N, DIM), nn.Embedding(N, DIM)
            self.other.weight, self.again = self.first.weight, self.first

        def forward(self, ids, vectors):
            return (self.first(ids) * vectors[0] + self.other(ids) * vectors[1] + self.again(ids) * vectors[2]).sum()

    vectors = torch.randn(3, 7, DIM)
    calibration = mgqe.calibrate(Model(), [(torch.arange(7), vectors)], call, progress=False)
    assert list(calibration.metrics) == ["first"]
    expected = second_moment(vectors.view(-1, DIM))
    torch.testing.assert_close(calibration.metrics["first"].matrix, expected, rtol=1e-5, atol=1e-6)
    assert calibration.metrics["first"].lookups == 21


def test_a_model_that_is_a_table():
    table, batches = nn.Embedding(N, DIM), sums()
    calibration = mgqe.calibrate(table, batches, lambda t, b: (t(b[0]) * b[1]).sum(), progress=False)
    expected = second_moment(torch.cat([vectors for _, vectors in batches]))
    torch.testing.assert_close(calibration.metrics[""].matrix, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_a_model_reads_by_itself(sparse):
    class Model(Sum):
        def forward(self, ids, vectors):
            return (F.embedding(ids, self.table.weight, sparse=sparse) * vectors).sum()

    batch = (torch.tensor([4, 9, 2]), torch.randn(3, DIM))
    metric = mgqe.calibrate(Model(), [batch], call, progress=False).metrics["table"]
    assert metric.lookups == 3  # rows without a gradient are none
    torch.testing.assert_close(metric.matrix, second_moment(batch[1]), rtol=1e-5, atol=1e-6)


def test_sparse_gradients():
    tables = nn.ModuleDict({"row": nn.Embedding(N, DIM, sparse=True), "bag": nn.EmbeddingBag(N, DIM, sparse=True)})
    ids, vectors = torch.tensor([[4, 9], [2, 2]]), torch.randn(2, 2, DIM)

    def fn(model, batch):
        return (model["row"](batch[0]) * vectors).sum() + (model["bag"](batch[0]) * vectors[0]).sum()

    metrics = mgqe.calibrate(tables, [(ids,)], fn, progress=False).metrics
    torch.testing.assert_close(metrics["row"].matrix, second_moment(vectors.view(-1, DIM)), rtol=1e-5, atol=1e-6)
    pulls = (vectors[0] / 2).repeat_interleave(2, dim=0)  # each id has half of a mean
    torch.testing.assert_close(metrics["bag"].matrix, second_moment(pulls), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean", "weighted", "max"])
def test_bags_by_offsets_count_as_each_of_their_ids_would(mode):
    weights = torch.tensor([2.0, -1.0, 0.5]) if mode == "weighted" else None
    bag = nn.EmbeddingBag(N, DIM, mode="sum" if mode == "weighted" else mode)
    pull = torch.tensor([[1.0, 0, 0, 0], [0, 3.0, 0, 0]])
    batch = (torch.tensor([5, 6, 7]), torch.tensor([0, 2]), weights)
    calibration = mgqe.calibrate(bag, [batch], lambda m, b: (m(*b) * pull).sum(), progress=False)
    of_first = {"sum": 2.0, "mean": 0.5, "weighted": 5.0, "max": 1.0}[mode]  # 1 + 1, 1/4 + 1/4, 4 + 1, one of both
    of_second = 9 * (0.25 if mode == "weighted" else 1.0)
    expected = torch.diag(torch.tensor([of_first, of_second, 0, 0], dtype=torch.float64)) / 3
    torch.testing.assert_close(calibration.metrics[""].matrix, expected)
    assert calibration.metrics[""].lookups == 3


def test_mixed_precision():
    class Model(Sum):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(DIM, DIM, bias=False)

        def forward(self, ids):
            return self.head(self.table(ids)).float().sum()

    model, ids = Model(), torch.tensor([3, 8])

    def autocast(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(batch)

    row = model.head.weight.detach().bfloat16().double().sum(0)
    expected = torch.outer(row, row)
    under_autocast = mgqe.calibrate(model, [ids], autocast, progress=False).metrics["table"]
    halved = mgqe.calibrate(model.bfloat16(), [ids], lambda m, b: m(b), progress=False).metrics["table"]
    for metric in (under_autocast, halved):
        assert metric.matrix.dtype == torch.float64
        torch.testing.assert_close(metric.matrix, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


# ---- the model is as it was ----------------------------------------------------------------------------------


def test_nothing_of_the_model_changes():
    model, batches = Ranker(), make_batches()
    model.norm.eval()
    model.tags.weight.requires_grad_(False)
    model.item.weight.grad = torch.ones(N, DIM)
    calls = []
    model.item.register_forward_hook(lambda *_: calls.append(1))
    before = pickle.dumps(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = len(model.tags._forward_hooks), len(model.item._forward_hooks)
    random_state = torch.random.get_rng_state()
    calibration = mgqe.calibrate(model, batches, loss_fn, progress=False)
    calibration.loss(model)
    assert pickle.dumps(model.state_dict()) == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.item.weight.grad, torch.ones(N, DIM))
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"item.weight"}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"tags.weight"}
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert (len(model.tags._forward_hooks), len(model.item._forward_hooks)) == hooks
    assert len(calls) == 2 * len(batches)


def test_an_error_leaves_the_model_as_it_was():
    model = Ranker().train()
    model.item.weight.requires_grad_(False)

    def fails(model, batch):
        model(batch[0])
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        mgqe.calibrate(model, make_batches(), fails, progress=False)
    assert all(module.training for module in model.modules())
    assert not model.item.weight.requires_grad
    assert not model.item._forward_hooks


def test_a_model_that_changes_its_vectors_in_place():
    class Model(Sum):
        def forward(self, ids, vectors):
            rows = self.table(ids)
            rows *= 2
            return (rows * vectors).sum()

    batches = sums()
    metric = mgqe.calibrate(Model(), batches, call, progress=False).metrics["table"]
    expected = second_moment(2 * torch.cat([vectors for _, vectors in batches]))
    torch.testing.assert_close(metric.matrix, expected, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_counts_once():
    class Model(Sum):
        def forward(self, ids, vectors):
            return checkpoint(lambda i: self.table(i).sin() * vectors, ids, use_reentrant=False).sum()

    model, batches = Model(), sums()
    metric = mgqe.calibrate(model, batches, call, progress=False).metrics["table"]
    gradients = torch.cat([vectors * model.table(ids).detach().cos() for ids, vectors in batches])
    torch.testing.assert_close(metric.matrix, second_moment(gradients), rtol=1e-5, atol=1e-6)
    assert metric.lookups == 5


def test_a_compiled_model():
    model, batches = Sum(), sums()
    expected = mgqe.calibrate(model, batches, call, progress=False)
    compiled = torch.compile(model, backend="eager")
    compiled(*batches[0]).backward()  # its graphs know of no hooks
    calibration = mgqe.calibrate(compiled, batches, call, progress=False)
    (path,) = calibration.metrics
    assert path == "_orig_mod.table"
    assert torch.equal(calibration.metrics[path].matrix, expected.metrics["table"].matrix)


def test_within_no_grad_and_inference_mode():
    model, batches = Sum(), sums()
    expected = mgqe.calibrate(model, batches, call, progress=False).metrics["table"].matrix
    with torch.no_grad():
        assert torch.equal(mgqe.calibrate(model, batches, call, progress=False).metrics["table"].matrix, expected)
    with torch.inference_mode():
        assert torch.equal(mgqe.calibrate(model, batches, call, progress=False).metrics["table"].matrix, expected)


# ---- batches and the judge -----------------------------------------------------------------------------------


def test_batches_of_an_iterator_are_remembered():
    model, batches = Ranker(), make_batches()
    listed = mgqe.calibrate(model, batches, loss_fn, progress=False)
    once = mgqe.calibrate(model, iter(batches), loss_fn, progress=False)
    assert once.mean_loss == listed.mean_loss
    assert once.loss(model) == listed.loss(model) == pytest.approx(listed.mean_loss)
    loader = DataLoader([(ids[0], target[0]) for ids, target in batches], batch_size=2, shuffle=True)
    loaded = mgqe.calibrate(model, loader, loss_fn, progress=False)
    assert loaded.num_batches == 3
    assert loaded.loss(model) == pytest.approx(loaded.mean_loss)


def test_the_judge_draws_alike_for_every_model():
    def sampled(model, batch):
        ids, _ = batch
        return F.binary_cross_entropy_with_logits(model(ids)[:, torch.randint(N, (3,))], torch.zeros(len(ids), 3))

    model = Ranker()
    calibration = mgqe.calibrate(model, make_batches(), sampled, progress=False)
    torch.manual_seed(99)
    assert calibration.loss(model) == calibration.mean_loss
    worse = copy.deepcopy(model)
    with torch.no_grad():
        worse.item.weight.mul_(10)
    assert calibration.loss(worse) > calibration.loss(model)
    assert all(parameter.grad is None for parameter in worse.parameters())


# ---- bad input -----------------------------------------------------------------------------------------------


def refused(error, message, model=None, batches=None, fn=loss_fn):
    model, batches = model or Ranker(), make_batches() if batches is None else batches
    with pytest.raises(error, match=message):
        mgqe.calibrate(model, batches, fn, progress=False)


def test_no_batches_and_no_tables():
    refused(ValueError, "there are no batches to calibrate with", batches=[])
    refused(ValueError, "there are no batches to calibrate with", batches=iter(()))
    refused(TypeError, "batches must be an iterable of batches, such as a list, got dict", batches={"ids": 1})
    refused(TypeError, "batches must be an iterable of batches, such as a list, got int", batches=3)
    refused(ValueError, "Linear has no table to calibrate", model=nn.Linear(3, 3))
    refused(TypeError, "expected a model, got type", model=nn.Linear)
    with pytest.raises(TypeError, match=r"progress must be a function of \(done, total\), None or False, got str"):
        mgqe.calibrate(Ranker(), make_batches(), loss_fn, progress="yes")


def test_losses_that_are_none():
    refused(TypeError, "batch 0: loss_fn must return a scalar tensor, got float", fn=lambda m, b: loss_fn(m, b).item())
    refused(ValueError, r"batch 0: loss_fn must return a scalar, got shape \(6, 30\)", fn=lambda m, b: m(b[0]))
    refused(ValueError, "batch 0: the loss is nan", fn=lambda m, b: loss_fn(m, b) * math.nan)
    refused(ValueError, "batch 0: the loss has no gradient", fn=lambda m, b: loss_fn(m, b).detach())
    refused(ValueError, "batch 0: the loss has no gradient", fn=torch.no_grad()(loss_fn))


def test_tables_that_no_batch_reaches():
    model = nn.ModuleDict({"used": Sum(), "silent": nn.Embedding(N, DIM), "cut": nn.Embedding(N, DIM)})

    def fn(model, batch):
        model["cut"](batch[0]).detach()
        return model["used"](*batch)

    message = (
        "^calibrate: no batch looks ids up in silent; the loss does not depend on cut; errors there count alike in all "
        "directions$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        calibration = mgqe.calibrate(model, sums(), fn, progress=False)
    assert caught[0].filename == __file__
    sources = {path: metric.source for path, metric in calibration.metrics.items()}
    assert sources == {"used.table": "gradients", "silent": "identity", "cut": "identity"}
    weight = nn.Parameter(torch.ones(()))
    refused(
        ValueError, "no table can be calibrated: no batch looks ids up in table", Sum(), sums(), lambda m, b: weight
    )


def test_gradients_that_are_all_zero():
    refused(
        ValueError,
        "no table can be calibrated: the loss does not depend on table",
        Sum(),
        sums(),
        lambda model, batch: 0.0 * call(model, batch),
    )
    model = nn.ModuleDict({"used": Sum(), "silent": Sum()})
    with pytest.warns(UserWarning, match=r"the loss does not depend on silent\.table"):
        calibration = mgqe.calibrate(model, sums(), lambda m, b: m["used"](*b) + 0.0 * m["silent"](*b), progress=False)
    assert calibration.metrics["silent.table"].source == "identity"


def test_batches_with_gradients_that_are_not_finite_are_left_out():
    model, batches = Sum(), sums()
    batches[1] = (batches[1][0], batches[1][1] * 0)

    def fn(model, batch):  # the square root of 0 has no finite derivative
        ids, vectors = batch
        return (model.table(ids) * vectors).sum() + vectors.abs().sum().sub((0 * model.table(ids)).sum()).sqrt()

    calibration = mgqe.calibrate(model, batches, fn, progress=False)
    assert (calibration.num_batches, calibration.num_skipped) == (2, 1)
    assert calibration.loss(model) == pytest.approx(calibration.mean_loss)
    refused(ValueError, "gradients are NaN or infinite in all 1 batches", model, batches[1:2], fn)


# ---- progress ------------------------------------------------------------------------------------------------


def test_progress(capsys):
    model, batches, calls = Sum(), sums(), []
    mgqe.calibrate(model, batches, call, progress=lambda done, total: calls.append((done, total)))
    mgqe.calibrate(model, (b for b in batches), call, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (3, None)]

    class Stream(torch.utils.data.IterableDataset):  # whose loader has a length and does not know it
        def __iter__(self):
            return iter(batches)

    loader = DataLoader(Stream(), batch_size=None)
    assert mgqe.calibrate(model, loader, call, progress=False).num_batches == 3
    assert capsys.readouterr() == ("", "")
    mgqe.calibrate(model, batches, call)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mgqe.calibrate: 3 batches, mean loss ")
    assert err.count("\n") == 1


def test_a_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown(None, "calibrate") as report:
        report(1, None)
        report(1, 3)
        assert report.__closure__ is not None  # holds the bar
