"""MGQEmbeddingBag and DPQEmbeddingBag: drop-in for nn.EmbeddingBag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.checks.ids import as_int64, check_device
from mgqe.codec.tiers import Tiers
from mgqe.nn.embedding import MGQEmbedding
from mgqe.nn.quantization import Counts, Quantization, QuantizationOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

MODES = ("sum", "mean", "max")


class MGQEmbeddingBag(MGQEmbedding):
    """Sums, means or maxima of bags of quantised vectors; each distinct id of a batch is quantised once.

    Arguments up to ``dtype`` are nn.EmbeddingBag's, in its order; the keywords after them are those of
    :class:`MGQEmbedding`.

    Shape:
        ids (B, L), or ids (n,) with offsets (B,) -> (B, d); an empty bag gives zeros. Ids equal to
        ``padding_idx`` are left out of their bag.

    Raises:
        ValueError, TypeError: arguments that do not fit. IndexError: ids out of range, in the forward pass.

    Example:
        >>> import torch, mgqe
        >>> counts = torch.arange(10_000, 0, -1)  # how often each id occurs in training
        >>> layer = mgqe.MGQEmbeddingBag(10_000, 64, mode="sum", counts=counts)
        >>> layer(torch.tensor([3, 17, 9_999]), offsets=torch.tensor([0, 2])).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        counts: Counts | None = None,
        tiers: Tiers | Sequence[int] | None = None,
        config: Quantization | None = None,
        **options: Unpack[QuantizationOptions],
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            False,
            device,
            dtype,
            counts=counts,
            tiers=tiers,
            config=config,
            **options,
        )
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Bags of ids -> (B, d).

        Args:
            input: integers (B, L), or (n,) together with ``offsets``.
            offsets: (B,) where each bag starts, or (B + 1,) with ``include_last_offset``.
            per_sample_weights: like input; only for mode="sum".
        """
        self._begin_pass()
        ids = self._int64(input)
        if offsets is not None:
            offsets = as_int64(offsets, "offsets")
            check_device(offsets, ids.device, "offsets", "the ids")
        if ids.dim() == 2 and offsets is not None:
            raise ValueError("ids of shape (B, L) are bags already: offsets must be None")
        if ids.dim() not in (1, 2):
            raise ValueError(f"ids must have 1 or 2 dimensions, got shape {tuple(ids.shape)}")
        padding: int | None = self.padding_idx
        if self._reads_parameter:
            table: Tensor = self.raw_weight
            index, norm, sparse = self._checked_ids(ids), self.max_norm, self.sparse
        else:
            flat = ids.reshape(-1)
            vectors, batch = self._distinct_vectors(flat)
            table, index, norm, sparse = vectors.to(self.vector_dtype), batch.positions, None, False
            if padding is not None:
                # The zero vector of padding_idx moves to a row past the others, whatever its position was.
                padding, is_padding = table.shape[0], flat == padding
                index = index.masked_fill(is_padding, padding)
                table = torch.cat([table, table.new_zeros(1, table.shape[1])])
            index = index.view(ids.shape)
        pooled = F.embedding_bag(
            index,
            table,
            offsets,
            norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            sparse,
            per_sample_weights,
            self.include_last_offset,
            padding,
        )
        if self.gathering:
            self.moments.watch_bags(
                pooled, ids, offsets, per_sample_weights, self.mode, self.include_last_offset, self.padding_idx
            )
        return self.tie_to_codebooks(pooled)


class DPQEmbeddingBag(MGQEmbeddingBag):
    """:class:`MGQEmbeddingBag` with one tier: the same capacity for every id."""

    one_tier = True
