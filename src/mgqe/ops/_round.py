"""Flat codebooks in int8 steps by the kernel for GPUs; :func:`mgqe.codec.mixed.round_flat` has the same in torch."""

from __future__ import annotations

from torch import Tensor

from mgqe.ops._triton import triton_on


def round_subspaces(values: Tensor, units: Tensor, spans: Tensor) -> Tensor | None:
    """Values times units in int8 steps, a scale per subspace; None where there is no kernel for it.

    Args:
        values, units: float32 ``(E,)``.
        spans: int64 ``(D, 2)``, from where to where each subspace's numbers go; all numbers are in one.
    """
    kernels = triton_on(values.device)
    return None if kernels is None else kernels.round_subspaces(values.detach().contiguous(), units, spans)
