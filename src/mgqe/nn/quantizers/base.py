"""Quantizer: what a layer asks of its codebooks, whichever way codes are chosen; and the revival of dead centroids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import Groups
from mgqe.codec.kmeans import KMEANS, KMeans, revive
from mgqe.codec.transform import Transform
from mgqe.nn.context.one_graph import in_one_graph
from mgqe.nn.quantizers.autograd import with_sparse_gradient


class Quantizer(nn.Module):
    """Rows in, quantised rows and the loss out.

    Attributes:
        capacity: D and K of each tier, and which codebook each has.
        centroid_dtype: how frozen tables hold centroids; training rounds to it.
        sparse: codebooks get sparse gradients.
    """

    largest_value = math.inf  # of a row's numbers that can be quantised
    counts_distinct = False  # whether its statistics are those of distinct ids, however often each occurs
    follows_rows = False  # whether the codebooks learn from the rows alone, through the loss
    kernels_in_graph = False  # whether the kernels for GPUs do the work of a compiled training step

    def __init__(self, capacity: Capacity, centroid_dtype: str, sparse: bool) -> None:
        super().__init__()
        self.capacity = capacity
        self.centroid_dtype = centroid_dtype
        self.sparse = sparse

    @property
    def is_planned(self) -> bool:
        """Whether it has a plan that was adopted before the codebooks started, with its centroids."""
        return False

    @property
    def transform(self) -> Transform | None:
        """What turns coordinates into rows, where the codes are those of coordinates."""
        return None

    def reset_parameters(self) -> None:
        """As constructed: zeros, which :meth:`start` replaces."""
        raise NotImplementedError

    def start(self, rows: Sequence[Tensor], generator: torch.Generator, effort: KMeans = KMEANS) -> None:
        """Start the codebooks by nested k-means on each tier's rows [(n_g, d) float32]."""
        raise NotImplementedError

    def codes(self, rows: Tensor, tier: int) -> Tensor:
        """Rows (n, d) of one tier -> (n, D_g) int32, as the frozen table has them."""
        raise NotImplementedError

    def rows_of(self, codes: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) int32 of one tier -> rows (n, d) float32, as the frozen table has them."""
        raise NotImplementedError

    def values(self, number: int) -> Tensor:
        """Codebook ``number`` in float32 as it will be served, (Dc, Kc, sc), differentiable."""
        raise NotImplementedError

    def frozen_codebooks(self) -> list[Tensor]:
        """The codebooks that a frozen table holds, before rounding to ``centroid_dtype``."""
        raise NotImplementedError

    def forward(self, rows: Tensor, groups: Groups, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantise rows.

        Args:
            rows: (u, d).
            groups: how many of the rows each tier has, tiers in order; under torch.compile and on a GPU each row's
                tier (u,).
            counts: (u,) each row's weight in losses and statistics, 0 for padding.

        Returns:
            (u, d) quantised rows in the rows' dtype, and the loss; None where there is none.
        """
        raise NotImplementedError

    def quantize(
        self, rows: Tensor, groups: Groups, counts: Tensor | None, gathered: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Like :meth:`forward`, by the fastest way; the vectors may be float32 where rows have half precision.

        ``counts``: None where each row counts once. ``gathered``: the rows are rows of a parameter, and not computed
        from several.
        """
        if counts is None:
            counts = torch.ones(rows.shape[0], dtype=torch.int64, device=rows.device)
        vectors, loss = self(rows, groups, counts)
        return vectors, loss

    def prepare_for_one_graph(self, device: torch.device) -> None:
        """What training passes within :func:`mgqe.one_graph` need of rows on this device, looked up outside of it."""
        self.kernels_in_graph = ops.quantizes_by_tier(device)

    def _leaf(self, parameter: Tensor) -> Tensor:
        """A codebook's parameter as training passes read it: its gradient is sparse where the layer has such ones."""
        return with_sparse_gradient(parameter) if self.sparse and torch.is_grad_enabled() else parameter

    def _tiers_in_graph(self, groups: Groups) -> Tensor | None:
        """Each row's tier, as kernels in graphs take it: None where there is one."""
        return groups if isinstance(groups, Tensor) and self.capacity.num_tiers > 1 else None

    @property
    def takes_kernels_in_graph(self) -> bool:
        """Whether this training pass is part of a graph of torch.compile, and kernels for GPUs do its work there."""
        return torch.compiler.is_compiling() and in_one_graph() and self.kernels_in_graph

    @property
    def is_fused(self) -> bool:
        """Whether :meth:`quantize` has a faster way than :meth:`forward` in training."""
        return False

    def version(self) -> int:
        """A number that changes when a codebook does."""
        lists = (books._parameters.values() for books in self._modules.values() if books is not None)
        return sum(book._version for books in lists for book in books if book is not None)

    # ---- revival -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def revive(self, rows: Sequence[Tensor], generator: torch.Generator) -> int:
        """Move centroids that none of each tier's rows [(n_g, d) float32] chooses onto rows of tiers that reach them.

        Returns:
            how many centroids moved.
        """
        moved = 0
        for number, book in enumerate(self._searched_codebooks()):
            tiers = [g for g, used in enumerate(self.capacity.codebook_of) if used == number and len(rows[g])]
            uses = torch.zeros(book.shape[:2], dtype=torch.float32, device=book.device)
            for g in tiers:
                uses += ops.scatter(rows[g], self.codes(rows[g], g), None, *book.shape)[1]
            start = 0
            for stop in sorted({self.capacity.num_centroids[g] for g in tiers}):
                near = torch.cat([rows[g] for g in tiers if self.capacity.num_centroids[g] >= stop])
                centroids = book.detach()[:, start:stop].float()
                count = revive(centroids, uses[:, start:stop], near, generator)
                if count:
                    moved += count
                    book[:, start:stop] = centroids.to(book.dtype)
                    self._move_values(number, slice(start, stop), centroids, uses[:, start:stop] == 0)
                start = stop
        return moved

    def _searched_codebooks(self) -> nn.ParameterList:
        """The codebooks that are searched for a row's codes, (Dc, Kc, width) each."""
        raise NotImplementedError

    def _move_values(self, number: int, window: slice, centroids: Tensor, dead: Tensor) -> None:
        """Called when the ``dead`` (Dc, k) of ``centroids`` (Dc, k, width), a window of a codebook, have moved."""
