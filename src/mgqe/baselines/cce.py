"""Clustered compositional embeddings: shared rows whose sharing is learnt by clustering (Tsang and Ahle, NeurIPS 2023,
arXiv 2210.05974)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.baselines.base import ComposedEmbedding, check_centroids, check_packed_codes, cpu_values, read_sizes, sizes_of
from mgqe.baselines.budget import blank, centroids_up_to, file_nbytes, most_bits_within
from mgqe.checks.ids import FLOAT_DTYPES
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int, optional_int
from mgqe.codec.capacity import divisors
from mgqe.codec.equations import nearest_codes
from mgqe.codec.hashing import bucket_of
from mgqe.codec.kmeans import kmeans
from mgqe.codec.packing import bits_for, code_dtype, pack, row_bytes, unpack
from mgqe.files.reader import MAX_DIM, Config, Reader, require_finite
from mgqe.ops.layout.packed_format import MAX_CENTROIDS
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_SEED = 2**31 - 1
MAX_CLUSTERINGS = 2**16
DEFAULT_COLUMNS = (16, 8, 4, 2, 1)  # the first that divides d; more columns did better (docs/method.md)
DEFAULT_CLUSTERINGS = 4


@register_kind
class CCETable(FrozenTable):
    """``codes`` uint8 (N, row_bytes), each id's cluster in each of c columns, packed; ``clusters`` and ``helpers``
    (c * K, d / c), K rows of each column after those of the column before.

    Column j of a row is clusters[j K + code_j] + helpers[j K + h(id)], where h is hash number clustered * c + j.
    """

    kind = "cce"

    def __init__(
        self,
        codes: Tensor,
        clusters: Tensor,
        helpers: Tensor,
        num_columns: int,
        seed: int,
        clustered: int,
        padding_idx: Any,
    ) -> None:
        self.codes = codes
        self.clusters = clusters
        self.helpers = helpers
        self.num_columns = as_int("num_columns", num_columns, 1)
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        self.clustered = as_int("clustered", clustered, 0, MAX_CLUSTERINGS)
        self.num_embeddings = codes.shape[0]
        self.num_centroids = clusters.shape[0] // self.num_columns
        self.embedding_dim = clusters.shape[1] * self.num_columns
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d), the two parts of each column added in float32."""
        rows = self._rows(ids)
        codes = unpack(self.codes[rows.reshape(-1)], self.num_columns, bits_for(self.num_centroids))
        hashes = helper_codes(rows.reshape(-1), self.num_columns, self.num_centroids, self.seed, self.clustered)
        clusters, helpers = (
            F.embedding(places(index, self.num_centroids), weight).float()
            for index, weight in ((codes, self.clusters), (hashes, self.helpers))
        )
        return self._zero_padding(rows, (clusters + helpers).view(*rows.shape, self.embedding_dim))

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``codes``, ``clusters`` and ``helpers``."""
        return {"codes": self.codes, "clusters": self.clusters, "helpers": self.helpers}, {
            **sizes_of(self),
            "num_columns": self.num_columns,
            "num_centroids": self.num_centroids,
            "seed": self.seed,
            "clustered": self.clustered,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        columns = reader.integer("num_columns", 1, MAX_DIM)
        if d % columns:
            raise ValueError(f"config entry 'num_columns' must divide embedding_dim={d}, got {columns}")
        centroids = reader.integer("num_centroids", 1, MAX_CENTROIDS)
        seed = reader.integer("seed", 0, MAX_SEED)
        clustered = reader.integer("clustered", 0, MAX_CLUSTERINGS)
        codes = reader.tensor("codes", torch.uint8, (n, row_bytes(columns, bits_for(centroids))))
        shape = (columns * centroids, d // columns)
        clusters = reader.tensor("clusters", FLOAT_DTYPES, shape)
        helpers = reader.tensor("helpers", FLOAT_DTYPES, shape)
        reader.finish()
        return cls(codes, clusters, helpers, columns, seed, clustered, padding_idx)

    def validate(self) -> None:
        """Both tables must be finite, codes name a row, and spare bits be zero."""
        require_finite("clusters", self.clusters)
        require_finite("helpers", self.helpers)
        check_packed_codes(self.codes, self.num_columns, self.num_centroids)

    def _describe(self) -> str:
        return f"{self.num_columns} columns of {self.num_centroids:,} clusters and as many helpers"


class CCEmbedding(ComposedEmbedding):
    """Rows of c columns, each the sum of two shared rows: one that is named by a learnt pointer, one by a hash.

    Column j of e_i is M_j[p_j(i)] + M'_j[h_j(i)], with M_j and M'_j in R^(K x d / c). The pointers p start as hashes,
    too. :meth:`cluster` learns them: k-means of all ids' columns gives M_j its centroids and p_j the assignment, M'_j
    becomes zero, and h_j another hash. Ids that were alike then share a row of M, and M' under the new hash can learn
    what they differ in. No row of an id is ever held.

    Different from the paper: the pointers are part of the frozen table and count as bytes; k-means runs over all ids
    alike, or a sample of at least 65,536 in large tables; and the optimiser keeps its moments when the tables are
    replaced.

    Arguments up to ``dtype`` are nn.Embedding's (``max_norm`` must be None).

    Args:
        num_columns: c, a divisor of d; default 16, or the largest of 8, 4, 2 and 1 that divides d.
        num_centroids: K, rows of each of the two tables of a column; default 256, or fewer where there are fewer rows.
        clusterings: how often ``mgqe train`` clusters: after each of the first so many epochs.
        seed: of the hashes and of k-means, 0 to 2**31 - 1.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).

    Raises:
        ValueError: sizes that do not fit together, seed or ``padding_idx`` out of range, or a ``max_norm``.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    printed = ("num_columns", "num_centroids", "clusterings")
    codes: Tensor
    clustered: Tensor

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *torch_arguments: Any,
        num_columns: int | None = None,
        num_centroids: int | None = None,
        clusterings: int = DEFAULT_CLUSTERINGS,
        seed: int = 0,
        **torch_keywords: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *torch_arguments, **torch_keywords)
        n, d = self.num_embeddings, self.embedding_dim
        default = next(c for c in DEFAULT_COLUMNS if d % c == 0)
        self.num_columns = default if num_columns is None else as_int("num_columns", num_columns, 1)
        if d % self.num_columns:
            raise ValueError(f"embedding_dim={d} is not divisible by num_columns={self.num_columns}")
        self.num_centroids = check_centroids(num_centroids, n)
        self.clusterings = as_int("clusterings", clusterings, 0, MAX_CLUSTERINGS)
        self.seed = as_int("seed", seed, 0, MAX_SEED)
        shape = (self.num_columns * self.num_centroids, d // self.num_columns)
        self.clusters, self.helpers = self._parameter(*shape), self._parameter(*shape)
        device = self.clusters.device
        self.register_buffer("clustered", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("codes", self._first_codes().to(device))
        self.reset_parameters()

    def _first_codes(self) -> Tensor:
        """Pointers before any clustering: hashes of another seed than the helpers', (N, c)."""
        with torch.device("cpu"):
            ids = torch.arange(self.num_embeddings)
            codes = helper_codes(ids, self.num_columns, self.num_centroids, self.seed ^ MAX_SEED, 0)
            return codes.to(code_dtype(self.num_centroids))

    def reset_parameters(self) -> None:
        """Draw both tables so that the values of rows have variance 1, as in nn.Embedding; the pointers stay."""
        with torch.no_grad():
            self.clusters.normal_(std=0.5**0.5)
            self.helpers.normal_(std=0.5**0.5)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d)."""
        rows = self._safe_ids(input)
        flat = rows.reshape(-1)
        hashes = helper_codes(flat, self.num_columns, self.num_centroids, self.seed, self.clustered)
        clusters, helpers = (
            F.embedding(
                places(index, self.num_centroids),
                weight,
                scale_grad_by_freq=self.scale_grad_by_freq,
                sparse=self.sparse,
            )
            for index, weight in ((self.codes.index_select(0, flat), self.clusters), (hashes, self.helpers))
        )
        return self._zero_padding(rows, (clusters + helpers).view(*rows.shape, self.embedding_dim))

    def start_epoch(self, epoch: int) -> None:
        """Cluster before the second epoch, the third and so on, ``clusterings`` times; ``mgqe train`` calls this."""
        if 1 < epoch <= 1 + self.clusterings:
            self.cluster()

    @outside_inference
    @torch.no_grad()
    def cluster(self) -> None:
        """Learn the pointers from the rows as they are, and begin again with helpers of zero under other hashes.

        Raises:
            ValueError: the tables hold NaN or infinity.
        """
        for name in ("clusters", "helpers"):
            cpu_values(self, name)
        ids = torch.arange(self.num_embeddings, device=self.codes.device)
        rows = self.forward(ids).float()
        fitted = rows if self.padding_idx is None else rows[ids != self.padding_idx]
        columns, centroids = self.num_columns, self.num_centroids
        if len(fitted):
            with torch.device("cpu"):
                generator = torch.Generator().manual_seed(self.seed + int(self.clustered))
            start = rows.new_empty(columns, 0, self.embedding_dim // columns)
            book = kmeans([(fitted, columns)], start, centroids, generator)
            self.codes.copy_(nearest_codes(rows, book, columns, centroids))
            self.clusters.copy_(book.view_as(self.clusters))
        self.helpers.zero_()
        self.clustered.add_(1)

    @classmethod
    def within(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        nbytes: int,
        *,
        num_columns: int | None = None,
        num_centroids: int | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        """Keywords for a file of at most ``nbytes``: the c and K of the most bits per id.

        Raises TooFewBytesError, a ValueError, if nothing fits.
        """

        def nbytes_of(columns: int, centroids: int) -> int:  # with the longest seed and number of clusterings
            codes = blank(num_embeddings, row_bytes(columns, bits_for(centroids)), dtype=torch.uint8)
            rows = blank(columns * centroids, embedding_dim // columns)
            return file_nbytes(CCETable(codes, rows, rows, columns, MAX_SEED, MAX_CLUSTERINGS, None))

        pieces = divisors(embedding_dim) if num_columns is None else [num_columns]
        numbers = centroids_up_to(num_embeddings) if num_centroids is None else [num_centroids]
        shape = most_bits_within(pieces, numbers, nbytes_of, nbytes, (num_embeddings, embedding_dim))
        return {"num_columns": shape[0], "num_centroids": shape[1]}

    @outside_inference
    def freeze(self) -> FrozenTable:
        """Pointers, packed, and both tables in their dtype; float32 look-ups equal the eval-mode forward pass."""
        return CCETable(
            pack(self.codes.cpu(), bits_for(self.num_centroids)),
            cpu_values(self, "clusters"),
            cpu_values(self, "helpers"),
            self.num_columns,
            self.seed,
            int(self.clustered),
            self.padding_idx,
        )


def helper_codes(ids: Tensor, num_columns: int, num_centroids: int, seed: int, clustered: int | Tensor) -> Tensor:
    """Ids (n,) int64 -> each one's helper in each column, int64 (n, c): hashes number clustered * c and on."""
    which = torch.arange(num_columns, device=ids.device) + clustered * num_columns
    return bucket_of(ids.unsqueeze(1), num_centroids, seed, which)


def places(codes: Tensor, num_centroids: int) -> Tensor:
    """Codes (n, c) -> int64 (n, c): where the row of each is in a table of c times K rows."""
    return codes.long() + torch.arange(codes.shape[1], device=codes.device) * num_centroids
