"""DPQ-VQ as a module: codebooks of centroids, the nearest one wins (arXiv 1908.09756, section 2.3)."""

from __future__ import annotations

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
    tier_codebook,
)
from mgqe.codec.kmeans import KMEANS, KMeans, start_codebooks
from mgqe.nn.quantizers.autograd import QuantizeByTier, QuantizeRows, loss_weights
from mgqe.nn.quantizers.base import Quantizer
from mgqe.ops.layout.searches import even_searches


class VQQuantizer(Quantizer):
    """A row's code is its nearest centroid; the loss is the codebook loss plus beta times the commitment loss.

    Attributes:
        codebooks: one (Dc, Kc, sc) parameter per codebook, see :class:`mgqe.codec.capacity.Capacity`.
        commitment: beta.
    """

    follows_rows = True

    def __init__(
        self, capacity: Capacity, like: Tensor, centroid_dtype: str, commitment: float, sparse: bool = False
    ) -> None:
        super().__init__(capacity, centroid_dtype, sparse)
        self.commitment = as_float("commitment", commitment)
        if not 0 <= self.commitment < float("inf"):
            raise ValueError(f"commitment must be a finite number of 0 or more, got {self.commitment}")
        self._alike = (
            capacity.share_codebook and len({(tier.num_subspaces, tier.num_centroids) for tier in capacity.tiers}) == 1
        )
        shapes = zip(capacity.num_subspaces, capacity.num_centroids, strict=True)
        self._searches = even_searches(capacity.codebook_shapes, capacity.codebook_of, list(shapes))
        self._search_numbers = self._searches.numbers
        self.codebooks = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in capacity.codebook_shapes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for book in self.codebooks:
            book.zero_()

    @torch.no_grad()
    def start(self, rows: Sequence[Tensor], generator: torch.Generator, effort: KMeans = KMEANS) -> None:
        books = start_codebooks(rows, self.capacity, generator, effort)
        for parameter, book in zip(self.codebooks, books, strict=True):
            parameter.copy_(book)

    def values(self, number: int) -> Tensor:
        return round_centroids(self._leaf(self.codebooks[number]).float(), self.centroid_dtype)

    def rounded(self, number: int) -> Tensor:
        """Like :meth:`values`, without a gradient."""
        return round_centroids(self.codebooks[number].detach().float(), self.centroid_dtype)

    def codes(self, rows: Tensor, tier: int) -> Tensor:
        return nearest_codes(
            rows.detach().float(),
            self.rounded(self.capacity.codebook_of[tier]),
            self.capacity.num_subspaces[tier],
            self.capacity.num_centroids[tier],
        )

    def rows_of(self, codes: Tensor, tier: int) -> Tensor:
        book = self.rounded(self.capacity.codebook_of[tier])
        subspaces, centroids = self.capacity.num_subspaces[tier], self.capacity.num_centroids[tier]
        return ops.gather(codes, tier_codebook(book, subspaces, centroids).contiguous())

    def forward(self, rows: Tensor, groups: Groups, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        decoded = self.decode_tiers(rows, groups)
        if not torch.is_grad_enabled():
            return decoded.to(rows.dtype), None
        vectors = straight_through(rows, decoded.detach().to(rows.dtype))
        if not self.training:
            return vectors, None
        exact = rows.float()
        loss = codebook_loss(exact, decoded, counts) + self.commitment * commitment_loss(exact, decoded, counts)
        return vectors, loss

    def quantize(
        self, rows: Tensor, groups: Groups, counts: Tensor | None, gathered: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        fuses = self.training and torch.is_grad_enabled() and gathered and self.is_fused
        if fuses and self.takes_kernels_in_graph:
            return self._quantize_in_graph(rows, groups, counts)
        if fuses and self._quantizes_by_tier(rows, groups):
            tiers = groups if isinstance(groups, Tensor) else None
            return QuantizeByTier.apply(  # type: ignore[no-any-return, no-untyped-call]
                rows,
                counts,
                tiers,
                self._searches,
                self._rounded_books(),
                self.commitment,
                self.sparse,
                *self.codebooks,
            )
        if not fuses or isinstance(groups, Tensor):
            return super().quantize(rows, groups, counts)
        return QuantizeRows.apply(  # type: ignore[no-any-return, no-untyped-call]
            rows,
            loss_weights(counts, rows),
            self._blocks(rows, groups),
            self._rounded_books(),
            self.commitment,
            self.sparse,
            *self.codebooks,
        )

    def _quantize_in_graph(self, rows: Tensor, groups: Groups, counts: Tensor | None) -> tuple[Tensor, Tensor]:
        """As :class:`QuantizeByTier`, for a compiler to trace."""
        tiers = self._tiers_in_graph(groups)
        book = torch.cat([self.values(number).reshape(-1) for number in range(len(self.codebooks))])
        decoded, loss = ops.quantize_in_graph(
            rows.float(), counts, tiers, book, self._search_numbers, rows.shape[1], self.commitment
        )
        return straight_through(rows, decoded.to(rows.dtype)), loss

    def _quantizes_by_tier(self, rows: Tensor, groups: Groups) -> bool:
        in_any_order = isinstance(groups, Tensor) or len(groups) == 1
        return in_any_order and not torch.compiler.is_compiling() and ops.quantizes_by_tier(rows.device)

    def _rounded_books(self) -> list[Tensor]:
        return [self.rounded(number) for number in range(len(self.codebooks))]

    @property
    def is_fused(self) -> bool:
        # Not where a subclass has another ``forward``.
        return type(self).forward is VQQuantizer.forward

    def _blocks(self, rows: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Codes of rows whose tiers lie together, with the number of their codebook; neighbours joined."""
        of, subspaces = self.capacity.codebook_of, self.capacity.num_subspaces
        if self._alike:
            return [(self.codes(rows.detach(), 0), 0)]
        codes = [self.codes(tier_rows, g) for g, tier_rows in enumerate(torch.split(rows.detach(), list(sizes)))]
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
                in_tier = (groups == g).unsqueeze(-1)
                decoded = torch.where(in_tier, ops.gather(self.codes(rows, g), books[number]), decoded)
            return decoded
        vectors = [ops.gather(codes, books[number]) for codes, number in self._blocks(rows, groups)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors)

    def _searched_codebooks(self) -> nn.ParameterList:
        return self.codebooks

    def frozen_codebooks(self) -> list[Tensor]:
        return [book.detach().float() for book in self.codebooks]
