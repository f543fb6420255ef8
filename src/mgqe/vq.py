"""DPQ-VQ as a module: codebooks of centroids, the nearest one wins (arXiv 1908.09756, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.capacity import Capacity
from mgqe.codebook import revive, sample_size, start_codebooks
from mgqe.quantizers import (
    SparseGradient,
    codebook_loss,
    commitment_loss,
    nearest_codes,
    round_centroids,
    straight_through,
)


class VQQuantizer(nn.Module):
    """Rows in, quantised rows and the auxiliary loss out.

    Attributes:
        codebooks: one (Dc, Kc, sc) parameter a codebook, see :class:`mgqe.capacity.Capacity`.
    """

    def __init__(
        self, capacity: Capacity, like: Tensor, centroid_dtype: str, commitment: float, sparse: bool = False
    ) -> None:
        super().__init__()
        if commitment < 0:
            raise ValueError(f"commitment must not be negative, got {commitment}")
        self.sparse = sparse
        self.capacity = capacity
        self.centroid_dtype = centroid_dtype
        self.commitment = commitment
        self.codebooks = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in capacity.codebook_shapes)

    def sample_size(self, tier: int) -> int:
        """Rows of a tier that ``start`` and ``revive`` want to see at most."""
        return sample_size(self.capacity.num_centroids[tier])

    @torch.no_grad()
    def start(self, rows: Sequence[Tensor], generator: torch.Generator) -> None:
        """Nested k-means on each tier's rows [(n_g, d) float32]."""
        for parameter, book in zip(self.codebooks, start_codebooks(rows, self.capacity, generator), strict=True):
            parameter.copy_(book)

    @torch.no_grad()
    def revive(self, rows: Sequence[Tensor], generator: torch.Generator) -> int:
        """Move centroids that no given row chooses onto rows of tiers that reach them; returns how many."""
        moved = 0
        for number, parameter in enumerate(self.codebooks):
            book = self.values(number).detach().float()
            tiers = [g for g, used in enumerate(self.capacity.codebook_of) if used == number and len(rows[g])]
            uses = torch.zeros(book.shape[:2], device=book.device)
            for g in tiers:
                codes = self.codes(rows[g], g)
                ones = torch.ones(len(rows[g]), 1, device=book.device).expand(-1, rows[g].shape[1])
                uses += ops.scatter(ones.contiguous(), codes, None, *book.shape)[1]
            start = 0
            for reach in sorted({self.capacity.num_centroids[g] for g in tiers}):
                near = torch.cat([rows[g] for g in tiers if self.capacity.num_centroids[g] >= reach])
                part = parameter.detach()[:, start:reach].float()
                moved += (count := revive(part, uses[:, start:reach], near, generator))
                if count:
                    parameter[:, start:reach] = part.to(parameter.dtype)
                start = reach
        return moved

    def values(self, number: int) -> Tensor:
        """Codebook ``number`` in float32 as it will be served, (Dc, Kc, sc), differentiable."""
        book = self.codebooks[number]
        if self.sparse:
            book = SparseGradient.apply(book)  # type: ignore[no-untyped-call]
        return round_centroids(book.float(), self.centroid_dtype)

    def codes(self, rows: Tensor, tier: int) -> Tensor:
        """Rows (n, d) of one tier -> (n, D_g) int32."""
        book = self.values(self.capacity.codebook_of[tier]).detach()
        return nearest_codes(
            rows.detach().float(), book, self.capacity.num_subspaces[tier], self.capacity.num_centroids[tier]
        )

    def forward(self, rows: Tensor, tier: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantise distinct rows, straight through.

        Args:
            rows: (u, d).
            tier: (u,) each row's tier.
            counts: (u,) each row's weight in the loss.

        Returns:
            (u, d) quantised rows in the rows' dtype, and the loss: codebook loss plus commitment.
        """
        decoded = self.decode_tiers(rows, tier).to(rows.dtype)
        if not torch.is_grad_enabled():
            return decoded, None
        if not self.training:
            return straight_through(rows, decoded.detach()), None
        loss = codebook_loss(rows, decoded, counts) + self.commitment * commitment_loss(rows, decoded, counts)
        return straight_through(rows, decoded.detach()), loss

    def decode_tiers(self, rows: Tensor, tier: Tensor) -> Tensor:
        """Each row's centroids (u, d) float32, differentiable in the codebooks."""
        books = [self.values(number) for number in range(len(self.codebooks))]
        of = self.capacity.codebook_of
        if self.capacity.num_tiers == 1:
            return ops.gather(self.codes(rows, 0), books[0])
        if torch.compiler.is_compiling():  # how many rows a tier has is no static shape
            decoded = ops.gather(self.codes(rows, 0), books[of[0]])
            for g in range(1, self.capacity.num_tiers):
                mine = (tier == g).unsqueeze(-1)
                decoded = torch.where(mine, ops.gather(self.codes(rows, g), books[of[g]]), decoded)
            return decoded
        places = [(tier == g).nonzero().squeeze(-1) for g in range(self.capacity.num_tiers)]
        parts = [
            ops.gather(self.codes(rows.detach().index_select(0, at), g), books[of[g]]) for g, at in enumerate(places)
        ]
        back = torch.empty_like(tier, dtype=torch.int64)
        back[torch.cat(places)] = torch.arange(len(tier), device=tier.device)
        return torch.cat(parts).index_select(0, back)

    def served(self) -> list[Tensor]:
        """The codebooks that a frozen table holds, before rounding to ``centroid_dtype``."""
        return [book.detach().float() for book in self.codebooks]
