"""The rounding of products and sums in the torch twins, against exact fractions."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mgqe.ops import reference

LARGEST = Fraction(torch.finfo(torch.float32).max)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(exact):
    """A fraction as float32, halves to even."""
    size, least = abs(exact), Fraction(1, 2**149)
    unit = least
    while size >= unit * 2**24:
        unit *= 2
    value = round(size / unit) * unit  # halves to even
    if value > LARGEST:
        return float("inf") if exact > 0 else float("-inf")
    return float(value) if exact >= 0 else -float(value)


def multiply_add(a, b, c):
    return float(reference.multiply_add(*(torch.tensor(x, dtype=torch.float32) for x in (a, b, c))))


def test_a_sum_is_not_rounded_twice():
    # 1 - 2^-46 + 2^24 + 2 is below the middle of two float32 numbers; in float64 it is that middle.
    assert multiply_add(1 + 2**-23, 1 - 2**-23, 2**24 + 2.0) == 2**24 + 2.0
    assert float(torch.tensor((1 + 2**-23) * (1 - 2**-23) + 2**24 + 2.0, dtype=torch.float32)) == 2**24 + 4.0


def test_products_are_not_rounded():
    assert multiply_add(1 + 2**-12, 1 + 2**-12, -1 - 2**-11) == 2**-24


@given(FLOATS, FLOATS, FLOATS)
@example(2.0**-100, 2.0**-49, 2.0**-126)
@example(-(2.0**-100), 2.0**-49, 2.0**-149)
@example(2.0**64, 2.0**64, -3e38)
def test_any_product_and_sum_is_rounded_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    assert multiply_add(a, b, c) == rounded(exact)


@pytest.mark.parametrize(("a", "b", "c"), [(float("inf"), 1.0, 1.0), (1e38, 1e38, 0.0), (1.0, 1.0, float("inf"))])
def test_infinity_stays(a, b, c):
    assert multiply_add(a, b, c) == float("inf")


def test_no_number_stays_none():
    assert torch.tensor(multiply_add(float("inf"), 0.0, 1.0)).isnan()
    assert torch.tensor(multiply_add(1.0, float("nan"), 1.0)).isnan()


def test_a_transform_worked_out_by_hand():
    mean, matrix = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    rows = reference.transform(torch.tensor([[2.0, 4.0], [0.0, 0.0]]), mean, matrix)
    assert rows.tolist() == [[5.0, 3.0, 2.5], [1.0, -1.0, 0.5]]
    each = torch.stack([mean, 2 * mean])
    assert reference.transform(torch.zeros(2, 2), each, matrix).tolist() == each.tolist()


def test_a_transform_adds_in_the_order_of_coordinates():
    # 2^24 + 1 - 2^24, one after another: the 1 is lost, halves going to even.
    matrix = torch.tensor([[2.0**24], [1.0], [-(2.0**24)]])
    assert reference.transform(torch.ones(1, 3), torch.zeros(1), matrix).tolist() == [[0.0]]
    assert reference.transform(torch.ones(1, 3), torch.zeros(1), matrix[[0, 2, 1]]).tolist() == [[1.0]]
