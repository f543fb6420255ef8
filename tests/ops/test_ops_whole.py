"""Tables of whole numbers: kernels that multiply bytes give the bits of the torch twin, whatever the layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import ALL, instruction_set
from whole_tables import whole_table

from mgqe import ops
from mgqe.ops import reference
from mgqe.ops._bag import _Bags, _run_reference
from mgqe.table.compact import CompactTable

LEVELS = st.integers(0, 7)
SUBSPACES = st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(0, 8), min_size=3, max_size=3)), min_size=1)


def agrees(table: CompactTable, num_ids: int) -> None:
    lookup = table.snapshot.lookup
    ids = torch.arange(num_ids) * 7 % table.num_embeddings
    assert torch.equal(lookup(ids), reference.lookup(ids, lookup.table))
    offsets = torch.tensor([0, 0, num_ids // 3, num_ids // 2])
    weights = torch.linspace(-1, 1, num_ids)
    for mode, of_ids in (("sum", None), ("mean", None), ("max", None), ("sum", weights)):
        native = ops.bag(lookup, ids, offsets, mode, of_ids)
        twin = reference_bag(table, ids, offsets, mode, of_ids)
        assert torch.equal(native, twin), (mode, of_ids is not None)


def reference_bag(table, ids, offsets, mode, weights):
    return _run_reference(table.snapshot.lookup, _Bags(ids, offsets, weights, len(offsets)), mode)


@settings(max_examples=25, deadline=None)
@given(SUBSPACES, st.integers(1, 3), st.integers(1, 150), st.integers(0, 70))
def test_any_layout(subspaces, num_tiers, num_ids, more_dims):
    widths = [width for width, _ in subspaces]
    bits = [[of_tiers[g] for _, of_tiers in subspaces] for g in range(num_tiers)]
    agrees(whole_table(widths, bits, [5, 90, 3][:num_tiers], sum(widths) + more_dims), num_ids)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=1, max_size=130), st.integers(1, 150))
def test_any_levels(bits, num_ids):
    of_tiers = [[each[g] for each in bits] for g in range(2)]
    agrees(whole_table([1] * len(bits), of_tiers, [40, 60], len(bits), shared_levels=True), num_ids)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=1, max_size=130), st.integers(1, 150), st.booleans())
def test_coordinates_that_are_not_turned(bits, num_ids, shared_levels):
    of_tiers = [[each[g] for each in bits] for g in range(2)]
    table = whole_table([1] * len(bits), of_tiers, [40, 60], len(bits), shared_levels=shared_levels, turned=False)
    assert torch.equal(table.snapshot.transform.matrix, torch.eye(len(bits), dtype=torch.int8))
    agrees(table, num_ids)


@pytest.mark.parametrize("length", [1, 131, 140_000])
def test_long_bags(length):
    """Beyond 2^24 / 127 ids float32 no longer adds whole numbers up exactly."""
    table = whole_table([1, 2], [[7, 8]], [300], 4, seed=3)
    ids = torch.full((length,), 17)
    offsets = torch.tensor([0])
    assert torch.equal(ops.bag(table.snapshot.lookup, ids, offsets), reference_bag(table, ids, offsets, "sum", None))


@pytest.mark.parametrize("isa", ALL)
def test_each_instruction_set(isa):
    """Codes of all numbers of bits in tiers of rows of 0 to 60 bytes, with shared levels and without."""
    with instruction_set(isa):
        for bits in ([0, 0, 2, 7] * 3, [6, 7] * 32 + [5], [1, 0, 3], [4, 5, 6, 3, 2] * 13):
            agrees(whole_table([1] * len(bits), [bits, bits[::-1]], [9, 5], len(bits), shared_levels=True), 70)
        agrees(whole_table([2, 9, 20, 1, 8], [[8, 5, 7, 0, 3], [1, 8, 8, 2, 8]], [9, 5], 40), 70)


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("shared_levels", [False, True])
def test_ids_that_come_again(isa, shared_levels):
    """Rows that a call keeps are those of their ids, also where ids that share a place alternate, and with padding."""
    widths, bits = ([1] * 19, [[7] * 19, [4, 5] * 9 + [6]]) if shared_levels else ([3, 9, 7], [[8, 8, 3], [5, 0, 8]])
    tier_of = torch.arange(20_000) % 3 > 0
    with instruction_set(isa):
        table = whole_table(widths, bits, tier_of, 19, shared_levels=shared_levels, padding_idx=7)
        few = torch.tensor([5, 5 + 4096, 5, 5 + 8192, 7, 5 + 4096, 19_999, 4095]).repeat(700)
        many = torch.cat([torch.arange(6000) % 61, torch.arange(0, 20_000, 3), torch.arange(9000) % 5000])
        lookup = table.snapshot.lookup
        for ids in (few, many):
            assert torch.equal(lookup(ids), reference.lookup(ids, lookup.table))
            offsets = torch.cat([torch.arange(0, 200), torch.tensor([200, 400]), torch.arange(500, len(ids), 20)])
            for mode in ("sum", "mean", "max"):
                twin = reference_bag(table, ids, offsets, mode, None)
                assert torch.equal(ops.bag(lookup, ids, offsets, mode), twin), mode


@pytest.mark.parametrize("size", [1, 127])
def test_sums_of_bags_beyond_exact_numbers(size):
    """Where the sums of a bag times the matrix leave 2^24, they are rounded as the torch twin rounds them."""
    table = whole_table([40, 40], [[8, 8]], [300], 80, seed=5)
    book = table.snapshot.lookup.table.centroids[0]
    matrix = table.snapshot.lookup.table.matrix
    book.copy_(torch.where(book > 0, size, -size))
    matrix.copy_(torch.where(matrix > 0, 127, 126))
    buffers = table.snapshot.lookup.table
    lookup = ops.PreparedLookup(buffers)
    ids = torch.arange(3000) % 300
    offsets = torch.cat([torch.arange(0, 600, 3), torch.arange(600, 3000, 60)])
    bags = _Bags(ids, offsets, None, len(offsets))
    assert torch.equal(ops.bag(lookup, ids, offsets), _run_reference(lookup, bags, "sum"))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize(("num_tiers", "in_order"), [(1, True), (2, True), (2, False), (3, True), (6, False)])
@pytest.mark.parametrize("turned", [False, True])
def test_bags_of_levels_of_any_length(isa, num_tiers, in_order, turned):
    """Bags of no ids, of some, of more than are located at once, with padding and without, in every number of tiers."""
    bits = [[7] * 40, [6, 7, 5] * 13 + [4], [5] * 40, [4] * 40, [3, 2] * 20, [1] * 40][:num_tiers]
    tiers = [100 * (g + 1) for g in range(num_tiers)]
    if not in_order:
        tiers = torch.arange(2000) * 7 % num_tiers
    with instruction_set(isa):
        table = whole_table([1] * 40, bits, tiers, 40, shared_levels=True, padding_idx=3, turned=turned)
        lengths = torch.tensor([0, 1, 20, 31, 32, 33, 0, 63, 64, 65, 200, 1, 2, 3, 0] * 5)
        ids = torch.arange(int(lengths.sum())) * 13 % table.num_embeddings
        ids[100:180] = 3
        offsets = lengths.cumsum(0) - lengths
        for chosen in (ids, ids[:1000]):  # sums of few ids are multiplied otherwise
            starts = offsets.clamp(max=len(chosen))
            for mode in ("sum", "mean"):
                expected = reference_bag(table, chosen, starts, mode, None)
                assert torch.equal(ops.bag(table.snapshot.lookup, chosen, starts, mode), expected), mode


@pytest.mark.parametrize("isa", ALL)
def test_a_bag_of_levels_too_long_to_be_exact(isa):
    """Beyond 2^24 / 127 ids float32 rounds, as it does where weights of one keep codes from being added up as bytes."""
    with instruction_set(isa):
        table = whole_table([1] * 4, [[7] * 4, [6] * 4], [30, 270], 4, seed=3, shared_levels=True)
        ids = torch.cat([torch.arange(50), torch.full((140_000,), 17), torch.arange(40)])
        offsets = torch.tensor([0, 20, 50, 140_050])
        by_weights = ops.bag(table.snapshot.lookup, ids, offsets, "sum", torch.ones(len(ids)))
        assert torch.equal(ops.bag(table.snapshot.lookup, ids, offsets), by_weights)


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("bits", [[7] * 64, [2] * 64, [1] * 64, [6] * 130, [7, 3, 4] * 6])
def test_look_ups_of_levels_that_are_only_scaled(isa, bits):
    """Rows of 8 to 98 bytes, with padding, written as one batch that passes by the caches and as one that does not."""
    with instruction_set(isa):
        table = whole_table([1] * len(bits), [bits, bits[::-1]], [40, 260], len(bits), 1, True, False, padding_idx=9)
        every_row = reference.lookup(torch.arange(300), table.snapshot.lookup.table)
        for number in (1, 63, 64, 65, 700, 2_200_000 // len(bits)):
            ids = torch.arange(number) * 7 % 300
            assert torch.equal(table.snapshot.lookup(ids), every_row[ids])
