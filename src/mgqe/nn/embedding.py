"""Training modules: MGQEmbedding and DPQEmbedding, drop-in for nn.Embedding.

Rows train unquantised for a warm-up, then the codebooks start on them by nested k-means and training goes on
straight through the codes. ``freeze()`` is the only bridge to serving. :mod:`mgqe.nn.quantized` has what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.checks.ids import check_sizes
from mgqe.checks.inference import as_normal, outside_inference
from mgqe.checks.scalars import as_int
from mgqe.codec.capacity import resolve_capacity
from mgqe.codec.planning import Problem, budget_bytes, check_left_to_budget
from mgqe.codec.tiers import Tiers
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.nn.rows import Rows

DEFAULT_WARMUP_STEPS = 1_000
DEFAULT_COMMITMENT = 0.25

if TYPE_CHECKING:
    from typing_extensions import Self

Counts = Tensor | Sequence[float]


class MGQEmbedding(QuantizedEmbedding):
    """Multi-granular quantised embedding (Kang et al., WWW'20): nn.Embedding with tiers of unequal capacity.

    Frequent ids choose among more centroids (or have more subspaces) than rare ones. Arguments up to ``dtype``
    are nn.Embedding's; but ``padding_idx`` always looks up as zeros, whatever its row holds.

    Args:
        num_embeddings: N, rows.
        embedding_dim: d.
        counts: (N,) how often each id occurs in training; ids are sorted by it, ties by id, and cut by
            ``fractions``. Or give ``tiers``.
        tiers: the partition itself, e.g. ``Tiers.from_fractions(N, (0.1, 0.9))`` for ids in frequency order.
        fractions: shares of ids in each tier, most frequent first.
        num_subspaces: D; one number a tier with ``capacity="subspaces"`` or "both". Default d / 2.
        num_centroids: K, or one number a tier; 2 to 65,536. Default 256 for the first tier, 64 for the others.
        quantizer: "vq" (nearest centroid) or "sx" (softmax over keys).
        capacity: what differs between tiers, "centroids", "subspaces" or "both". With "both" and
            ``share_codebook=False`` tiers may differ by many bits, which is best below 5% of the bytes.
        share_codebook: tiers share one codebook; else each has its own.
        share_subspaces: one codebook for all subspaces, D times cheaper.
        centroid_dtype: how the frozen table holds centroids: "float32", "float16" or "int8" with scales;
            training already rounds to it.
        warmup_steps: training passes with unquantised rows before the codebooks start; a training pass is a
            forward pass in training mode. ``mgqe.start_quantizing(model)`` ends it early.
        commitment: beta, weight of ||q - sg(c)||^2 in the loss.
        rows: how rows are kept while they train: "float32" (or ``dtype``), "bfloat16", "cached" (codes of all ids, full
            rows of those that train now), "sketch", or a configuration of :mod:`mgqe.nn.rows`. docs/large_tables.md
            says what each costs. Use ``sparse=True`` and :class:`mgqe.RowwiseAdagrad` with large ones.
        budget: what the frozen table's file may take: "5%" or 0.05 of the full table, or bytes. It chooses tiers (from
            ``counts``), subspaces, centroids and their type, so that what sets these stays at its default
            (:func:`mgqe.plan`). With ``from_pretrained`` the best candidates are tried out on the rows.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d), in the weight's dtype.

    Raises:
        ValueError, TypeError: arguments that do not fit, naming what was expected.
        IndexError: ids out of range, in the forward pass.
    """

    _one_tier = False

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        counts: Counts | None = None,
        tiers: Tiers | Sequence[int] | None = None,
        fractions: Sequence[float] = (0.1, 0.9),
        num_subspaces: int | Sequence[int] | None = None,
        num_centroids: int | Sequence[int] | None = None,
        quantizer: str = "vq",
        capacity: str = "centroids",
        share_codebook: bool = True,
        share_subspaces: bool = False,
        centroid_dtype: str = "float32",
        warmup_steps: int = DEFAULT_WARMUP_STEPS,
        commitment: float = DEFAULT_COMMITMENT,
        rows: Rows = "float32",
        budget: int | float | str | None = None,
    ) -> None:
        num_embeddings, embedding_dim, padding_idx = check_sizes(num_embeddings, embedding_dim, padding_idx)
        warmup_steps = as_int("warmup_steps", warmup_steps, 0)
        if budget is not None:
            check_left_to_budget(locals())
            if tiers is not None or (counts is None and not self._one_tier):
                raise ValueError(
                    "budget= needs counts= to choose tiers by (how often each id occurs in training), and no tiers=; "
                    "DPQEmbedding and DPQEmbeddingBag have one tier and need neither"
                )
            size = (_weight.dtype if _weight is not None else dtype or torch.get_default_dtype()).itemsize
            full = num_embeddings * embedding_dim * size
            trained = None
            if warmup_steps == 0 and _weight is not None and not _weight.is_meta and bool(_weight.any()):
                trained = _weight
            problem = Problem.of(num_embeddings, embedding_dim, counts, trained, padding_idx, full_nbytes=full)
            planned = problem.plan(budget_bytes(budget, full))
            counts, tiers = None, planned.tiers
            num_subspaces, num_centroids, capacity = planned.num_subspaces, planned.num_centroids, "both"
            share_codebook, centroid_dtype = planned.share_codebook, planned.centroid_dtype
        partition = resolve_tiers(num_embeddings, counts, tiers, fractions)
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            _freeze,
            device,
            dtype,
            tiers=partition,
            capacity=resolve_capacity(
                embedding_dim,
                partition.sizes,
                num_subspaces=num_subspaces,
                num_centroids=num_centroids,
                capacity=capacity,
                share_codebook=share_codebook,
                share_subspaces=share_subspaces,
            ),
            quantizer=quantizer,
            centroid_dtype=centroid_dtype,
            warmup_steps=warmup_steps,
            commitment=commitment,
            rows=rows,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Vectors of ids: integers (...) -> (..., d)."""
        self._begin_pass()
        if self.quantizing or self.store is not None or self.raw_weight.dtype != self.vector_dtype:
            ids = self._int64(input)
            vectors, _ = self._vectors(ids.reshape(-1), repeat=True)
            return self._joined(vectors.view(*ids.shape, self.embedding_dim))
        ids = self._rows(input)
        rows = F.embedding(
            ids,
            self.raw_weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        return self._joined(self._zeroed(ids, rows.to(self.vector_dtype)))

    @classmethod
    @outside_inference
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = False, **arguments: Any) -> Self:
        """A layer that starts from trained rows (N, d); other arguments as in the constructor.

        The warm-up defaults to none here: the first training pass, or ``freeze()``, starts the codebooks from
        these rows. Unlike nn.Embedding's, the rows stay trainable unless ``freeze=True``, and are then a copy.
        """
        if not isinstance(embeddings, Tensor):
            raise TypeError(
                f"embeddings must be a torch.Tensor (N, d), got {type(embeddings).__name__}: use torch.as_tensor"
            )
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings must be 2-dimensional (N, d), got shape {tuple(embeddings.shape)}")
        arguments.setdefault("warmup_steps", 0)
        num_embeddings, embedding_dim = embeddings.shape
        rows = as_normal(embeddings) if freeze else embeddings.detach().clone()
        layer = cls(num_embeddings, embedding_dim, _weight=rows, **arguments)
        layer.raw_weight.requires_grad_(not freeze)
        return layer


