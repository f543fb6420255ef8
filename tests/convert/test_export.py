"""Portable copies of frozen models: the frozen model's outputs, shared memory, and bad input."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from export_cases import DIM, LAYOUTS, N, batch, check_rows, frozen, layout, two_towers
from table_cases import CASES, MIXED, build
from torch import nn

import mgqe
from mgqe import CompactEmbedding, CompactEmbeddingBag, MGQEmbedding
from mgqe.baselines import FullTable
from mgqe.convert.export import PortableEmbedding, PortableEmbeddingBag

TURNED = next(case for case in MIXED if case.name == "turned, int8")


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows(name):
    table = layout(name)
    made = mgqe.portable(CompactEmbedding(table))
    assert isinstance(made, PortableEmbedding)
    ids = torch.arange(table.num_embeddings)
    check_rows(made(ids), table)
    check_rows(made.weight, table)
    assert made(ids[:4].reshape(2, 2).int()).shape == (2, 2, table.embedding_dim)
    assert made(ids[:0]).shape == (0, table.embedding_dim)
    assert sum(b.nbytes for b in made.buffers()) == table.nbytes
    for unknown in (-1, table.num_embeddings, 1 << 62):
        with pytest.raises(IndexError, match=f"id {unknown} is out of range"):
            made(torch.tensor([0, unknown]))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("case", [CASES[0], replace(CASES[0], padding_idx=3), TURNED], ids=["", "padding", "turned"])
def test_bags(mode, case):
    table = build(case).table
    bag = CompactEmbeddingBag(table, mode=mode)
    made = mgqe.portable(bag)
    assert isinstance(made, PortableEmbeddingBag)
    ids = torch.randint(table.num_embeddings, (12,), generator=torch.Generator().manual_seed(0))
    ids[3:6] = 3  # a bag of only padding
    empty = torch.tensor([0, 0, 3, 6, 6, 12])  # empty bags at the start, in the middle and at the end
    for given in (
        (ids.reshape(4, 3),),
        (ids, empty),
        (ids, empty.int()),
        (ids[:0].reshape(2, 0),),
        (ids[:0], empty[:2]),
    ):
        torch.testing.assert_close(made(*given), bag(*given), rtol=1e-6, atol=1e-6)
    weights = torch.randn(12)
    if mode == "sum":
        for given in ((ids, empty, weights), (ids.reshape(4, 3), None, weights.reshape(4, 3).half())):
            torch.testing.assert_close(made(*given), bag(*given), rtol=1e-6, atol=1e-6)
    bag.include_last_offset = True
    offsets = torch.tensor([0, 5, 5, 12])
    torch.testing.assert_close(mgqe.portable(bag)(ids, offsets), bag(ids, offsets), rtol=1e-6, atol=1e-6)
    assert bag(ids, offsets).shape == (3, 8)


def test_models_with_mixed_tables():
    model = two_towers()
    sizes = {"user": (200, 800, 1000), "item": (200, 1800)}
    for path, case in (("user", TURNED), ("item", MIXED[0])):
        table = build(replace(case, sizes=sizes[path])).table
        setattr(model, path, nn.Sequential(CompactEmbedding(table), nn.Linear(table.embedding_dim, DIM)))
    made = mgqe.portable(model)
    torch.testing.assert_close(made(*batch(5)), model(*batch(5)), rtol=1e-5, atol=1e-6)
    program = torch.export.export(made, batch(5))
    torch.testing.assert_close(program.module()(*batch(5)), model(*batch(5)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_refuse_what_the_frozen_bag_refuses(mode):
    bag = CompactEmbeddingBag(build(CASES[0]).table, mode=mode)
    ids = torch.arange(6)
    bad = [
        ((ids,), "without offsets"),
        ((ids.reshape(2, 3), torch.tensor([0, 1])), "are bags already"),
        ((ids, torch.tensor([1, 3])), "must start at 0, got 1"),
        ((ids, torch.tensor([0, 3, 2])), "must not decrease"),
        ((ids, torch.tensor([0, 7])), "must not exceed the number of ids, 6"),
        ((ids, torch.tensor([0, 3]), torch.ones(5)), "shaped like ids" if mode == "sum" else 'mode="sum" only'),
    ]
    for given, message in bad:
        for module in (bag, mgqe.portable(bag)):
            with pytest.raises(ValueError, match=message):
                module(*given)
    for module in (bag, mgqe.portable(bag)):
        with pytest.raises(IndexError, match="id 47 is out of range"):
            module(torch.tensor([[0, 47]]))


def test_a_fallback_stands_for_unknown_ids():
    table = build(CASES[0]).table.with_fallback(torch.arange(8.0))
    ids = torch.tensor([-1, 0, 46, 47, 1 << 60])
    assert torch.equal(mgqe.portable(CompactEmbedding(table))(ids), table.lookup(ids))
    bag = CompactEmbeddingBag(table, mode="sum")
    torch.testing.assert_close(mgqe.portable(bag)(ids[None]), bag(ids[None]))


def test_appended_ids_are_exported():
    table = build(CASES[0]).table
    table.append(torch.randn(5, 8), tier=0)
    table.append(torch.randn(5, 8))
    made = mgqe.portable(CompactEmbedding(table))
    assert torch.equal(made.weight, table.to_dense())
    table.append(torch.randn(1, 8))
    with pytest.raises(IndexError, match="id 57 is out of range"):  # ids appended later are unknown
        made(torch.tensor([57]))


def test_the_copy_shares_memory_and_the_model_stays():
    model = two_towers()
    made = mgqe.portable(model)
    assert type(model.user) is CompactEmbedding
    assert type(made.user) is PortableEmbedding
    assert made.left[0].weight is model.left[0].weight
    assert made.user.codes_0.data_ptr() == model.user.table.to_tensors()[0]["codes.0"].data_ptr()
    assert not made.training
    torch.testing.assert_close(made(*batch(5)), model(*batch(5)), rtol=1e-6, atol=1e-6)
    again = copy.deepcopy(made).bfloat16()
    assert again.user.centroids_0.dtype == torch.float32
    assert again(*batch(5)).dtype == torch.bfloat16


def test_shared_and_tied_tables():
    model = nn.Module()
    model.embed = nn.Embedding(N, DIM)
    model.again = model.embed
    model.head = nn.Linear(DIM, N, bias=False)
    model.head.weight = model.embed.weight
    frozen(model)
    made = mgqe.portable(model)
    assert made.again is made.embed
    hidden = torch.randn(3, DIM)
    torch.testing.assert_close(made.head(hidden), model.head(hidden))


def test_bad_input_names_the_path():
    with pytest.raises(ValueError, match=r"Linear has no compact table: call mgqe.compress_"):
        mgqe.portable(nn.Linear(2, 2))
    model = two_towers()
    model.extra = nn.ModuleDict({"late": MGQEmbedding(100, 8, tiers=[10, 90])})
    with pytest.raises(ValueError, match=r"extra\.late: not frozen: call mgqe.freeze_"):
        mgqe.portable(model)
    model = two_towers()
    model.user = CompactEmbedding(FullTable(torch.randn(N, DIM)))
    with pytest.raises(TypeError, match="user: holds a FullTable, and only a CompactTable"):
        mgqe.portable(model)
    model.user = CompactEmbedding(build(CASES[-1]).table)
    with pytest.raises(ValueError, match="user: the table has no rows"):
        mgqe.portable(model)
    with pytest.raises(TypeError, match="expected a CompactTable, got Tensor"):
        PortableEmbedding(torch.randn(2, 2))
    with pytest.raises(ValueError, match="mode must be one of"):
        PortableEmbeddingBag(build(CASES[0]).table, mode="most")
