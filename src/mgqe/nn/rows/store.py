"""RowStore: what a layer asks of rows that are not a parameter of N rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class RowStore(nn.Module):
    """Rows of N ids behind a parameter that is smaller than N rows, the layer's ``raw_weight``.

    The layer holds the parameter and gives it with each call. Ids are int64, in range, and flat.
    """

    def reset_parameters(self) -> None:
        """As newly constructed; the parameter's rows are the layer's business."""
        raise NotImplementedError

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        """Rows (n, d) float32 as they are now, without a gradient."""
        raise NotImplementedError

    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool) -> Tensor:
        """Rows (n, d) of distinct ids, with a gradient to the parameter."""
        raise NotImplementedError

    def vectors(self, rows: Tensor) -> Tensor:
        """What look-ups give of rows (n, ...) while there are no codes: (n, d)."""
        return rows

    def places(self, weight: Tensor, ids: Tensor) -> Tensor | None:
        """Rows of the parameter (n,) that hold these ids' rows, given to them if need be; None if rows are composed."""
        return None

    def after_step(self, weight: Tensor, passes: int) -> None:
        """Called before the first training pass after an optimiser's step, when no graph waits for its backward."""

    def final_codes_mask(self, ids: Tensor) -> Tensor | None:
        """Which ids (n,) are served by codes that stand, so that their rows are their vectors; None: none of them."""
        return None

    def codes(self, ids: Tensor, tier: int) -> Tensor | None:
        """Codes (n, D_g) that stand already; None where they are to be worked out from rows."""
        return None


def chunks(total: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """0 .. total - 1 in pieces of at most ``size`` ids."""
    for start in range(0, total, size):
        yield torch.arange(start, min(start + size, total), device=device)
