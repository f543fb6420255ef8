"""Nearest centroids in subspaces of unequal widths and bits: by hand, against the twin, and what is refused."""

import instruction_sets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe import ops
from mgqe.ops import reference
from mgqe.ops.pieces import pieces


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
