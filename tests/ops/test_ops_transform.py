"""mgqe.ops.transform: kernel against twin bit for bit, refused input."""

import pytest
import torch
from instruction_sets import ALL, instruction_set

from mgqe import ops
from mgqe.ops import reference


def arguments(n, length, dim, seed=0):
    made = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=made) for shape in ((n, length), (dim,), (length, dim)))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("dim", [1, 7, 16, 17, 64, 100])
def test_instruction_sets_give_the_bits_of_the_twin(isa, dim):
    with instruction_set(isa):
        for n in (0, 1, 3, 4, 150):
            for length in (0, 1, 29, 64):
                tensors = arguments(n, length, dim)
                assert torch.equal(ops.transform(*tensors), reference.transform(*tensors)), (n, length)


def test_threads_change_nothing():
    tensors = arguments(5000, 30, 64)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ops.transform(*tensors), reference.transform(*tensors))
    finally:
        torch.set_num_threads(before)


def test_a_row_alone_has_the_bits_that_it_has_among_others():
    rows, mean, matrix = arguments(9, 30, 64)
    together = ops.transform(rows, mean, matrix)
    assert torch.equal(torch.cat([ops.transform(row[None], mean, matrix) for row in rows]), together)


def test_what_does_not_fit_is_refused():
    rows, mean, matrix = arguments(3, 4, 5)
    for wrong in ((rows[0], mean, matrix), (rows[:, :3], mean, matrix), (rows, mean[:4], matrix)):
        with pytest.raises(ValueError, match=r"expected float32 rows \(n, L\)"):
            ops.transform(*wrong)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        ops.transform(rows.double(), mean, matrix)
    with pytest.raises(ValueError, match="on meta"):
        ops.transform(rows, mean.to("meta"), matrix)
