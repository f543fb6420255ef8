"""compress_table: a matrix of trained rows becomes a frozen table, without a model and without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgqe.checks.ids import check_sizes
from mgqe.checks.inference import outside_inference
from mgqe.checks.rows import as_rows
from mgqe.codec.capacity import Capacity
from mgqe.codec.metric import Metric
from mgqe.codec.planning import budget_bytes
from mgqe.codec.planning.budget import check_budget
from mgqe.codec.planning.shapes import SPEED, check_prefer_tail, check_preference
from mgqe.codec.tiers import Tiers
from mgqe.convert.progress import Progress, shown
from mgqe.nn.budget_planner import BudgetPlanner
from mgqe.nn.freezing import frozen_table
from mgqe.nn.quantizers.mixed import MixedQuantizer
from mgqe.nn.rows.checks import SWEEP_ROWS
from mgqe.table.compact import CompactTable


@outside_inference
@torch.no_grad()
def compress_table(
    weight: Any,
    budget: int | float | str = "10%",
    *,
    counts: Tensor | Sequence[float] | None = None,
    queries: Any = None,
    prefer: str = SPEED,
    prefer_tail: bool = False,
    padding_idx: int | None = None,
    progress: Progress | bool | None = None,
) -> CompactTable:
    """The frozen table of a matrix of trained rows that is expected to lose least within a budget of bytes.

    Rows are read in blocks, so that a matrix that is mapped from a file need not fit into memory.

    Args:
        weight: (N, d) floats: a tensor, or a NumPy array, also one that ``np.load(..., mmap_mode="r")`` maps.
        budget: "5%" or 0.05 of the matrix's bytes, or a whole number of bytes; the table's file takes no more.
        counts: (N,), how often each id occurs: frequent ids get more bits than rare ones. Without it long rows get
            more bits than short ones, where their lengths are so unlike that tiers pay.
        queries: floats (n, d), a sample of what rows are multiplied with, such as users' vectors: bits go where inner
            products with them feel errors. Without it errors in all directions count alike.
        prefer: "speed", of the tables that are expected to lose about as little the one that looks up fastest, or
            "size", the one that is expected to lose least; see :class:`mgqe.Quantization`.
        prefer_tail: with counts: every id counts alike, so that rare ids keep more and frequent ones less.
        padding_idx: an id that looks up as zeros.
        progress: called with (rows done, N); False for nothing; by default a bar, where there is a terminal, and
            else a line every five seconds.

    Raises:
        TypeError: a weight that holds no floats. ValueError: another shape, rows that are NaN or infinite, counts or
            queries that do not fit, a budget that no table fits or that the matrix itself fits, another ``prefer``,
            ``prefer_tail`` without counts.

    Example:
        >>> import torch, mgqe
        >>> weight = torch.randn(10_000, 64)
        >>> table = mgqe.compress_table(weight, "10%")
        >>> table.lookup(torch.tensor([3, 17])).shape, table.nbytes < 0.1 * weight.nbytes
        (torch.Size([2, 64]), True)
    """
    check_budget(budget)
    check_preference(prefer)
    check_prefer_tail(prefer_tail, counts)
    rows = as_rows(weight)
    n, d, padding = check_sizes(rows.shape[0], rows.shape[1], padding_idx)
    metric = Metric.identity(d) if queries is None else Metric.of_queries(queries).for_rows(d)
    if n < 2:
        raise ValueError(f"weight has {n} rows: a table of fewer than two has nothing to compress")
    with torch.device("cpu"):  # whatever the default device
        how: dict[str, Any] = {"prefer": prefer, "prefer_tail": prefer_tail, "by_length": True}
        planner = BudgetPlanner.of(budget_bytes(budget, rows.nbytes), counts, (n, d), padding, **how)
        with shown(progress, "compressing") as step:
            _refuse_bad_rows(rows, padding)
            step(0, n)
            fitted = planner.fit((n, d), lambda ids: _read(rows, ids), metric, torch.Generator().manual_seed(0))
            quantizer = MixedQuantizer(planner.before(n, d), torch.empty(0), "int8", 0.0, False)
            quantizer.adopt(fitted)
            return frozen_table(_Planned(rows, fitted.plan.tiers, quantizer, padding, step))


def _read(rows: Tensor, ids: Tensor) -> Tensor:
    return rows[ids.to(rows.device)].float().cpu()


def _refuse_bad_rows(rows: Tensor, padding: int | None) -> None:
    for start in range(0, len(rows), SWEEP_ROWS):
        block = rows[start : start + SWEEP_ROWS]
        if bool(torch.isfinite(torch.stack(block.aminmax()).float()).all()):
            continue
        bad = ~block.float().isfinite().all(1)
        if padding is not None and start <= padding < start + len(block):
            bad[padding - start] = False
        if bool(bad.any()):
            row = start + int(bad.nonzero()[0])
            raise ValueError(
                f"row {row} of weight holds NaN, infinity or a number beyond float32: leave it out, or mend the file"
            )


class _Planned:
    """A matrix with its plan, as freezing reads a layer."""

    centroid_dtype = "int8"

    def __init__(
        self, rows: Tensor, tiers: Tiers, quantizer: MixedQuantizer, zero_row: int | None, step: Progress
    ) -> None:
        self.raw_weight, self.tiers, self.quantizer, self.zero_row = rows, tiers, quantizer, zero_row
        self.capacity: Capacity = quantizer.capacity
        self._step, self._done = step, 0

    def codes_of(self, ids: Tensor, tier: int) -> Tensor:
        """Codes (n, D_g) of ids (n,) that are all of one tier."""
        codes = self.quantizer.codes(_read(self.raw_weight, ids), tier)
        self._done += len(ids)
        self._step(self._done, len(self.raw_weight))
        return codes
