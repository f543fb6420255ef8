"""What compress_ makes of each table: one configuration, and rules by name for tables that need another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from mgqe.checks.scalars import as_float, as_floats, as_int, as_ints, is_sequence, optional_int
from mgqe.codec.capacity import MIN_CENTROIDS
from mgqe.codec.planning import CHOSEN, budget_bytes, check_left_to_budget
from mgqe.codec.planning.budget import plain_budget
from mgqe.codec.tiers import Tiers
from mgqe.nn.embedding import DEFAULT_COMMITMENT, DEFAULT_WARMUP_STEPS

INITS = ("warmup", "from_weight")
NO_LIMIT = 2**62


@dataclass(frozen=True)
class CompressConfig:
    """How tables are compressed; the defaults are :class:`mgqe.MGQEmbedding`'s.

    Attributes:
        num_subspaces: D; one number a tier with ``capacity="subspaces"``. Default d / 2.
        num_centroids: K, or one number a tier. Default 256 for the first tier, 64 for the others. More than a tier can
            use is cut to what it can.
        fractions: shares of ids in each tier, most frequent first, where there are counts. A table without counts has
            one tier, with what the others have in their first.
        quantizer: "vq" or "sx".
        capacity: what differs between tiers, "centroids" or "subspaces".
        share_codebook, share_subspaces: see MGQEmbedding.
        centroid_dtype: "float32", "float16" or "int8".
        commitment: weight of the commitment in the loss.
        budget: what the frozen files of all tables may take together, as a share of the bytes that these tables take
            now ("5%", 0.05), or in bytes. It chooses ``fractions``, ``num_subspaces``, ``num_centroids``,
            ``capacity``, ``share_codebook`` and ``centroid_dtype``, and divides itself among the tables, so as to
            lose least (:func:`mgqe.plan`). Tables whose rule has a budget, or any of these, are apart: they do not
            enter here, and a rule's budget is for each table that it matches.
        init: "warmup": rows train on as they are for ``warmup_steps`` training passes (or until
            ``mgqe.start_quantizing``), for models that are not trained yet. "from_weight": codebooks start at once, by
            a thorough nested k-means on the rows as they are, for trained models.
        warmup_steps: see ``init``.
        rules: name pattern (as in :mod:`fnmatch`, over module paths) -> what differs for the tables it matches: a
            mapping of attributes of this class; or None to leave them as they are. The first pattern that matches
            counts.

    Raises:
        ValueError, TypeError: values that cannot be right for any table.
    """

    num_subspaces: int | tuple[int, ...] | None = None
    num_centroids: int | tuple[int, ...] | None = None
    fractions: tuple[float, ...] = (0.1, 0.9)
    quantizer: str = "vq"
    capacity: str = "centroids"
    share_codebook: bool = True
    share_subspaces: bool = False
    centroid_dtype: str = "float32"
    commitment: float = DEFAULT_COMMITMENT
    budget: int | float | str | None = None
    init: str = "warmup"
    warmup_steps: int = DEFAULT_WARMUP_STEPS
    rules: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self._plain().items():
            object.__setattr__(self, name, value)
        if self.init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {self.init!r}")
        if self.budget is not None:
            budget_bytes(self.budget, NO_LIMIT)
            check_left_to_budget({f.name: getattr(self, f.name) for f in fields(self)})
        known = {f.name for f in fields(self)} - {"rules"}
        plain: dict[str, Mapping[str, Any] | None] = {}
        for pattern, change in self.rules.items():
            if change is None:
                plain[pattern] = None
                continue
            if not isinstance(change, Mapping):
                raise TypeError(f"rule {pattern!r} must be a mapping of settings or None, got {type(change).__name__}")
            if unknown := sorted(set(change) - known):
                raise ValueError(f"rule {pattern!r} sets {unknown}, expected some of {sorted(known)}")
            made = self._changed(change)  # raises what is wrong with it
            plain[pattern] = {name: getattr(made, name) for name in change}
        object.__setattr__(self, "rules", plain)

    def _plain(self) -> dict[str, Any]:
        """The numbers as plain ones, those per tier as tuples; TypeError for what is none."""
        plain: dict[str, Any] = {}
        for name in ("num_subspaces", "num_centroids"):
            value = getattr(self, name)
            plain[name] = as_ints(name, value) if is_sequence(value) else optional_int(name, value)
        plain["fractions"] = as_floats("fractions", self.fractions)
        plain["commitment"] = as_float("commitment", self.commitment)
        plain["warmup_steps"] = as_int("warmup_steps", self.warmup_steps)
        plain["budget"] = plain_budget(self.budget)
        return plain

    def rule_for(self, paths: tuple[str, ...]) -> str | None:
        """The first pattern that matches one of a table's paths; None if none does."""
        return next((pattern for pattern in self.rules if self.matches(pattern, paths)), None)

    @staticmethod
    def matches(pattern: str, paths: tuple[str, ...]) -> bool:
        """Whether a pattern matches one of a table's paths."""
        return any(fnmatchcase(path, pattern) for path in paths)

    def for_table(self, paths: tuple[str, ...]) -> CompressConfig | None:
        """The configuration of one table, without rules; None if it is to be left."""
        pattern = self.rule_for(paths)
        if pattern is None:
            return replace(self, rules={})
        change = self.rules[pattern]
        return None if change is None else self._changed(change)

    def shares_budget(self, paths: tuple[str, ...]) -> bool:
        """Whether a table takes part in ``budget``."""
        pattern = self.rule_for(paths)
        change = {} if pattern is None else self.rules[pattern]
        return self.budget is not None and change is not None and not {"budget", *CHOSEN} & set(change)

    def _changed(self, change: Mapping[str, Any]) -> CompressConfig:
        """By a rule: one with a budget has no use for what this sets that a budget chooses, and the other way round."""
        start: dict[str, Any] = {}
        if change.get("budget") is not None:
            start = CHOSEN
        elif set(CHOSEN) & set(change):
            start = {"budget": None}
        return replace(self, **{**start, **change, "rules": {}})


def one_tier(config: CompressConfig) -> CompressConfig:
    """Of settings for several tiers the first, the most generous: what a table of one tier takes."""

    def first(setting: int | tuple[int, ...] | None) -> int | None:
        return setting[0] if isinstance(setting, tuple) else setting

    return replace(config, num_subspaces=first(config.num_subspaces), num_centroids=first(config.num_centroids))


def cut_centroids(
    config: CompressConfig, tiers: Tiers, subspaces: int | tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The centroids asked for, but no more than each tier can use: settings are for tables of any size."""
    wanted = config.num_centroids
    if wanted is None:
        return None
    each = wanted if isinstance(wanted, tuple) else (wanted,) * tiers.num_tiers
    if len(each) != tiers.num_tiers:
        return each  # refused by resolve_capacity, which says why
    finest = subspaces if isinstance(subspaces, int) else 1
    usable = [n * (finest if config.share_subspaces else 1) for n in tiers.sizes]
    fitting = tuple(
        k if k <= n or n == 0 else max(MIN_CENTROIDS, 1 << (n.bit_length() - 1))
        for k, n in zip(each, usable, strict=True)
    )
    return (min(fitting),) * len(fitting) if config.capacity == "subspaces" and len(set(each)) == 1 else fitting
