"""DPQ-VQ as a module: codebooks of centroids, the nearest one wins (arXiv 1908.09756, section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.checks.scalars import as_float
from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import (
    Groups,
    codebook_loss,
    commitment_loss,
    nearest_codes,
    round_centroids,
    straight_through,
)
from mgqe.codec.kmeans import KMEANS, KMeans, revive, start_codebooks
from mgqe.nn.quantizers.autograd import QuantizeRows, SparseGradient, TrainingBatch


class VQQuantizer(nn.Module):
    """Rows in, quantised rows and the auxiliary loss out.

    Attributes:
        codebooks: one (Dc, Kc, sc) parameter a codebook, see :class:`mgqe.codec.capacity.Capacity`.
    """

    largest_value = math.inf  # of a row's numbers that can be quantised

    def __init__(
        self, capacity: Capacity, like: Tensor, centroid_dtype: str, commitment: float, sparse: bool = False
    ) -> None:
        super().__init__()
        commitment = as_float("commitment", commitment)
        if not 0 <= commitment < float("inf"):
            raise ValueError(f"commitment must be a finite number of 0 or more, got {commitment}")
        self.sparse = sparse
        self.capacity = capacity
        self.centroid_dtype = centroid_dtype
        self.commitment = commitment
        self._alike = capacity.share_codebook and len({*zip(capacity.num_subspaces, capacity.num_centroids)}) == 1
        self.codebooks = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in capacity.codebook_shapes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As constructed: zeros, which ``start`` replaces."""
        for book in self.codebooks:
            book.zero_()

    @torch.no_grad()
    def start(self, rows: Sequence[Tensor], generator: torch.Generator, effort: KMeans = KMEANS) -> None:
        """Nested k-means on each tier's rows [(n_g, d) float32]."""
        books = start_codebooks(rows, self.capacity, generator, effort)
        for parameter, book in zip(self.codebooks, books, strict=True):
            parameter.copy_(book)

    @torch.no_grad()
    def revive(self, rows: Sequence[Tensor], generator: torch.Generator) -> int:
        """Move centroids that no given row chooses onto rows of tiers that reach them; returns how many."""
        moved = 0
        for number, parameter in enumerate(self.codebooks):
            book = self._book(number)
            tiers = [g for g, used in enumerate(self.capacity.codebook_of) if used == number and len(rows[g])]
            uses = torch.zeros(book.shape[:2], dtype=torch.float32, device=book.device)
            for g in tiers:
                uses += ops.scatter(rows[g], self.codes(rows[g], g), None, *book.shape)[1]
            start = 0
            for reach in sorted({self.capacity.num_centroids[g] for g in tiers}):
                near = torch.cat([rows[g] for g in tiers if self.capacity.num_centroids[g] >= reach])
                part = parameter.detach()[:, start:reach].float()
                moved += (count := revive(part, uses[:, start:reach], near, generator))
                if count:
                    parameter[:, start:reach] = part.to(parameter.dtype)
                start = reach
        return moved

    def version(self) -> int:
        """A number that changes when a codebook does."""
        return sum(book._version for book in self.codebooks._parameters.values() if book is not None)

    def values(self, number: int) -> Tensor:
        """Codebook ``number`` in float32 as it will be served, (Dc, Kc, sc), differentiable."""
        book = self.codebooks[number]
        if self.sparse and torch.is_grad_enabled():
            book = SparseGradient.apply(book)  # type: ignore[no-untyped-call]
        return round_centroids(book.float(), self.centroid_dtype)

    def _book(self, number: int) -> Tensor:
        """The same without a gradient."""
        return round_centroids(self.codebooks[number].detach().float(), self.centroid_dtype)

    def codes(self, rows: Tensor, tier: int) -> Tensor:
        """Rows (n, d) of one tier -> (n, D_g) int32."""
        return nearest_codes(
            rows.detach().float(),
            self._book(self.capacity.codebook_of[tier]),
            self.capacity.num_subspaces[tier],
            self.capacity.num_centroids[tier],
        )

    def forward(self, rows: Tensor, groups: Groups, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantise rows, straight through.

        Args:
            rows: (u, d).
            groups: how many of the rows each tier has, tiers in order; under torch.compile each row's tier (u,).
            counts: (u,) each row's weight in the loss.

        Returns:
            (u, d) quantised rows in the rows' dtype, and the loss, codebook loss plus beta * commitment; None
            outside training.
        """
        if not torch.is_grad_enabled():
            return self.decode_tiers(rows, groups).to(rows.dtype), None
        decoded = self.decode_tiers(rows, groups)
        vectors = straight_through(rows, decoded.detach().to(rows.dtype))
        if not self.training:
            return vectors, None
        exact = rows.float()
        loss = codebook_loss(exact, decoded, counts) + self.commitment * commitment_loss(exact, decoded, counts)
        return vectors, loss

    def read(self, weight: Tensor, rows: Tensor, sizes: Sequence[int], batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """What ``forward`` does in training, with the reading of the rows before it and the repeats after it: faster.

        Args:
            weight: (N, d), which gets the gradient.
            rows: (u, d) those of the distinct ids, tiers together and in order; without a gradient.
            sizes: how many of them each tier has.
            batch: the rest about the ids.

        Returns:
            vectors of all ids (n, d), or of the distinct ones (u, d), and the loss.
        """
        books = [self._book(number) for number in range(len(self.codebooks))]
        vectors, loss = QuantizeRows.apply(  # type: ignore[no-untyped-call]
            weight, rows, batch, self._blocks(rows, sizes), books, self.commitment, *self.codebooks
        )
        return vectors, loss

    @property
    def reads(self) -> bool:
        """Whether ``read`` may stand in for ``forward``: not where a subclass has another ``forward``."""
        return type(self).forward is VQQuantizer.forward

    def _blocks(self, rows: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Codes of rows that lie together by tier, with the number of their codebook; neighbours joined."""
        of, subspaces = self.capacity.codebook_of, self.capacity.num_subspaces
        if self._alike:
            return [(self.codes(rows.detach(), 0), 0)]
        codes = [self.codes(part, g) for g, part in enumerate(torch.split(rows.detach(), list(sizes)))]
        if len(set(of)) == len(set(subspaces)) == 1:
            return [(torch.cat(codes), 0)]
        return list(zip(codes, of, strict=True))

    def decode_tiers(self, rows: Tensor, groups: Groups) -> Tensor:
        """Each row's centroids (u, d) float32, differentiable in the codebooks; arguments as in ``forward``."""
        books = [self.values(number) for number in range(len(self.codebooks))]
        if isinstance(groups, Tensor):
            # How many rows a tier has is no static shape: every tier decodes every row.
            decoded = ops.gather(self.codes(rows, 0), books[0])
            for g, number in enumerate(self.capacity.codebook_of[1:], start=1):
                mine = (groups == g).unsqueeze(-1)
                decoded = torch.where(mine, ops.gather(self.codes(rows, g), books[number]), decoded)
            return decoded
        parts = [ops.gather(codes, books[number]) for codes, number in self._blocks(rows, groups)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def frozen_codebooks(self) -> list[Tensor]:
        """The codebooks that a frozen table holds, before rounding to ``centroid_dtype``."""
        return [book.detach().float() for book in self.codebooks]
