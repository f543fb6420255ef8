"""IdGuard: ids out of range where a look-up must not wait for an answer; noted on the device, an error later."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe import ops
from mgqe.checks.inference import outside_inference
from mgqe.checks.waiting import reads_wait


class IdGuard:
    """Keeps a layer's look-ups from reading outside its rows on a device that does not say so before the next wait.

    On a GPU a check before each look-up would stop the training step until the device has caught up, and a device-side
    assertion would end the process. Here the lowest and the highest id are kept in a tensor of two numbers, and the
    look-up goes on with the nearest valid id. The layer calls :meth:`refuse_noted` where it waits anyway.

    Attributes:
        extremes: int64 (2,), 0 or less: see :func:`mgqe.ops.admit`; None where no id was looked up.
    """

    def __init__(self) -> None:
        self.extremes: Tensor | None = None

    def admit(self, ids: Tensor, num_embeddings: int) -> Tensor:
        """Ids int64 (...), those out of range replaced by the nearest valid id. Changes nothing on the CPU.

        Raises:
            IndexError: there are ids but no rows.
        """
        if ids.numel() == 0 or not reads_wait(ids.device):
            return ids
        if num_embeddings == 0:
            raise IndexError("ids were looked up, but the table has no rows")
        return self._admitted(ids.detach(), num_embeddings)

    @outside_inference
    def _admitted(self, ids: Tensor, num_embeddings: int) -> Tensor:
        return ops.admit(ids, self.prepared(ids.device), num_embeddings)

    def prepared(self, device: torch.device) -> Tensor:
        """The extremes on a device, made where there are none."""
        if self.extremes is None or self.extremes.device != device:
            self.extremes = torch.zeros(2, dtype=torch.int64, device=device)
        return self.extremes

    def refuse_noted(self, num_embeddings: int, owner: str) -> None:
        """Raise IndexError, once, if an id out of range was admitted. Waits for the device.

        Args:
            num_embeddings: valid ids are 0 to ``num_embeddings - 1``.
            owner: the layer, for the message.
        """
        if self.extremes is None:
            return
        device, (low, minus_high) = self.extremes.device, self.extremes.tolist()
        with torch.inference_mode(False):
            self.extremes.zero_()  # a graph that was captured goes on with this tensor
        wrong = low if low < 0 else -minus_high
        if not 0 <= wrong < num_embeddings:
            raise IndexError(
                f"id {wrong} is out of range: valid ids of a {owner} are 0 to {num_embeddings - 1}. It was looked up "
                f"on {device}, where passes do not wait for the check, since ids were last checked, and was read as "
                "the nearest valid id: map unknown ids to a reserved row first, and call mgqe.check_ids(model) after "
                "the pass to find the batch"
            )

    def __reduce__(self) -> tuple[type[IdGuard], tuple[()]]:
        """Copies have seen nothing."""
        return IdGuard, ()
