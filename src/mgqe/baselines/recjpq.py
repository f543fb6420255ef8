"""RecJPQ: codes from who took what, fixed before training; only centroids are trained (Petrov and Macdonald, WSDM 2024,
arXiv 2312.06165)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe import ops
from mgqe.baselines._shared import ComposedEmbedding, kept
from mgqe.checks.ids import INTEGER_DTYPES, check_dense, check_ids, no_values
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.codec.equations import round_centroids
from mgqe.codec.packing import code_dtype
from mgqe.codec.tiers import Tiers
from mgqe.nn.quantization import Quantization
from mgqe.nn.quantizers.autograd import ScaleGradient, SparseGradient
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable

MAX_SEED = 2**31 - 1
NOISE = 1e-5  # of factors in [0, 1], as in the paper
OVERSAMPLING = 10
POWER_ITERATIONS = 7

Pairs = tuple[Tensor, Tensor]


class RecJPQEmbedding(ComposedEmbedding):
    """Rows joined from trained centroids by codes that are fixed beforehand: e_i = C_1,code_i1 .. C_D,code_iD.

    The codes come from a truncated SVD of the binary matrix of interactions. Each of its first D dimensions is a
    subspace: the ids' factors, scaled to [0, 1], with a little noise that splits equal ones, are sorted and cut into K
    bins of equally many ids, and the bin is the code. There is no row of an id, in training either.

    Where factors are 0 for all ids, the noise alone decides: codes are random, and as even as others. So it is without
    ``pairs`` (the paper's random strategy), and in dimensions beyond the matrix's rank, as where D exceeds one of its
    sides. An id without interactions has 0 in every dimension, and falls to the bins where 0 lies, by the noise.

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        pairs: interactions, integers (n,) each: ids of this table, and those of the other side (the users who took
            these items); repeats count once. Training's alone: no held-out ones. None: random codes.
        num_subspaces: D, a divisor of d; default as MGQEmbedding's.
        num_centroids: K a subspace; default 256, or fewer where there are fewer rows.
        centroid_dtype: how the frozen table holds centroids: "float32", "float16" or "int8" with scales; training
            already rounds to it.
        seed: of the SVD's start and the noise, so that the same pairs give the same codes; 0 to 2**31 - 1.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes that do not fit together, pairs of unequal lengths or out of range, a ``max_norm``.
        TypeError: pairs that are not two tensors of integers.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    codes: Tensor

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *torch_arguments: Any,
        pairs: Pairs | None = None,
        num_subspaces: int | None = None,
        num_centroids: int | None = None,
        centroid_dtype: str = "float32",
        seed: int = 0,
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        config = Quantization(num_subspaces=num_subspaces, num_centroids=num_centroids, centroid_dtype=centroid_dtype)
        capacity = config.capacity_of(self.embedding_dim, Tiers.from_sizes((self.num_embeddings,)))
        (self.num_subspaces,), (self.num_centroids,) = capacity.num_subspaces, capacity.num_centroids
        self.centroid_dtype = centroid_dtype
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        # Named as others' rows are, not as codebooks that follow rows: it is what the model trains.
        self.weight = self._parameter(*capacity.codebook_shapes[0])
        codes = interaction_codes(self.num_embeddings, pairs, self.num_subspaces, self.num_centroids, self.seed)
        self.register_buffer("codes", codes.to(self.weight.device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centroids so that entries of the rows have variance 1, as nn.Embedding's; codes stay."""
        with torch.no_grad():
            self.weight.normal_()

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        rows = check_ids(input, self.num_embeddings)
        flat = rows.reshape(-1)
        weight = self.weight
        if self.sparse and torch.is_grad_enabled():
            weight = SparseGradient.apply(weight)  # type: ignore[no-untyped-call]
        book = round_centroids(weight.float(), self.centroid_dtype)
        vectors = ops.gather(self.codes.index_select(0, flat), book)
        if self.scale_grad_by_freq and torch.is_grad_enabled():
            _, places, counts = torch.unique(flat, return_inverse=True, return_counts=True)
            vectors = ScaleGradient.apply(vectors, counts[places].float().reciprocal())  # type: ignore[no-untyped-call]
        vectors = vectors.to(self.weight.dtype).view(*rows.shape, self.embedding_dim)
        if self.padding_idx is not None:  # its centroids belong to other ids too
            vectors = vectors.masked_fill((rows == self.padding_idx).unsqueeze(-1), 0.0)
        return vectors

    def freeze(self) -> FrozenTable:
        """A CompactTable of one tier; look-ups equal the eval-mode forward pass."""
        with torch.device("cpu"):
            return CompactTable.from_codes(
                Tiers.from_sizes((self.num_embeddings,)),
                [self.codes.cpu()],
                [kept(self, "weight").float()],
                (0,),
                (self.num_centroids,),
                self.padding_idx,
                self.centroid_dtype,
            )

    def extra_repr(self) -> str:
        """Sizes, for print."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, num_subspaces={self.num_subspaces}, "
            f"num_centroids={self.num_centroids}{padding}"
        )


@torch.no_grad()
def interaction_codes(
    num_embeddings: int, pairs: Pairs | None, num_subspaces: int, num_centroids: int, seed: int
) -> Tensor:
    """Codes (N, D) from interactions, or random ones without; uint8, or int16 or int32 where K asks for it.

    Arguments and errors as those of :class:`RecJPQEmbedding`.
    """
    num_embeddings = as_int("num_embeddings", num_embeddings, 0)
    num_subspaces, num_centroids = as_int("num_subspaces", num_subspaces, 1), as_int("num_centroids", num_centroids, 1)
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(as_int("seed", seed))
        factors = torch.zeros(num_embeddings, num_subspaces, dtype=torch.float64)
        if pairs is not None:
            own, other = _checked(pairs, num_embeddings)
            if own.numel():
                found = left_factors(own, other, num_embeddings, num_subspaces, generator)
                factors[:, : found.shape[1]] = found
        return quantile_codes(factors, num_centroids, generator).to(code_dtype(num_centroids))


def quantile_codes(factors: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Factors (N, D) -> codes int64 (N, D): each column's ids in order of their factors, in K bins of N / K ids."""
    num_rows = len(factors)
    if num_rows == 0:
        return torch.zeros(factors.shape, dtype=torch.int64)
    low, high = factors.amin(0), factors.amax(0)
    scaled = (factors - low) / torch.where(high > low, high - low, 1.0)
    scaled = scaled + NOISE * torch.randn(factors.shape, generator=generator, dtype=factors.dtype)
    bins = torch.arange(num_rows) * num_centroids // num_rows
    order = scaled.argsort(dim=0, stable=True)
    return torch.empty_like(order).scatter_(0, order, bins.unsqueeze(1).expand_as(order))


def left_factors(own: Tensor, other: Tensor, num_rows: int, rank: int, generator: torch.Generator) -> Tensor:
    """The first left singular vectors of the binary matrix that is 1 at (own, other), largest values first.

    Randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011, algorithms 4.4 and 5.1).

    Args:
        own, other: int64 (n,), n > 0; repeats count once.
        num_rows: N.
        rank: how many vectors are wanted.

    Returns:
        float64 (N, r), r at most ``rank`` and the rank of the matrix.
    """
    columns, other = torch.unique(other, return_inverse=True)
    num_columns = len(columns)
    cells = torch.unique(own * num_columns + other)  # sorted by row
    own, other = cells // num_columns, cells % num_columns
    across, down = _sum_of(own, other, num_rows), _sum_of(*_swapped(own, other), num_columns)

    def matrix(x: Tensor) -> Tensor:
        return F.embedding_bag(across[0], x, across[1], mode="sum", include_last_offset=True)

    def transposed(x: Tensor) -> Tensor:
        return F.embedding_bag(down[0], x, down[1], mode="sum", include_last_offset=True)

    width = min(rank + OVERSAMPLING, num_rows, num_columns)
    basis = matrix(torch.randn(num_columns, width, generator=generator, dtype=torch.float64))
    for _ in range(POWER_ITERATIONS):  # float64 needs to be orthogonal again only once a round
        basis = matrix(torch.linalg.qr(transposed(basis))[0])
    basis, _ = torch.linalg.qr(basis)
    # basis.T A = (A.T basis).T: its left singular vectors are the right ones of A.T basis.
    _, values, right = torch.linalg.svd(transposed(basis), full_matrices=False)
    held = min(rank, int((values > values[0] * 1e-9).sum()))
    vectors: Tensor = basis @ right[:held].T
    return vectors


def _sum_of(rows: Tensor, columns: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Cells sorted by row -> (columns, offsets (num_rows + 1,)): each row's columns, as embedding_bag takes them."""
    counts = torch.bincount(rows, minlength=num_rows)
    return columns, F.pad(counts.cumsum(0), (1, 0))


def _swapped(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Cells (rows, columns) -> (columns, rows), sorted by column."""
    order = columns.argsort(stable=True)
    return columns[order], rows[order]


def _checked(pairs: Pairs, num_embeddings: int) -> Pairs:
    """Pairs as int64 on the CPU, known to fit the table."""
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2 or not all(isinstance(p, Tensor) for p in pairs):
        raise TypeError(
            f"pairs must be two tensors, ids of this table and of the other side, got {type(pairs).__name__}"
        )
    for number, ids in enumerate(pairs):
        check_dense(ids, f"pairs[{number}]")
        if ids.is_meta:
            raise no_values(f"pairs[{number}]")
        if ids.dtype not in INTEGER_DTYPES:
            raise TypeError(f"pairs must hold integers such as torch.int64, got {ids.dtype}: cast with ids.long()")
    own, other = (ids.detach().to("cpu", torch.int64) for ids in pairs)
    if own.dim() != 1 or own.shape != other.shape:
        raise ValueError(
            f"pairs must be two tensors of one length (n,), got shapes {tuple(own.shape)} and {tuple(other.shape)}"
        )
    if own.numel() and (int(own.min()) < 0 or int(own.max()) >= num_embeddings):
        bad = own[(own < 0) | (own >= num_embeddings)][0]
        raise ValueError(f"pairs[0] holds id {int(bad)}, but the table has {num_embeddings} rows")
    return own, other
