"""Low-rank factorisation: an N x r table times an r x d projection (LRF in the MGQE paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.baselines.base import ComposedEmbedding, cpu_values, read_sizes, sizes_of, stored_type
from mgqe.baselines.budget import blank, file_nbytes, most_within
from mgqe.checks.ids import FLOAT_DTYPES
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int, optional_int
from mgqe.files.reader import MAX_DIM, Config, Reader, require_finite
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self


@register_kind
class LowRankTable(FrozenTable):
    """``factors`` (N, r) and ``projection`` (r, d), both float32, float16 or bfloat16; rows are products."""

    kind = "low_rank"

    def __init__(self, factors: Tensor, projection: Tensor, padding_idx: int | None = None) -> None:
        self.factors = factors
        self.projection = projection
        self.num_embeddings, self.rank = factors.shape
        self.embedding_dim = projection.shape[1]
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d), multiplied in float32."""
        rows = self._rows(ids)
        vectors = F.embedding(rows, self.factors).float() @ self.projection.float()
        return self._zero_padding(rows, vectors)

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``factors`` (N, r) and ``projection`` (r, d)."""
        return {"factors": self.factors, "projection": self.projection}, {**sizes_of(self), "rank": self.rank}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        rank = reader.integer("rank", 1, MAX_DIM)
        factors = reader.tensor("factors", FLOAT_DTYPES, (n, rank))
        projection = reader.tensor("projection", FLOAT_DTYPES, (rank, d))
        reader.finish()
        return cls(factors, projection, padding_idx)

    def validate(self) -> None:
        """The projection must be finite."""
        require_finite("projection", self.projection)

    def _describe(self) -> str:
        return f"rank {self.rank}"


class LowRankEmbedding(ComposedEmbedding):
    """Rows are products of a narrow row and a shared projection: e_i = a_i P, a_i in R^r, P in R^(r x d).

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        rank: r; default d / 8, at least 1.
        stored_dtype: of both factors in the frozen table, "float32" or "float16"; by default that of the parameters.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes, rank or ``padding_idx`` out of range, a ``max_norm``, or no such ``stored_dtype``.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    printed = ("rank",)
    row_parameters = ("factors",)

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *torch_arguments: Any,
        rank: int | None = None,
        stored_dtype: str | None = None,
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        dim = self.embedding_dim
        self.rank = max(1, dim // 8) if rank is None else as_int("rank", rank)
        if not 1 <= self.rank <= dim:
            raise ValueError(f"rank must be from 1 to embedding_dim={dim}, got {self.rank}")
        stored_type(stored_dtype)
        self.stored_dtype = stored_dtype
        self.factors = self._parameter(self.num_embeddings, self.rank)
        self.projection = self._parameter(self.rank, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors so that the values of rows have variance 1, as in nn.Embedding."""
        with torch.no_grad():
            self.factors.normal_()
            self.projection.normal_(std=self.rank**-0.5)
            if self.padding_idx is not None:
                self.factors[self.padding_idx] = 0

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        narrow = F.embedding(
            self._safe_ids(input),
            self.factors,
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )
        return narrow @ self.projection

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        rank: int | None = None,
        stored_dtype: str | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: the largest rank.

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """
        numbers = range(1, embedding_dim + 1) if rank is None else [rank]
        dtype = stored_type(stored_dtype) or torch.float32

        def nbytes_of(rank: int) -> int:
            factors, projection = blank(num_embeddings, rank, dtype=dtype), blank(rank, embedding_dim, dtype=dtype)
            return file_nbytes(LowRankTable(factors, projection))

        return {"rank": most_within(numbers, nbytes_of, nbytes, (num_embeddings, embedding_dim))}

    def freeze(self) -> FrozenTable:
        """Both factors as they are stored; float32 look-ups equal the forward pass up to the order of additions."""
        factors, projection = (cpu_values(self, name, self.stored_dtype) for name in ("factors", "projection"))
        return LowRankTable(factors, projection, self.padding_idx)
