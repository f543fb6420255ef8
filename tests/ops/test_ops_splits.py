"""Tiers of a tier map whose rows are in several places: the same bits as where they are in one."""

from __future__ import annotations

from dataclasses import replace

import instruction_sets
import pytest
import torch
from ops_tables import mixed_table, table
from topk_checks import check_all_paths, check_all_questions

from mgqe import ops
from mgqe.ops import _lookup, reference
from mgqe.ops.reference_topk import topk as topk_twin

CUTS = {"two each": ((4,), (100,)), "uneven": ((), (1, 2, 250)), "empty ends": ((0, 30), (0, 0, 300))}


def split(parts, cuts):
    """The same table, the rows of tier g in places that end at cuts[g]; extents stay."""
    spans = [[*zip((0, *ends), (*ends, size))] for ends, size in zip(cuts, parts.sizes)]
    copies = [g for g, of_tier in enumerate(spans) for _ in of_tier] + [*range(len(spans), len(parts.sizes))]
    pieces = [parts.codes[g][low:high].clone() for g, of_tier in enumerate(spans) for low, high in of_tier]
    pieces += parts.codes[len(spans) :]
    return replace(
        parts,
        codes=pieces,
        sizes=[len(rows) for rows in pieces],
        bits=[parts.bits[g] for g in copies],
        num_subspaces=[parts.num_subspaces[g] for g in copies],
        codebook_of=[parts.codebook_of[g] for g in copies],
        code_bits=[b for g in copies for b in parts.bits_of(g)] if parts.is_mixed else (),
        splits=[len(of_tier) for of_tier in spans],
    )


def tables():
    yield "even", table(shuffled=True, padding_idx=7)[0]
    yield "mixed", mixed_table(shuffled=True, matrix=torch.int8, dtype=torch.int8)[0]


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("parts", [parts for _, parts in tables()], ids=[name for name, _ in tables()])
def test_look_ups_bags_and_searches(parts, cuts):
    apart = split(parts, cuts)
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(parts.num_embeddings, (500,), generator=made)
    rows = reference.lookup(ids, parts)
    whole = ops.PreparedLookup(parts)
    assert torch.equal(reference.lookup(ids, apart), rows)
    for _ in instruction_sets.each():
        prepared = ops.PreparedLookup(apart)
        assert torch.equal(prepared(ids), rows)
        assert torch.equal(ops.bag(prepared, ids.view(25, 20)), ops.bag(whole, ids.view(25, 20)))
    check_all_questions(apart)
    queries = torch.randn(3, parts.embedding_dim, generator=made)
    few_left = torch.rand(parts.num_embeddings, generator=made) < 0.99
    for job in (ops.TopKJob(queries, 50), ops.TopKJob(queries, 50, True), ops.TopKJob(queries, 50, hidden=few_left)):
        expected = check_all_paths(apart, job, threads=(1,))
        assert all(
            torch.equal(mine, theirs) for mine, theirs in zip(expected[:2], topk_twin(parts, job)[:2], strict=True)
        )


def test_ids_appended_behind_a_split_map():
    parts = table(shuffled=True)[0]
    behind = replace(
        parts,
        codes=[*parts.codes, parts.codes[0][:9]],
        sizes=[*parts.sizes, 9],
        bits=[*parts.bits, parts.bits[0]],
        num_subspaces=[*parts.num_subspaces, parts.num_subspaces[0]],
        codebook_of=[*parts.codebook_of, 0],
    )
    apart, ids = split(behind, ((4,), (100, 200))), torch.arange(339)
    assert torch.equal(ops.PreparedLookup(apart)(ids), reference.lookup(ids, behind))
    assert torch.equal(reference.lookup(ids, apart), reference.lookup(ids, behind))


@pytest.mark.parametrize("parts", [parts for _, parts in tables()], ids=[name for name, _ in tables()])
def test_operators_take_what_is_apart_and_join_nothing(parts, monkeypatch):
    """In a graph: no copy of the codes, and one layout for all calls; by the first codes that are any."""
    apart, ids = split(parts, CUTS["empty ends"]), torch.arange(40) * 7 % parts.num_embeddings
    prepared, graphs, laid_out = ops.PreparedLookup(apart), [], []
    monkeypatch.setattr(_lookup, "gpu_table", laid_out.append)

    def keep(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda i: (prepared(i), ops.bag(prepared, i.view(8, 5))), fullgraph=True, backend=keep)
    rows, bags = compiled(ids)
    assert torch.equal(rows, reference.lookup(ids, parts))
    assert torch.equal(bags, ops.bag(ops.PreparedLookup(parts), ids.view(8, 5)))
    assert len(laid_out) == 1  # of the table that is not apart
    assert len(graphs) == 1
    assert not any("cat" in name for name in graphs[0])
    found = []
    for each in (apart, parts):
        weights = torch.linspace(-1, 1, 40).view(8, 5).requires_grad_()
        each.operator("bag")(ids.view(8, 5), None, weights, "sum", False, *each.arguments()).square().sum().backward()
        found.append(weights.grad)
    assert torch.equal(*found)
    assert ops.TableBuffers.of_arguments(apart.arguments()).is_the_same_as(apart)
    assert ops.TableBuffers.of_arguments(parts.arguments()).is_the_same_as(parts)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"splits": [2]}, "splits must be at least 1 for each of 2"),
        ({"splits": [0, 4]}, "splits must be at least 1"),
        ({"splits": [1, 3]}, "must have the same bits"),
    ],
)
def test_splits_that_do_not_fit(changed, match):
    apart = split(table(shuffled=True)[0], ((4,), (100,)))
    with pytest.raises(ValueError, match=match):
        replace(apart, **changed).check()
