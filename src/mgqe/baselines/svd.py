"""Low rank after training: the rows of a trained full table on their first right singular vectors."""

from __future__ import annotations

from typing import Any

import torch

from mgqe.baselines.base import cpu_values, rounded
from mgqe.baselines.full import FullEmbedding
from mgqe.baselines.low_rank import LowRankEmbedding, LowRankTable
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.table.base import FrozenTable


class SVDEmbedding(FullEmbedding):
    """Trains as a full table W; ``freeze()`` keeps its best approximation of rank r (Eckart and Young, 1936).

    Arguments up to ``dtype`` are nn.Embedding's. The eval-mode forward pass is that of the full table: look-ups
    in the frozen one differ from it by what is left out.

    Args:
        rank: r; default d / 8, at least 1.
        stored_dtype: of both factors in the frozen table, "float32" or "float16"; by default float32.

    Raises:
        ValueError: a rank that is not from 1 to d, no such ``stored_dtype``, and as FullEmbedding.
    """

    def __init__(self, *args: Any, rank: int | None = None, stored_dtype: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, stored_dtype=stored_dtype, **kwargs)
        self.rank = max(1, self.embedding_dim // 8) if rank is None else as_int("rank", rank)
        if not 1 <= self.rank <= self.embedding_dim:
            raise ValueError(f"rank must be from 1 to embedding_dim={self.embedding_dim}, got {self.rank}")

    @classmethod
    def within(cls, num_embeddings: int, embedding_dim: int, nbytes: int, **given: Any) -> dict[str, Any]:
        """As that of LowRankEmbedding, whose table it leaves."""
        return LowRankEmbedding.within(num_embeddings, embedding_dim, nbytes, **given)

    @outside_inference
    def freeze(self) -> FrozenTable:  # type: ignore[override]  # nn.Embedding annotates a bool it never sets
        """A :class:`LowRankTable` of W V and V.T, where V has the first r eigenvectors of W.T W."""
        weight = cpu_values(self, "weight").float()
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0.0
        # In float64, where the squared singular values of a table keep all the digits that float32 rows have.
        _, vectors = torch.linalg.eigh(weight.T.double() @ weight.double())  # ascending
        projection = vectors[:, -self.rank :].flip(1).T.float().contiguous()
        factors = rounded(weight @ projection.T, self.stored_dtype, "factors")
        return LowRankTable(factors, rounded(projection, self.stored_dtype, "projection"), self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{super().extra_repr()}, rank={self.rank}"