class DPQEmbedding(MGQEmbedding):
    """Differentiable product quantisation (Chen et al., ICML'20): one tier, the same capacity for every id.

    Arguments as for :class:`MGQEmbedding`, without tiers. ``num_centroids`` defaults to 256.
    """

    _one_tier = True

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_subspaces: int | None = None,
        num_centroids: int | None = None,
        quantizer: str = "vq",
        share_subspaces: bool = False,
        centroid_dtype: str = "float32",
        warmup_steps: int = DEFAULT_WARMUP_STEPS,
        commitment: float = DEFAULT_COMMITMENT,
        rows: Rows = "float32",
        budget: int | float | str | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            _freeze,
            device,
            dtype,
            tiers=[num_embeddings] if budget is None else None,
            num_subspaces=num_subspaces,
            num_centroids=num_centroids,
            quantizer=quantizer,
            share_subspaces=share_subspaces,
            centroid_dtype=centroid_dtype,
            warmup_steps=warmup_steps,
            commitment=commitment,
            rows=rows,
            budget=budget,
        )


def resolve_tiers(
    num_embeddings: int,
    counts: Counts | None,
    tiers: Tiers | Sequence[int] | None,
    fractions: Sequence[float],
) -> Tiers:
    """The user's counts, or tiers, or tier sizes -> Tiers over num_embeddings ids."""
    if counts is not None and tiers is not None:
        raise ValueError("give counts= or tiers=, not both")
    if counts is None and tiers is None:
        raise ValueError(
            "MGQEmbedding needs to know which ids are frequent: give counts= (how often each id occurs in "
            "training), or, for ids in frequency order, tiers=mgqe.Tiers.from_fractions(num_embeddings, "
            f"{tuple(fractions)}). DPQEmbedding and DPQEmbeddingBag need neither"
        )
    with torch.device("cpu"):  # tiers are kept there, whatever the default device
        if counts is not None:
            return Tiers.from_counts(counts, fractions=fractions, num_embeddings=num_embeddings)
        partition = tiers if isinstance(tiers, Tiers) else Tiers.from_sizes([] if tiers is None else tiers)
    if partition.num_embeddings != num_embeddings:
        raise ValueError(f"tiers hold {partition.num_embeddings} ids, but num_embeddings is {num_embeddings}")
    return partition
