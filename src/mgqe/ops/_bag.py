"""Pooled look-up in a frozen table: sums, means or maxima of bags of rows, straight from the codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgqe.checks.ids import FLOAT_DTYPES, as_int64, check_dense, check_device, no_values
from mgqe.ops import reference, reference_bag
from mgqe.ops._bag_gradient import WeightedSums, bags_of_ids, weights_gradient
from mgqe.ops._checks import FALLBACK, all_below, id_error
from mgqe.ops._descriptor import EVEN_SCHEMA, MIXED_SCHEMA, TableBuffers
from mgqe.ops._eager import runs_now
from mgqe.ops._library import BAD_OFFSETS, OUT_OF_RANGE, check, library
from mgqe.ops._lookup import PreparedLookup, prepared_of
from mgqe.ops._triton import triton_on

MODES = {"sum": 0, "mean": 1, "max": 2}
_EXPECTED = "ids of shape (B, L), or ids (n,) with offsets (B,), or (B + 1,) with include_last_offset=True"


class _Bags(NamedTuple):
    """Checked arguments: flat ids and weights; ``offsets`` None where all bags have as many ids."""

    ids: Tensor
    offsets: Tensor | None
    weights: Tensor | None
    num_bags: int


def bag(
    prepared: PreparedLookup,
    ids: Tensor,
    offsets: Tensor | None = None,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
) -> Tensor:
    """Sums, means or maxima of bags of rows, as nn.EmbeddingBag gives them in eval mode.

    Rows are added in float32 in the order of the ids, starting from 0, each product and sum rounded, and a mean
    is that sum divided by the number of ids: the same bits on every instruction set, with any number of threads
    and in the torch twin. Where rows are mean + coordinates @ matrix, sums and means are those of the coordinates,
    multiplied once per bag: the same up to rounding.

    Args:
        prepared: the table.
        ids: integers ``(B, L)``; or ``(n,)`` together with ``offsets``. Those equal to ``padding_idx`` are left
            out, also of a mean's count.
        offsets: integers ``(B,)``, where each bag starts; ``(B + 1,)`` with ``include_last_offset``, the last
            then being n.
        mode: "sum", "mean" or "max".
        per_sample_weights: floats like ids, for "sum" only; NaN and infinite weights give what arithmetic gives.
        include_last_offset: see ``offsets``.

    Returns:
        float32 ``(B, d)``; a bag without ids gives zeros. ``per_sample_weights`` get a gradient, the table none.

    Ids outside a table with a fallback row count as that row, by a slower way; not in compiled code, which refuses
    them.

    Raises:
        IndexError: an id out of range, named. ValueError: offsets that do not start at 0, decrease or go beyond
            n; shapes, modes and devices that do not fit. TypeError: other dtypes.
    """
    for name, tensor in (("ids", ids), ("offsets", offsets), ("per_sample_weights", per_sample_weights)):
        if isinstance(tensor, Tensor):
            check_dense(tensor, name)
    if not runs_now(ids, offsets, per_sample_weights):
        pooled: Tensor = prepared.table.operator("bag")(
            ids, offsets, per_sample_weights, mode, include_last_offset, *prepared.table.arguments()
        )
        return pooled
    return _run(prepared, ids, offsets, mode, per_sample_weights, include_last_offset)


def bag_of_rows(
    rows_of: Callable[[Tensor], Tensor],
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None,
    ids: Tensor,
    offsets: Tensor | None = None,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
) -> Tensor:
    """:func:`bag` of any table that can look up rows: ``rows_of`` takes ids ``(n,)`` to float32 ``(n, d)``."""
    bags = _checked(ids, offsets, mode, per_sample_weights, include_last_offset)
    if not all_below(bags.ids, num_embeddings):
        raise id_error(bags.ids, num_embeddings)
    padding = -1 if padding_idx is None else padding_idx
    return _differentiable(
        lambda constant: _reference(rows_of, embedding_dim, padding, constant, mode), rows_of, padding, bags
    )


def check_bags(
    ids: Tensor,
    offsets: Tensor | None = None,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
) -> None:
    """Raises what :func:`bag` raises for these arguments, ids out of range aside. Reads the values of offsets."""
    bags = _checked(ids, offsets, mode, per_sample_weights, include_last_offset)
    if bags.offsets is not None and not _in_order(bags.offsets, bags.ids.shape[0]):
        raise _offsets_error(bags.offsets, bags.ids.shape[0])


def _checked(
    ids: Tensor, offsets: Tensor | None, mode: str, weights: Tensor | None, include_last_offset: bool
) -> _Bags:
    """Everything about the arguments that can be known without reading their values."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    ids = as_int64(ids).contiguous()
    if ids.is_meta:
        raise no_values()
    if weights is not None:
        weights = _checked_weights(weights, ids, mode)
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError("ids of shape (B, L) are bags already: leave offsets out, or flatten the ids")
        count, length = ids.shape
        # Rows of no ids leave nothing to divide n by.
        offsets = ids.new_zeros(count) if length == 0 else None
        return _Bags(ids.reshape(-1), offsets, weights, count)
    if ids.dim() != 1 or offsets is None:
        came = f"ids {tuple(ids.shape)} {'without' if offsets is None else 'with'} offsets"
        raise ValueError(f"expected {_EXPECTED}, got {came}")
    offsets = as_int64(offsets, "offsets")
    if offsets.is_meta:
        raise no_values("offsets")
    if offsets.dim() != 1 or (include_last_offset and offsets.shape[0] < 1):
        raise ValueError(f"offsets must have shape (B{' + 1' * include_last_offset},), got {tuple(offsets.shape)}")
    if offsets.device != ids.device:
        raise ValueError(f"ids are on {ids.device}, offsets on {offsets.device}: move one with .to()")
    offsets = offsets.contiguous()
    if include_last_offset:
        if int(offsets[-1]) != ids.shape[0]:
            raise _offsets_error(offsets, ids.shape[0], True)
        offsets = offsets[:-1]
    return _Bags(ids, offsets, weights, offsets.shape[0])


