"""Full table: nn.Embedding, the reference; with a smaller d it is a strong baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgqe.baselines.base import check_dtype, cpu_values, read_sizes, sizes_of, stored_type
from mgqe.baselines.budget import blank, file_nbytes
from mgqe.checks.devices import memory_for_layer
from mgqe.checks.ids import FLOAT_DTYPES, check_sizes
from mgqe.checks.inference import as_normal, outside_inference
from mgqe.checks.scalars import as_float, optional_int
from mgqe.files.reader import Config, Reader
from mgqe.nn.late_ids import LateIds
from mgqe.table.base import FrozenTable
from mgqe.table.io import register_kind

if TYPE_CHECKING:
    from typing_extensions import Self


@register_kind
class FullTable(FrozenTable):
    """All rows as they are: ``weight`` (N, d), float32, float16 or bfloat16; look-ups return float32.

    Loading does not search the rows for NaN, since it would have to read the whole file.
    """

    kind = "full"

    def __init__(self, weight: Tensor, padding_idx: int | None = None) -> None:
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = optional_int("padding_idx", padding_idx)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> float32 (..., d)."""
        rows = self._rows(ids)
        return self._zero_padding(rows, F.embedding(rows, self.weight).float())

    def to_tensors(self) -> tuple[dict[str, Tensor], Config]:
        """``weight`` (N, d)."""
        return {"weight": self.weight}, sizes_of(self)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: Config) -> Self:
        """The inverse of :meth:`to_tensors`."""
        reader = Reader(tensors, config)
        n, d, padding_idx = read_sizes(reader)
        weight = reader.tensor("weight", FLOAT_DTYPES, (n, d))
        reader.finish()
        return cls(weight, padding_idx)


class FullEmbedding(LateIds, nn.Embedding):
    """nn.Embedding that takes ids of every integer dtype, checks them, and can be frozen.

    Arguments are nn.Embedding's, and ``stored_dtype`` of the frozen table's rows: "float32" or "float16", by default
    that of the weight.

    Raises:
        ValueError: negative sizes, ``padding_idx`` outside the table, or no such ``stored_dtype``.
        IndexError, TypeError: in the forward pass, ids out of range or not integers.
    """

    plain_forward = True  # compress_ may swap it as it swaps nn.Embedding

    @outside_inference
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *args: Any,
        stored_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_dtype(kwargs.get("dtype"))
        stored_type(stored_dtype)
        num_embeddings, embedding_dim, padding_idx = check_sizes(num_embeddings, embedding_dim, padding_idx)
        names = ("max_norm", "norm_type")
        kwargs.update({name: as_float(name, kwargs[name]) for name in names if kwargs.get(name) is not None})
        args = (*(v if v is None else as_float(n, v) for n, v in zip(names, args)), *args[len(names) :])
        if (weight := kwargs.get("_weight")) is not None:  # from_pretrained passes it by keyword
            kwargs["_weight"] = as_normal(weight)
        with memory_for_layer(type(self).__name__, num_embeddings, embedding_dim):
            super().__init__(num_embeddings, embedding_dim, padding_idx, *args, **kwargs)
        self.stored_dtype = stored_dtype

    def forward(self, input: Tensor) -> Tensor:
        """Rows of ids: integers (...) -> (..., d) in the weight's dtype."""
        return super().forward(self._safe_ids(input))

    @staticmethod
    def frozen_nbytes(num_embeddings: int, embedding_dim: int, stored_dtype: str | None = None) -> int:
        """Bytes of the file of such a table, of a float32 weight."""
        return file_nbytes(
            FullTable(blank(num_embeddings, embedding_dim, dtype=stored_type(stored_dtype) or torch.float32))
        )

    def freeze(self) -> FrozenTable:  # type: ignore[override]  # nn.Embedding annotates a bool it never sets
        """The table as it is; look-ups equal the eval-mode forward pass unless ``stored_dtype`` rounds the rows."""
        return FullTable(cpu_values(self, "weight", self.stored_dtype), self.padding_idx)
