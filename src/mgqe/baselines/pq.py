"""Product quantisation after training: k-means on the rows of a trained full table (Jegou et al., TPAMI 2011)."""

from __future__ import annotations

from typing import Any

import torch

from mgqe.baselines.base import cpu_values
from mgqe.baselines.full import FullEmbedding
from mgqe.checks.scalars import as_int
from mgqe.codec.equations import nearest_codes, round_centroids
from mgqe.codec.kmeans import kmeans
from mgqe.codec.tiers import Tiers
from mgqe.nn.quantization import Quantization
from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable

CHUNK_ROWS = 1 << 16


class PQEmbedding(FullEmbedding):
    """Trains as a full table; ``freeze()`` fits codebooks to the rows. There is no training through the codes.

    Arguments up to ``dtype`` are nn.Embedding's. The eval-mode forward pass is that of the full table: look-ups
    in the frozen one differ from it by the quantisation.

    Args:
        num_subspaces: D, a divisor of d; default as MGQEmbedding's.
        num_centroids: K per subspace; default 256, or fewer where there are fewer rows.
        share_subspaces: one codebook for all subspaces.
        centroid_dtype: "float32", "float16" or "int8".
        seed: of the k-means start, so that the same rows give the same codes.

    Raises:
        ValueError: sizes that do not fit together, and as FullEmbedding.
    """

    def __init__(
        self,
        *args: Any,
        num_subspaces: int | None = None,
        num_centroids: int | None = None,
        share_subspaces: bool = False,
        centroid_dtype: str = "float32",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        config = Quantization(
            num_subspaces=num_subspaces,
            num_centroids=num_centroids,
            share_subspaces=share_subspaces,
            centroid_dtype=centroid_dtype,
        )
        self.capacity = config.capacity_of(self.embedding_dim, Tiers.from_sizes((self.num_embeddings,)))
        self.centroid_dtype = centroid_dtype
        self.seed = as_int("seed", seed, 0, 2**63 - 1)

    @torch.no_grad()
    def freeze(self) -> FrozenTable:  # type: ignore[override]  # nn.Embedding annotates a bool it never sets
        """k-means on the rows (all but padding), then every row's nearest centroids: a CompactTable of one tier."""
        rows = cpu_values(self, "weight").float()
        (subspaces,), (centroids,) = self.capacity.num_subspaces, self.capacity.num_centroids
        books, _, width = self.capacity.codebook_shapes[0]
        fitted = rows
        if self.padding_idx is not None:
            fitted = rows[torch.arange(len(rows)) != self.padding_idx]
        generator = torch.Generator().manual_seed(self.seed)
        book = kmeans([(fitted, subspaces)], torch.empty(books, 0, width, dtype=torch.float32), centroids, generator)
        book = round_centroids(book, self.centroid_dtype)  # before the codes are chosen, which fit the stored centroids
        codes = torch.empty(len(rows), subspaces, dtype=torch.int32)
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            codes[chunk] = nearest_codes(rows[chunk], book, subspaces, centroids)
        return CompactTable.from_codes(
            Tiers.from_sizes((len(rows),)), [codes], [book], (0,), (centroids,), self.padding_idx, self.centroid_dtype
        )

    def extra_repr(self) -> str:
        """Sizes, for print."""
        (subspaces,), (centroids,) = self.capacity.num_subspaces, self.capacity.num_centroids
        return f"{super().extra_repr()}, num_subspaces={subspaces}, num_centroids={centroids}"
