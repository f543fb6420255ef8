"""Training modules: MGQEmbedding and DPQEmbedding, drop-in for nn.Embedding.

Rows train unquantised for a warm-up, then the codebooks start on them by nested k-means and training goes on
straight through the codes. ``freeze()`` is the only bridge to serving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe import ops
from mgqe.capacity import Capacity, resolve_capacity
from mgqe.ids import as_int64, check_ids, check_sizes
from mgqe.layout import CENTROID_DTYPES
from mgqe.stats import CodebookStats
from mgqe.sx import SXQuantizer
from mgqe.table import CompactTable
from mgqe.tiers import Tiers
from mgqe.vq import VQQuantizer

DEFAULT_WARMUP_STEPS = 1_000
DEFAULT_COMMITMENT = 0.25
MAX_PENDING_LOSSES = 64  # losses kept for quantization_loss() by a loop that never asks for them
REVIVE_EVERY = 100  # training passes between two looks for dead centroids
SWEEP_ROWS = 65_536  # rows quantised at a time in a sweep over the vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

Counts = Tensor | Sequence[float]


class QuantizedEmbedding(nn.Module):
    """What MGQEmbedding, DPQEmbedding and their Bag forms have in common."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    tier_of: Tensor | None
    tier_sizes: Tensor
    steps: Tensor
    started: Tensor

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
        tiers: Tiers,
        capacity: Capacity,
        quantizer: str,
        warmup_steps: int,
        centroid_dtype: str,
        commitment: float,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = check_sizes(num_embeddings, embedding_dim, padding_idx)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.warmup_steps = warmup_steps
        self.centroid_dtype = centroid_dtype
        self.capacity = capacity
        weight = make_weight(num_embeddings, embedding_dim, self.padding_idx, _weight, device, dtype)
        self.weight = nn.Parameter(weight, requires_grad=not _freeze)
        self.quantizer = make_quantizer(quantizer, capacity, weight, centroid_dtype, commitment, sparse)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("tier_sizes", torch.tensor(tiers.sizes, dtype=torch.int64, device=device))
        self.register_buffer("tier_of", None if tiers.tier_of is None else tiers.tier_of.to(weight.device))
        self._progress: tuple[int, bool] | None = (0, False)
        self._aux: list[Tensor] = []
        self._aux_read = False

    # ---- state -------------------------------------------------------------------------------------------

    @property
    def tiers(self) -> Tiers:
        """The ids' partition, tier 0 the most frequent."""
        assignment = None if self.tier_of is None else self.tier_of.cpu()
        return Tiers(tuple(self.tier_sizes.tolist()), assignment)

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up is over: the forward pass returns quantised vectors."""
        return self._read_progress()[1]

    def _read_progress(self) -> tuple[int, bool]:
        """The buffers as Python values, read once, so that a training pass never waits for a device."""
        if self._progress is None:
            self._progress = (int(self.steps), bool(self.started))
        return self._progress

    def _set_progress(self, steps: int, started: bool) -> None:
        self.steps.fill_(steps)
        self.started.fill_(started)
        self._progress = (steps, started)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._progress = None

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: without the last pass's losses, which hang on its graph."""
        state = dict(self.__dict__)
        state["_aux"] = []
        return state

    def start_quantizing(self) -> None:
        """End the warm-up now: start the codebooks from the rows as they are. Does nothing the second time."""
        steps, started = self._read_progress()
        if not started:
            self._check_rows()
            with torch.no_grad():
                self.quantizer.start(self._tier_rows(), cpu_generator())
            self._set_progress(steps, True)

    def _tier_rows(self) -> list[Tensor]:
        """Each tier's rows (n_g, d) float32, or a sample of them where a tier is large."""
        tiers = self.tiers
        rows = []
        for g in range(tiers.num_tiers):
            ids = tiers.members(g)
            if self.padding_idx is not None:
                ids = ids[ids != self.padding_idx]
            limit = self.quantizer.sample_size(g)
            if len(ids) > limit:
                ids = ids[torch.randperm(len(ids))[:limit]]
            rows.append(self.weight.detach()[ids.to(self.weight.device)].float())
        return rows

    def _check_rows(self) -> None:
        """Raises ValueError naming the first row of ``weight`` that is not finite."""
        for start in range(0, self.num_embeddings, SWEEP_ROWS):
            finite = self.weight.detach()[start : start + SWEEP_ROWS].isfinite().all(1)
            if not bool(finite.all()):
                row = start + int((~finite).nonzero()[0])
                raise ValueError(
                    f"row {row} of the embedding weight holds NaN or infinity and cannot be quantised: "
                    "the training diverged; lower the learning rate or go back to an earlier checkpoint"
                )

    # ---- training ----------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _count_training_pass(self) -> None:
        """Count one training pass; end the warm-up when it is over; look for dead centroids now and then."""
        steps, started = self._read_progress()
        steps += 1
        self.steps += 1
        self._progress = (steps, started)
        if self._aux_read or len(self._aux) >= MAX_PENDING_LOSSES:
            self._aux.clear()
            self._aux_read = False
        if not started and steps > self.warmup_steps:
            self.start_quantizing()
        elif started and steps % REVIVE_EVERY == 0:
            with torch.no_grad():
                self.quantizer.revive(self._tier_rows(), cpu_generator())

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids as int64 that are safe to index with. On other devices than the CPU the look-up itself refuses."""
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return as_int64(ids)
        return check_ids(ids, self.num_embeddings)

    def _quantized(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Flat ids (n,) -> quantised vectors (u, d) of the distinct ids, and each id's place among them (n,)."""
        if torch.compiler.is_compiling():  # the number of distinct ids is no static shape
            distinct, places = flat, torch.arange(flat.shape[0], device=flat.device)
            counts = torch.ones_like(flat)
        else:
            distinct, places, counts = ops.unique(flat, self.num_embeddings)
        rows = F.embedding(distinct, self.weight, self.padding_idx, self.max_norm, self.norm_type, sparse=self.sparse)
        if self.padding_idx is not None:
            counts = counts.masked_fill(distinct == self.padding_idx, 0)
        vectors, loss = self.quantizer(rows, self._tier_numbers(distinct), counts)
        if self.padding_idx is not None:
            vectors = vectors.masked_fill((distinct == self.padding_idx).unsqueeze(-1), 0.0)
        if loss is not None:
            self._aux.append(loss)
        return vectors, places

    def _tier_numbers(self, ids: Tensor) -> Tensor:
        if self.capacity.num_tiers == 1:
            return torch.zeros_like(ids)
        if self.tier_of is not None:
            return self.tier_of[ids]
        return torch.bucketize(ids, self.tier_sizes.cumsum(0)[:-1], right=True)

    def auxiliary_loss(self) -> Tensor | None:
        """The sum of the losses since the training pass after the last reading, None if there are none."""
        self._aux_read = True
        return torch.stack(self._aux).sum() if self._aux else None

    # ---- freezing ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def sweep(self) -> list[Tensor]:
        """Codes of the whole vocabulary, never-seen ids included: (n_g, D_g) int32 a tier, in order of ids."""
        tiers = self.tiers
        codes = []
        for g in range(tiers.num_tiers):
            ids = tiers.members(g).to(self.weight.device)
            parts = [
                self.quantizer.codes(self.weight[chunk].float(), g).cpu() for chunk in torch.split(ids, SWEEP_ROWS)
            ]
            empty = torch.empty(0, self.capacity.num_subspaces[g], dtype=torch.int32)
            codes.append(torch.cat(parts) if parts else empty)
        return codes

    def freeze(self) -> CompactTable:
        """Pack codes and centroids into the table that is served.

        In the warm-up this starts the codebooks at this moment (post-training quantisation).

        Returns:
            a table on the CPU whose look-ups equal this layer's eval-mode forward pass.

        Raises:
            ValueError: a row or centroid is NaN or infinite.
        """
        self._check_rows()
        self.start_quantizing()
        return CompactTable.from_codes(
            self.tiers,
            self.sweep(),
            [book.cpu() for book in self.quantizer.served()],
            self.capacity.codebook_of,
            self.capacity.num_centroids,
            self.padding_idx,
            self.centroid_dtype,
        )

    def codebook_stats(self) -> list[CodebookStats]:
        """Centroids in use and perplexity, a tier; one sweep over the vocabulary.

        Raises:
            RuntimeError: still in the warm-up, there are no codes yet.
        """
        if not self.quantizing:
            raise RuntimeError(
                "codebook_stats() needs codebooks, but this layer is still in its warm-up "
                f"({self._read_progress()[0]} of {self.warmup_steps} training passes): "
                "train on, or call mgqe.start_quantizing(model)"
            )
        return self.freeze().codebook_stats()

    def extra_repr(self) -> str:
        tiers = ", ".join(
            f"{n:,} ids x {d} of {k}"
            for n, d, k in zip(
                self.tier_sizes.tolist(),
                self.capacity.num_subspaces,
                self.capacity.num_centroids,
                strict=True,
            )
        )
        text = f"{self.num_embeddings}, {self.embedding_dim}, tiers=({tiers})"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        return text + ("" if self.quantizing else f", warm-up of {self.warmup_steps} passes")


