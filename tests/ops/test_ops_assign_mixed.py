"""Nearest centroids in subspaces of unequal widths and bits: by hand, against the twin, and what is refused."""

import math

import instruction_sets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe import ops
from mgqe.ops import reference
from mgqe.ops.layout.pieces import pieces


def layout(widths, bits, more=0):
    return pieces(widths, bits, [1 << (b + more) for b in bits])


def test_by_hand():
    # Centroids 0 and 10 of one coordinate; no bits; (0, 0), (1, 1), (5, 5) and (9, 9) of two.
    book = torch.tensor([0.0, 10.0, 7.0, 0.0, 0.0, 1.0, 1.0, 5.0, 5.0, 9.0, 9.0])
    rows = torch.tensor([[4.9, 3.0, 2.0, 2.0], [5.1, 3.0, 8.0, 8.0], [5.0, 3.0, 3.0, 3.0]])
    codes = ops.assign_mixed(rows, book, layout([1, 1, 2], [1, 0, 2]))
    assert codes.tolist() == [[0, 0, 1], [1, 0, 3], [0, 0, 1]]  # the lowest code on ties


def test_a_tier_of_fewer_bits_reads_the_first_centroids_alone():
    book = torch.tensor([0.0, 1.0, 2.0, 3.0])
    rows = torch.tensor([[2.9]])
    assert ops.assign_mixed(rows, book, pieces([1], [1], [4])).tolist() == [[1]]
    assert ops.assign_mixed(rows, book, pieces([1], [2], [4])).tolist() == [[3]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=6),
    st.integers(0, 600),
    st.integers(0, 2),
)
def test_kernel_and_twin_agree(shape, n, more):
    made = torch.Generator().manual_seed(n)
    parts = layout([w for w, _ in shape], [b for _, b in shape], more)
    book = torch.randn(sum(p.width * p.num_centroids for p in parts), generator=made)
    rows = torch.randn(n, sum(w for w, _ in shape), generator=made)
    expected = reference.assign_mixed(rows, book, parts)
    for _ in instruction_sets.each():
        assert torch.equal(ops.assign_mixed(rows, book, parts), expected)


VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-23, 1.5, -1.0, 1e-45, 1e-30, 3e6, 3e6 + 0.25, 1e20, -3e38])
HOSTILE = st.one_of(VALUES, st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(width=32))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.data())
def test_subspaces_of_one_number_are_searched_to_the_same_code(bits, data):
    """Repeated and hostile centroids, and rows on them, half-way between two of them, and next to that."""
    book = data.draw(st.lists(st.one_of(VALUES, HOSTILE), min_size=1 << bits, max_size=1 << bits))
    book = torch.tensor(book, dtype=torch.float32)
    half = 0.5 * book + 0.5 * book.roll(1)
    near = [torch.nextafter(half, torch.full_like(half, end)) for end in (-math.inf, math.inf)]
    others = torch.tensor(data.draw(st.lists(HOSTILE, max_size=8)), dtype=torch.float32)
    rows = torch.cat([book, half, *near, half * (1 + 1e-6), half * (1 - 1e-6), others]).unsqueeze(1)
    expected = reference.assign_mixed(rows, book, layout([1], [bits]))
    for _ in instruction_sets.each():
        assert torch.equal(ops.assign_mixed(rows, book, layout([1], [bits])), expected)


@pytest.mark.parametrize("bits", [5, 6, 7, 8, 9])
def test_many_subspaces_of_one_number(bits):
    made = torch.Generator().manual_seed(bits)
    book = torch.randint(-127, 128, (3 << bits,), generator=made) * 0.01
    levels = book.view(3, -1).sort().values
    half = (0.5 * (levels + levels.roll(1, dims=1))).T
    near = [torch.nextafter(half, torch.full_like(half, end)) for end in (-math.inf, math.inf)]
    any_rows = [torch.randn(1000, 3, generator=made), torch.randint(-255, 256, (1000, 3), generator=made) * 0.005]
    rows = torch.cat([*any_rows, half, *near, half * (1 + 1e-6), half * (1 - 1e-6)])
    expected = reference.assign_mixed(rows, book, layout([1] * 3, [bits] * 3))
    for _ in instruction_sets.each():
        assert torch.equal(ops.assign_mixed(rows, book, layout([1] * 3, [bits] * 3)), expected)


def test_what_does_not_fit_is_refused():
    parts = layout([2, 3], [2, 1])
    book, rows = torch.zeros(14), torch.zeros(4, 5)
    with pytest.raises(ValueError, match="do not fit"):
        ops.assign_mixed(rows[:, :4], book, parts)
    with pytest.raises(ValueError, match="do not fit"):
        ops.assign_mixed(rows, book[:13], parts)
    with pytest.raises(TypeError, match="float32"):
        ops.assign_mixed(rows.double(), book, parts)


def test_in_compiled_code():
    parts = layout([2, 3], [2, 1])
    rows, book = torch.randn(4, 5), torch.randn(14)
    compiled = torch.compile(lambda x: ops.assign_mixed(x, book, parts) + 1, fullgraph=True)
    assert torch.equal(compiled(rows), ops.assign_mixed(rows, book, parts) + 1)
