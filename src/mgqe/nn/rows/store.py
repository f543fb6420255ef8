"""RowStore: what a layer asks of the place where its rows are while they train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.codec.kmeans import draw_places
from mgqe.codec.tiers import Tiers
from mgqe.nn.context.hints import OptimizerHints
from mgqe.nn.quantizers.autograd import ReadRows
from mgqe.nn.quantizers.base import Quantizer


class StateEntry:
    """An integer of a store, under a name: an entry of its buffer ``state``, which checkpoints hold.

    Args:
        position: in the vector; part of the format of checkpoints.
    """

    def __init__(self, position: int) -> None:
        self.position = position

    def __get__(self, store: Any, owner: type | None = None) -> int:
        return int(store.state[self.position])

    def __set__(self, store: Any, value: int) -> None:
        store.state[self.position] = value


class HostState:
    """Of a store that is a module: its buffer ``state`` stays on the CPU wherever the layer moves.

    The integers in it decide what comes before a pass, which must not wait for a GPU.
    """

    state: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        state = self.state
        super()._apply(fn, recurse)  # type: ignore[misc]
        self.state = state
        return self


class RowStore:
    """Rows of N ids behind a parameter, the layer's ``raw_weight``, which may be smaller than N rows.

    The layer holds the parameter and passes it with each call. Ids are int64, in range, and flat.
    """

    is_full = False  # whether row i of the parameter is the row of id i
    codes_are_fixed = False  # whether ids have codes from the beginning, for good: there is no warm-up
    may_revive = True  # not where a centroid that no row chooses may be that of ids which have nothing but codes
    trains_all_ids = True  # whether there is room for all ids to train in one step
    trains_in_eval_mode = True  # whether rows are read with a gradient in evaluation mode too

    # ---- reading -----------------------------------------------------------------------------------------

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        """Rows (n, d) float32 as they are now, without a gradient."""
        raise NotImplementedError

    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        """Rows (n, d) of ids, with a gradient to the parameter; of full rows a sparse one has no entry ``left_out``."""
        raise NotImplementedError

    def gathers(self, weight: Tensor) -> bool:
        """Whether :meth:`train_rows` gives rows of the parameter as they are, and does not compute them."""
        return False

    def vectors(self, rows: Tensor) -> Tensor:
        """What look-ups return for rows (n, ...) while there are no codes: (n, d)."""
        return rows

    def draw_ids(self, tiers: Tiers, tier: int, limit: int, generator: torch.Generator) -> Tensor:
        """Ids of a tier whose rows codebooks may start from, at most ``limit`` of them at random."""
        return draw_members(tiers, tier, limit, generator)

    # ---- codes that are there without rows -----------------------------------------------------------------

    @property
    def has_codes(self) -> bool:
        """Whether ids have codes of the codebooks as they are, so that these must not start over."""
        return self.codes_are_fixed

    def codes(self, ids: Tensor, tier: int) -> Tensor | None:
        """Codes (n, D_g) that are kept of ids of one tier; None where all are to be chosen by rows."""
        return None

    def final_codes_mask(self, ids: Tensor) -> Tensor | None:
        """Mask (n,) of ids whose kept codes are final, and whose rows are their vectors.

        None where that is so of no ids, or, with ``codes_are_fixed``, of all.
        """
        return None

    # ---- a plan --------------------------------------------------------------------------------------------

    def codebooks(self, quantizer: Quantizer) -> Quantizer:
        """What encodes rows that are given up; in the warm-up of a layer with a budget not the layer's quantizer."""
        return quantizer

    def adopt_plan(self, weight: Tensor, quantizer: Quantizer, tiers: Tiers) -> None:
        """Called when the layer's quantizer has got its plan: what is encoded already is to have its codes."""

    def read_plan(self, quantizer: Quantizer, tiers: Tiers) -> None:
        """Called when a checkpoint was loaded into a layer with a budget, with its plan if it has one."""

    # ---- between two steps of an optimiser -----------------------------------------------------------------

    def reset_parameters(self) -> None:
        """As newly constructed; the parameter's rows are the layer's business."""

    def codebooks_started(self) -> None:
        """Called when the codebooks have started."""

    def after_step(self, weight: Tensor, passes: int) -> None:
        """Called before the first training pass after an optimiser's step, when no graph waits for its backward."""

    def is_nearly_full(self) -> bool:
        """Whether rows have to be given up before another step, by :meth:`flush`; asked once between two steps."""
        return False

    def lloyd_step(self, weight: Tensor, passes: int) -> None:
        """Let codebooks that are in use already follow the rows."""

    def flush(self, weight: Tensor) -> None:
        """Encode the rows of ids that do not keep theirs."""

    def optimizer_hints(self) -> OptimizerHints:
        """What an optimiser should know of the parameter."""
        return OptimizerHints()


def draw_members(
    tiers: Tiers, tier: int, limit: int, generator: torch.Generator, list_up_to: float = math.inf
) -> Tensor:
    """A tier's ids, or ``limit`` of them at random where it has more; the generator alone decides.

    A tier of more than ``list_up_to`` ids is drawn from without a list of these, which takes eight bytes for each.
    """
    size = tiers.sizes[tier]
    if size <= limit:
        return tiers.members(tier)
    if tiers.tier_of is None:
        return draw_places(size, limit, generator) + tiers.starts[tier]
    if size <= list_up_to:
        return tiers.members(tier)[draw_places(size, limit, generator)]
    drawn: list[Tensor] = []
    while sum(len(ids) for ids in drawn) < limit:
        ids = torch.randint(tiers.num_embeddings, (limit,), generator=generator, device="cpu")
        drawn.append(ids[tiers.tier_of[ids] == tier])
    return torch.cat(drawn)[:limit]


def chunks(total: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """0 .. total - 1, at most ``size`` ids at a time."""
    for start in range(0, total, size):
        yield torch.arange(start, min(start + size, total), device=device)


class FullStore(RowStore):
    """Rows that are a parameter of N rows, "float32" or "bfloat16": row i is that of id i. Nothing is to look after."""

    is_full = True

    def read(self, weight: Tensor, ids: Tensor) -> Tensor:
        return F.embedding(ids, weight.detach())

    def train_rows(self, weight: Tensor, ids: Tensor, sparse: bool, left_out: int | None = None) -> Tensor:
        if torch.compiler.is_compiling():
            return F.embedding(ids, weight, sparse=sparse)
        return ReadRows.apply(weight, ids, sparse, left_out)  # type: ignore[no-any-return, no-untyped-call]

    def gathers(self, weight: Tensor) -> bool:
        return True
