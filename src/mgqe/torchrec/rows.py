"""Rows that torchrec holds: this rank's in place, any by id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection

from mgqe.nn.rows.checks import first_bad_row
from mgqe.torchrec.ranks import Ranks

SHARDINGS = ("row_wise", "table_wise", "table_row_wise")  # that keep a row on one rank
REMEDY = "give the planner constraints=collection.sharding_constraints()"
CHUNK_ROWS = 65_536  # rows that one seed fills


@dataclass(frozen=True)
class RowSource:
    """One table's rows, wherever torchrec put them.

    Attributes:
        collections: holds the torchrec collection under ``key``; sharding puts another module there.
        config: the table, as torchrec has it.
    """

    collections: nn.ModuleDict
    key: str
    config: Any
    ranks: Ranks

    def check_sharding(self) -> None:
        """Raise ValueError, which says what to plan instead, for rows that are sharded in a way that does not work.

        Reads how this rank's rows are sharded, and no rows.
        """
        value = self._value()
        if hasattr(value, "local_shards"):
            self._shards(value)
        elif value.device.type == "cpu" and not isinstance(self.collections[self.key], EmbeddingCollection):
            raise ValueError(
                f"table {self.config.name!r} is sharded as 'data_parallel', which torchrec does not look up row by row "
                f"on CPUs: {REMEDY}"
            )

    def ranges(self) -> list[tuple[int, Tensor]]:
        """First id and rows (n, d) of the ranges that this rank works on: its shards; its share of rows that all have.

        The rows are torchrec's memory: writing changes them.

        Raises:
            ValueError: rows sharded by columns.
        """
        value = self._value()
        if hasattr(value, "local_shards"):
            return self._shards(value)
        start, stop = self.ranks.split(value.shape[0])
        return [(start, value.detach()[start:stop])]

    def all_ranges(self) -> list[tuple[int, Tensor]]:
        """First id and rows (n, d) of all ranges that this rank has, those that all ranks have included."""
        value = self._value()
        return self._shards(value) if hasattr(value, "local_shards") else [(0, value.detach())]

    def read(self, ids: Tensor) -> Tensor:
        """Rows (n, d) float32 of ids (n,), on every rank. A collective; all ranks ask for the same ids.

        Each rank adds the rows that it has to zeros for the others, so that the sum is exact.
        """
        ids = ids.cpu()
        result = torch.zeros(ids.shape[0], self.config.embedding_dim, dtype=torch.float32, device=self.device)
        for first, rows in self.ranges():
            here = (ids >= first) & (ids < first + rows.shape[0])
            result[here.to(result.device)] = rows[(ids[here] - first).to(rows.device)].to(result.device, torch.float32)
        return self.ranks.add(result)

    def check_finite(self) -> None:
        """Raise ValueError, on every rank, naming a row that is not finite. A collective."""
        error = None
        for first, rows in self.ranges():
            if (row := first_bad_row(rows)) is not None:
                error = ValueError(
                    f"row {first + row} of table {self.config.name!r} holds NaN or infinity and cannot be quantised: "
                    "the training diverged; lower the learning rate or go back to an earlier checkpoint"
                )
        self.ranks.refuse_together(error)

    @torch.no_grad()
    def fill(self, seed: int) -> None:
        """Draw the rows again by the table's ``init_fn`` or range, each by its id, however they are sharded."""
        low, high = self.config.get_weight_init_min(), self.config.get_weight_init_max()
        init = self.config.init_fn or partial(nn.init.uniform_, a=low, b=high)
        total, dim = self.config.num_embeddings, self.config.embedding_dim
        for first, rows in self.all_ranges():
            for number in range(first // CHUNK_ROWS, -(-(first + rows.shape[0]) // CHUNK_ROWS)):
                start = number * CHUNK_ROWS
                chunk = torch.empty(min(CHUNK_ROWS, total - start), dim, device="cpu")
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed((seed * 1_000_003 + number) % 2**63)
                    init(chunk)
                low_id, high_id = max(first, start), min(first + rows.shape[0], start + chunk.shape[0])
                rows[low_id - first : high_id - first] = chunk[low_id - start : high_id - start].to(rows)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        value = self._value()
        shards = value.local_shards() if hasattr(value, "local_shards") else [value]
        tensors = [getattr(shard, "tensor", shard) for shard in shards]
        if tensors:
            return torch.device(tensors[0].device)
        module = self.collections[self.key]
        return torch.device(getattr(module, "_device", None) or "cpu")

    def _value(self) -> Any:
        value = self.collections[self.key].state_dict()[f"embeddings.{self.config.name}.weight"]
        return value.to_local() if hasattr(value, "to_local") and not hasattr(value, "local_shards") else value

    def _shards(self, value: Any) -> list[tuple[int, Tensor]]:
        if hasattr(value, "local_offsets"):  # torchrec's LocalShardsWrapper, inside a DTensor
            shards = list(zip(value.local_offsets(), value.local_shards(), strict=True))
        else:
            shards = [(shard.metadata.shard_offsets, shard.tensor) for shard in value.local_shards()]
        dim = self.config.embedding_dim
        for _, rows in shards:
            if rows.shape[1] != dim:
                raise ValueError(
                    f"table {self.config.name!r} is sharded by columns, {rows.shape[1]} of {dim} on this rank, but a "
                    f"row's codes need all of it: {REMEDY}"
                )
        return [(int(offsets[0]), rows.detach()) for offsets, rows in shards]
