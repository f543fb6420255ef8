"""Quotient-remainder embedding: an id's row is composed of two (Shi et al., KDD 2020, arXiv 1909.02107)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.baselines.base import ComposedEmbedding, cpu_values, read_sizes, sizes_of
from mgqe.baselines.budget import blank, file_nbytes, most_within
from mgqe.checks.ids import FLOAT_DTYPES
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int, optional_int
from mgqe.files.reader import MAX_ROWS, Config, Reader, require_finite
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self

OPERATIONS = ("mult", "add", "concat")


@register_kind
class QRTable(FrozenTable):
    """``quotients`` (ceil(N / m), d or d - d // 2) and ``remainders`` (m, d or d // 2), joined by ``operation``."""

    kind = "quotient_remainder"

    def __init__(
        self, quotients: Tensor, remainders: Tensor, num_embeddings: int, operation: str, padding_idx: int | None
    ) -> None:
        self.quotients = quotients
        self.remainders = remainders
        self.num_embeddings = as_int("num_embeddings", num_embeddings, 0)
        self.num_remainders, width = remainders.shape
        self.embedding_dim = width + quotients.shape[1] if operation == "concat" else width
        self.operation = operation
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d)."""
        rows = self._rows(ids)
        quotient = F.embedding(rows // self.num_remainders, self.quotients).float()
        remainder = F.embedding(rows % self.num_remainders, self.remainders).float()
        return self._zero_padding(rows, join(quotient, remainder, self.operation))

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``quotients`` and ``remainders``."""
        return {"quotients": self.quotients, "remainders": self.remainders}, {
            **sizes_of(self),
            "num_remainders": self.num_remainders,
            "operation": self.operation,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        num_remainders = reader.integer("num_remainders", 1, MAX_ROWS)
        operation = reader.choice("operation", OPERATIONS)
        dims = factor_dims(d, operation)
        quotients = reader.tensor("quotients", FLOAT_DTYPES, (-(-n // num_remainders), dims[0]))
        remainders = reader.tensor("remainders", FLOAT_DTYPES, (num_remainders, dims[1]))
        reader.finish()
        return cls(quotients, remainders, n, operation, padding_idx)

    def validate(self) -> None:
        """Both factors must be finite."""
        require_finite("quotients", self.quotients)
        require_finite("remainders", self.remainders)

    def _describe(self) -> str:
        return f"{len(self.quotients):,} quotients {self.operation} {self.num_remainders:,} remainders"


class QREmbedding(ComposedEmbedding):
    """Rows composed of the quotient's row and the remainder's: e_i = Q[i // m] op R[i % m]; no two ids share both.

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        num_remainders: m; the parameters have m + ceil(N / m) rows. The default, ceil(sqrt(N)), makes this smallest.
        operation: "mult" (the paper's best), "add", or "concat" of d - d // 2 and d // 2 dimensions.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes or ``padding_idx`` out of range, an unknown operation, or a ``max_norm``.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    printed = ("num_remainders", "operation")

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *torch_arguments: Any,
        num_remainders: int | None = None,
        operation: str = "mult",
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        if operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {list(OPERATIONS)}, got {operation!r}")
        self.operation = operation
        default = default_remainders(self.num_embeddings)
        num_remainders = default if num_remainders is None else as_int("num_remainders", num_remainders, 1)
        self.num_remainders = num_remainders
        dims = factor_dims(self.embedding_dim, operation)
        quotients = -(-self.num_embeddings // num_remainders)
        self.quotients = self._parameter(quotients, dims[0])
        self.remainders = self._parameter(num_remainders, dims[1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors so that the values of rows have variance 1, as in nn.Embedding."""
        std = 0.5**0.5 if self.operation == "add" else 1.0
        with torch.no_grad():
            self.quotients.normal_(std=std)
            self.remainders.normal_(std=std)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        rows = self._safe_ids(input)
        quotient, remainder = (
            F.embedding(index, weight, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse)
            for index, weight in (
                (rows // self.num_remainders, self.quotients),
                (rows % self.num_remainders, self.remainders),
            )
        )
        vectors = join(quotient, remainder, self.operation)
        return self._zero_padding(rows, vectors)

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        num_remainders: int | None = None,
        operation: str = "mult",
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: the most remainders, at least sqrt(N).

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """
        dims = factor_dims(embedding_dim, operation)
        fewest = default_remainders(num_embeddings)
        numbers = range(fewest, max(fewest, num_embeddings) + 1) if num_remainders is None else [num_remainders]

        def nbytes_of(remainders: int) -> int:
            quotients = blank(-(-num_embeddings // remainders), dims[0])
            return file_nbytes(QRTable(quotients, blank(remainders, dims[1]), num_embeddings, operation, None))

        return {"num_remainders": most_within(numbers, nbytes_of, nbytes, (num_embeddings, embedding_dim))}

    def freeze(self) -> FrozenTable:
        """Both factors in their dtype; float32 look-ups equal the eval-mode forward pass."""
        return QRTable(
            cpu_values(self, "quotients"),
            cpu_values(self, "remainders"),
            self.num_embeddings,
            self.operation,
            self.padding_idx,
        )


def default_remainders(num_embeddings: int) -> int:
    """ceil(sqrt(N)), at least 1, with which the two factors have the fewest rows together."""
    return max(1, math.isqrt(max(0, num_embeddings - 1)) + 1)


def join(quotient: Tensor, remainder: Tensor, operation: str) -> Tensor:
    """Compose two rows by "mult", "add" or "concat"."""
    if operation == "mult":
        return quotient * remainder
    if operation == "add":
        return quotient + remainder
    return torch.cat([quotient, remainder], dim=-1)


def factor_dims(embedding_dim: int, operation: str) -> tuple[int, int]:
    """Dimensions of the quotient's and the remainder's rows.

    Raises ValueError where "concat" would leave one of them without any.
    """
    if operation != "concat":
        return embedding_dim, embedding_dim
    if embedding_dim < 2:
        raise ValueError('operation="concat" needs embedding_dim of 2 or more: use "add" or "mult"')
    return embedding_dim - embedding_dim // 2, embedding_dim // 2
