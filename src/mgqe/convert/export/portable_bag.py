"""PortableEmbeddingBag: bags of a compact table, in a form that any exporter can trace."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.ids import as_int64
from mgqe.convert.export.portable_embedding import PortableEmbedding
from mgqe.nn.bag import MODES
from mgqe.table.compact import CompactTable


class PortableEmbeddingBag(PortableEmbedding):
    """:class:`mgqe.CompactEmbeddingBag` by standard operators. It takes :class:`PortableEmbedding`'s arguments and two.

    The runtime chooses the order in which rows are added, so that sums and means agree with the frozen bag's to float32
    rounding. The values of offsets are checked in eager mode, but not in exported programs.

    Args:
        mode: "sum", "mean" or "max".
        include_last_offset: see :meth:`forward`.
    """

    def __init__(
        self,
        table: CompactTable,
        dtype: torch.dtype = torch.float32,
        mode: str = "mean",
        include_last_offset: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        super().__init__(table, dtype)
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Bags of ids -> (B, d): input (B, L), or (n,) with offsets (B,), or (B + 1,) with ``include_last_offset``.

        Like :meth:`mgqe.CompactTable.bag` it raises ValueError for shapes and offsets that do not fit and for weights
        in another mode than "sum", and TypeError for dtypes. While it is traced, only shapes are checked.
        """
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.float()
        if torch.compiler.is_compiling():
            self._check_shapes(input, offsets, per_sample_weights)
        else:
            ops.check_bags(input, offsets, self.mode, per_sample_weights, self.include_last_offset)
        counted = torch.ones_like(input, dtype=torch.bool) if self.padding_idx is None else input != self.padding_idx
        rows = self._lookup(input)
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        pooled = self._pool_rows(rows, counted) if offsets is None else self._pool_segments(rows, counted, offsets)
        return pooled.to(self.dtype)

    def _pool_rows(self, rows: Tensor, counted: Tensor) -> Tensor:
        """Rows (B, L, d), counted (B, L) -> (B, d)."""
        if self.mode == "max":
            if rows.shape[1] == 0:
                return rows.new_zeros(rows.shape[0], self.embedding_dim)
            maxima = torch.where(counted.unsqueeze(-1), rows, -torch.inf).amax(1)
            return torch.where(counted.any(1, keepdim=True), maxima, 0.0)
        total = torch.where(counted.unsqueeze(-1), rows, 0.0).sum(1)
        return total / counted.float().sum(1, keepdim=True).clamp(min=1) if self.mode == "mean" else total

    def _pool_segments(self, rows: Tensor, counted: Tensor, offsets: Tensor) -> Tensor:
        """Rows (n, d), counted (n,), offsets (B,) or (B + 1,) -> (B, d)."""
        starts = as_int64(offsets)
        starts = starts[:-1] if self.include_last_offset else starts
        n, bags = rows.shape[0], starts.shape[0]
        # The number of bags that have started at each row. Empty bags at the end start at n.
        started = torch.zeros(n + 1, dtype=torch.int64, device=rows.device)
        started = started.scatter_add(0, starts, torch.ones_like(starts))
        bag = started.cumsum(0)[:n] - 1
        bag_of_value = bag[:, None].expand(n, self.embedding_dim)
        count = torch.zeros(bags, dtype=torch.float32, device=rows.device).scatter_add(0, bag, counted.float())[:, None]
        initial = rows.new_full((bags, self.embedding_dim), -torch.inf if self.mode == "max" else 0.0)
        if self.mode == "max":
            maxima = initial.scatter_reduce(0, bag_of_value, torch.where(counted[:, None], rows, -torch.inf), "amax")
            return torch.where(count > 0, maxima, 0.0)
        total = initial.scatter_add(0, bag_of_value, torch.where(counted[:, None], rows, 0.0))
        return total / count.clamp(min=1) if self.mode == "mean" else total

    def _check_shapes(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        if ids.dim() != (2 if offsets is None else 1):
            extra = " + 1" if self.include_last_offset else ""
            raise ValueError(
                f"expected ids of shape (B, L), or ids (n,) with offsets (B{extra},), got ids {tuple(ids.shape)} "
                f"{'without' if offsets is None else 'with'} offsets"
            )
        if weights is not None and self.mode != "sum":
            raise ValueError(f'per_sample_weights are for mode="sum" only, got mode={self.mode!r}')
