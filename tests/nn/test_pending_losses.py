"""A quantisation loss counts in the step in which its forward pass was made, and never again."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mgqe
from mgqe.nn.pending import MAX_PENDING_LOSSES

N, DIM = 60, 8
COUNTS = torch.arange(N, 0, -1)
IDS = torch.arange(20)

LAYERS = {
    "defaults": {},
    "int8 centroids": {"centroid_dtype": "int8"},
    "two codebooks": {"share_codebook": False},
    "sparse": {"sparse": True},
    "bfloat16 rows": {"rows": "bfloat16"},
    "cached rows": {"rows": "cached"},
    "max_norm": {"max_norm": 1.0},
    "padding": {"padding_idx": 3},
    "bags": {"bag": True},
}
OPTIMISERS = {
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "SGD with momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "RowwiseAdagrad": lambda model: mgqe.RowwiseAdagrad(model.parameters(), lr=0.1),
}


def make(bag: bool = False, **arguments: object) -> nn.Module:
    cls = mgqe.MGQEmbeddingBag if bag else mgqe.MGQEmbedding
    return cls(N, DIM, counts=COUNTS, num_centroids=(4, 4), warmup_steps=0, **arguments)


def two_tables(**arguments: object) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"news": make(**arguments), "shop": make(**arguments)})


def look_up(layer: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    return layer(ids.view(-1, 1) if isinstance(layer, mgqe.MGQEmbeddingBag) else ids)


def state_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def optimiser_of(name: str, model: nn.Module, sparse: bool) -> torch.optim.Optimizer:
    if sparse and name == "Adam":
        return torch.optim.SparseAdam(list(model.parameters()), lr=1e-3)
    return OPTIMISERS[name](model)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)
def test_a_table_that_the_step_does_not_look_up_stays_as_it_is(arguments, name):
    model = two_tables(**arguments)
    optimizer = optimiser_of(name, model, arguments.get("sparse", False))
    for step in range(6):
        optimizer.zero_grad()
        vectors = look_up(model["news" if step == 0 else "shop"])
        loss = mgqe.quantization_loss(model)
        assert loss > 0
        (vectors.square().mean() + loss).backward()
        optimizer.step()
        if step == 0:
            before = state_of(model["news"])
    after = state_of(model["news"])
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_table_that_the_step_does_not_look_up_adds_nothing():
    model = two_tables()
    look_up(model["news"])
    mgqe.quantization_loss(model).backward()
    look_up(model["shop"])
    assert mgqe.quantization_loss(model) == mgqe.quantization_loss(model["shop"])


@pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)
def test_a_loss_that_its_own_step_did_not_read_is_gone_in_the_next(arguments):
    model = two_tables(**arguments)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    news, shop = model["news"], model["shop"]
    vectors = look_up(news)
    if arguments.get("max_norm") is not None:  # rows change in forward passes too: codebooks tell the step
        sum(book.square().sum() for book in news.quantizer.codebooks).backward()
    vectors.square().mean().backward()
    optimizer.step()
    look_up(shop)
    assert mgqe.quantization_loss(model) == mgqe.quantization_loss(shop)


def test_a_loss_of_a_table_without_a_gradient_is_gone_in_the_next_step_too():
    model = two_tables()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    look_up(model["news"])  # no optimiser steps for this table: its rows have no gradient
    for _ in range(2):
        look_up(model["shop"]).square().mean().backward()
        optimizer.step()
    look_up(model["shop"])
    assert mgqe.quantization_loss(model) == mgqe.quantization_loss(model["shop"])


def test_a_table_whose_optimiser_steps_first_leaves_the_other_its_loss():
    model = two_tables()
    item, user = look_up(model["news"]), look_up(model["shop"])
    first = torch.optim.SGD(model["shop"].parameters(), lr=0.1)
    (user * item.detach()).sum().backward()
    first.step()
    assert mgqe.quantization_loss(model) == mgqe.quantization_loss(model["news"]) > 0


def test_a_loss_that_is_read_for_a_log_still_counts():
    layer = make()
    look_up(layer)
    with torch.no_grad():
        logged = mgqe.quantization_loss(layer)
    look_up(layer)
    assert torch.allclose(mgqe.quantization_loss(layer), 2 * logged)


def test_a_loss_of_given_parameters_is_that_of_the_pass():
    layer = make()
    look_up(layer)
    loss = mgqe.quantization_loss(layer)
    loss.backward()
    given = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}
    torch.optim.SGD(layer.parameters(), lr=0.0).step()
    torch.func.functional_call(layer, given, (IDS,))
    again = mgqe.quantization_loss(layer)
    assert torch.equal(again, loss)
    gradients = torch.autograd.grad(again, list(given.values()))
    for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


def test_every_pass_of_an_accumulated_step_counts_once():
    model = two_tables()
    news, shop = model["news"], model["shop"]
    look_up(news, torch.arange(5))
    first = mgqe.quantization_loss(model)
    look_up(shop, torch.arange(5, 9))
    second = mgqe.quantization_loss(model)
    look_up(news, torch.arange(9, 12))
    third = mgqe.quantization_loss(model)
    (first + second + third).backward()

    twin = two_tables()
    for name, ids in (("news", torch.arange(5)), ("shop", torch.arange(5, 9)), ("news", torch.arange(9, 12))):
        look_up(twin[name], ids)
        mgqe.quantization_loss(twin[name]).backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, atol=1e-7)


def test_a_layer_that_a_step_calls_many_times_counts_every_call():
    layer = make()
    expected = 0.0
    for _ in range(200):
        look_up(layer)
        one = copy.deepcopy(layer)
        look_up(one)
        expected += mgqe.quantization_loss(one).item()
    assert mgqe.quantization_loss(layer).item() == pytest.approx(expected, rel=1e-4)


def test_checkpointed_passes_count_once_each():
    layer, twin = make(), make()
    twin.load_state_dict(layer.state_dict())
    layer.start_quantizing()
    twin.load_state_dict(layer.state_dict())
    out = checkpoint(layer, IDS, use_reentrant=False) + checkpoint(layer, IDS + 20, use_reentrant=False)
    (out.sum() + mgqe.quantization_loss(layer)).backward()
    assert mgqe.quantization_loss(layer) == 0  # the passes that backward made again left nothing
    (twin(IDS).sum() + twin(IDS + 20).sum() + mgqe.quantization_loss(twin)).backward()
    for parameter, other in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, atol=1e-6)


def test_reading_one_layer_does_not_take_its_loss_from_the_model():
    model = two_tables()
    for layer in model.values():
        look_up(layer)
    parts = [mgqe.quantization_loss(layer) for layer in model.values()]
    assert torch.allclose(mgqe.quantization_loss(model), sum(parts))
    assert torch.allclose(mgqe.quantization_loss(model), sum(parts))  # nor does reading the model


def test_a_loss_is_zero_after_its_backward_pass():
    layer = make()
    look_up(layer)
    mgqe.quantization_loss(layer).backward(retain_graph=True)
    assert mgqe.quantization_loss(layer) == 0
    assert not mgqe.quantization_loss(layer).requires_grad


def test_the_output_layer_of_tied_weights_counts_in_its_own_step():
    layer = make()
    (layer.weight.sum() + mgqe.quantization_loss(layer)).backward()
    assert layer.raw_weight.grad[30:].abs().sum() > 0
    layer.raw_weight.grad.zero_()
    look_up(layer, torch.tensor([1]))
    mgqe.quantization_loss(layer).backward()
    assert layer.raw_weight.grad[2:].abs().sum() == 0


def test_a_loop_that_never_reads_the_losses_is_warned_and_does_not_hoard_them():
    layer = make()
    for _ in range(MAX_PENDING_LOSSES):
        layer(torch.tensor([1]))
    with pytest.warns(RuntimeWarning, match="quantization_loss"):
        layer(torch.tensor([1]))
    assert len(layer.losses) == 1


def test_a_layer_that_does_not_train_is_not_warned_of():
    layer = make().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(MAX_PENDING_LOSSES + 1):
            layer(torch.tensor([1]))
    assert len(layer.losses) == 1
    assert mgqe.quantization_loss(layer) > 0


def test_a_loss_that_was_counted_does_not_hold_its_graph_once_the_next_pass_begins():
    layer = make()
    look_up(layer)
    entry = weakref.ref(layer.losses._losses[0])
    mgqe.quantization_loss(layer).backward()
    look_up(layer)
    gc.collect()
    assert entry() is None


def test_a_step_compiled_whole_counts_its_own_losses():
    model = two_tables()

    @torch.compile(backend="eager")
    def loss_of(name: str) -> torch.Tensor:
        return model[name](IDS).square().mean() + mgqe.quantization_loss(model)

    loss_of("news").backward()
    news = [parameter.grad.clone() for parameter in model["news"].parameters()]
    loss_of("shop").backward()
    for parameter, before in zip(model["news"].parameters(), news, strict=True):
        assert torch.equal(parameter.grad, before)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model["shop"].parameters())


def test_a_step_compiled_whole_is_compiled_once():
    layer, graphs = make(), []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend)
    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        return layer(ids).square().mean() + mgqe.quantization_loss(layer)

    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(4):
        if step == 1:
            before = len(graphs)
        loss_of(IDS).backward()
        optimizer.step()
    assert len(graphs) == before
