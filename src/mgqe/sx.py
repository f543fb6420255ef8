"""DPQ-SX as a module: keys choose by softmax, values are served (arXiv 1908.09756, section 2.2).

Every response is held for the backward pass, u * D * K floats: far slower than VQ, and as the papers have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.capacity import Capacity
from mgqe.codebook import revive, sample_size, start_codebooks
from mgqe.quantizers import (
    SparseGradient,
    fold_normalization,
    mix_values,
    normalize_responses,
    responses,
    round_centroids,
    soft_to_hard,
    tier_codebook,
)

TEMPERATURE = 1.0
MOMENTUM = 0.1  # of the running batch-norm statistics, as in nn.BatchNorm1d


class SXQuantizer(nn.Module):
    """Rows in, values of the winning keys out; soft backward. The loss is the task's alone.

    Attributes:
        keys, values_: one (Dc, Kc, sc) parameter a codebook; only the values are served.
        mean_g, variance_g: running statistics (D_g, K_g) of tier g's responses, folded into the keys when codes
            are computed outside training.
    """

    def __init__(self, capacity: Capacity, like: Tensor, centroid_dtype: str, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        self.capacity = capacity
        self.centroid_dtype = centroid_dtype
        shapes = capacity.codebook_shapes
        self.keys = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in shapes)
        self.values_ = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in shapes)
        for g, size in enumerate(zip(capacity.num_subspaces, capacity.num_centroids, strict=True)):
            self.register_buffer(f"mean_{g}", torch.zeros(size, device=like.device))
            self.register_buffer(f"variance_{g}", torch.ones(size, device=like.device))

    def sample_size(self, tier: int) -> int:
        """Rows of a tier that ``start`` and ``revive`` want to see at most."""
        return sample_size(self.capacity.num_centroids[tier])

    @torch.no_grad()
    def start(self, rows: Sequence[Tensor], generator: torch.Generator) -> None:
        """Keys by nested k-means; statistics of their responses; values as the mean of the rows a key wins."""
        books = start_codebooks(rows, self.capacity, generator)
        for key, book in zip(self.keys, books, strict=True):
            key.copy_(book)
        for g, tier_rows in enumerate(rows):
            if len(tier_rows) > 1:
                self._measure(g, self._responses(tier_rows, g), momentum=1.0)
        for number, value in enumerate(self.values_):
            sums, counts = (
                torch.zeros_like(books[number]),
                torch.zeros(books[number].shape[:2], device=value.device),
            )
            for g, tier_rows in enumerate(rows):
                if self.capacity.codebook_of[g] == number:
                    part, part_counts = ops.scatter(tier_rows, self.codes(tier_rows, g), None, *value.shape)
                    sums += part
                    counts += part_counts
            means = sums / counts.clamp(min=1).unsqueeze(-1)
            value.copy_(torch.where((counts > 0).unsqueeze(-1), means, books[number]))

    @torch.no_grad()
    def revive(self, rows: Sequence[Tensor], generator: torch.Generator) -> int:
        """Move key and value of centroids that no row chooses onto rows of tiers that reach them."""
        moved = 0
        for number, (key, value) in enumerate(zip(self.keys, self.values_, strict=True)):
            tiers = [g for g, used in enumerate(self.capacity.codebook_of) if used == number and len(rows[g])]
            uses = torch.zeros(key.shape[:2], device=key.device)
            for g in tiers:
                uses += ops.scatter(rows[g], self.codes(rows[g], g), None, *key.shape)[1]
            start = 0
            for reach in sorted({self.capacity.num_centroids[g] for g in tiers}):
                near = torch.cat([rows[g] for g in tiers if self.capacity.num_centroids[g] >= reach])
                dead = (uses[:, start:reach] == 0).unsqueeze(-1)
                part = key.detach()[:, start:reach].float()
                moved += revive(part, uses[:, start:reach], near, generator)
                key[:, start:reach] = part.to(key.dtype)
                value[:, start:reach] = torch.where(dead, part.to(value.dtype), value[:, start:reach])
                start = reach
        return moved

    def values(self, number: int) -> Tensor:
        """Codebook ``number`` in float32 as it will be served, (Dc, Kc, sc), differentiable."""
        return round_centroids(self._leaf(self.values_[number]).float(), self.centroid_dtype)

    def _leaf(self, parameter: Tensor) -> Tensor:
        return SparseGradient.apply(parameter) if self.sparse else parameter  # type: ignore[no-untyped-call]

    def _tier_view(self, book: Tensor, tier: int) -> Tensor:
        return tier_codebook(book, self.capacity.num_subspaces[tier], self.capacity.num_centroids[tier])

    def _responses(self, rows: Tensor, tier: int) -> Tensor:
        keys = self._leaf(self.keys[self.capacity.codebook_of[tier]]).float()
        return responses(rows.float(), self._tier_view(keys, tier))

    def _statistics(self, tier: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{tier}"), self.get_buffer(f"variance_{tier}")

    @torch.no_grad()
    def _measure(self, tier: int, scores: Tensor, momentum: float) -> None:
        mean, variance = self._statistics(tier)
        mean.lerp_(scores.mean(0).to(mean.dtype), momentum)
        variance.lerp_(scores.var(0, unbiased=True).to(variance.dtype), momentum)

    def codes(self, rows: Tensor, tier: int) -> Tensor:
        """Rows (n, d) of one tier -> (n, D_g) int32, with the batch norm folded into the keys."""
        keys = self._tier_view(self.keys[self.capacity.codebook_of[tier]].detach().float(), tier)
        mean, variance = self._statistics(tier)
        folded, bias = fold_normalization(keys, mean.float(), variance.float())
        return ops.assign(rows.detach().float(), folded.contiguous(), bias.contiguous())

    def forward(self, rows: Tensor, tier: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantise distinct rows (u, d) of the given tiers (u,); the auxiliary loss of SX is None."""
        quantized = torch.zeros_like(rows, dtype=torch.float32)
        for g in range(self.capacity.num_tiers):
            at = (tier == g).nonzero().squeeze(-1)
            if len(at):
                quantized = quantized.index_copy(0, at, self._quantize(rows[at], g))
        return quantized.to(rows.dtype), None

    def _quantize(self, rows: Tensor, tier: int) -> Tensor:
        number = self.capacity.codebook_of[tier]
        if not torch.is_grad_enabled():
            return ops.gather(self.codes(rows, tier), self.values(number))
        scores = self._responses(rows, tier)
        if self.training and len(rows) > 1:
            self._measure(tier, scores.detach(), MOMENTUM)
            normalized = normalize_responses(scores, scores.mean(0), scores.var(0, unbiased=False))
            codes = normalized.detach().argmax(-1)
        else:
            mean, variance = self._statistics(tier)
            normalized = normalize_responses(scores, mean.float(), variance.float())
            codes = self.codes(rows, tier)
        weights = soft_to_hard(normalized, codes, TEMPERATURE)
        return mix_values(weights, self._tier_view(self.values(number), tier))

    def served(self) -> list[Tensor]:
        """The codebooks that a frozen table holds, before rounding to ``centroid_dtype``: the values."""
        return [value.detach().float() for value in self.values_]
