"""CompactEmbedding and CompactEmbeddingBag: a frozen table where a model expects a module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mgqe.checks.ids import as_int64
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.nn.bag import MODES
from mgqe.table.base import FrozenTable

if TYPE_CHECKING:
    from typing_extensions import Self


class CompactEmbedding(nn.Module):
    """A frozen table behind nn.Embedding's interface: ids in, vectors out, nothing that trains.

    The table's tensors are buffers, so that ``.to(device)`` and ``state_dict`` know them, under the names of
    docs/format.md with underscores for dots: ``codes_0``, ``centroids_0``, ``scales_0``, ``tier_map_bits_0``,
    ``tier_map_ranks_0``, ``fallback``. A cast (``.half()``) changes the dtype of the vectors and not the table.

    Args:
        table: what ``freeze()`` or ``mgqe.load`` gave.
        padding_idx: what the replaced module called so; default the table's.
        dtype: of the vectors.
        path: where it is in its model, for messages.

    Shape:
        ids of any shape (...) and integer dtype -> (..., d).
    """

    def __init__(
        self, table: FrozenTable, padding_idx: int | None = None, dtype: torch.dtype = torch.float32, path: str = ""
    ) -> None:
        super().__init__()
        if not isinstance(table, FrozenTable):
            raise TypeError(
                f"expected a frozen table, got {type(table).__name__}: pass what a layer's freeze() returns"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        self._table = table
        self._held: object = None
        self.padding_idx = table.padding_idx if padding_idx is None else as_int("padding_idx", padding_idx)
        self.dtype = dtype
        self.path = path
        self._sync()
        self.training = False  # nothing in it trains; train() says so

    @property
    def table(self) -> FrozenTable:
        """The table: ``lookup``, ``bag``, and a CompactTable's ``topk``, ``append``, ``to_faiss``."""
        return self._table

    @property
    def num_embeddings(self) -> int:
        """N, appended ids included."""
        return self._table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self._table.embedding_dim

    @property
    def weight(self) -> Tensor:
        """All vectors, (N, d), decoded again each time it is read; no gradient reaches the table."""
        return self._table.to_dense().to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Vectors of ids: integers (...) -> (..., d)."""
        return self._table.lookup(as_int64(input)).to(self.dtype)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module; warns in training mode, since the table stays as it is."""
        if mode:
            warnings.warn(
                f"{self.path or type(self).__name__} is frozen: it gets no gradient and stays as it is while the rest "
                "of the model trains. To train on through the codes, keep the model from before freeze_",
                stacklevel=2,
            )
        return super().train(mode)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        return f"{text}, {self._table.nbytes:,} bytes"

    # ---- tensors -----------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Register the table's tensors as buffers, again if ids were appended or updated since."""
        snapshot = self._table.snapshot
        if snapshot is self._held:
            return
        self._held = snapshot
        self._buffers.clear()
        self._non_persistent_buffers_set.clear()
        for name, tensor in self._table.to_tensors()[0].items():
            self._buffers[buffer_name(name)] = tensor  # register_buffer refuses the name of a property

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the table; a cast is for the vectors alone, since codes and stored centroids keep their types."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self._table.device))
        self.dtype = probe.dtype
        if probe.device != self._table.device:
            self._table = self._table.to(probe.device)
        self._sync()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._sync()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    @outside_inference
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Another table of the same layout, whole: a table's parts have to fit each other."""
        self._sync()
        names = {name: prefix + buffer_name(name) for name in self._table.to_tensors()[0]}
        missing = [key for key in names.values() if key not in state_dict]
        missing_keys.extend(missing)
        if strict:
            known = set(names.values())
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in known)
        if missing:
            return
        device = self._table.device
        try:
            tensors = {name: state_dict[key].detach().to(device, copy=True) for name, key in names.items()}
            table = type(self._table).from_tensors(tensors, self._table.to_tensors()[1])
            table.validate()
        except ValueError as error:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: not a table of this layout: {error}")
            return
        self._table = table
        self._sync()

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: the table alone, whose tensors the buffers are."""
        return {**self.__dict__, "_buffers": {}, "_held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._sync()


class CompactEmbeddingBag(CompactEmbedding):
    """A frozen table behind nn.EmbeddingBag's interface; arguments as :class:`CompactEmbedding`'s and these.

    Args:
        mode: "sum", "mean" or "max".
        include_last_offset: see :meth:`forward`.
    """

    def __init__(
        self,
        table: FrozenTable,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        path: str = "",
        mode: str = "mean",
        include_last_offset: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        super().__init__(table, padding_idx, dtype, path)
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Bags of ids -> (B, d): input (B, L), or (n,) with offsets (B,), or (B + 1,) with ``include_last_offset``."""
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.float()
        pooled = self._table.bag(as_int64(input), offsets, self.mode, per_sample_weights, self.include_last_offset)
        return pooled.to(self.dtype)


def buffer_name(tensor: str) -> str:
    """A tensor of docs/format.md as a buffer: torch takes no dots in names."""
    return tensor.replace(".", "_")
