"""LateIds: a layer that raises errors about ids of a GPU at points at which it waits for its device anyway."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mgqe.checks.devices import memory_for_layer
from mgqe.checks.ids import as_int64, check_ids
from mgqe.checks.waiting import reads_wait
from mgqe.nn.id_guard import IdGuard

if TYPE_CHECKING:
    from typing_extensions import Self


class LateIds(nn.Module):
    """What layers with rows have in common, quantised or not.

    Attributes:
        id_guard: what a GPU has to say about ids; :meth:`check_ids` asks it.
        num_embeddings, embedding_dim: nn.Embedding's.
    """

    num_embeddings: int
    embedding_dim: int
    id_guard: IdGuard

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.id_guard = IdGuard()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a pickle from when the layer had no guard."""
        super().__setstate__({"id_guard": IdGuard(), **state})  # type: ignore[no-untyped-call]

    @property
    def _sizes(self) -> str:
        return f"{type(self).__name__} of {self.num_embeddings} x {self.embedding_dim}"

    def _safe_ids(self, ids: Tensor) -> Tensor:
        """Ids as int64 that are safe to index with: checked at once on the CPU, admitted and noted on a GPU.

        TypeError and IndexError as of :func:`mgqe.checks.ids.check_ids`.
        """
        if torch.compiler.is_compiling() or not (isinstance(ids, Tensor) and reads_wait(ids.device)):
            return check_ids(ids, self.num_embeddings)
        return self.id_guard.admit(as_int64(ids), self.num_embeddings)

    def check_ids(self) -> None:
        """Raise IndexError if an id out of range was looked up on a GPU since the last such check."""
        self.id_guard.refuse_noted(self.num_embeddings, self._sizes)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module; on the way to evaluation errors about ids that a GPU has kept are raised."""
        if not mode:
            self.check_ids()
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.check_ids()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _memory(self) -> AbstractContextManager[None]:
        """Around what makes the layer's tensors on a device, to say what does not fit into its memory."""
        return memory_for_layer(type(self).__name__, self.num_embeddings, self.embedding_dim)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.check_ids()
        with self._memory():
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
