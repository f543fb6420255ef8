"""Rows through the codes of a plan: by hand, kernel against twin, its gradient's sums, and what is refused."""

from dataclasses import replace

import instruction_sets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe import ops
from mgqe.ops import reference_mixed
from mgqe.ops.layout.pieces import pieces


def coder(dim, widths, bits_of_tiers, columns, seed=0):
    """A coder whose tiers have a codebook each, with their values."""
    made = torch.Generator().manual_seed(seed)
    length = sum(widths)
    layouts = tuple(pieces(widths, bits, [1 << b for b in bits]) for bits in bits_of_tiers)
    sizes = tuple(sum(w << b for w, b in zip(widths, bits, strict=True)) for bits in bits_of_tiers)
    values = 2 * torch.randn(sum(sizes), generator=made)
    units = 0.5 + torch.rand(length, generator=made)
    steps = units / 60 if columns else None
    mean, encoder, matrix, scales = (
        torch.randn(*shape, generator=made) for shape in ((dim,), (dim, length), (length, dim), (dim,))
    )
    tiers = tuple(range(len(layouts)))
    plan = ops.MixedCoder(mean, encoder, matrix, scales if columns else None, units, steps, layouts, tiers, sizes)
    return plan, values


def test_by_hand():
    layouts = (pieces([1, 1], [1, 0], [2, 1]),)
    mean, units, steps = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.5, 1.0])
    plan = ops.MixedCoder(mean, torch.eye(2), 2 * torch.eye(2), None, units, steps, layouts, (0,), (3,))
    values = torch.tensor([0.1, 2.0, 1.4])  # in whole steps 0 and 8, which are centroids 0 and 4; and 1
    rows, counts = torch.tensor([[2.0, 2.0], [6.0, 5.0]]), torch.tensor([3, 1])  # coordinates (1, 0) and (5, 3)
    made = ops.quantize_mixed(rows, counts, [2], plan, values)  # weights 3 / 8 and 1 / 8
    assert made.codes.tolist() == [[0, 0], [1, 0]]
    assert made.vectors.tolist() == [[1.0, 4.0], [17.0, 4.0]]
    assert made.errors.tolist() == [[0.375, -0.375], [0.125, 0.25]]
    assert made.loss.item() == 1.375
    sums = ops.scatter_mixed(made.errors, made.codes, [2], plan, torch.tensor(-2.0), 5)
    assert sums.tolist() == [-1.5, -0.5, 0.25, 0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(1, 40),
    st.tuples(st.integers(0, 200), st.integers(0, 70)),
    st.booleans(),
)
def test_kernels_and_twins_agree(shape, more, tier_rows, columns):
    widths = [width for width, _, _ in shape]
    plan, values = coder(
        sum(widths) + more, widths, [[b for _, b, _ in shape], [b for _, _, b in shape]], columns, sum(tier_rows)
    )
    made = torch.Generator().manual_seed(1)
    rows = torch.randn(sum(tier_rows), len(plan.mean), generator=made)
    counts = torch.randint(4, (sum(tier_rows),), generator=made)
    codes, vectors, errors, loss = reference_mixed.quantize_mixed(rows, counts, tier_rows, plan, values)
    scale, size = torch.tensor(0.5), len(values) + 3
    sums = reference_mixed.scatter_mixed(errors, codes, tier_rows, plan, scale, size)
    for _ in instruction_sets.each():
        found = ops.quantize_mixed(rows, counts, tier_rows, plan, values)
        assert torch.equal(found.codes, codes)
        assert torch.equal(found.vectors, vectors)
        assert torch.equal(found.errors, errors)
        torch.testing.assert_close(found.loss, loss)
        torch.testing.assert_close(ops.scatter_mixed(errors, codes, tier_rows, plan, scale, size), sums)


