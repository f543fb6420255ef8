"""RowwiseAdagrad: by hand, against torch's Adagrad, and the rounding of bfloat16."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mgqe
from mgqe import DPQEmbedding, RowwiseAdagrad
from mgqe.nn.optim import round_at_random, summed_rows


def sparse(rows: list[int], values: list[list[float]], shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values), shape)


def test_two_steps_by_hand() -> None:
    rows = nn.Parameter(torch.zeros(3, 2))
    optimizer = RowwiseAdagrad([rows], lr=0.5, eps=0.0)
    rows.grad = sparse([1], [[3.0, 4.0]], (3, 2))
    optimizer.step()
    # mean of squares 12.5; the step is 0.5 * g / sqrt(12.5)
    first = [-1.5 / math.sqrt(12.5), -2.0 / math.sqrt(12.5)]
    assert rows.tolist() == [[0, 0], pytest.approx(first), [0, 0]]
    rows.grad = sparse([1], [[1.0, 1.0]], (3, 2))
    optimizer.step()
    assert rows[1].tolist() == pytest.approx([x - 0.5 / math.sqrt(13.5) for x in first])
    assert optimizer.state[rows]["sum"].tolist() == pytest.approx([0, 13.5, 0])


def test_a_row_that_comes_twice_has_one_gradient_their_sum() -> None:
    once, twice = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(4, 2))
    once.grad = sparse([2], [[3.0, -1.0]], (4, 2))
    twice.grad = sparse([2, 2], [[1.0, 1.0], [2.0, -2.0]], (4, 2))
    for parameter in (once, twice):
        RowwiseAdagrad([parameter]).step()
    assert torch.equal(once, twice)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (5,)])
def test_dense_gradients_are_torchs_adagrad(shape: tuple[int, ...]) -> None:
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours.data)
    optimizers = [RowwiseAdagrad([ours], lr=0.1, eps=1e-8), torch.optim.Adagrad([theirs], lr=0.1, eps=1e-8)]
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_only_rows_with_a_gradient_change_and_decay() -> None:
    rows = nn.Parameter(torch.ones(1000, 4))
    optimizer = RowwiseAdagrad([rows], weight_decay=0.1)
    rows.grad = sparse([7], [[0.0] * 4], (1000, 4))
    optimizer.step()
    changed = (rows != 1).any(1).nonzero().flatten().tolist()
    assert changed == [7]
    assert bool((rows[7] < 1).all())  # the gradient was 0, the decay was not


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_rounding_gives_a_neighbour(value: float) -> None:
    given = torch.full((64,), value)
    rounded = round_at_random(given).float()
    bits = given[:1].view(torch.int32)
    down = (bits & -65536).view(torch.float32)
    up = ((bits & -65536) + 65536).view(torch.float32)
    assert bool(((rounded == down) | (rounded == up)).all())
    if float(down) == value:
        assert bool((rounded == given).all())


def test_rounding_is_exact_in_the_mean_and_keeps_what_is_not_finite() -> None:
    value = 1.0 + 0.0078125 * 0.3  # 0.3 of the way from 1 to the next bfloat16
    rounded = round_at_random(torch.full((100_000,), value), torch.Generator().manual_seed(0)).float()
    assert rounded.mean().item() == pytest.approx(value, abs=5 * 0.0078125 * 0.5 / math.sqrt(100_000))
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    torch.testing.assert_close(round_at_random(odd).float(), odd, equal_nan=True)


def test_small_steps_of_bfloat16_rows_are_lost_without_random_rounding() -> None:
    moved = {}
    for stochastic in (True, False):
        rows = nn.Parameter(torch.ones(256, 8, dtype=torch.bfloat16))
        optimizer = RowwiseAdagrad([rows], lr=1e-3, stochastic_rounding=stochastic)
        for _ in range(100):
            rows.grad = torch.sparse_coo_tensor(
                torch.arange(256).unsqueeze(0), torch.ones(256, 8, dtype=torch.bfloat16), rows.shape
            )
            optimizer.step()
        moved[stochastic] = 1 - rows.detach().float().mean().item()
    expected = sum(1e-3 / math.sqrt(k) for k in range(1, 101))
    assert moved[False] == 0
    assert moved[True] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "state_dict"])
def test_a_copy_goes_on_as_the_original_would(how: str) -> None:
    def train(parameter: nn.Parameter, optimizer: RowwiseAdagrad, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            values = torch.randn(4, 8, generator=generator).bfloat16()
            parameter.grad = torch.sparse_coo_tensor(torch.tensor([[0, 2, 5, 9]]), values, parameter.shape)
            optimizer.step()

    rows = nn.Parameter(torch.ones(10, 8, dtype=torch.bfloat16))
    optimizer = RowwiseAdagrad([rows], lr=0.1)
    train(rows, optimizer, 1)
    if how == "state_dict":
        other = nn.Parameter(rows.detach().clone())
        copied = RowwiseAdagrad([other])
        copied.load_state_dict(optimizer.state_dict())
    else:
        made = copy.deepcopy([rows, optimizer]) if how == "deepcopy" else pickle.loads(pickle.dumps([rows, optimizer]))
        other, copied = made
        assert copied.param_groups[0]["params"][0] is other
    train(rows, optimizer, 2)
    train(other, copied, 2)
    assert torch.equal(rows, other)


def test_sums_of_repeated_bfloat16_gradients_are_float32() -> None:
    # 1 + 2^-9 repeated: in bfloat16 the sum of 4,096 ones would stop at 256.
    grad = torch.sparse_coo_tensor(
        torch.zeros(1, 4096, dtype=torch.int64), torch.ones(4096, 4, dtype=torch.bfloat16), (2, 4)
    )
    rows, values = summed_rows(grad)
    assert rows.tolist() == [0]
    assert values.tolist() == [[4096.0] * 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1}, "lr must be"),
        ({"eps": float("nan")}, "eps must be"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"codebook_lr": -1.0}, "codebook_lr"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowwiseAdagrad([nn.Parameter(torch.ones(2, 2))], **arguments)


def test_codebooks_have_an_accumulator_an_element_also_with_sparse_gradients() -> None:
    dense, slim = nn.Parameter(torch.zeros(4, 16, 2)), nn.Parameter(torch.zeros(4, 16, 2))
    gradient = torch.randn(4, 16, 2)
    dense.grad, slim.grad = gradient.clone(), gradient.to_sparse(1)
    for parameter in (dense, slim):
        RowwiseAdagrad([parameter], lr=0.1).step()
    assert torch.equal(dense, slim)
    assert dense.abs().max().item() == pytest.approx(0.1)


def test_codebooks_that_follow_rows_move_at_a_hundredth_of_their_rate() -> None:
    for rate, expected in ((None, 0.001), (0.5, 0.5)):
        layer = copy.deepcopy(DPQEmbedding(100, 4, num_centroids=4, warmup_steps=0))
        layer(torch.arange(50)).sum().backward()
        mgqe.quantization_loss(layer).backward()
        before = {name: p.detach().clone() for name, p in layer.named_parameters()}
        RowwiseAdagrad(layer.parameters(), lr=0.1, codebook_lr=rate).step()
        moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in layer.named_parameters()}
        assert moved["quantizer.codebooks.0"] == pytest.approx(expected, rel=1e-3)
        assert moved["weight"] == pytest.approx(0.1, rel=1e-3)


def test_float64_is_not_rounded_to_float32() -> None:
    rows = nn.Parameter(torch.full((3, 2), 1 / 3, dtype=torch.float64))
    for gradient in (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64).to_sparse(1)):
        rows.grad = gradient
        RowwiseAdagrad([rows], eps=0.0).step()
        assert torch.equal(rows.detach(), torch.full((3, 2), 1 / 3, dtype=torch.float64))


def test_gradients_that_change_their_kind_are_refused() -> None:
    rows = nn.Parameter(torch.ones(4, 2))
    optimizer = RowwiseAdagrad([rows])
    rows.grad = torch.ones(4, 2)
    optimizer.step()
    rows.grad = sparse([1], [[1.0, 1.0]], (4, 2))
    with pytest.raises(RuntimeError, match="dense gradients before"):
        optimizer.step()
    rows.grad = torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (4, 2))
    with pytest.raises(ValueError, match="sparse over rows alone"):
        optimizer.step()
    odd = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    odd.grad = torch.ones_like(odd)
    with pytest.raises(TypeError, match="complex"):
        RowwiseAdagrad([odd]).step()
