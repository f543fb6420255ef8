"""RecJPQ: codes from interactions, fixed before training; only centroids train (Petrov and Macdonald, WSDM 2024, arXiv
2312.06165)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe import ops
from mgqe.baselines.base import ComposedEmbedding, cpu_values, distinct
from mgqe.baselines.budget import centroids_up_to, most_bits_within
from mgqe.checks.ids import INTEGER_DTYPES, check_dense, no_values
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.codec.capacity import divisors
from mgqe.codec.equations import nearest_codes, round_centroids
from mgqe.codec.kmeans import THOROUGH, kmeans
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.packing import code_dtype
from mgqe.codec.tiers import Tiers
from mgqe.nn.quantization import Quantization
from mgqe.nn.quantizers.autograd import ScaleGradient, SparseGradient
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable

MAX_SEED = 2**31 - 1
NOISE = 1e-5  # added to factors in [0, 1], as in the paper
OVERSAMPLING = 10
POWER_ITERATIONS = 7

Pairs = tuple[Tensor, Tensor]


class RecJPQEmbedding(ComposedEmbedding):
    """Rows joined from trained centroids by codes that are fixed beforehand: e_i = C_1,code_i1 .. C_D,code_iD.

    The codes come from a truncated SVD of the binary matrix of interactions. Each of its first D dimensions is a
    subspace. There the ids' factors are scaled to [0, 1], with a little noise to break ties, sorted, and cut into K
    bins of equally many ids; an id's bin is its code. Ids have no rows of their own, in training either.

    Where the factors of all ids are 0, the noise decides alone, and codes are random. This is so without ``pairs`` (the
    paper's random strategy), and in dimensions beyond the matrix's rank, for example where D exceeds one of its sides.
    An id without interactions has factor 0 in every dimension, and the noise chooses among the bins around 0.

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        pairs: interactions, two tensors of integers (n,): ids of this table, and ids of the other side (for items, the
            users who took them). Repeats count once. Give the interactions of training without held-out ones; None for
            random codes.
        num_subspaces: D, a divisor of d; default as MGQEmbedding's.
        num_centroids: K per subspace; default 256, or fewer where there are fewer rows.
        centroid_dtype: how the frozen table holds centroids: "float32", "float16" or "int8" with scales; training
            already rounds to it.
        num_factors: how many dimensions of the SVD the codes come from, a multiple of D; default D. With more, subspace
            j has the factors j, j + D, j + 2 D and so on, and k-means of these, at equal variances, is the code.
        seed: of the SVD's start and the noise, 0 to 2**31 - 1; the same pairs and seed give the same codes.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes that do not fit together, pairs of unequal lengths or out of range, a ``max_norm``.
        TypeError: pairs that are not two tensors of integers.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    printed = ("num_subspaces", "num_centroids")
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
        num_factors: int | None = None,
        seed: int = 0,
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        config = Quantization(num_subspaces=num_subspaces, num_centroids=num_centroids, centroid_dtype=centroid_dtype)
        capacity = config.capacity_of(self.embedding_dim, Tiers.from_sizes((self.num_embeddings,)))
        (self.num_subspaces,), (self.num_centroids,) = capacity.num_subspaces, capacity.num_centroids
        self.centroid_dtype = centroid_dtype
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        # Named "weight" like the rows of other layers, since optimisers train it like rows.
        self.weight = self._parameter(*capacity.codebook_shapes[0])
        codes = interaction_codes(
            self.num_embeddings, pairs, self.num_subspaces, self.num_centroids, self.seed, num_factors
        )
        self.register_buffer("codes", codes.to(self.weight.device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centroids so that the values of rows have variance 1, as in nn.Embedding; the codes stay."""
        with torch.no_grad():
            self.weight.normal_()

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        rows = self._safe_ids(input)
        flat = rows.reshape(-1)
        weight = self.weight
        if self.sparse and torch.is_grad_enabled():
            weight = SparseGradient.apply(weight)  # type: ignore[no-untyped-call]
        book = round_centroids(weight.float(), self.centroid_dtype)
        vectors = ops.gather(self.codes.index_select(0, flat), book)
        if self.scale_grad_by_freq and torch.is_grad_enabled():
            _, inverse, counts = distinct(flat)
            vectors = ScaleGradient.apply(vectors, counts[inverse].float().reciprocal())  # type: ignore[no-untyped-call]
        vectors = vectors.to(self.weight.dtype).view(*rows.shape, self.embedding_dim)
        return self._zero_padding(rows, vectors)

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        num_subspaces: int | None = None,
        num_centroids: int | None = None,
        centroid_dtype: str = "int8",
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: int8 centroids, and the D and K of the most bits per id.

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """
        tiers = Tiers.from_sizes((num_embeddings,))

        def nbytes_of(subspaces: int, centroids: int) -> int:
            config = Quantization(num_subspaces=subspaces, num_centroids=centroids, centroid_dtype=centroid_dtype)
            return frozen_nbytes(tiers, config.capacity_of(embedding_dim, tiers), None, centroid_dtype)

        pieces = divisors(embedding_dim) if num_subspaces is None else [num_subspaces]
        numbers = centroids_up_to(num_embeddings) if num_centroids is None else [num_centroids]
        shape = most_bits_within(pieces, numbers, nbytes_of, nbytes, (num_embeddings, embedding_dim))
        return {"num_subspaces": shape[0], "num_centroids": shape[1], "centroid_dtype": centroid_dtype}

    def freeze(self) -> FrozenTable:
        """A CompactTable of one tier; look-ups equal the eval-mode forward pass."""
        with torch.device("cpu"):
            return CompactTable.from_codes(
                Tiers.from_sizes((self.num_embeddings,)),
                [self.codes.cpu()],
                [cpu_values(self, "weight").float()],
                (0,),
                (self.num_centroids,),
                self.padding_idx,
                self.centroid_dtype,
            )


@torch.no_grad()
def interaction_codes(
    num_embeddings: int,
    pairs: Pairs | None,
    num_subspaces: int,
    num_centroids: int,
    seed: int,
    num_factors: int | None = None,
) -> Tensor:
    """Codes (N, D) from interactions, or random codes without them; uint8, or int16 or int32 where K needs it.

    Arguments and errors as those of :class:`RecJPQEmbedding`.
    """
    num_embeddings = as_int("num_embeddings", num_embeddings, 0)
    num_subspaces, num_centroids = as_int("num_subspaces", num_subspaces, 1), as_int("num_centroids", num_centroids, 1)
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(as_int("seed", seed))
        num_factors = num_subspaces if num_factors is None else as_int("num_factors", num_factors, 1)
        if num_factors % num_subspaces:
            raise ValueError(f"num_factors={num_factors} is not a multiple of num_subspaces={num_subspaces}")
        factors = torch.zeros(num_embeddings, num_factors, dtype=torch.float64)
        if pairs is not None:
            ids, other_ids = _check_pairs(pairs, num_embeddings)
            if ids.numel():
                singular = left_factors(ids, other_ids, num_embeddings, num_factors, generator)
                factors[:, : singular.shape[1]] = singular
        codes_of = quantile_codes if num_factors == num_subspaces else partial(clustered_codes, num_subspaces)
        return codes_of(factors, num_centroids, generator).to(code_dtype(num_centroids))


def quantile_codes(factors: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Factors (N, D) -> codes int64 (N, D): per column, ids sorted by their factors in K bins of N / K ids."""
    num_rows = len(factors)
    if num_rows == 0:
        return torch.zeros(factors.shape, dtype=torch.int64)
    low, high = factors.amin(0), factors.amax(0)
    scaled = (factors - low) / torch.where(high > low, high - low, 1.0)
    scaled = scaled + NOISE * torch.randn(factors.shape, generator=generator, dtype=factors.dtype)
    bins = torch.arange(num_rows) * num_centroids // num_rows
    order = scaled.argsort(dim=0, stable=True)
    return torch.empty_like(order).scatter_(0, order, bins.unsqueeze(1).expand_as(order))


def clustered_codes(num_subspaces: int, factors: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Factors (N, F) -> codes (N, D): k-means in each subspace, which has every D-th factor, at equal variances.

    The noise of :func:`quantile_codes` decides between ids with equal factors, such as those without interactions.
    """
    if len(factors) == 0:
        return torch.zeros(0, num_subspaces, dtype=torch.int64)
    deviations = factors.std(0, correction=0)
    scaled = (factors - factors.mean(0)) / torch.where(deviations > 0, deviations, 1.0)
    scaled = scaled + NOISE * torch.randn(factors.shape, generator=generator, dtype=factors.dtype)
    rows = (
        scaled.reshape(len(scaled), -1, num_subspaces).transpose(1, 2).flatten(1).float()
    )  # a subspace's side by side
    start = rows.new_empty(num_subspaces, 0, rows.shape[1] // num_subspaces)
    book = kmeans([(rows, num_subspaces)], start, num_centroids, generator, THOROUGH)
    return nearest_codes(rows, book, num_subspaces, num_centroids)


def left_factors(rows: Tensor, columns: Tensor, num_rows: int, rank: int, generator: torch.Generator) -> Tensor:
    """The first left singular vectors of the binary matrix that is 1 at (rows, columns), largest values first.

    Randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011, algorithms 4.4 and 5.1).

    Args:
        rows, columns: int64 (n,), n > 0; repeats count once.
        num_rows: N.
        rank: how many vectors to compute.

    Returns:
        float64 (N, r), r at most ``rank`` and the rank of the matrix.
    """
    distinct, columns = torch.unique(columns, return_inverse=True)
    num_columns = len(distinct)
    cells = torch.unique(rows * num_columns + columns)  # sorted by row
    rows, columns = cells // num_columns, cells % num_columns
    by_row, by_column = _bags(rows, columns, num_rows), _bags(*_transpose(rows, columns), num_columns)

    def matrix(x: Tensor) -> Tensor:
        return F.embedding_bag(by_row[0], x, by_row[1], mode="sum", include_last_offset=True)

    def transposed(x: Tensor) -> Tensor:
        return F.embedding_bag(by_column[0], x, by_column[1], mode="sum", include_last_offset=True)

    width = min(rank + OVERSAMPLING, num_rows, num_columns)
    basis = matrix(torch.randn(num_columns, width, generator=generator, dtype=torch.float64))
    for _ in range(POWER_ITERATIONS):  # in float64, one orthogonalisation per iteration is enough
        basis = matrix(torch.linalg.qr(transposed(basis))[0])
    basis, _ = torch.linalg.qr(basis)
    # basis.T A = (A.T basis).T, so that its left singular vectors are the right ones of A.T basis.
    _, values, right = torch.linalg.svd(transposed(basis), full_matrices=False)
    numerical_rank = min(rank, int((values > values[0] * 1e-9).sum()))
    vectors: Tensor = basis @ right[:numerical_rank].T
    return vectors


def _bags(rows: Tensor, columns: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Cells sorted by row -> (columns, offsets (num_rows + 1,)): each row's columns as embedding_bag takes them."""
    counts = torch.bincount(rows, minlength=num_rows)
    return columns, F.pad(counts.cumsum(0), (1, 0))


def _transpose(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Cells (rows, columns) -> (columns, rows), sorted by column."""
    order = columns.argsort(stable=True)
    return columns[order], rows[order]


def _check_pairs(pairs: Pairs, num_embeddings: int) -> Pairs:
    """Pairs that fit the table, as int64 on the CPU."""
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
    ids, other_ids = (tensor.detach().to("cpu", torch.int64) for tensor in pairs)
    if ids.dim() != 1 or ids.shape != other_ids.shape:
        raise ValueError(
            f"pairs must be two tensors of one length (n,), got shapes {tuple(ids.shape)} and {tuple(other_ids.shape)}"
        )
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num_embeddings):
        bad = ids[(ids < 0) | (ids >= num_embeddings)][0]
        raise ValueError(f"pairs[0] holds id {int(bad)}, but the table has {num_embeddings} rows")
    return ids, other_ids
