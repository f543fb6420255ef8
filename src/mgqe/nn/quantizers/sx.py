"""DPQ-SX as a module: keys choose by softmax, values are served (arXiv 1908.09756, section 2.2).

By torch's operators every response is held for the backward pass, u * D * K floats: far slower than VQ, and as the
papers have it. The kernels for GPUs compute responses where they are needed (:mod:`mgqe.ops.triton_kernels.soft`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.codec.capacity import Capacity
from mgqe.codec.equations import (
    Groups,
    fold_normalization,
    mix_values,
    normalize_responses,
    responses,
    round_centroids,
    soft_to_hard,
    tier_codebook,
)
from mgqe.codec.kmeans import KMEANS, Frame, KMeans, split_pieces, start_codebooks
from mgqe.nn.context.ddp import average, recomputing
from mgqe.nn.quantizers.autograd import QuantizeSoftly
from mgqe.nn.quantizers.base import Quantizer
from mgqe.ops.layout.searches import even_searches

TEMPERATURE = 1.0
EPS = 1e-5  # added to variances, as of mgqe.codec.equations.normalize_responses
MOMENTUM = 0.1  # of the running batch-norm statistics, as in nn.BatchNorm1d


class Lift(Protocol):
    """What makes vectors of rows that are narrower, :class:`mgqe.nn.rows.narrow.NarrowStore`."""

    def values_of(self, keys: Tensor) -> Tensor:
        """Keys (Dc, K, key_dim) -> values (Dc, K, s)."""


class SXQuantizer(Quantizer):
    """A row's code is the key that wins a softmax, and the key's value is served. There is no loss but the task's.

    Attributes:
        keys, values_: one (Dc, Kc, sc) parameter each per codebook; only the values are served.
        mean_g, variance_g: running statistics (D_g, K_g) of tier g's responses, folded into the keys when codes
            are computed outside training.
    """

    counts_distinct = True
    largest_value = 1e8  # of a row's numbers; variances of products with keys are their fourth powers
    lift: tuple[Lift, ...] = ()  # in a tuple, where nn.Module does not see it

    def __init__(
        self, capacity: Capacity, like: Tensor, centroid_dtype: str, sparse: bool = False, key_dim: int | None = None
    ) -> None:
        super().__init__(capacity, centroid_dtype, sparse)
        self.key_dim = key_dim
        shapes = capacity.codebook_shapes
        keys = [(*shape[:2], key_dim or shape[2]) for shape in shapes]
        self.keys = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in keys)
        self.values_ = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in shapes)
        tiers = list(zip(capacity.num_subspaces, capacity.num_centroids, strict=True))
        self._searches = (
            even_searches(keys, capacity.codebook_of, tiers),
            even_searches(shapes, capacity.codebook_of, tiers),
        )
        self._search_numbers = self._searches[0].numbers, self._searches[1].numbers
        for g, tier in enumerate(capacity.tiers):
            size = (tier.num_subspaces, tier.num_centroids)
            self.register_buffer(f"mean_{g}", torch.zeros(size, dtype=torch.float32, device=like.device))
            self.register_buffer(f"variance_{g}", torch.ones(size, dtype=torch.float32, device=like.device))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for book in (*self.keys, *self.values_):
            book.zero_()
        for g in range(self.capacity.num_tiers):
            mean, variance = self._statistics(g)
            mean.zero_()
            variance.fill_(1.0)

    @torch.no_grad()
    def start(self, rows: Sequence[Tensor], generator: torch.Generator, effort: KMeans = KMEANS) -> None:
        """Start keys by nested k-means, statistics on their responses, values as the mean of the rows a key wins."""
        capacity = self.capacity
        if self.key_dim is not None:
            capacity = replace(capacity, embedding_dim=max(capacity.num_subspaces) * self.key_dim)
        books = start_codebooks(rows, capacity, generator, effort)
        for key, book in zip(self.keys, books, strict=True):
            key.copy_(book)
        for g, tier_rows in enumerate(rows):
            scores = self._responses(tier_rows, g)
            self._measure(g, *batch_statistics(scores, tier_rows.new_ones(len(tier_rows))), momentum=1.0)
        if self.lift:
            for value, book in zip(self.values_, books, strict=True):
                value.copy_(self.lift[0].values_of(book))
            return
        for number, value in enumerate(self.values_):
            value.copy_(self._won_means(rows, number, books[number]))

    def _won_means(self, rows: Sequence[Tensor], number: int, book: Tensor) -> Tensor:
        """The mean of the rows that each key wins (Dc, K, sc); the key itself, from ``book``, where it wins none."""
        tiers = [g for g, used in enumerate(self.capacity.codebook_of) if used == number]
        frame = Frame.of(torch.cat([split_pieces(rows[g], book.shape[2]) for g in tiers]), book.shape[0])
        sums = torch.zeros_like(book)
        counts = torch.zeros(book.shape[:2], dtype=torch.float32, device=book.device)
        for g in tiers:
            values = rows[g] if frame is None else frame.rows(rows[g])
            tier_sums, tier_counts = ops.scatter(values, self.codes(rows[g], g), None, *book.shape)
            sums += tier_sums
            counts += tier_counts
        means = sums / counts.clamp(min=1).unsqueeze(-1)
        means = means if frame is None else frame.leave(means)
        return torch.where((counts > 0).unsqueeze(-1), means, book)

    def _searched_codebooks(self) -> nn.ParameterList:
        return self.keys

    def _move_values(self, number: int, window: slice, centroids: Tensor, dead: Tensor) -> None:
        value = self.values_[number]
        moved = self.lift[0].values_of(centroids) if self.lift else centroids
        value[:, window] = torch.where(dead.unsqueeze(-1), moved.to(value.dtype), value[:, window])

    def values(self, number: int) -> Tensor:
        return round_centroids(self._leaf(self.values_[number]).float(), self.centroid_dtype)

    def _tier_view(self, book: Tensor, tier: int) -> Tensor:
        return tier_codebook(book, self.capacity.num_subspaces[tier], self.capacity.num_centroids[tier])

    def _responses(self, rows: Tensor, tier: int) -> Tensor:
        keys = self._leaf(self.keys[self.capacity.codebook_of[tier]]).float()
        return responses(rows.float(), self._tier_view(keys, tier))

    def _statistics(self, tier: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{tier}"), self.get_buffer(f"variance_{tier}")

    @torch.no_grad()
    def _measure(self, tier: int, mean: Tensor, variance: Tensor, size: Tensor, momentum: float) -> None:
        """Take a batch's statistics into the running ones; a batch of one row has no variance and is left out."""
        unbiased = variance * (size / (size - 1).clamp(min=1))
        for running, batch in zip(self._statistics(tier), (mean, unbiased), strict=True):
            running.copy_(torch.where(size > 1, running.float().lerp(batch, momentum), running.float()))
        if not torch.compiler.is_compiling():
            average(*self._statistics(tier))  # of other samples on every process, which must choose the same codes

    def codes(self, rows: Tensor, tier: int) -> Tensor:
        keys = self._tier_view(self.keys[self.capacity.codebook_of[tier]].detach().float(), tier)
        mean, variance = self._statistics(tier)
        folded, bias = fold_normalization(keys, mean.float(), variance.float())
        return ops.assign(rows.detach().float(), folded.contiguous(), bias.contiguous())

    def forward(self, rows: Tensor, groups: Groups, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        present = (counts > 0).float()
        if isinstance(groups, Tensor):
            # How many rows a tier has is no static shape: every tier quantises every row.
            quantized = self._quantize(rows, present * (groups == 0), 0)
            for g in range(1, self.capacity.num_tiers):
                in_tier = groups == g
                quantized = torch.where(in_tier.unsqueeze(-1), self._quantize(rows, present * in_tier, g), quantized)
            return quantized.to(rows.dtype), None
        tiers = zip(torch.split(rows, list(groups)), torch.split(present, list(groups)), strict=True)
        return torch.cat([self._quantize(*tier, g) for g, tier in enumerate(tiers)]).to(rows.dtype), None

    def quantize(
        self, rows: Tensor, groups: Groups, counts: Tensor | None, gathered: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        trains = self.training and torch.is_grad_enabled() and type(self).forward is SXQuantizer.forward
        if trains and self.takes_kernels_in_graph:
            return self._quantize_in_graph(rows, groups, counts), None
        in_any_order = isinstance(groups, Tensor) or len(groups) == 1
        fuses = trains and in_any_order and not torch.compiler.is_compiling()
        if not (fuses and ops.quantizes_by_tier(rows.device)):
            return super().quantize(rows, groups, counts, gathered)
        number, again = len(self.values_), recomputing()
        statistics = [self._statistics(g) for g in range(self.capacity.num_tiers)]
        vectors = QuantizeSoftly.apply(  # type: ignore[no-untyped-call]
            rows,
            counts,
            groups if isinstance(groups, Tensor) else None,
            self._searches,
            # Gradient checkpointing would count the batch twice.
            [(mean.clone(), variance.clone()) for mean, variance in statistics] if again else statistics,
            (MOMENTUM, EPS),
            [round_centroids(self.values_[c].detach().float(), self.centroid_dtype) for c in range(number)],
            self.sparse,
            lambda same_rows: self._composed(same_rows, groups, counts),
            *self.keys,
            *self.values_,
        )
        if not again:
            average(*(each for pair in statistics for each in pair))
        return vectors, None

    def _quantize_in_graph(self, rows: Tensor, groups: Groups, counts: Tensor | None) -> Tensor:
        """As :class:`QuantizeSoftly`, for a compiler to trace."""
        statistics = [self._statistics(g) for g in range(self.capacity.num_tiers)]
        vectors, moved = ops.choose_softly_in_graph(
            rows.float(),
            self._tiers_in_graph(groups),
            counts,
            torch.cat([key.float().reshape(-1) for key in self.keys]),
            torch.cat([self.values(number).reshape(-1) for number in range(len(self.values_))]),
            self._search_numbers,
            statistics,
            MOMENTUM,
            EPS,
        )
        with torch.no_grad():
            for running, now in zip((each for pair in statistics for each in pair), moved, strict=True):
                running.copy_(now)
        return vectors.to(rows.dtype)

    def _composed(self, rows: Tensor, groups: Groups, counts: Tensor | None) -> Tensor:
        """The vectors of a training pass by torch's operators, in a backward pass, where statistics stay."""
        counts = torch.ones(rows.shape[0], dtype=torch.int64, device=rows.device) if counts is None else counts
        vectors, _ = self.forward(rows, groups, counts)
        return vectors

    def _quantize(self, rows: Tensor, present: Tensor, tier: int) -> Tensor:
        number = self.capacity.codebook_of[tier]
        if not torch.is_grad_enabled():
            return ops.gather(self.codes(rows, tier), self.values(number))
        scores = self._responses(rows, tier)
        mean, variance = (statistic.float() for statistic in self._statistics(tier))
        if self.training:
            batch_mean, batch_variance, size = batch_statistics(scores, present)
            mean = torch.where(size > 1, batch_mean, mean)
            variance = torch.where(size > 1, batch_variance, variance)
            if not recomputing():  # gradient checkpointing would count the batch twice
                self._measure(tier, batch_mean.detach(), batch_variance.detach(), size, MOMENTUM)
            normalized = normalize_responses(scores, mean, variance)
            codes = normalized.detach().argmax(-1)
        else:
            normalized = normalize_responses(scores, mean, variance)
            codes = self.codes(rows, tier)
        weights = soft_to_hard(normalized, codes, TEMPERATURE)
        return mix_values(weights, self._tier_view(self.values(number), tier))

    def frozen_codebooks(self) -> list[Tensor]:
        return [value.detach().float() for value in self.values_]


def batch_statistics(scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance (D, K) of the responses (n, D, K) of the rows that are present, and their number.

    Args:
        scores: (n, D, K).
        present: (n,) ones, and zeros for rows that do not count.
    """
    size = present.sum()
    shares = present / size.clamp(min=1)
    mean = torch.einsum("n,njk->jk", shares, scores)
    return mean, torch.einsum("n,njk->jk", shares, (scores - mean).square()), size
