"""Steps of DPQ-SX by the kernels for GPUs; :class:`mgqe.nn.quantizers.sx.SXQuantizer` has the same in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe.ops._checks import same_device
from mgqe.ops._triton import triton_on
from mgqe.ops.layout.searches import Searches


def choose_softly(
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    searches: tuple[Searches, Searches],
    running: Sequence[tuple[Tensor, Tensor]],
    momentum: float,
    eps: float,
) -> Any:
    """The keys that win a softmax of responses, their values, and what :func:`soft_gradients` needs.

    Runs eagerly only, where :func:`mgqe.ops.quantizes_by_tier`; not differentiable.

    Args:
        rows: float32 ``(n, L)``.
        tiers: integers ``(n,)``; None where there is one.
        counts: int64 ``(n,)``, 0 for rows that the statistics leave out; None: none is.
        keys, values: float32, flat.
        searches: where the tiers' keys are in them, and their values, in one order.
        running: of each tier, mean and variance of responses ``(D_g, K_g)``, moved in place.
        momentum: how far they move. eps: what is added to variances.

    Returns:
        ``codes`` int32 ``(n, D)``, ``vectors`` float32 ``(n, L')``, NaN where a subspace's numbers are not finite, and
        more.

    Raises:
        ValueError: tensors on several devices.
    """
    same_device(rows=rows, tiers=tiers, counts=counts, keys=keys, values=values)
    rows, keys, values = (each.detach().contiguous() for each in (rows, keys, values))
    kernels = triton_on(rows.device)
    return kernels.choose_softly(rows, tiers, counts, keys, values, searches, running, momentum, eps)


def soft_gradients(
    made: Any,
    grad: Tensor,
    rows: Tensor,
    tiers: Tensor | None,
    counts: Tensor | None,
    keys: Tensor,
    values: Tensor,
    searches: tuple[Searches, Searches],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of rows ``(n, L)``, of flat keys and of flat values.

    Args:
        made: of :func:`choose_softly` with the arguments that follow.
        grad: the vectors', float32 ``(n, L')``.
    """
    grad, rows, keys, values = (each.detach().contiguous() for each in (grad, rows, keys, values))
    kernels = triton_on(rows.device)
    of_rows, of_keys = kernels.soft_gradients(made, grad, rows, tiers, counts, keys, values, searches)
    one = torch.ones((), dtype=torch.float32, device=rows.device)
    return of_rows, of_keys, kernels.scatter(grad, tiers, made.codes, searches[1], one, 1.0)
