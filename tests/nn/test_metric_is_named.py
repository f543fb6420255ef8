"""What a plan measured errors by is in what prints, and a layer that saw no gradients says so."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

import mgqe

N, DIM = 600, 8
COUNTS = torch.arange(N, 0, -1)
ROWS = torch.randn(N, DIM, generator=torch.Generator().manual_seed(0)) * torch.linspace(2.0, 0.2, DIM)
QUERIES = torch.randn(50, DIM, generator=torch.Generator().manual_seed(1))


def trained(factor, passes=3, warmup_steps=3, **arguments):
    """A layer after so many steps whose gradients are multiplied by ``factor``; its rows stay as they are."""
    layer = mgqe.MGQEmbedding(
        N, DIM, counts=COUNTS, budget="25%", warmup_steps=warmup_steps, _weight=ROWS.clone(), **arguments
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    ids = torch.arange(20)
    for _ in range(passes):
        (layer(ids) * QUERIES[:20]).mul(factor).sum().backward()
        optimizer.step()
        layer.zero_grad()
    return layer


def test_a_layer_names_what_its_plan_measured_errors_by():
    layer = trained(1.0)
    assert "metric" not in repr(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.arange(3))
    assert ", metric='gradients'" in repr(layer)
    for given, name in (({}, "identity"), ({"queries": QUERIES}, "queries")):
        of_rows = mgqe.DPQEmbedding.from_pretrained(ROWS, budget="25%", **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            of_rows(torch.arange(3))  # the first pass, before which nothing can have been gathered
        assert f", metric={name!r}" in repr(of_rows)
        assert mgqe.plan(N, DIM, "25%", weight=ROWS, **given).metric == name
        assert f", metric: {name}, " in str(mgqe.plan(N, DIM, "25%", weight=ROWS, **given))
    even = mgqe.DPQEmbedding.from_pretrained(ROWS, num_centroids=16)
    even.start_quantizing()
    assert "metric" not in repr(even)
    assert "metric" not in str(mgqe.plan(N, DIM, "25%", counts=COUNTS))


def test_checkpoints_and_copies_keep_the_name_and_a_reset_forgets_it():
    layer = trained(1.0)
    layer.start_quantizing()
    loaded = trained(1.0, passes=0)
    loaded.load_state_dict(layer.state_dict())
    for each in (loaded, copy.deepcopy(layer)):
        assert repr(each) == repr(layer)
    earlier = layer.state_dict()
    earlier["quantizer.layout"][-1] = 0  # as in plans of earlier versions
    loaded.load_state_dict(earlier)
    assert loaded.capacity == layer.capacity
    assert "metric" not in repr(loaded)
    layer.reset_parameters()
    assert "metric" not in repr(layer)


def test_compress_names_the_metric_of_its_layers():
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding(N, DIM, _weight=ROWS.clone())})
    mgqe.compress_(model, counts={"item": COUNTS}, budget="25%", init="from_weight", queries={"item": QUERIES})
    assert ", metric='queries'" in repr(model)


@pytest.mark.parametrize("factor", [0.0, math.nan, math.inf])
def test_a_layer_that_saw_no_usable_gradient_says_so_once(factor):
    layer = trained(factor)
    if factor:  # which the rows took up, whatever the learning rate
        layer.raw_weight.data.copy_(ROWS)
    with pytest.warns(UserWarning, match="no gradient of its rows that is finite and not zero: errors .* alike"):
        layer(torch.arange(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.arange(3))
    assert ", metric='identity'" in repr(layer)


def test_a_layer_that_was_told_not_to_gather_is_silent():
    layer = trained(1.0, passes=0)
    layer.gathers_metric = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            layer(torch.arange(3))
    assert ", metric='identity'" in repr(layer)
