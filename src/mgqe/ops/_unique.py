"""Distinct ids of a batch, so that each is quantised once: 2 to 3 times less work under a power law."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64
from itertools import accumulate

import torch
from torch import Tensor

from mgqe.checks.ids import as_int64, check_dense, no_values
from mgqe.checks.scalars import as_int, as_ints
from mgqe.checks.waiting import reads_wait
from mgqe.ops import reference
from mgqe.ops._checks import all_below, id_error, same_device
from mgqe.ops._eager import runs_now
from mgqe.ops._library import check, library_on


def unique(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids in order of first appearance.

    Under torch.compile the shape cannot depend on the values: there ``uniq`` and ``counts`` have n entries,
    those beyond the distinct ids repeat the first id with a count of 0; ``inverse`` points at none of them.

    Args:
        ids: integers ``(n,)``.
        num_embeddings: valid ids are 0 to ``num_embeddings - 1``.

    Returns:
        int64 ``uniq (u,)``, ``inverse (n,)`` with ``uniq[inverse] == ids``, and ``counts (u,)``.

    Raises:
        IndexError: an id out of range, named. TypeError: not integers. ValueError: not one axis.
    """
    num_embeddings = as_int("num_embeddings", num_embeddings)
    if isinstance(ids, Tensor):
        check_dense(ids)
    if not runs_now(ids):
        uniq, inverse, counts, _ = torch.ops.mgqe.unique(ids, num_embeddings)
        return uniq, inverse, counts
    return _distinct(ids, num_embeddings)


def _checked_ids(ids: Tensor) -> Tensor:
    ids = as_int64(ids).contiguous()
    if ids.dim() != 1:
        raise ValueError(f"ids must have one axis, got shape {tuple(ids.shape)}: flatten them with .reshape(-1)")
    return ids


def _distinct(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = _checked_ids(ids)
    if ids.is_meta:
        raise no_values()
    lib = library_on(ids.device)
    if lib is None:
        if not all_below(ids, num_embeddings):
            raise id_error(ids, num_embeddings)
        return reference.unique(ids)
    uniq, inverse, counts = torch.empty_like(ids), torch.empty_like(ids), torch.empty_like(ids)
    num_distinct = torch.zeros(1, dtype=torch.int64, device="cpu")
    status = lib.mgqe_unique(
        ids.data_ptr(),
        ids.shape[0],
        num_embeddings,
        uniq.data_ptr(),
        inverse.data_ptr(),
        counts.data_ptr(),
        num_distinct.data_ptr(),
    )
    check(status, lambda: id_error(ids, num_embeddings))
    size = int(num_distinct)
    return uniq[:size], inverse, counts[:size]


def unique_by_tier(
    ids: Tensor, sizes: Sequence[int], tier_of: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Distinct ids, tier after tier; within a tier in order of first appearance.

    Runs eagerly only: how many distinct ids a tier has is no static shape.

    Args:
        ids: integers ``(n,)``.
        sizes: ids of each tier in the vocabulary.
        tier_of: uint8 ``(num_embeddings,)``, each id's tier; None where tier g is the next ``sizes[g]`` ids.

    Returns:
        ``uniq``, ``inverse`` and ``counts`` as from :func:`unique`, and how many of ``uniq`` each tier has.

    Raises:
        as :func:`unique`.
    """
    ids, sizes = _checked_ids(ids), as_ints("sizes", sizes)
    if ids.is_meta:
        raise no_values()
    num_embeddings = sum(sizes)
    if tier_of is not None:
        same_device(ids=ids, tier_of=tier_of)
        if tier_of.dtype != torch.uint8 or tuple(tier_of.shape) != (num_embeddings,):
            raise ValueError(f"tier_of must be uint8 of shape {(num_embeddings,)}, got {tuple(tier_of.shape)}")
        tier_of = tier_of.contiguous()
    lib = library_on(ids.device)
    if lib is None:
        uniq, inverse, counts = _distinct(ids, num_embeddings)
        return reference.sort_by_tier(uniq, inverse, counts, sizes, tier_of)
    uniq, inverse, counts = torch.empty_like(ids), torch.empty_like(ids), torch.empty_like(ids)
    starts = (c_int64 * (len(sizes) + 1))(*accumulate(sizes, initial=0))
    distinct_per_tier = (c_int64 * len(sizes))()
    status = lib.mgqe_unique_by_tier(
        ids.data_ptr(),
        ids.shape[0],
        None if tier_of is None else tier_of.data_ptr(),
        starts,
        len(sizes),
        uniq.data_ptr(),
        inverse.data_ptr(),
        counts.data_ptr(),
        distinct_per_tier,
    )
    check(status, lambda: id_error(ids, num_embeddings))
    total = sum(distinct_per_tier)
    return uniq[:total], inverse, counts[:total], list(distinct_per_tier)


def unique_padded(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids in rising order, with shapes that do not depend on the values, and without a wait for the device.

    Args:
        ids: integers ``(n,)``. They are not checked.

    Returns:
        int64 ``uniq``, ``inverse`` and ``counts`` as from :func:`unique`, all ``(n,)``; the entries of ``uniq`` beyond
        the distinct ids repeat the first one with a count of 0, and ``inverse`` points at none of them.
    """
    ids = _checked_ids(ids)
    if ids.shape[0] == 0:
        return ids, ids, ids
    rising, order = ids.sort(stable=True)
    slot = torch.nn.functional.pad(rising[1:] != rising[:-1], (1, 0)).cumsum(0)
    inverse = torch.empty_like(ids).scatter_(0, order, slot)
    counts = torch.zeros_like(ids).scatter_add_(0, slot, torch.ones_like(ids))
    return rising[:1].expand_as(ids).clone().scatter_(0, slot, rising), inverse, counts


def _padded(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if reads_wait(ids.device):  # the layers check ids in a way of their own there
        uniq, inverse, counts = unique_padded(ids)
        return uniq, inverse, counts, (counts > 0).sum().unsqueeze(0)
    distinct, inverse, counts = _distinct(ids, num_embeddings)
    spare = ids.shape[0] - distinct.shape[0]
    uniq = torch.cat([distinct, distinct[:1].expand(spare)])
    size = torch.tensor([distinct.shape[0]], device=ids.device)
    return uniq, inverse, torch.cat([counts, counts.new_zeros(spare)]), size


_op = torch.library.custom_op(
    "mgqe::unique",
    _padded,
    mutates_args=(),
    schema="(Tensor ids, SymInt num_embeddings) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_op.register_fake
def _fake(ids: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = _checked_ids(ids).shape[0]
    same = [ids.new_empty((n,), dtype=torch.int64) for _ in range(3)]
    return same[0], same[1], same[2], ids.new_empty((1,), dtype=torch.int64)
