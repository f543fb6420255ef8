"""Hashing: ids share the rows of a smaller table (Weinberger et al., ICML 2009; with several hashes, Bloom
embeddings, Serra and Karatzoglou, RecSys 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.baselines.base import ComposedEmbedding, cpu_values, read_sizes, sizes_of
from mgqe.baselines.budget import blank, file_nbytes, most_within
from mgqe.checks.ids import FLOAT_DTYPES
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int, optional_int
from mgqe.codec.hashing import bucket_of
from mgqe.files.reader import MAX_ROWS, Config, Reader, require_finite
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_HASHES = 16
MAX_SEED = 2**31 - 1


@register_kind
class HashTable(FrozenTable):
    """``weight`` (num_buckets, d); a row is the sum of the buckets that ``num_hashes`` hashes of its id name."""

    kind = "hash"

    def __init__(
        self, weight: Tensor, num_embeddings: int, num_hashes: int, seed: int, padding_idx: int | None
    ) -> None:
        self.weight = weight
        self.num_embeddings = as_int("num_embeddings", num_embeddings, 0)
        self.num_buckets, self.embedding_dim = weight.shape
        self.num_hashes = as_int("num_hashes", num_hashes, 1, MAX_HASHES)
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d), added in float32 in the order of the hashes."""
        rows = self._rows(ids)
        vectors = torch.zeros(*rows.shape, self.embedding_dim, dtype=torch.float32, device=self.weight.device)
        for j in range(self.num_hashes):
            vectors = vectors + F.embedding(bucket_of(rows, self.num_buckets, self.seed, j), self.weight).float()
        return self._zero_padding(rows, vectors)

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``weight`` (num_buckets, d)."""
        return {"weight": self.weight}, {
            **sizes_of(self),
            "num_buckets": self.num_buckets,
            "num_hashes": self.num_hashes,
            "seed": self.seed,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        num_buckets = reader.integer("num_buckets", 1, MAX_ROWS)
        num_hashes = reader.integer("num_hashes", 1, MAX_HASHES)
        seed = reader.integer("seed", 0, MAX_SEED)
        weight = reader.tensor("weight", FLOAT_DTYPES, (num_buckets, d))
        reader.finish()
        return cls(weight, n, num_hashes, seed, padding_idx)

    def validate(self) -> None:
        """The buckets must be finite."""
        require_finite("weight", self.weight)

    def _describe(self) -> str:
        return f"{self.num_buckets:,} buckets, {self.num_hashes} hash{'es' if self.num_hashes > 1 else ''}"


class HashEmbedding(ComposedEmbedding):
    """Rows shared by hashing: e_i = sum over j of W[h_j(i)], with W in R^(num_buckets x d).

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        num_buckets: rows of the parameter; default num_embeddings / 8, at least 1.
        num_hashes: how many buckets are added per id, 1 to 16; with 2 or more, few ids share all of theirs.
        seed: of the hash functions, 0 to 2**31 - 1.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes, hashes, seed or ``padding_idx`` out of range, or a ``max_norm``.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    printed = ("num_buckets", "num_hashes")

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *torch_arguments: Any,
        num_buckets: int | None = None,
        num_hashes: int = 1,
        seed: int = 0,
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        default = max(1, self.num_embeddings // 8)
        self.num_buckets = default if num_buckets is None else as_int("num_buckets", num_buckets, 1)
        self.num_hashes = as_int("num_hashes", num_hashes, 1, MAX_HASHES)
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        self.weight = self._parameter(self.num_buckets, self.embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the buckets so that the values of rows have variance 1, as in nn.Embedding."""
        with torch.no_grad():
            self.weight.normal_(std=self.num_hashes**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        rows = self._safe_ids(input)
        vectors = torch.zeros(*rows.shape, self.embedding_dim, dtype=self.weight.dtype, device=self.weight.device)
        for j in range(self.num_hashes):
            vectors = vectors + F.embedding(
                bucket_of(rows, self.num_buckets, self.seed, j),
                self.weight,
                scale_grad_by_freq=self.scale_grad_by_freq,
                sparse=self.sparse,
            )
        return self._zero_padding(rows, vectors)

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        num_buckets: int | None = None,
        num_hashes: int = 2,
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: two hashes, and the most buckets.

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """
        numbers = range(1, max(2, num_embeddings)) if num_buckets is None else [num_buckets]

        def nbytes_of(buckets: int) -> int:  # with the longest seed
            return file_nbytes(HashTable(blank(buckets, embedding_dim), num_embeddings, num_hashes, MAX_SEED, None))

        buckets = most_within(numbers, nbytes_of, nbytes, (num_embeddings, embedding_dim))
        return {"num_buckets": buckets, "num_hashes": num_hashes}

    def freeze(self) -> FrozenTable:
        """The buckets in their dtype; float32 look-ups equal the eval-mode forward pass."""
        return HashTable(cpu_values(self, "weight"), self.num_embeddings, self.num_hashes, self.seed, self.padding_idx)
