"""StepWatcher: has an optimiser taken a step since the last training pass?"""

from __future__ import annotations

from torch import Tensor

from mgqe.nn.quantizers.base import Quantizer


class StepWatcher:
    """Compares the versions of a layer's parameters, which every change in place raises, with those last seen.

    Both questions are answered with yes before the first training pass, and after a layer was copied.
    """

    def __init__(self) -> None:
        self._rows_version = self._codebooks_version = -1
        self._weight_id = 0

    def rows_stepped(self, weight: Tensor) -> bool:
        """Whether the rows have changed since the last pass."""
        return weight._version != self._rows_version

    def codebooks_stepped(self, quantizer: Quantizer) -> bool:
        """Whether the codebooks have changed since the last pass."""
        return quantizer.version() != self._codebooks_version

    def same_rows(self, weight: Tensor) -> bool:
        """Whether this is the tensor that the last pass read: ``torch.func.functional_call`` passes another one."""
        return id(weight) == self._weight_id

    def remember(self, quantizer: Quantizer, weight: Tensor | None = None) -> None:
        """A training pass begins with these, what it had to change included."""
        self._codebooks_version = quantizer.version()
        if weight is not None:
            self._rows_version, self._weight_id = weight._version, id(weight)

    def __reduce__(self) -> tuple[type[StepWatcher], tuple[()]]:
        """Copies have seen nothing."""
        return StepWatcher, ()
