"""Base class of the baselines whose rows are composed, and what several baselines share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mgqe import ops
from mgqe.checks.ids import FLOAT_DTYPES, check_sizes
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_float, as_int
from mgqe.checks.waiting import reads_wait
from mgqe.codec.packing import bits_for, spare_bits_are_zero, unpack
from mgqe.files.reader import MAX_DIM, MAX_ROWS, Config, Reader
from mgqe.nn.context.ddp import is_sharded
from mgqe.nn.late_ids import LateIds
from mgqe.ops.layout.packed_format import MAX_CENTROIDS
from mgqe.table.base import FrozenTable

STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class ComposedEmbedding(LateIds):
    """An embedding whose rows are composed from fewer parameters than N x d; it takes nn.Embedding's arguments.

    Raises:
        ValueError: sizes or ``padding_idx`` out of range, or a ``max_norm``.
        TypeError: a dtype that frozen tables do not have.
    """

    printed: ClassVar[tuple[str, ...]] = ()  # attributes to print
    # The parameters to multiply where rows should start smaller; none: all. Those of a product that are multiplied
    # together become small together, and then take many more steps to grow than the rows of a full table.
    row_parameters: tuple[str, ...] = ()

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if max_norm is not None:  # there is no parameter of the rows that could be shortened
            raise ValueError(
                f"{type(self).__name__} has no row of its own to renormalise: leave max_norm=None "
                f"(got {max_norm}), or normalise the output"
            )
        check_dtype(dtype)
        sizes = check_sizes(num_embeddings, embedding_dim, padding_idx)
        self.num_embeddings, self.embedding_dim, self.padding_idx = sizes
        self.norm_type = as_float("norm_type", norm_type)
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self._factory_keywords: dict[str, Any] = {"device": device, "dtype": dtype}

    def _parameter(self, *shape: int) -> nn.Parameter:
        """A parameter on the layer's device and in its dtype, not filled."""
        with self._memory():
            return nn.Parameter(torch.empty(shape, **self._factory_keywords))

    def _zero_padding(self, ids: Tensor, vectors: Tensor) -> Tensor:
        """Vectors with zeros for ``padding_idx``, whose parameters other ids share, so that they cannot be zero."""
        if self.padding_idx is None:
            return vectors
        return vectors.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)

    def extra_repr(self) -> str:
        """Sizes and options, for print."""
        names = (*self.printed, *(() if self.padding_idx is None else ("padding_idx",)))
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.num_embeddings}, {self.embedding_dim}, {options}"


def distinct(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids of (n,) in rising order, which of them each is, and how often each occurs.

    On a GPU, without a wait, as many as there are ids: those beyond the distinct ones repeat the first, 0 times.
    """
    if reads_wait(ids.device):
        return ops.unique_padded(ids)
    uniq, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    return uniq, inverse, counts


def stored_type(stored_dtype: str | None) -> torch.dtype | None:
    """The dtype that a frozen table's floats are to have: None for that of the parameters; ValueError for no such."""
    if stored_dtype is None:
        return None
    if stored_dtype not in STORED_DTYPES:
        raise ValueError(f"stored_dtype must be one of {list(STORED_DTYPES)}, or None, got {stored_dtype!r}")
    return STORED_DTYPES[stored_dtype]


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise TypeError for a dtype that frozen tables do not have."""
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")


@outside_inference
def cpu_values(layer: LateIds, name: str, stored_dtype: str | None = None) -> Tensor:
    """A parameter's values for a frozen table: a copy on the CPU, in the parameter's dtype unless ``stored_dtype`` says
    otherwise.

    Raises ValueError if they have NaN or infinity, TypeError for a dtype that frozen tables do not have, IndexError if
    ids out of range were looked up on a GPU, which the copy waits for anyway.
    """
    layer.check_ids()
    weight = layer.get_parameter(name)
    check_dtype(weight.dtype)
    if is_sharded(weight):  # a collective: every process has to call it
        weight = weight.full_tensor()  # type: ignore[attr-defined]
    values = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
    finite = torch.isfinite(values).flatten(1).all(1)
    if not bool(finite.all()):
        raise ValueError(
            f"{name}[{int((~finite).nonzero()[0])}] of the {type(layer).__name__} of {layer.num_embeddings} x "
            f"{layer.embedding_dim} holds NaN or infinity: the training diverged, go back to a checkpoint"
        )
    return rounded(values, stored_dtype, name)


def rounded(values: Tensor, stored_dtype: str | None, name: str) -> Tensor:
    """Finite values in the dtype that they are stored in; ValueError where they are too large for it."""
    stored = values.to(stored_type(stored_dtype) or values.dtype)
    if stored.dtype == torch.float16 and not bool(torch.isfinite(stored).all()):
        raise ValueError(
            f"{name} holds {float(values.abs().max()):g}, too large for float16: use stored_dtype='float32'"
        )
    return stored


def sizes_of(table: FrozenTable) -> Config:
    """The entries of a file's metadata that all tables have."""
    return {
        "num_embeddings": table.num_embeddings,
        "embedding_dim": table.embedding_dim,
        "padding_idx": table.padding_idx,
    }


def read_sizes(reader: Reader) -> tuple[int, int, int | None]:
    """The entries of :func:`sizes_of`: N, d and ``padding_idx``."""
    n = reader.integer("num_embeddings", 0, MAX_ROWS)
    return n, reader.integer("embedding_dim", 1, MAX_DIM), reader.optional_integer("padding_idx", 0, n - 1)


def check_centroids(num_centroids: int | None, num_embeddings: int) -> int:
    """K, by default 256, or fewer where there are fewer rows; ValueError for more than there are rows."""
    most = max(1, min(num_embeddings, MAX_CENTROIDS))
    if num_centroids is None:
        return min(256, most)
    return as_int("num_centroids", num_centroids, 1, most)


def check_packed_codes(codes: Tensor, num_codes: int, num_centroids: int) -> None:
    """Raise ValueError if packed codes (N, row_bytes) name a centroid that there is not, or have spare bits set."""
    bits = bits_for(num_centroids)
    if not spare_bits_are_zero(codes, num_codes, bits):
        raise ValueError("tensor 'codes' has spare bits that are not zero")
    if num_centroids < 1 << bits and codes.numel() and int(unpack(codes, num_codes, bits).max()) >= num_centroids:
        raise ValueError(f"tensor 'codes' holds a code that is not below num_centroids={num_centroids}")
