"""PlannedTable: a table over torchrec's rows that spends a budget when its warm-up ends, on the rows as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgqe.codec.capacity import Capacity
from mgqe.codec.kmeans import KMeans
from mgqe.codec.metric import Metric
from mgqe.codec.tiers import Tiers
from mgqe.nn.budget_planner import read_plan
from mgqe.nn.codebook_layer import revive_every
from mgqe.nn.even_checkpoints import even_codebooks, refusal
from mgqe.nn.quantizers.mixed import MAX_TIERS, MixedQuantizer, planned_shape
from mgqe.torchrec.budget import SHARE, CommonBudget, Evidence
from mgqe.torchrec.rows import RowSource
from mgqe.torchrec.settings import TableSettings
from mgqe.torchrec.table import QuantizedTable


class PlannedTable(QuantizedTable):
    """A table with a budget: tiers, axes, bits and centroids are planned when the warm-up ends.

    torch.distributed.checkpoint loads into the tensors that there are, so that all tensors have their shapes before
    there is a plan: ``tier_sizes`` (MAX_TIERS,) is filled up with -1, and where counts are known ``tier_of`` (N,) has
    each id's tier, whether the tiers are ranges of ids or not.

    Attributes:
        evidence: what the plan is made by.
        common: the budget that this table has a share of, or None.
    """

    quantizer: MixedQuantizer
    common: CommonBudget | None = None
    _has_counts = False

    def __init__(self, source: RowSource, settings: TableSettings, seed: int, device: torch.device) -> None:
        super().__init__(source, settings, seed, device)
        planner = settings.planner
        assert planner is not None
        self.register_buffer(SHARE, torch.zeros((), dtype=torch.int64, device=device) if settings.shares else None)
        self.evidence = Evidence(source, planner, self.moments, self._buffers)
        self._has_counts = planner.counts is not None
        self._agreed = {
            "budget": f"{planner.nbytes:,} bytes{' for several tables' if settings.shares else ''}",
            "prefer": planner.prefer,
            "prefer_tail": str(planner.prefer_tail),
            "counts": "none" if planner.counts is None else _digest(planner.counts),
            "queries": "none" if settings.metric is None else _digest(settings.metric.matrix),
        }
        self._set_tiers(settings.tiers, settings.capacity)
        self.gathers_metric = True
        if settings.metric is not None:
            self.set_metric(settings.metric)
        self.register_load_state_dict_post_hook(read_plan)  # type: ignore[no-untyped-call]

    def _make_quantizer(self, like: Tensor) -> MixedQuantizer:
        return MixedQuantizer(self.capacity, like, "int8", self.config.commitment)

    def _set_tiers(self, tiers: Tiers, capacity: Capacity) -> None:
        super()._set_tiers(tiers, capacity)
        self.tier_sizes = F.pad(self.tier_sizes, (0, MAX_TIERS - tiers.num_tiers), value=-1)
        if self._has_counts:
            self.tier_of = _tier_of_each(tiers).to(self.tier_sizes.device)

    def set_metric(self, metric: Metric) -> None:
        """Spend the table's budget by this metric instead of by the gradients that ranks gather; on every rank alike.

        Raises:
            ValueError: a metric of other dimensions.
        """
        self.evidence.given_metric = metric.for_rows(int(self.source.config.embedding_dim))
        self.gathers_metric = False

    def settings(self) -> dict[str, str]:
        """What has to be equal on all ranks, by name."""
        return {**super().settings(), **{f"{self.name}: {what}": text for what, text in self._agreed.items()}}

    @property
    def nbytes(self) -> int | None:
        """What the frozen table's files may take; None until a budget for several tables is divided."""
        return self.evidence.nbytes

    def _start_codebooks(self, kmeans: KMeans | None) -> None:
        self.evidence.complete_metric()
        if self.nbytes is None and self.common is not None:
            self.common.divide()
        fitted = self.evidence.fit(self._generator(), self.passes)
        with torch.device("cpu"):
            self.quantizer.adopt(fitted)
        self._set_tiers(fitted.plan.tiers, fitted.plan.capacity)
        self.schedule.revive_every = revive_every(self.capacity)

    def _take_tiers(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        sizes, name = state_dict.get(f"{prefix}tier_sizes"), prefix.rstrip(".") or f"table {self.name!r}"
        if not isinstance(sizes, Tensor):
            return None  # torch says that it is missing
        if shapes := even_codebooks(state_dict, prefix, planned_shape(self.capacity.embedding_dim)):
            return refusal(shapes, prefix)
        saved = tuple(n for n in sizes.tolist() if n >= 0)
        if sum(saved) != self.tiers.num_embeddings:
            return f"{name}: the checkpoint has {sum(saved)} ids, this table {self.tiers.num_embeddings}"
        if len(saved) > 1 and not self._has_counts:
            return (
                f"{name}: the checkpoint has tiers of {saved} ids, which were planned from counts: make the collection "
                f"with counts={{{self.name!r}: ...}}, too"
            )
        self._set_tiers(Tiers(saved, state_dict.get(f"{prefix}tier_of")), self.capacity)
        return None

    def extra_repr(self) -> str:
        """Sizes, for print."""
        if self.quantizing:
            return super().extra_repr()
        budget = "a share of a budget" if self.nbytes is None else f"a budget of {self.nbytes:,} bytes"
        return f"{self.name}: {budget}, warm-up of {self.warmup_steps} passes"


def _tier_of_each(tiers: Tiers) -> Tensor:
    """Each id's tier, uint8 (N,), where tiers are ranges of ids, too; a new tensor."""
    if tiers.tier_of is not None:
        return tiers.tier_of.clone()
    numbers = torch.arange(tiers.num_tiers, dtype=torch.uint8, device="cpu")
    return numbers.repeat_interleave(torch.tensor(tiers.sizes, device="cpu"))


def _digest(counts: Tensor) -> str:
    return hashlib.sha256(counts.contiguous().numpy().data).hexdigest()[:12]
