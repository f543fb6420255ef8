"""Nearest centroids in the subspaces of a mixed table, whose widths and bits differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgqe.ops import reference
from mgqe.ops._checks import float_matrix, same_device
from mgqe.ops._descriptor import c_pieces
from mgqe.ops._eager import runs_now
from mgqe.ops._library import check, library_on
from mgqe.ops._triton import triton_on
from mgqe.ops.layout.pieces import Piece, pieces


def assign_mixed(coordinates: Tensor, codebook: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    """In each subspace the nearest of the first 2^bits centroids, decided as in :func:`mgqe.ops.assign`.

    Args:
        coordinates: ``(n, L)``, float32, float16 or bfloat16.
        codebook: flat, the same types.
        layout: the subspaces as the rows of a tier have them.

    Returns:
        int32 codes ``(n, D)``; 0 where a code has no bits. Not differentiable.

    Raises:
        TypeError: a tensor that is not floating point, or float64.
        ValueError: shapes that do not fit, or tensors on several devices.
    """
    if runs_now(coordinates, codebook):
        return _assign(coordinates, codebook, layout)
    widths, bits = [piece.width for piece in layout], [piece.bits for piece in layout]
    counts = [piece.num_centroids for piece in layout]
    codes: Tensor = torch.ops.mgqe.assign_mixed(coordinates, codebook, widths, bits, counts)
    return codes


def _assign(coordinates: Tensor, codebook: Tensor, layout: tuple[Piece, ...]) -> Tensor:
    same_device(coordinates=coordinates, codebook=codebook)
    coordinates = float_matrix("coordinates", coordinates, 2)
    codebook = float_matrix("codebook", codebook, 1)
    length = sum(piece.width for piece in layout)
    needed = sum(piece.width * piece.num_centroids for piece in layout)
    if coordinates.shape[1] != length or codebook.shape[0] < needed:
        raise ValueError(
            f"coordinates {tuple(coordinates.shape)} and a codebook of {codebook.shape[0]} numbers do not fit: the "
            f"subspaces have {length} coordinates, and centroids of {needed} numbers"
        )
    lib = library_on(coordinates.device)
    if lib is None:
        if (kernels := triton_on(coordinates.device)) is not None:
            widths, room = [piece.width for piece in layout], [piece.num_centroids for piece in layout]
            found: Tensor = kernels.assign(coordinates, codebook, widths, room, [1 << piece.bits for piece in layout])
            return found
        return reference.assign_mixed(coordinates, codebook, layout)
    codes = torch.empty((coordinates.shape[0], len(layout)), dtype=torch.int32, device="cpu")
    check(
        lib.mgqe_assign_mixed(
            coordinates.data_ptr(),
            *coordinates.shape,
            codebook.data_ptr(),
            codebook.shape[0],
            c_pieces(layout),
            len(layout),
            codes.data_ptr(),
            torch.get_num_threads(),
        )
    )
    return codes


def _of_numbers(
    coordinates: Tensor, codebook: Tensor, widths: Sequence[int], bits: Sequence[int], counts: Sequence[int]
) -> Tensor:
    return _assign(coordinates, codebook, pieces(widths, bits, counts))


_op = torch.library.custom_op(
    "mgqe::assign_mixed",
    _of_numbers,
    mutates_args=(),
    schema="(Tensor coordinates, Tensor codebook, int[] widths, int[] bits, int[] counts) -> Tensor",
)


@_op.register_fake
def _fake(
    coordinates: Tensor, codebook: Tensor, widths: Sequence[int], bits: Sequence[int], counts: Sequence[int]
) -> Tensor:
    return coordinates.new_empty((coordinates.shape[0], len(widths)), dtype=torch.int32)
