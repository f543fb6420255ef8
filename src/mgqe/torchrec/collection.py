"""QuantizedEmbeddingBagCollection and QuantizedEmbeddingCollection: torchrec's rows, our codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import EmbeddingCollection, JaggedTensor, KeyedJaggedTensor, KeyedTensor, PoolingType
from torchrec.distributed.planner.types import ParameterConstraints

from mgqe import ops
from mgqe.checks.ids import as_int64
from mgqe.checks.inference import outside_inference
from mgqe.checks.scalars import as_int
from mgqe.codec.tiers import Tiers
from mgqe.nn.codebook_layer import Batch
from mgqe.nn.config import CompressConfig
from mgqe.nn.quantization import Counts
from mgqe.nn.quantizers.autograd import RepeatVectors
from mgqe.torchrec.budget import CommonBudget
from mgqe.torchrec.planned_table import PlannedTable
from mgqe.torchrec.ranks import Ranks
from mgqe.torchrec.rows import SHARDINGS, RowSource
from mgqe.torchrec.settings import TableSettings, plain_config, resolve_tables
from mgqe.torchrec.table import QuantizedTable


class QuantizedRows(nn.Module):
    """What the two collections have in common.

    The rows are one torchrec EmbeddingCollection per dimension, under ``rows``, for DistributedModelParallel to shard.
    A forward pass asks them for each distinct id of the rank's batch once.
    """

    @outside_inference
    def __init__(
        self,
        tables: Sequence[Any],
        config: CompressConfig | None = None,
        *,
        counts: Mapping[str, Counts | Tiers] | None = None,
        queries: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.ranks = Ranks(process_group)
        error: Exception | None = None
        try:
            self._build(resolve_tables(tables, config or CompressConfig(), counts or {}, queries), device, seed)
        except (TypeError, ValueError) as found:
            error = found
        self.ranks.refuse_together(error)
        settings = {name: text for table in self.tables.values() for name, text in table.settings().items()}
        self.ranks.check_alike({"tables": ", ".join(self.tables), **settings}, type(self).__name__)

    def _build(self, tables: list[TableSettings], device: torch.device | str | None, seed: int) -> None:
        at = torch.device("cpu" if device is None else device)
        self.rows = nn.ModuleDict()
        for dim in dict.fromkeys(table.rows.embedding_dim for table in tables):
            rows = [plain_config(table.rows) for table in tables if table.rows.embedding_dim == dim]
            self.rows[str(dim)] = EmbeddingCollection(tables=rows, device=at)
        # Codebooks are small and never on the meta device, since nothing would fill them there.
        small = torch.device("cpu") if at.type == "meta" else at
        modules: dict[str, nn.Module] = {}
        self._features: list[tuple[str, str]] = []  # (feature, table)
        for table in tables:
            source = RowSource(self.rows, str(table.rows.embedding_dim), table.rows, self.ranks)
            kind = QuantizedTable if table.planner is None else PlannedTable
            modules[table.name] = kind(source, table, as_int("seed", seed), small)
            self._features += [(feature, table.name) for feature in table.rows.feature_names]
        self.quantizers = nn.ModuleDict(modules)
        if sharing := [table for table in self.planned_tables.values() if table.nbytes is None]:
            common = CommonBudget([table.evidence for table in sharing])
            for planned in sharing:
                planned.common = common
        self._checked = False

    @property
    def tables(self) -> dict[str, QuantizedTable]:
        """Each table's tiers and codebooks."""
        return {name: table for name, table in self.quantizers.items() if isinstance(table, QuantizedTable)}

    @property
    def planned_tables(self) -> dict[str, PlannedTable]:
        """Those that have a budget."""
        return {name: table for name, table in self.tables.items() if isinstance(table, PlannedTable)}

    def sharding_constraints(self) -> dict[str, ParameterConstraints]:
        """For torchrec's EmbeddingShardingPlanner, ``constraints=``: the ways of sharding that keep rows whole."""
        return {name: ParameterConstraints(sharding_types=list(SHARDINGS)) for name in self.tables}

    def reset_rows(self, seed: int) -> None:
        """Draw all rows again, each by its id and the seed, so that they do not depend on how many ranks share them.

        torchrec itself draws a shard's rows from the rank's own generator. Call it once the model is sharded.
        """
        seed = as_int("seed", seed)
        for number, table in enumerate(self.tables.values()):
            table.source.fill(seed + 7919 * number)

    # ---- a pass ------------------------------------------------------------------------------------------

    def _vectors(self, features: Any) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
        """Each feature's ids as torchrec has them; each table's vectors (u, d) of distinct ids, and the index (n,) of
        each id in them.

        Raises on every rank what one of them finds wrong with its batch.
        """
        self._check_sharding()
        tables = self.tables
        jagged: dict[str, Any] = {}
        batches: dict[str, Batch] = {}
        error: Exception | None = None
        try:
            jagged = self._jagged(features)
            batches = {name: self._distinct(table, jagged) for name, table in tables.items()}
        except (IndexError, KeyError, TypeError, ValueError) as wrong:
            if not self.ranks.active:
                raise
            # The others are on their way into the same look-ups: ask for nothing there, and raise with them after.
            error, batches = wrong, {name: no_ids(table.tier_sizes.device) for name, table in tables.items()}
        sizes = [batch.positions.shape[0] for batch in batches.values()]
        sizes_of_ranks = self.ranks.gather_numbers(
            [*sizes, int(error is not None)], next(iter(batches.values())).ids.device
        )
        for name, table in tables.items():
            tiers = table.tiers
            table.begin_pass()
            if table.tiers is not tiers and error is None:  # planned just now
                batches[name] = self._distinct(table, jagged)
        rows = self._fetch(batches)
        totals = sizes_of_ranks()
        if bool(totals[:, -1].any()):
            self.ranks.refuse_together(error)
        shares = [n * self.ranks.size / max(1, total) for n, total in zip(sizes, totals.sum(0).tolist(), strict=False)]
        return jagged, {
            name: (table.quantize(rows[name], batches[name], share), batches[name].positions)
            for (name, table), share in zip(tables.items(), shares, strict=True)
        }

    def _check_sharding(self) -> None:
        """Refuse a sharding that does not keep rows whole, once, before the first look-up of a sharded collection."""
        if self._checked:
            return
        error: Exception | None = None
        try:
            for table in self.tables.values():
                table.source.check_sharding()
        except ValueError as wrong:
            error = wrong
        self.ranks.refuse_together(error)
        self._checked = True

    def _jagged(self, features: Any) -> dict[str, Any]:
        jagged = features.to_dict()
        if missing := [feature for feature, _ in self._features if feature not in jagged]:
            raise KeyError(f"the batch has no feature {missing[0]!r}: it has {sorted(jagged)}")
        return {feature: jagged[feature] for feature, _ in self._features}

    def _distinct(self, table: QuantizedTable, jagged: Mapping[str, Any]) -> Batch:
        ids_of = {feature: as_int64(jagged[feature].values()) for feature in self._of(table.name)}
        ids = torch.cat(list(ids_of.values())) if len(ids_of) > 1 else next(iter(ids_of.values()))
        try:
            return Batch(*ops.unique_by_tier(ids, table.tiers.sizes, table.tier_of))
        except IndexError as error:
            size = table.tiers.num_embeddings
            bad = [
                (name, int(i[(i < 0) | (i >= size)][0])) for name, i in ids_of.items() if ((i < 0) | (i >= size)).any()
            ]
            raise IndexError(
                f"feature {bad[0][0]!r} has id {bad[0][1]}, but table {table.name!r} was planned for ids 0 to "
                f"{size - 1}: map new ids to one kept for them, or plan a larger table"
            ) from error

    def _of(self, table: str) -> list[str]:
        """A table's features."""
        return [feature for feature, owner in self._features if owner == table]

    def _fetch(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Rows (u, d) of every table's distinct ids."""
        waiting = []
        for collection in self.rows.values():
            names = [name for name, table in self.tables.items() if self.rows[table.source.key] is collection]
            ids = [batches[name].ids for name in names]
            lengths = torch.tensor([i.shape[0] for i in ids], dtype=torch.int64, device=ids[0].device)
            waiting.append(
                (names, collection(KeyedJaggedTensor(keys=names, values=torch.cat(ids), lengths=lengths, stride=1)))
            )
        rows = {}
        for names, answer in waiting:  # all were asked before the first is waited for
            for name in names:
                rows[name] = answer[name].values()
        return rows


class QuantizedEmbeddingBagCollection(QuantizedRows):
    """torchrec's EmbeddingBagCollection whose rows are quantised one by one, before they are pooled.

    Args:
        tables: torchrec's EmbeddingBagConfig each.
        config: how tables are quantised; rules go by table name. ``budget`` is for all tables together, and is spent
            when their warm-up ends. ``init="from_weight"`` starts in the first pass.
        counts: table name -> (N,) how often each id occurs in training, the same on every rank
            (:func:`mgqe.torchrec.merge_counts`), or, without a budget, Tiers. A table without them has one tier.
        queries: table name -> floats (n, d), a sample of what its rows are multiplied with, the same on every rank: its
            budget is spent by these instead of by gradients.
        is_weighted: features have weights, for sums alone.
        device: where rows are made; "meta" where DistributedModelParallel will make them.
        seed: of what codebooks start and revive with.
        process_group: the ranks that train together; default: all.

    Shape:
        KeyedJaggedTensor of B bags per feature -> KeyedTensor, (B, d) per feature.

    Making one, and every pass, is a collective where there are several ranks.

    Raises:
        ValueError, TypeError: (on every rank) arguments that do not fit, or differ between ranks.
        IndexError: (on every rank, in a pass) an id outside its table.
    """

    def __init__(self, tables: Sequence[Any], *args: Any, is_weighted: bool = False, **arguments: Any) -> None:
        super().__init__(tables, *args, **arguments)
        self.is_weighted = is_weighted
        self._modes = {table.name: "mean" if table.pooling == PoolingType.MEAN else "sum" for table in tables}
        if is_weighted and "mean" in self._modes.values():
            raise ValueError("is_weighted=True needs pooling=PoolingType.SUM in every table")

    def forward(self, features: Any) -> Any:
        """Bags -> KeyedTensor, (B, d) per feature, in the order of the tables' features."""
        jagged, looked_up = self._vectors(features)
        pooled: dict[str, Tensor] = {}
        for name, table in self.tables.items():
            bags_of = [jagged[feature] for feature in self._of(name)]
            lengths = torch.cat([bags.lengths() for bags in bags_of]) if len(bags_of) > 1 else bags_of[0].lengths()
            offsets = F.pad(lengths.to(torch.int64).cumsum(0), (1, 0))
            weights = torch.cat([bags.weights() for bags in bags_of]) if self.is_weighted else None
            values, index = looked_up[name]
            table_bags = F.embedding_bag(
                index,
                values,
                offsets,
                mode=self._modes[name],
                per_sample_weights=None if weights is None else weights.to(values.dtype),
                include_last_offset=True,
            )
            if table.gathering:
                table.moments.watch_bags(table_bags, index, offsets, weights, self._modes[name], True, None)
            pooled[name] = table.tie_to_codebooks(table_bags).view(len(bags_of), -1, values.shape[1])
        of_feature = {f: pooled[name][i] for name in self.tables for i, f in enumerate(self._of(name))}
        keys = [feature for feature, _ in self._features]
        ordered = [of_feature[key] for key in keys]
        return KeyedTensor(keys, [bags.shape[1] for bags in ordered], torch.cat(ordered, dim=1))

    def pooling(self, table: str) -> str:
        """How a table's bags are pooled: "sum" or "mean"."""
        return self._modes[table]


class QuantizedEmbeddingCollection(QuantizedRows):
    """torchrec's EmbeddingCollection whose rows are quantised: a vector for every id.

    Arguments as for :class:`QuantizedEmbeddingBagCollection`, with torchrec's EmbeddingConfig, without ``is_weighted``.

    Shape:
        KeyedJaggedTensor -> feature -> JaggedTensor, (n, d) for its n ids.
    """

    def forward(self, features: Any) -> dict[str, Any]:
        """Ids -> each feature's vectors, in a JaggedTensor of the ids' lengths."""
        jagged, looked_up = self._vectors(features)
        out = {}
        for name, table in self.tables.items():
            features_of = self._of(name)
            sizes = [jagged[feature].values().shape[0] for feature in features_of]
            distinct, index = looked_up[name]
            vectors: Tensor = RepeatVectors.apply(distinct, index, None, distinct.dtype)  # type: ignore[no-untyped-call]
            if table.gathering:
                table.moments.watch_vectors(vectors, index, None)
            vectors = table.tie_to_codebooks(vectors)
            for feature, values in zip(features_of, torch.split(vectors, sizes), strict=True):
                out[feature] = JaggedTensor(values=values, lengths=jagged[feature].lengths())
        return out


def no_ids(device: torch.device) -> Batch:
    """The batch of a rank that has nothing to look up."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return Batch(none, none, none)