class MGQEmbedding(QuantizedEmbedding):
    """Multi-granular quantised embedding (Kang et al., WWW'20): nn.Embedding with tiers of unequal capacity.

    Frequent ids choose among more centroids (or have more subspaces) than rare ones. Arguments up to ``dtype``
    are nn.Embedding's.

    Args:
        num_embeddings: N, rows.
        embedding_dim: d.
        counts: (N,) how often each id occurs in training; ids are sorted by it, ties by id, and cut by
            ``fractions``. Or give ``tiers``.
        tiers: the partition itself, e.g. ``Tiers.from_fractions(N, (0.1, 0.9))`` for ids in frequency order.
        fractions: shares of ids in each tier, most frequent first.
        num_subspaces: D; one number a tier with ``capacity="subspaces"``. Default d / 2.
        num_centroids: K, or one number a tier; 2 to 65,536. Default 256 for the first tier, 64 for the others.
        quantizer: "vq" (nearest centroid) or "sx" (softmax over keys).
        capacity: what differs between tiers, "centroids" or "subspaces".
        share_codebook: tiers share one codebook; else each has its own.
        share_subspaces: one codebook for all subspaces, D times cheaper.
        centroid_dtype: how the frozen table holds centroids: "float32", "float16" or "int8" with scales;
            training already rounds to it.
        warmup_steps: training passes with unquantised rows before the codebooks start; a training pass is a
            forward pass in training mode. ``mgqe.start_quantizing(model)`` ends it early.
        commitment: beta, weight of ||q - sg(c)||^2 in the loss.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d), in the weight's dtype.

    Raises:
        ValueError, TypeError: arguments that do not fit, naming what was expected.
        IndexError: ids out of range, in the forward pass.
    """

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
    ) -> None:
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
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of ids: integers (...) -> (..., d)."""
        if self.training and torch.is_grad_enabled():
            self._count_training_pass()
        if not self.quantizing:
            return F.embedding(
                self._rows(ids),
                self.weight,
                self.padding_idx,
                self.max_norm,
                self.norm_type,
                self.scale_grad_by_freq,
                self.sparse,
            )
        ids = as_int64(ids)
        vectors, places = self._quantized(ids.reshape(-1))
        return F.embedding(places, vectors, scale_grad_by_freq=self.scale_grad_by_freq).view(
            *ids.shape, self.embedding_dim
        )

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = False, **arguments: Any) -> Self:
        """A layer that starts from trained rows (N, d); other arguments as in the constructor.

        The warm-up defaults to none here: the first training pass, or ``freeze()``, starts the codebooks from
        these rows. Unlike nn.Embedding's, the rows stay trainable unless ``freeze=True``.
        """
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings must be 2-dimensional (N, d), got shape {tuple(embeddings.shape)}")
        arguments.setdefault("warmup_steps", 0)
        num_embeddings, embedding_dim = embeddings.shape
        layer = cls(num_embeddings, embedding_dim, _weight=embeddings, **arguments)
        layer.weight.requires_grad_(not freeze)
        return layer


class DPQEmbedding(MGQEmbedding):
    """Differentiable product quantisation (Chen et al., ICML'20): one tier, the same capacity for every id.

    Arguments as for :class:`MGQEmbedding`, without tiers. ``num_centroids`` defaults to 256.
    """

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
            tiers=[num_embeddings],
            num_subspaces=num_subspaces,
            num_centroids=num_centroids,
            quantizer=quantizer,
            share_subspaces=share_subspaces,
            centroid_dtype=centroid_dtype,
            warmup_steps=warmup_steps,
            commitment=commitment,
        )


def resolve_tiers(
    num_embeddings: int,
    counts: Counts | None,
    tiers: Tiers | Sequence[int] | None,
    fractions: Sequence[float],
) -> Tiers:
    """The user's counts, or tiers, or tier sizes -> Tiers over num_embeddings ids."""
    if num_embeddings < 0:
        raise ValueError(f"num_embeddings must not be negative, got {num_embeddings}")
    if counts is not None and tiers is not None:
        raise ValueError("give counts= or tiers=, not both")
    if counts is None and tiers is None:
        raise ValueError(
            "MGQEmbedding needs to know which ids are frequent: give counts= (how often each id occurs in "
            "training), or, for ids in frequency order, tiers=mgqe.Tiers.from_fractions(num_embeddings, "
            f"{tuple(fractions)}). DPQEmbedding needs neither"
        )
    if counts is not None:
        return Tiers.from_counts(counts, fractions=fractions, num_embeddings=num_embeddings)
    partition = tiers if isinstance(tiers, Tiers) else Tiers.from_sizes(tiers or [])
    if partition.num_embeddings != num_embeddings:
        raise ValueError(f"tiers hold {partition.num_embeddings} ids, but num_embeddings is {num_embeddings}")
    return partition


def make_quantizer(
    name: str, capacity: Capacity, weight: Tensor, centroid_dtype: str, commitment: float, sparse: bool
) -> VQQuantizer | SXQuantizer:
    """The quantiser called ``name``, on the weight's device and in its dtype."""
    if centroid_dtype not in CENTROID_DTYPES:
        raise ValueError(f"centroid_dtype must be one of {sorted(CENTROID_DTYPES)}, got {centroid_dtype!r}")
    if name == "vq":
        return VQQuantizer(capacity, weight, centroid_dtype, commitment, sparse)
    if name == "sx":
        return SXQuantizer(capacity, weight, centroid_dtype, sparse)
    raise ValueError(f'quantizer must be "vq" or "sx", got {name!r}')


def make_weight(
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None,
    weight: Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Rows as nn.Embedding starts them: the given ones, or N(0, 1) with zeros for padding_idx."""
    if weight is not None:
        if tuple(weight.shape) != (num_embeddings, embedding_dim):
            raise ValueError(f"_weight must have shape {(num_embeddings, embedding_dim)}, got {tuple(weight.shape)}")
        return weight.detach().to(device=device, dtype=dtype)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    rows = torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype).normal_()
    if padding_idx is not None:
        rows[padding_idx] = 0
    return rows


def cpu_generator() -> torch.Generator:
    """A generator seeded from torch's global one, so that ``torch.manual_seed`` decides."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
