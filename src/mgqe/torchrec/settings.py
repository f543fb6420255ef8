"""torchrec's table configurations and ours -> the checked settings of a table here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchrec import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_configs import data_type_to_dtype

from mgqe.checks.names import errors_about
from mgqe.checks.scalars import as_int
from mgqe.codec.capacity import Capacity
from mgqe.codec.metric import Metric
from mgqe.codec.planning import budget_bytes
from mgqe.codec.planning.budget import too_small_for_all
from mgqe.codec.planning.mixed import least_nbytes
from mgqe.codec.tiers import Tiers
from mgqe.nn.budget_planner import BudgetPlanner
from mgqe.nn.config import CompressConfig
from mgqe.nn.quantization import Counts, default_budget, resolve_tiers


@dataclass(frozen=True)
class TableSettings:
    """One table.

    Attributes:
        rows: torchrec's configuration.
        config: how it is quantised, without rules.
        tiers, capacity: what follows from counts and ``config``; what stands for them until there is a plan.
        planner: what a budget is spent by; None without one.
        shares: whether the planner's bytes are for several tables together.
        metric: what an error costs, where that is given; None where gradients say it.
    """

    rows: Any
    config: CompressConfig
    tiers: Tiers
    capacity: Capacity
    planner: BudgetPlanner | None = None
    shares: bool = False
    metric: Metric | None = None

    @property
    def name(self) -> str:
        """The table's."""
        return str(self.rows.name)


def resolve_tables(
    tables: Sequence[Any],
    config: CompressConfig,
    counts: Mapping[str, Counts | Tiers],
    queries: Mapping[str, Any] | None = None,
) -> list[TableSettings]:
    """The user's arguments -> checked settings, one per table.

    Raises:
        ValueError, TypeError: arguments that do not fit, naming the table.
    """
    for table in tables:
        if not isinstance(table, (EmbeddingBagConfig, EmbeddingConfig)):
            raise TypeError(
                f"tables must be torchrec's EmbeddingBagConfig or EmbeddingConfig, got {type(table).__name__}"
            )
    names = [table.name for table in tables]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"tables must have names of their own, got {names}")
    features = [feature for table in tables for feature in table.feature_names]
    if len(set(features)) != len(features):
        raise ValueError(f"a feature may belong to one table only, got {features}")
    queries = queries or {}
    for what, given in (("counts", counts), ("queries", queries)):
        if unknown := sorted({*given} - {*names}):
            raise ValueError(f"{what} for {unknown}, but the tables are {names}")
    sharing = [table for table in tables if config.shares_budget((table.name,))]
    budget = _common_budget(sharing, config) if len(sharing) > 1 else None
    settings = []
    for table in tables:
        with errors_about(f"table {table.name!r}"):
            share_of = budget if table in sharing else None
            resolved = _resolve(table, config.for_table((table.name,)), counts.get(table.name), share_of)
            if table.name in queries:
                resolved = replace(resolved, metric=_metric(resolved, queries[table.name]))
            settings.append(resolved)
    return settings


def _common_budget(tables: Sequence[Any], config: CompressConfig) -> int:
    """The bytes of a budget for several tables; ValueError where these do not fit it."""
    sizes = [full_nbytes(table) for table in tables]
    budget = budget_bytes(config.budget, sum(sizes))
    least = sum(least_nbytes(int(table.num_embeddings), int(table.embedding_dim), None) for table in tables)
    if least > budget:
        raise too_small_for_all(config.budget, budget, sizes, least)
    return budget


def _resolve(
    table: Any, config: CompressConfig | None, counts: Counts | Tiers | None, common_budget: int | None
) -> TableSettings:
    if config is None:
        raise ValueError("a rule leaves it alone: give it to a torchrec collection instead")
    if config.quantizer != "vq":
        raise ValueError(f"quantizer={config.quantizer!r} does not work on torchrec's rows yet: use 'vq'")
    n, d = as_int("num_embeddings", table.num_embeddings), as_int("embedding_dim", table.embedding_dim)
    if config.budget is not None and isinstance(counts, Tiers):
        raise ValueError(
            "a budget chooses the tiers: give counts (mgqe.count_ids, mgqe.torchrec.merge_counts), not Tiers"
        )
    if config.budget is None:
        nbytes = default_budget(config, counts, (n, d, None), full_nbytes(table))
    else:
        nbytes = budget_bytes(config.budget, full_nbytes(table)) if common_budget is None else common_budget
    if nbytes is not None and not isinstance(counts, Tiers):
        how = config.leaves_capacity_open, config.prefer, config.prefer_tail
        planner = BudgetPlanner.of(nbytes, counts, (n, d), None, *how)
        before = planner.before(n, d)
        return TableSettings(table, config, Tiers.from_sizes([n]), before, planner, common_budget is not None)
    tiers = resolve_tiers(n, counts, config.fractions)
    config = (config if counts is not None else config.for_one_tier()).cut_to(tiers)
    return TableSettings(table, config, tiers, config.capacity_of(d, tiers))


def _metric(settings: TableSettings, queries: Any) -> Metric:
    if settings.planner is None:
        raise ValueError("queries say how a budget is spent: give budget=, or leave them out")
    return Metric.of_queries(queries).for_rows(int(settings.rows.embedding_dim))


def full_nbytes(table: Any) -> int:
    """Bytes of the rows, as torchrec trains them."""
    return int(table.num_embeddings) * int(table.embedding_dim) * int(data_type_to_dtype(table.data_type).itemsize)


def plain_config(table: Any) -> Any:
    """The rows alone: torchrec's configuration of the table without pooling, under one feature of its name."""
    names = ("num_embeddings", "embedding_dim", "name", "data_type", "weight_init_max", "weight_init_min", "init_fn")
    values = {name: getattr(table, name) for name in names}
    values.update({name: as_int(name, values[name]) for name in ("num_embeddings", "embedding_dim")})
    return EmbeddingConfig(**values, feature_names=[table.name])
