"""Transform: rows as mean + coordinates @ matrix, the part of a mixed table that its rows share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.capacity import BY_COLUMNS
from mgqe.codec.equations import in_int8_steps, scales_of
from mgqe.codec.layout import CENTROID_DTYPES, MATRIX_DTYPES


@dataclass(frozen=True, eq=False)
class Transform:
    """How the coordinates of a mixed table become rows.

    Attributes:
        mean: float32 (d,).
        matrix: (L, d) as stored: float32, float16, or int8 with scales of either kind.
        scales: float32 (L,): a coordinate's row of the matrix is int8 * scale; else None.
        column_scales: float32 (d,): rows are mean + column_scales * (coordinates @ int8), coordinates being whole
            numbers from -127 to 127, so that the sums are exact in any order; else None.
    """

    mean: Tensor
    matrix: Tensor
    scales: Tensor | None = None
    column_scales: Tensor | None = None

    @classmethod
    def of(cls, mean: Tensor, matrix: Tensor, dtype: str) -> Transform:
        """From float tensors (d,) and (L, d), L at most d, rounded to how a file holds them.

        Raises ValueError for another type or shape, and for numbers that are not finite or too large for float16.
        """
        if dtype not in MATRIX_DTYPES:
            raise ValueError(f"matrix_dtype must be one of {sorted(MATRIX_DTYPES)}, got {dtype!r}")
        if mean.ndim != 1 or matrix.ndim != 2 or matrix.shape[1] != len(mean) or not 1 <= len(matrix) <= len(mean):
            raise ValueError(
                f"expected a mean (d,) and a matrix (L, d) with L from 1 to d, got {tuple(mean.shape)} and "
                f"{tuple(matrix.shape)}"
            )
        mean, values = mean.detach().float().contiguous(), matrix.detach().float().contiguous()
        scales = column_scales = None
        if dtype == BY_COLUMNS:
            peaks = values.abs().amax(dim=0)
            alone = ((values != 0).sum(dim=0) == 1) & (peaks > 0)  # numbers that need no other steps than themselves
            column_scales = torch.where(alone, peaks, scales_of(peaks))
            values = in_int8_steps(values, column_scales).to(torch.int8)
        elif dtype == "int8":
            scales = scales_of(values.abs().amax(dim=1))
            values = in_int8_steps(values, scales[:, None]).to(torch.int8)
        else:
            values = values.to(MATRIX_DTYPES[dtype])
        if not bool(mean.isfinite().all()) or not bool(values.isfinite().all()):
            raise ValueError("the mean or the matrix of a table is not finite: scale the rows down")
        return cls(mean, values, scales, column_scales)

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.matrix.shape[1]

    @property
    def num_coordinates(self) -> int:
        """L."""
        return self.matrix.shape[0]

    @property
    def dtype(self) -> str:
        """The name of the matrix's type."""
        if self.column_scales is not None:
            return BY_COLUMNS
        return next(name for name, dtype in CENTROID_DTYPES.items() if dtype == self.matrix.dtype)

    @property
    def turns(self) -> bool:
        """Whether the matrix is another one than the identity."""
        eye = torch.eye(self.embedding_dim, dtype=self.matrix.dtype, device=self.matrix.device)
        return not torch.equal(self.matrix, eye)

    @property
    def values(self) -> Tensor:
        """The matrix as it decodes, float32 (L, d)."""
        values = self.matrix.float()
        if self.column_scales is not None:
            return values * self.column_scales
        return values if self.scales is None else values * self.scales[:, None]

    @cached_property
    def inverse(self) -> tuple[Tensor, Tensor]:
        """From rows back to the coordinates that come nearest: what :func:`mgqe.ops.transform` takes, (L,) and (d, L).

        The metric that the axes were chosen by is not stored, so that nearest is by squared distance.
        """
        matrix = torch.linalg.pinv(self.values.double().cpu())
        start = -(self.mean.double().cpu() @ matrix)
        return start.float().to(self.mean.device), matrix.float().contiguous().to(self.mean.device)

    def encode(self, rows: Tensor) -> Tensor:
        """Rows float32 (n, d) -> coordinates (n, L)."""
        return ops.transform(rows.contiguous(), *self.inverse)

    def decode(self, coordinates: Tensor) -> Tensor:
        """Coordinates float32 (n, L) -> rows (n, d), with the bits of a look-up."""
        if self.column_scales is None:
            return ops.transform(coordinates.contiguous(), self.mean, self.values)
        sums = ops.transform(coordinates.contiguous(), torch.zeros_like(self.mean), self.matrix.float())
        return self.mean + sums * self.column_scales
