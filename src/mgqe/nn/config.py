"""How compress_ and the torchrec collections quantise many tables: one configuration, and rules for single tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from mgqe.codec.planning.shapes import SPEED
from mgqe.nn.quantization import CHOSEN_BY_BUDGET, Quantization

INITS = ("warmup", "from_weight")


@dataclass(frozen=True)
class CompressConfig(Quantization):
    """How tables are compressed: :class:`mgqe.Quantization` with rules for single tables.

    A table without counts has one tier, which gets what the first tier of the others gets. ``num_centroids`` beyond
    what a tier can use is cut to what it can.

    Attributes:
        budget: what the frozen files of all tables may take together, as a share of the bytes that these tables take
            now ("5%", 0.05), or in bytes. It is divided among the tables so as to lose least (:func:`mgqe.plan`).
            Tables whose rule has a budget of its own, or sets what a budget chooses, are not part of this one; a
            rule's budget is for each table that the rule matches. Without any, tables whose capacity is left open are
            planned one by one, each with the bytes of its even shape.
        prefer, prefer_tail: as for a single table; a rule may have others for a table that shares the budget. Tables
            without counts, whose ids count alike, are planned as if there were no ``prefer_tail``.
        rows: "float32" alone: the model's own parameters train.
        init: "warmup": rows train on as they are for ``warmup_steps`` training passes (or until
            ``mgqe.start_quantizing``), for models that are not trained yet. "from_weight": codebooks start at once, by
            a thorough nested k-means on the rows as they are, for trained models.
        rules: name pattern (as in :mod:`fnmatch`, over module paths) -> what differs for the tables it matches: a
            mapping of attributes of this class; or None to leave these tables as they are. The first pattern that
            matches counts.

    Raises:
        ValueError, TypeError: values that cannot be right for any table.

    Example:
        >>> import mgqe
        >>> config = mgqe.CompressConfig(
        ...     num_centroids=(256, 64), centroid_dtype="int8", rules={"*.country": None, "user": {"num_subspaces": 8}}
        ... )
    """

    init: str = "warmup"
    rules: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {self.init!r}")
        if self.rows != "float32":
            raise ValueError(f'rows must be "float32" for whole models, got {self.rows!r}: only the layers take others')
        known = {f.name for f in fields(self)} - {"rules", "rows"}
        plain: dict[str, Mapping[str, Any] | None] = {}
        for pattern, change in self.rules.items():
            if change is None:
                plain[pattern] = None
                continue
            if not isinstance(change, Mapping):
                raise TypeError(f"rule {pattern!r} must be a mapping of settings or None, got {type(change).__name__}")
            if unknown := sorted(set(change) - known):
                raise ValueError(f"rule {pattern!r} sets {unknown}, expected some of {sorted(known)}")
            changed = self._changed(change)  # raises an error if a value is wrong
            plain[pattern] = {name: getattr(changed, name) for name in change}
        object.__setattr__(self, "rules", plain)

    def rule_for(self, paths: tuple[str, ...]) -> str | None:
        """The first pattern that matches one of a table's paths; None if none does."""
        return next((pattern for pattern in self.rules if self.matches(pattern, paths)), None)

    @staticmethod
    def matches(pattern: str, paths: tuple[str, ...]) -> bool:
        """Whether a pattern matches one of a table's paths."""
        return any(fnmatchcase(path, pattern) for path in paths)

    def for_table(self, paths: tuple[str, ...]) -> CompressConfig | None:
        """The configuration of one table, without rules; None if the table is to be left as it is."""
        pattern = self.rule_for(paths)
        if pattern is None:
            return replace(self, rules={})
        change = self.rules[pattern]
        return None if change is None else self._changed(change)

    def shares_budget(self, paths: tuple[str, ...]) -> bool:
        """Whether a table takes part in ``budget``."""
        pattern = self.rule_for(paths)
        change = {} if pattern is None else self.rules[pattern]
        return self.budget is not None and change is not None and not {"budget", *CHOSEN_BY_BUDGET} & set(change)

    def _changed(self, change: Mapping[str, Any]) -> CompressConfig:
        """This configuration as a rule changes it.

        A rule's budget replaces what this sets of what a budget chooses; a rule that sets any of that drops the budget,
        and how it is spent.
        """
        start: dict[str, Any] = {}
        if change.get("budget") is not None:
            start = CHOSEN_BY_BUDGET
        elif set(CHOSEN_BY_BUDGET) & set(change):
            start = {"budget": None, "prefer": SPEED, "prefer_tail": False}
        return replace(self, **{**start, **change, "rules": {}})
