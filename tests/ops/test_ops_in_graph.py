"""Operators that compiled training steps have on a GPU: by hand, by autograd, by opcheck, and against the kernels."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from mgqe import ops
from mgqe.checks.waiting import as_on_gpu
from mgqe.ops import reference_by_tier
from mgqe.ops.layout.pieces import pieces
from mgqe.ops.layout.searches import even_searches, mixed_searches, searches_of

EVEN = even_searches([(2, 6, 2)], (0, 0), [(2, 6), (2, 3)])  # tiers of 6 and 3 centroids in one codebook
SUBSPACES = even_searches([(2, 4, 2)], (0, 0), [(2, 4), (1, 4)])  # tiers of 2 subspaces and of 1, twice as wide
MIXED = mixed_searches([pieces((1, 3), (2, 3), (4, 8)), pieces((1, 3), (1, 0), (4, 8))], (0, 0), 4 + 24)
CASES = {"even": (EVEN, False), "subspaces": (SUBSPACES, False), "steps": (MIXED, True)}
each_case = pytest.mark.parametrize(("searches", "has_steps"), CASES.values(), ids=CASES)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(searches, has_steps):
    """Rows, counts, tiers, book, searches, dim, beta, units and steps of 9 rows."""
    units = numbers(4, seed=3).abs() + 0.5 if has_steps else None
    steps = torch.full((4,), 0.03) if has_steps else None
    rows, book = numbers(9, 4).requires_grad_(), numbers(searches.num_numbers, seed=1).requires_grad_()
    return rows, torch.arange(9), torch.arange(9) % 2, book, searches.numbers, 5, 0.25, units, steps


def test_by_hand():
    """Rows 0 and 3, centroids 1 and 2: errors of 1 each, halved by the mean over two ids."""
    searches = even_searches([(1, 2, 1)], (0,), [(1, 2)])
    rows = torch.tensor([[0.0], [3.0]], requires_grad=True)
    book = torch.tensor([1.0, 2.0], requires_grad=True)
    taken, loss = ops.quantize_in_graph(rows, None, None, book, searches.numbers, 1, 0.25)
    assert taken.flatten().tolist() == [1.0, 2.0]
    assert loss.item() == 1.25
    loss.backward()
    assert rows.grad.flatten().tolist() == [-0.25, 0.25]
    assert book.grad.tolist() == [1.0, -1.0]


def test_tiers_by_hand():
    """The second row's tier has the first centroid alone; the first row counts three times."""
    searches = even_searches([(1, 2, 1)], (0, 0), [(1, 2), (1, 1)])
    rows, tiers, counts = torch.tensor([[3.0], [3.0]]), torch.tensor([0, 1]), torch.tensor([3, 1])
    taken, loss = ops.quantize_in_graph(rows, counts, tiers, torch.tensor([1.0, 2.0]), searches.numbers, 1, 0.0)
    assert taken.flatten().tolist() == [2.0, 1.0]
    assert loss.item() == 0.75 * 1 + 0.25 * 4


def test_searches_come_back_from_their_numbers():
    for searches in (EVEN, SUBSPACES, MIXED):
        again = searches_of(searches.numbers)
        assert (again.all, again.num_codes, again.num_numbers) == (
            searches.all, searches.num_codes, searches.num_numbers
        )  # fmt: skip
        assert searches_of(searches.numbers) is again


@each_case
def test_gradients_are_those_of_autograd(searches, has_steps):
    """Of sum_i w_i ||z_i - c_i||^2, where rows or centroids are constant, beta times the former."""
    rows, counts, tiers, book, flat, dim, beta, units, steps = given = arguments(searches, has_steps)
    _, loss = ops.quantize_in_graph(*given)
    (3 * loss).backward()
    mine, theirs = [rows, book], [rows.detach().clone().requires_grad_(), book.detach().clone().requires_grad_()]
    _, _, codes, _ = torch.ops.mgqe.quantize_in_graph(rows, counts, tiers, book, units, steps, list(flat), dim, beta)
    named = theirs[1][searches.places(codes, tiers)]
    if has_steps:
        named = named * units
        named = (named.detach() / steps).round().clamp(-127, 127) * steps + (named - named.detach())
    weights = counts / (counts.sum() * dim)
    codebook = (weights * (theirs[0].detach() - named).square().sum(1)).sum()
    commitment = (weights * (theirs[0] - named.detach()).square().sum(1)).sum()
    expected = codebook + beta * commitment
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@each_case
def test_codes_are_the_nearest_of_the_tier(searches, has_steps):
    rows, _, tiers, book, _, _, _, units, steps = arguments(searches, has_steps)
    pair = (units, steps) if has_steps else None
    codes, taken, _, _ = reference_by_tier.nearest(rows.detach(), tiers, book.detach(), searches, 1.0, 1.0, pair)
    for search in searches.all:
        t = torch.arange(search.width)
        columns = search.coordinate + t
        places = search.entry + t // search.piece * search.stride + t % search.piece
        for i, tier in enumerate(tiers.tolist()):
            if (count := search.counts[tier]) == 0:
                continue
            found = book.detach()[places + torch.arange(count)[:, None] * search.piece]
            if has_steps:
                found = (found * units[columns] / steps[columns]).round()
            scale = steps[columns] if has_steps else 1.0
            best = (rows[i, columns].detach() - found * scale).square().sum(1).argmin()
            assert codes[i, search.column] == best
            assert torch.equal(taken[i, columns], found[best])