def _checked_weights(weights: Tensor, ids: Tensor, mode: str) -> Tensor:
    if mode != "sum":
        raise ValueError(f'per_sample_weights are for mode="sum" only, got mode={mode!r}')
    if not isinstance(weights, Tensor) or weights.dtype not in FLOAT_DTYPES:
        came = str(weights.dtype) if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"per_sample_weights must be float32, float16 or bfloat16, got {came}: convert with .float()")
    if weights.shape != ids.shape:
        raise ValueError(f"per_sample_weights must be shaped like ids {tuple(ids.shape)}, got {tuple(weights.shape)}")
    if weights.device != ids.device:
        raise ValueError(f"ids are on {ids.device}, per_sample_weights on {weights.device}: move one with .to()")
    return weights.to(torch.float32).reshape(-1).contiguous()


def _offsets_error(offsets: Tensor, n: int, include_last_offset: bool = False) -> ValueError:
    """What is wrong with offsets that do not cut n ids into bags."""
    if offsets.shape[0] == 0:
        return ValueError(f"offsets name no bag, but there are {n} ids: give the start of each bag, the first 0")
    if include_last_offset and int(offsets[-1]) != n:
        return ValueError(f"with include_last_offset the last offset must be the number of ids, {n}, got {offsets[-1]}")
    if int(offsets[0]) != 0:
        return ValueError(f"offsets must start at 0, got {int(offsets[0])}: the first bag starts with the first id")
    drops = (offsets[1:] < offsets[:-1]).nonzero()
    if drops.numel():
        at = int(drops[0]) + 1
        return ValueError(
            f"offsets must not decrease, got {int(offsets[at])} at {at} after {int(offsets[at - 1])}: sort the bags"
        )
    return ValueError(f"offsets must not exceed the number of ids, {n}, got {int(offsets[-1])}")


def _in_order(offsets: Tensor, n: int) -> bool:
    if offsets.shape[0] == 0:
        return n == 0
    wrong = (offsets[0] != 0) | (offsets[-1] > n) | (offsets[1:] < offsets[:-1]).any()
    return not bool(wrong)


