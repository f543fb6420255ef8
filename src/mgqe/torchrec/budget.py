"""What tables over torchrec's rows plan by, and one budget for several of them.

The rows are on several ranks. Rank 0 plans; it asks for the rows of a sample by their ids, and all ranks read them
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import FittedPlan, least_nbytes
from mgqe.codec.planning.problem import candidates
from mgqe.codec.planning.tables import share_bytes
from mgqe.nn.budget_planner import BudgetPlanner, warn_without_gradients
from mgqe.nn.metric import GradientMoments
from mgqe.torchrec.rows import RowSource

SHARD_NBYTES = 512  # more than a shard's header and its entry in the index take
SHARE = "share"  # a table's buffer: the bytes of its share of a common budget, 0 until they are known

Ask = Callable[[tuple[str, Tensor]], Tensor]  # (table, ids) -> their rows


class Evidence:
    """What one table is planned by: its budget, counts, gradients and rows.

    It holds nothing of the table but its buffers. Tables that hold each other would keep a model's rows in memory until
    Python looks for circles.

    Args:
        source: where the rows are.
        planner: of the table's own budget, or of the common budget.
        moments: what the table gathers.
        buffers: the table's, which stay this mapping; with :data:`SHARE`, None where the budget is the table's own.

    Attributes:
        given_metric: what an error costs, in the place of what gradients say; or None.
    """

    given_metric: Metric | None = None

    def __init__(
        self, source: RowSource, planner: BudgetPlanner, moments: GradientMoments, buffers: Mapping[str, Any]
    ) -> None:
        # Rank 0 alone plans; counts take eight bytes per id.
        self.planner = planner if source.ranks.rank == 0 else replace(planner, counts=None)
        self.source, self._moments, self._buffers = source, moments, buffers

    @property
    def nbytes(self) -> int | None:
        """What the frozen table's files may take; None until a common budget is divided."""
        share = self._buffers[SHARE]
        return self.planner.nbytes if share is None else int(share) or None

    def take_share(self, nbytes: int) -> None:
        """Get so many bytes of the common budget."""
        self._buffers[SHARE].fill_(nbytes)

    def complete_metric(self) -> None:
        """Add what each rank has gathered since ranks added it up. A collective."""
        if self.source.ranks.active:
            self._moments.share(self.source.ranks.add)

    def arguments(self, ask: Ask) -> dict[str, Any]:
        """What :class:`BudgetPlanner` makes a problem or a plan of: the rows as they are now, and the metric."""
        config = self.source.config
        sizes = int(config.num_embeddings), int(config.embedding_dim)
        return {
            "sizes": sizes,
            "read": lambda ids: ask((config.name, ids)),
            "metric": self.given_metric or self._moments.metric(),
        }

    def fit(self, generator: torch.Generator, passes: int) -> FittedPlan:
        """The plan with its centroids, after so many training passes, the same on every rank.

        A collective; the bytes are known.
        The headers of as many shards as there are now are paid for, unless the table is too small for that.
        """
        assert self.nbytes is not None
        shards = sum(self.source.ranks.gather(sum(len(rows) > 0 for _, rows in self.source.ranges())))
        least = least_nbytes(self.source.config.num_embeddings, self.source.config.embedding_dim, None)
        planner = replace(self.planner, nbytes=max(least, self.nbytes - SHARD_NBYTES * shards))

        def plan(ask: Ask) -> FittedPlan:
            with torch.device("cpu"):  # whatever the default device
                arguments = self.arguments(ask)
                planner.warn_of_unlearnt(
                    f"table {self.source.config.name!r}", arguments["sizes"], arguments["read"], passes
                )
                if self._moments.gathers:
                    warn_without_gradients(f"table {self.source.config.name!r}", arguments["metric"], passes)
                return planner.fit(generator=generator, **arguments)

        return self.source.ranks.led_by_first(plan, lambda question: self.source.read(question[1]))


class CommonBudget:
    """One budget for several tables, divided among them when the first of them starts.

    By then the costs of errors in the tables compare, if all of them have gathered gradients.

    Args:
        tables: whose planners have the bytes of the common budget, on the same ranks.
    """

    def __init__(self, tables: Sequence[Evidence]) -> None:
        self._tables = list(tables)

    def divide(self) -> None:
        """Give each table its share. A collective.

        Raises ValueError (on every rank) for a row of any table that is NaN or infinite.
        """
        sources = {table.source.config.name: table.source for table in self._tables}
        for table in self._tables:
            table.source.check_finite()
            table.complete_metric()

        def divided(ask: Ask) -> list[int]:
            with torch.device("cpu"):
                problems = [table.planner.problem(**table.arguments(ask)) for table in self._tables]
                return share_bytes(problems, candidates(problems)[0], self._tables[0].planner.nbytes)

        def read(question: tuple[str, Tensor]) -> Tensor:
            name, ids = question
            return sources[name].read(ids)

        shares = self._tables[0].source.ranks.led_by_first(divided, read)
        for table, share in zip(self._tables, shares, strict=True):
            table.take_share(share)