def test_a_row_that_is_no_number():
    rows = numbers(3, 4)
    rows[1, 2] = float("nan")
    taken, _ = ops.quantize_in_graph(rows, None, torch.zeros(3).long(), numbers(EVEN.num_numbers), EVEN.numbers, 4, 0.0)
    assert taken.isnan().tolist() == [[False] * 4, [False, False, True, False], [False] * 4]


@each_case
def test_opcheck(searches, has_steps):
    rows, counts, tiers, book, flat, dim, beta, units, steps = arguments(searches, has_steps)
    given = (rows, counts, tiers, book, units, steps, list(flat), dim, beta)
    torch.library.opcheck(torch.ops.mgqe.quantize_in_graph.default, given)
    _, loss, codes, errors = torch.ops.mgqe.quantize_in_graph(*given)
    torch.library.opcheck(
        torch.ops.mgqe.scatter_in_graph.default, (errors.detach(), tiers, codes, loss.detach(), units, list(flat), -2.0)
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_rows_times_a_matrix(scaled):
    rows, matrix = numbers(6, 3).requires_grad_(), numbers(3, 5, seed=1)
    shift, mean, scales = numbers(3, seed=2), numbers(5, seed=3), numbers(5, seed=4) if scaled else None
    torch.library.opcheck(torch.ops.mgqe.transform.default, (rows, shift, mean, matrix, scales))
    torch.library.opcheck(torch.ops.mgqe.transform.default, (rows, None, None, matrix, None))
    found = ops.transform_in_graph(rows, shift, mean, matrix, scales)
    products = (rows - shift) @ matrix
    torch.testing.assert_close(found, mean + (products if scales is None else products * scales))
    mine, theirs = (
        torch.autograd.grad(each.square().sum(), rows)[0]
        for each in (found, mean + products * (scales if scaled else 1))
    )
    torch.testing.assert_close(mine, theirs)


# ---- by Triton's interpreter -----------------------------------------------------------------------------------

in_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install triton")


@in_triton
@each_case
def test_kernels_and_twins_are_one_operator(searches, has_steps):
    found = []
    for ways in (torch.enable_grad(), as_on_gpu()):
        rows, *_, book, _, _, _, _, _ = given = arguments(searches, has_steps)
        with ways:
            taken, loss = ops.quantize_in_graph(*given)
            loss.backward()
        found.append((taken, loss.detach(), rows.grad, book.grad))
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@in_triton
def test_opcheck_of_sx():
    keys = even_searches([(2, 4, 2)], (0, 0), [(2, 4), (2, 4)])
    flat = [numbers(keys.num_numbers, seed=s).requires_grad_() for s in (1, 2)]
    rows, tiers, counts = numbers(9, 4).requires_grad_(), torch.arange(9) % 2, torch.arange(9)
    running = [numbers(2, 4, seed=s).abs() for s in range(4)]
    given = (rows, tiers, counts, *flat, running, list(keys.numbers), list(keys.numbers), 0.1, 1e-5)
    with as_on_gpu():
        torch.library.opcheck(torch.ops.mgqe.choose_softly.default, given)


def test_a_graph_of_sx_whose_kernels_are_gone_says_so():
    keys, rows = even_searches([(2, 4, 2)], (0,), [(2, 4)]), numbers(9, 4)
    flat, running = numbers(keys.num_numbers, seed=1), [(numbers(2, 4), torch.ones(2, 4))]
    with pytest.raises(RuntimeError, match=r"compiled for the kernels for GPUs, .*torch.compiler.reset"):
        ops.choose_softly_in_graph(rows, None, None, flat, flat, (keys.numbers, keys.numbers), running, 0.1, 1e-5)