def test_a_diagonal_matrix_of_ones_gives_the_same_bits():
    plan, values = coder(19, [1] * 19, [[3] * 19], True)
    plan = ops.MixedCoder(
        plan.mean,
        plan.encoder,
        torch.eye(19),
        plan.column_scales,
        plan.units,
        plan.steps,
        plan.layouts,
        plan.codebook_of,
        plan.sizes,
    )
    rows, counts = torch.randn(130, 19), torch.ones(130, dtype=torch.int64)
    expected = reference_mixed.quantize_mixed(rows, counts, [130], plan, values)
    for _ in instruction_sets.each():
        assert torch.equal(ops.quantize_mixed(rows, counts, [130], plan, values).vectors, expected[1])


def test_a_diagonal_encoder_scales_to_the_same_bits():
    plan, values = coder(19, [1] * 19, [[3] * 19, [5] * 19], True)
    scaled, dense = (replace(plan, encoder=torch.diag(torch.randn(19, generator=torch.manual_seed(2)))) for _ in "12")
    dense.__dict__["encoder_scales"] = None
    assert scaled.encoder_scales is not None
    assert plan.encoder_scales is None
    rows, counts = torch.randn(200, 19), torch.ones(200, dtype=torch.int64)
    for _ in instruction_sets.each():
        found = [ops.quantize_mixed(rows, counts, [130, 70], each, values) for each in (scaled, dense)]
        found.append(reference_mixed.quantize_mixed(rows, counts, [130, 70], scaled, values))
        for codes, vectors, errors, loss in found[1:]:
            assert torch.equal(codes, found[0].codes)
            assert torch.equal(vectors, found[0].vectors)
            assert torch.equal(errors, found[0].errors)
            torch.testing.assert_close(loss, found[0].loss)


def test_an_encoder_that_drops_coordinates_is_not_diagonal():
    plan, _ = coder(8, [4], [[3]], True)
    assert replace(plan, encoder=torch.eye(8)[:, :4].contiguous()).encoder_scales is None


def test_threads_change_nothing():
    plan, values = coder(16, [4, 4, 4], [[6, 6, 6], [2, 3, 4]], True)
    rows, counts, scale = torch.randn(3000, 16), torch.randint(9, (3000,)), torch.tensor(2.0)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made = ops.quantize_mixed(rows, counts, [2000, 1000], plan, values)
            found.append((*made, ops.scatter_mixed(made.errors, made.codes, [2000, 1000], plan, scale, len(values))))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_numbers_that_are_not_finite_spoil_their_own_place_alone():
    plan, values = coder(8, [4, 4], [[3, 3]], True)
    rows = torch.zeros(3, 8)
    rows[1, 2], rows[2, 5] = torch.nan, torch.inf
    vectors = ops.quantize_mixed(rows, torch.ones(3, dtype=torch.int64), [3], plan, values).vectors
    assert vectors.isnan().nonzero().tolist() == [[1, 2], [2, 5]]


def test_what_does_not_fit_is_refused():
    plan, values = coder(8, [4, 4], [[3, 3]], True)
    rows, counts = torch.zeros(3, 8), torch.ones(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"rows must be torch.float32 of shape \(3, 8\)"):
        ops.quantize_mixed(rows[:, :7], counts, [3], plan, values)
    with pytest.raises(ValueError, match="counts must be"):
        ops.quantize_mixed(rows, counts.int(), [3], plan, values)
    with pytest.raises(ValueError, match="values must be"):
        ops.quantize_mixed(rows, counts, [3], plan, values[1:])
    codes = torch.tensor([[0, 8]], dtype=torch.int32)
    with pytest.raises(IndexError, match="a code is out of range"):
        ops.scatter_mixed(torch.zeros(1, 8), codes, [1], plan, torch.tensor(1.0), len(values))


def test_rows_are_summed_by_hand():
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    assert ops.sum_rows(rows, torch.tensor([2, 0, 2]), 4).tolist() == [[10, 20], [0, 0], [101, 202], [0, 0]]
    with pytest.raises(IndexError, match="out of range"):
        ops.sum_rows(rows, torch.tensor([2, 0, 4]), 4)