def _starts(bags: _Bags) -> Tensor:
    """Where each bag starts, int64 ``(B,)``; ValueError unless the offsets cut the ids into bags."""
    offsets, n = bags.offsets, bags.ids.shape[0]
    if offsets is None:
        return torch.arange(bags.num_bags, device=bags.ids.device) * (n // max(1, bags.num_bags))
    if not _in_order(offsets, n):
        raise _offsets_error(offsets, n)
    return offsets


def _reference(
    rows_of: Callable[[Tensor], Tensor], embedding_dim: int, padding_idx: int, bags: _Bags, mode: str
) -> Tensor:
    offsets = _starts(bags)
    if (kernels := triton_on(bags.ids.device)) is not None:
        rows = rows_of(bags.ids)
        pooled: Tensor = kernels.bag_of_rows(rows, bags.ids, offsets, mode, bags.weights, padding_idx)
        return pooled
    return reference_bag.bag(rows_of, bags.ids, offsets, embedding_dim, mode, bags.weights, padding_idx)


def _run(
    prepared: PreparedLookup,
    ids: Tensor,
    offsets: Tensor | None,
    mode: str,
    weights: Tensor | None,
    include_last_offset: bool,
) -> Tensor:
    bags = _checked(ids, offsets, mode, weights, include_last_offset)
    table = prepared.table
    check_device(bags.ids, table.device)
    return _differentiable(lambda constant: _pool(prepared, constant, mode), prepared, table.padding_idx, bags)


def _differentiable(
    pool: Callable[[_Bags], Tensor], rows_of: Callable[[Tensor], Tensor], padding_idx: int, bags: _Bags
) -> Tensor:
    """``pool(bags)``, with a gradient for the weights if they need one. ``pool`` also checks the values of offsets."""
    if bags.weights is None or not (torch.is_grad_enabled() and bags.weights.requires_grad):
        return pool(bags)
    pooled: Tensor = WeightedSums.apply(  # type: ignore[no-untyped-call]
        bags.weights,
        bags.ids,
        bags.offsets,
        bags_of_ids(bags.ids.shape[0], bags.offsets, bags.num_bags, bags.ids.device),
        lambda ids, offsets, weights: pool(_Bags(ids, offsets, weights, bags.num_bags)),
        rows_of,
        padding_idx,
    )
    return pooled


def _pool(prepared: PreparedLookup, bags: _Bags, mode: str) -> Tensor:
    descriptor, lib = prepared.descriptor, library()
    if descriptor is None or lib is None:
        return _run_reference(prepared, bags, mode)
    pooled = torch.empty((bags.num_bags, prepared.table.embedding_dim), dtype=torch.float32, device=bags.ids.device)
    status = lib.mgqe_bag(
        descriptor.address,
        bags.ids.data_ptr(),
        bags.ids.shape[0],
        None if bags.offsets is None else bags.offsets.data_ptr(),
        bags.num_bags,
        MODES[mode],
        None if bags.weights is None else bags.weights.data_ptr(),
        pooled.data_ptr(),
        torch.get_num_threads(),
    )
    if status == BAD_OFFSETS and bags.offsets is not None:
        raise _offsets_error(bags.offsets, bags.ids.shape[0])
    if status == OUT_OF_RANGE:
        return _run_reference(prepared, bags, mode)
    check(status)
    return pooled


def _run_reference(prepared: PreparedLookup, bags: _Bags, mode: str) -> Tensor:
    """Where no native kernel does it; by look-ups where ids outside the table have the fallback row."""
    table, gpu_table = prepared.table, prepared.gpu_table
    rows_of: Callable[[Tensor], Tensor] = prepared
    if all_below(bags.ids, table.num_embeddings):
        if gpu_table is not None and mode != "max":  # a maximum is one of rows, which must be decoded
            return _sums_of_codes(gpu_table, bags, mode, table.embedding_dim)
        if table.matrix is not None and mode != "max":
            return _sums_of_coordinates(table, bags, mode)
        rows_of = gpu_table or functools.partial(reference.lookup, table=table)
    elif prepared.fallback is None:
        raise id_error(bags.ids, table.num_embeddings, FALLBACK)
    return _reference(rows_of, table.embedding_dim, table.padding_idx, bags, mode)


def _sums_of_codes(gpu_table: Any, bags: _Bags, mode: str, embedding_dim: int) -> Tensor:
    """By the kernel for GPUs that reads codes, sums, and multiplies once per bag."""
    from mgqe.ops import triton_kernels  # it is there: there is a gpu_table

    pooled: Tensor = triton_kernels.bag_codes(gpu_table, bags.ids, _starts(bags), mode, bags.weights, embedding_dim)
    return pooled


def _sums_of_coordinates(table: TableBuffers, bags: _Bags, mode: str) -> Tensor:
    """Bags of rows that are mean + coordinates @ matrix: coordinates are pooled, and multiplied once per bag.

    So is a 1, whose sum says how often the mean is in the bag.
    """
    matrix, mean = table.matrix_values(), table.mean
    assert matrix is not None  # mypy: the caller has looked
    assert mean is not None

    def coordinates_and_one(ids: Tensor) -> Tensor:
        return torch.nn.functional.pad(reference.coordinates(ids, table), (0, 1), value=1.0)

    pooled = _reference(coordinates_and_one, table.num_coordinates + 1, table.padding_idx, bags, mode)
    return reference.transform(pooled[:, :-1], pooled[:, -1:] * mean, matrix, table.column_scales)


def _bag(
    ids: Tensor, offsets: Tensor | None, weights: Tensor | None, mode: str, include_last_offset: bool, *arguments: Any
) -> Tensor:
    weights = None if weights is None else weights.detach()  # the operator has a gradient of its own
    return _run(prepared_of(TableBuffers.of_arguments(arguments)), ids, offsets, mode, weights, include_last_offset)


def _fake(
    ids: Tensor, offsets: Tensor | None, weights: Tensor | None, mode: str, include_last_offset: bool, *arguments: Any
) -> Tensor:
    count = ids.shape[0] if offsets is None else offsets.shape[0] - int(include_last_offset)
    return ids.new_empty((count, TableBuffers.of_arguments(arguments).embedding_dim), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, offsets, weights, _, ctx.include_last_offset, *ctx.table_arguments = inputs
    ctx.save_for_backward(ids, offsets, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Of all inputs the weights alone have a gradient."""
    ids, offsets, weights = ctx.saved_tensors
    arguments = ctx.table_arguments
    products = None
    if weights is not None:
        starts = offsets[:-1] if offsets is not None and ctx.include_last_offset else offsets
        flat = ids.reshape(-1).to(torch.int64)
        bag_of = bags_of_ids(flat.shape[0], starts, grad.shape[0], grad.device)
        table = TableBuffers.of_arguments(arguments)
        products = weights_gradient(
            grad, lambda some: table.operator("lookup")(some, *arguments), flat, bag_of, table.padding_idx
        )
        products = products.view(weights.shape).to(weights.dtype)
    given = arguments[: len(ctx.needs_input_grad) - 5]  # splits are no input where they have been left out
    no_gradients = [[None] * len(value) if _is_tensor_list(value) else None for value in given]
    return None, None, products, None, None, *no_gradients


def _is_tensor_list(value: object) -> bool:
    """Whether torch.library takes an input for a list of tensors, as it also takes every empty list."""
    return isinstance(value, list) and all(isinstance(each, Tensor) for each in value)


for _name, _table in (("bag", EVEN_SCHEMA), ("bag_mixed", MIXED_SCHEMA)):
    _op = torch.library.custom_op(
        f"mgqe::{_name}",
        _bag,
        mutates_args=(),
        schema=(
            "(Tensor ids, Tensor? offsets, Tensor? per_sample_weights, str mode, bool include_last_offset, "
            f"{_table}) -> Tensor"
        ),
    )
    _op.register_fake(_fake)
    _op.register_autograd(_backward, setup_context=_keep)
