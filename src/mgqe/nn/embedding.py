"""Training modules: MGQEmbedding and DPQEmbedding, drop-in for nn.Embedding.

Rows train unquantised for a warm-up, then the codebooks start on them by nested k-means and training goes on
straight through the codes. ``freeze()`` is the only bridge to serving. :mod:`mgqe.nn.quantized` has what they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mgqe.checks.inference import as_normal, outside_inference
from mgqe.checks.rows import as_rows
from mgqe.codec.metric import Metric
from mgqe.nn.quantized import QuantizedEmbedding

if TYPE_CHECKING:
    from typing_extensions import Self


class MGQEmbedding(QuantizedEmbedding):
    """Multi-granular quantised embedding (Kang et al., WWW'20): nn.Embedding with tiers of unequal capacity.

    With a budget, rows are turned and coded with more bits where the model's loss feels their errors, and frequent ids
    get more of them. So are rows where nothing says how large the table should be; see :class:`mgqe.Quantization`.
    With a capacity, such as ``num_centroids=(256, 64)``, frequent ids choose among more centroids (or have more
    subspaces) than rare ones, as in the paper. Arguments up to ``dtype`` are nn.Embedding's; but ``padding_idx``
    always looks up as zeros, whatever its row holds.

    Args:
        num_embeddings: N, rows.
        embedding_dim: d.
        counts: (N,) how often each id occurs in training. Ids are sorted by it, ties by id, and divided into tiers by
            ``fractions``, or by the plan. Or give ``tiers``. A ``budget`` needs neither: tiers then go by the lengths
            of the trained rows, where these are so unlike that tiers pay.
        tiers: the partition itself, e.g. ``Tiers.from_fractions(N, (0.1, 0.9))`` for ids in frequency order. Such a
            layer has the even shape: 256 centroids for the first tier and 64 for the others, unless others are given.
        config: how the table is quantised; default :class:`mgqe.Quantization`.
        options: attributes of :class:`mgqe.Quantization`, instead of those of ``config``: ``num_subspaces``,
            ``num_centroids``, ``budget`` and so on.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d), in the weight's dtype.

    Raises:
        ValueError, TypeError: arguments that do not fit, naming what was expected.
        IndexError: ids out of range, in the forward pass.

    Example:
        >>> import torch, mgqe
        >>> counts = torch.arange(10_000, 0, -1)  # how often each id occurs in training
        >>> layer = mgqe.MGQEmbedding(10_000, 64, counts=counts, num_centroids=(256, 64))
        >>> layer(torch.tensor([[3, 17, 9_999]])).shape
        torch.Size([1, 3, 64])
        >>> print(f"{layer.freeze().nbytes:,} bytes of {10_000 * 64 * 4:,}")
        313,536 bytes of 2,560,000
    """

    def forward(self, input: Tensor) -> Tensor:
        """Vectors of ids: integers (...) -> (..., d)."""
        self._begin_pass()
        if self._reads_parameter:
            ids = self._checked_ids(input)
            vectors = F.embedding(
                ids,
                self.raw_weight,
                self.padding_idx,
                self.max_norm,
                self.norm_type,
                self.scale_grad_by_freq,
                self.sparse,
            )
            if self.zero_row is not None:  # which nn.Embedding only starts as zeros
                vectors = vectors.masked_fill(ids.eq(self.zero_row).unsqueeze(-1), 0.0)
            if self.gathering:
                self.moments.watch_vectors(vectors, ids, self.padding_idx)
            return self.tie_to_codebooks(vectors)
        ids = self._int64(input)
        # Two lines, since a graph that is broken in the first one would depend on the bound method of the second.
        vectors, batch = self._distinct_vectors(ids.reshape(-1))
        vectors = self._repeated(vectors, batch).view(*ids.shape, self.embedding_dim)
        if self.gathering:
            self.moments.watch_vectors(vectors, ids, self.padding_idx)
        return self.tie_to_codebooks(vectors)

    @classmethod
    @outside_inference
    def from_pretrained(
        cls, embeddings: Tensor | np.ndarray, freeze: bool = False, *, queries: Tensor | None = None, **arguments: Any
    ) -> Self:
        """A layer that starts from trained rows (N, d); other arguments as in the constructor.

        There is no warm-up here, unless ``warmup_steps`` or ``config`` says otherwise: the first training pass, or
        ``freeze()``, starts the codebooks from these rows. Unlike nn.Embedding's, the rows are a copy and stay
        trainable; with ``freeze=True`` they are the given ones and do not train.

        ``queries``: of layers that have a budget, floats (n, d), a sample of what the rows are multiplied with, by
        which the budget is spent: on what inner products feel, instead of on all directions alike.
        """
        if isinstance(embeddings, np.ndarray):
            embeddings = as_rows(embeddings, "embeddings")
        if not isinstance(embeddings, Tensor):
            raise TypeError(
                f"embeddings must be a torch.Tensor (N, d), got {type(embeddings).__name__}: use torch.as_tensor"
            )
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings must be 2-dimensional (N, d), got shape {tuple(embeddings.shape)}")
        if arguments.get("config") is None:
            arguments.setdefault("warmup_steps", 0)
        num_embeddings, embedding_dim = embeddings.shape
        rows = as_normal(embeddings) if freeze else embeddings.detach().clone()
        metric = None if queries is None else Metric.of_queries(queries)
        layer = cls(num_embeddings, embedding_dim, _weight=rows, **arguments)
        if metric is not None:
            layer.set_metric(metric)
        layer.raw_weight.requires_grad_(not freeze)
        return layer


class DPQEmbedding(MGQEmbedding):
    """Differentiable product quantisation (Chen et al., ICML'20): one tier, the same capacity for every id.

    Arguments are :class:`MGQEmbedding`'s, without those that say how tiers differ: ``counts``, ``tiers``,
    ``fractions``, ``capacity`` and ``share_codebook``. If only ``num_subspaces`` is given, ``num_centroids`` is 256.

    Example:
        >>> import torch, mgqe
        >>> layer = mgqe.DPQEmbedding(10_000, 64, num_subspaces=16, num_centroids=64, padding_idx=0)
        >>> layer(torch.tensor([0, 3, 17])).shape
        torch.Size([3, 64])
        >>> print(f"{layer.freeze().nbytes:,} bytes of {10_000 * 64 * 4:,}")
        136,384 bytes of 2,560,000
    """

    one_tier = True
