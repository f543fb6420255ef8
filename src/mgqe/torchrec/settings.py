"""torchrec's table configurations and ours -> the checked settings of a table here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchrec import EmbeddingBagConfig, EmbeddingConfig

from mgqe.checks.names import errors_about
from mgqe.checks.scalars import as_int
from mgqe.codec.capacity import Capacity
from mgqe.codec.tiers import Tiers
from mgqe.nn.config import CompressConfig
from mgqe.nn.quantization import Counts, resolve_tiers


@dataclass(frozen=True)
class TableSettings:
    """One table.

    Attributes:
        rows: torchrec's configuration.
        config: how it is quantised, without rules.
        tiers, capacity: what follows from counts and ``config``.
    """

    rows: Any
    config: CompressConfig
    tiers: Tiers
    capacity: Capacity

    @property
    def name(self) -> str:
        """The table's."""
        return str(self.rows.name)


def resolve_tables(
    tables: Sequence[Any], config: CompressConfig, counts: Mapping[str, Counts | Tiers]
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
    if unknown := sorted({*counts} - {*names}):
        raise ValueError(f"counts for {unknown}, but the tables are {names}")
    settings = []
    for table in tables:
        with errors_about(f"table {table.name!r}"):
            settings.append(_resolve(table, config.for_table((table.name,)), counts.get(table.name)))
    return settings


def _resolve(table: Any, config: CompressConfig | None, counts: Counts | Tiers | None) -> TableSettings:
    if config is None:
        raise ValueError("a rule leaves it alone: give it to a torchrec collection instead")
    if config.quantizer != "vq":
        raise ValueError(f"quantizer={config.quantizer!r} does not work on torchrec's rows yet: use 'vq'")
    tiers = resolve_tiers(as_int("num_embeddings", table.num_embeddings), counts, config.fractions)
    config = (config if counts is not None else config.for_one_tier()).cut_to(tiers)
    capacity = config.capacity_of(table.embedding_dim, tiers)
    return TableSettings(table, config, tiers, capacity)


def plain_config(table: Any) -> Any:
    """The rows alone: torchrec's configuration of the table without pooling, under one feature of its name."""
    names = ("num_embeddings", "embedding_dim", "name", "data_type", "weight_init_max", "weight_init_min", "init_fn")
    values = {name: getattr(table, name) for name in names}
    values.update({name: as_int(name, values[name]) for name in ("num_embeddings", "embedding_dim")})
    return EmbeddingConfig(**values, feature_names=[table.name])
