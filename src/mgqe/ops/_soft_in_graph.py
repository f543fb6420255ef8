"""Training of DPQ-SX by the kernels for GPUs as operators that graphs can hold; see :mod:`mgqe.ops._in_graph`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe.ops import _soft
from mgqe.ops._triton import triton_on
from mgqe.ops.layout.searches import searches_of


def choose_softly_in_graph(
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    searches: tuple[Sequence[int], Sequence[int]],
    running: Sequence[tuple[Tensor, Tensor]],
    momentum: float,
    eps: float,
) -> tuple[Tensor, list[Tensor]]:
    """The values of the keys that win a softmax of responses; arguments of :func:`mgqe.ops.choose_softly`.

    Args:
        rows, keys, values: differentiable.
        searches: ``Searches.numbers`` of keys, and of values.
        running: not moved.

    Returns:
        float32 ``(n, L')``, and where the means and variances of all tiers are to move, flat.

    Raises:
        RuntimeError: there are no kernels; where there were none, graphs have torch's operators.
    """
    statistics = [each for pair in running for each in pair]
    made = torch.ops.mgqe.choose_softly(
        rows, tiers, counts, keys, values, statistics, list(searches[0]), list(searches[1]), momentum, eps
    )
    moved = torch.split(made[6].detach(), [each.numel() for each in statistics])
    return made[0], [part.view(each.shape) for part, each in zip(moved, statistics, strict=True)]


def _choose(
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    running: Sequence[Tensor],
    key_searches: Sequence[int],
    value_searches: Sequence[int],
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    if triton_on(rows.device) is None:
        raise RuntimeError(
            "a training step was compiled for the kernels for GPUs, which are not there now: call "
            "torch.compiler.reset(), so that it is compiled again"
        )
    moved = [each.to(torch.float32, copy=True) for each in running]
    pairs = list(zip(moved[::2], moved[1::2], strict=True))
    searches = searches_of(tuple(key_searches)), searches_of(tuple(value_searches))
    made = _soft.choose_softly(rows, tiers, counts, keys, values, searches, pairs, momentum, eps)
    everything = torch.cat([each.reshape(-1) for each in moved])
    return made.vectors, made.codes, made.moments, made.means, made.scales, made.sums, everything


def _choose_fake(
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    running: Sequence[Tensor],
    key_searches: Sequence[int],
    value_searches: Sequence[int],
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    of_keys, of_values = searches_of(tuple(key_searches)), searches_of(tuple(value_searches))
    n, number, num_tiers = rows.shape[0], len(of_keys.all), of_keys.num_tiers
    of_each_key = (num_tiers, number, of_keys.most)
    return (
        rows.new_empty((n, of_values.length)),
        rows.new_empty((n, of_keys.num_codes), dtype=torch.int32),
        rows.new_empty((number, num_tiers, of_keys.num_moments), dtype=torch.float64),
        rows.new_empty(of_each_key),
        rows.new_empty(of_each_key),
        rows.new_empty((n, number)),
        rows.new_empty((sum(each.numel() for each in running),)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, tiers, counts, keys, values, running, ctx.key_searches, ctx.value_searches, _, _ = inputs
    ctx.num_running = len(running)
    ctx.save_for_backward(rows, tiers, counts, keys, values, *output[:6])


def _choose_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    rows, tiers, counts, keys, values, *made = ctx.saved_tensors
    of_rows, of_keys, of_values = torch.ops.mgqe.soft_gradients(
        grad, made, rows, tiers, counts, keys, values, ctx.key_searches, ctx.value_searches
    )
    return of_rows, None, None, of_keys, of_values, [None] * ctx.num_running, None, None, None, None


_op = torch.library.custom_op(
    "mgqe::choose_softly",
    _choose,
    mutates_args=(),
    schema=(
        "(Tensor rows, Tensor? tiers, Tensor? counts, Tensor keys, Tensor values, Tensor[] running, "
        "int[] key_searches, int[] value_searches, float momentum, float eps) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
_op.register_fake(_choose_fake)
_op.register_autograd(_choose_backward, setup_context=_keep)


def _gradients(
    grad: Tensor,
    made: Sequence[Tensor],
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    key_searches: Sequence[int],
    value_searches: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    vectors, codes, moments, means, scales, sums = made
    choice = triton_on(rows.device).SoftChoice(codes, vectors, moments, means, scales, sums)
    searches = searches_of(tuple(key_searches)), searches_of(tuple(value_searches))
    return _soft.soft_gradients(choice, grad, rows, tiers, counts, keys, values, searches)


def _gradients_fake(
    grad: Tensor,
    made: Sequence[Tensor],
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    key_searches: Sequence[int],
    value_searches: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(keys), torch.empty_like(values)


torch.library.custom_op(
    "mgqe::soft_gradients",
    _gradients,
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor[] made, Tensor rows, Tensor? tiers, Tensor? counts, Tensor keys, Tensor values, "
        "int[] key_searches, int[] value_searches) -> (Tensor, Tensor, Tensor)"
    ),
).register_fake(_gradients_fake)
