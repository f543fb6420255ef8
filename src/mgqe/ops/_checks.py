"""Checks of user input shared by the operations: errors say what was expected, what came, and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe.checks.ids import FLOAT_DTYPES

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def float_matrix(name: str, tensor: Tensor, dims: int) -> Tensor:
    """``tensor`` as contiguous float32 with ``dims`` axes; half precisions convert exactly.

    Raises:
        TypeError: another dtype. ValueError: another number of axes.
    """
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {tensor.dtype}: convert it with .float()")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have {dims} axes, got shape {tuple(tensor.shape)}")
    return tensor.detach().to(torch.float32).contiguous()


def code_matrix(codes: Tensor) -> Tensor:
    """``codes`` as contiguous int32 ``(n, D)``.

    Raises:
        TypeError: not an integer dtype. ValueError: not two axes.
    """
    if codes.dtype not in INTEGERS:
        raise TypeError(f"codes must be integers, got {codes.dtype}: convert them with .int()")
    if codes.dim() != 2 or codes.shape[1] < 1:
        raise ValueError(f"codes must have shape (n, num_subspaces), got {tuple(codes.shape)}")
    if codes.dtype == torch.int64:  # codes beyond int32 must not wrap around to codes that exist
        codes = codes.clamp(-1, 2**31 - 1)
    return codes.to(torch.int32).contiguous()


def all_below(values: Tensor, limit: int) -> bool:
    """Whether all of the integers lie in ``[0, limit)``. Waits for the device once."""
    if values.numel() == 0:
        return True
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return bool(low >= 0 and high < limit)


RESERVE = "map unknown ids to a reserved row first"
FALLBACK = f"{RESERVE}, or give the frozen table a row for them: table.with_fallback(vector)"


def id_error(ids: Tensor, num_embeddings: int, remedy: str = RESERVE) -> IndexError:
    """The error for the first id outside the table; the remedy is one that the caller's user has."""
    flat = ids.reshape(-1)
    bad = flat[(flat < 0) | (flat >= num_embeddings)]
    named = f"id {int(bad[0])}" if bad.numel() else "an id"
    valid = f"0 to {num_embeddings - 1}" if num_embeddings else "none: the table has no rows"
    return IndexError(f"{named} is out of range (valid ids: {valid}); {remedy}")


def code_error(codes: Tensor, num_centroids: int) -> IndexError:
    """The error for the first code outside its codebook."""
    flat = codes.reshape(-1)
    bad = flat[(flat < 0) | (flat >= num_centroids)]
    named = f"code {int(bad[0])}" if bad.numel() else "a code"
    return IndexError(f"{named} is out of range (the codebook has {num_centroids} centroids per subspace)")


def codebook_layout(num_subspaces: int, pieces: int) -> int:
    """Pieces a subspace's code selects: r in ``pieces == num_subspaces * r``, 1 for one shared codebook.

    Raises:
        ValueError: ``pieces`` is neither 1 nor a multiple of ``num_subspaces``.
    """
    if pieces == 1:
        return 1
    if pieces % num_subspaces != 0:
        raise ValueError(
            f"a codebook for {num_subspaces} subspaces must have 1 piece (shared) or a multiple of "
            f"{num_subspaces}, got {pieces}"
        )
    return pieces // num_subspaces


def same_device(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all of these tensors are on one device."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device, got {listed}: move them with .to(device)")
