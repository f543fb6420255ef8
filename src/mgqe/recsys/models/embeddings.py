"""Makes embedding modules from descriptions such as `full`, `mgqe:D=32,K=64/16`, `lowrank:r=8`.

A description is a name and, after a colon, options: `NAME:key=value,key=value`. The name is one of METHODS or that of a
class of one's own, `module.Class`. Several values are joined by slashes
(`K=256/64`). The name of a field before a key sets it for the tables of that field (`item.K=64/16`). The keys are the
keywords of the class; the usual ones also have short names.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.baselines import AdditiveEmbedding
from mgqe.checks.names import did_you_mean
from mgqe.codec.capacity import DEFAULT_HEAD_CENTROIDS, DEFAULT_TAIL_CENTROIDS, default_num_subspaces
from mgqe.codec.planning.budget import budget_bytes, check_budget
from mgqe.codec.planning.mixed import least_nbytes
from mgqe.codec.tiers import Tiers
from mgqe.nn.embedding import MGQEmbedding
from mgqe.nn.quantization import BETWEEN_TIERS, CHOSEN_BY_BUDGET, Quantization, QuantizationOptions, default_budget
from mgqe.recsys.models.methods import PLANNED_PQ, Method, method_named

Value = int | float | bool | str | tuple[int | float, ...]


@dataclass(frozen=True)
class Spec:
    """A parsed description. options: (key as written, value), sorted, `d` apart."""

    name: str
    options: tuple[tuple[str, Value], ...] = ()
    dim: int | None = None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """ValueError says what is wrong with `text` and what could be meant."""
        name, _, rest = text.strip().partition(":")
        method_named(name)
        options: dict[str, Value] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = (side.strip() for side in part.partition("="))
            if not equals or not key or not value:
                raise ValueError(f"embedding {text!r}: expected key=value, got {part!r}")
            if key in options:
                raise ValueError(f"embedding {text!r}: {key} is given twice")
            options[key] = _value(value)
        dim = options.pop("d", None)
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise ValueError(f"embedding {text!r}: d must be a whole number of 1 or more")
        spec = cls(name, tuple(sorted(options.items())), dim)
        for owner in spec.owners or {""}:
            spec.keywords(owner)
        return spec

    @property
    def owners(self) -> set[str]:
        """The fields that have separate options."""
        return {key.rpartition(".")[0] for key, _ in self.options if "." in key}

    @property
    def shared_budget(self) -> int | float | str | None:
        """The budget for all tables together; None without one, or where fields have budgets of their own."""
        budgets = {key: value for key, value in self.options if key.rpartition(".")[2] == "budget"}
        shared = budgets.get("budget") if len(budgets) == 1 else None
        return None if isinstance(shared, tuple) else shared

    def check_fields(self, fields: Collection[str]) -> None:
        """ValueError if an option is for a field that the model does not have."""
        for owner in sorted(self.owners - set(fields)):
            known = ", ".join(f"{name}." for name in sorted(set(fields)))
            raise ValueError(
                f"embedding {self}: expected {known} before a key, got {owner!r}{did_you_mean(owner, fields)}"
            )

    @property
    def method(self) -> Method:
        if self.name == "pq" and any(key.rpartition(".")[2] == "budget" for key, _ in self.options):
            return PLANNED_PQ
        return method_named(self.name)

    @property
    def trains_codes(self) -> bool:
        """Whether training goes on through the codes."""
        return self.method.kind == "quantised" and self.method is not PLANNED_PQ

    def __str__(self) -> str:
        pairs = [("d", self.dim)] if self.dim is not None else []
        written = ",".join(f"{key}={_text(value)}" for key, value in [*pairs, *self.options])
        return f"{self.name}:{written}" if written else self.name

    def keywords(self, table: str) -> dict[str, Value]:
        """Keyword arguments of the class for tables of the field `table`.

        ValueError for a key that the class does not have, and for a value of the wrong type.
        """
        allowed = _keywords_of(self.method)
        keywords: dict[str, Value] = {}
        for key, value in sorted(self.options, key=lambda option: "." in option[0]):
            owner, dot, bare = key.rpartition(".")
            keyword = self.method.short.get(bare, bare)
            if keyword not in allowed:
                short = {name: f"{key} or {name}" for key, name in self.method.short.items()}
                known = ", ".join(["d", *(short.get(name, name) for name in sorted(allowed))])
                hint = did_you_mean(bare, [*allowed, *self.method.short])
                raise ValueError(f"embedding {self}: no option {bare!r}{hint}: expected {known}")
            if not _fits(value, allowed[keyword]):
                raise ValueError(f"embedding {self}: {bare} must be {_described(allowed[keyword])}, got {_text(value)}")
            if keyword == "budget" and (self.method.settles or issubclass(self.method.layer, MGQEmbedding)):
                check_budget(value, f"embedding {self}: {key}=")
            if not dot or owner == table:
                keywords[keyword] = _as(value, allowed[keyword])
        return keywords

    def with_option(self, table: str, keyword: str, value: Value) -> Spec:
        """This description with `keyword` set for the tables of the field `table` only; for all, if that is empty."""

        def sets_keyword(key: str) -> bool:
            owner, _, bare = key.rpartition(".")
            return owner == table and self.method.short.get(bare, bare) == keyword

        short = {name: key for key, name in self.method.short.items()}
        rest = [option for option in self.options if not sets_keyword(option[0])]
        key = f"{table}.{short.get(keyword, keyword)}".removeprefix(".")
        return replace(self, options=tuple(sorted([*rest, (key, value)])))

    @property
    def to_settle(self) -> bool:
        """Whether a budget is to choose options before training; see mgqe.recsys.train.settle."""
        return self.method.settles and any(key.rpartition(".")[2] == "budget" for key, _ in self.options)

    def without_budget(self) -> Spec:
        """This description without its budgets."""
        kept = [(key, value) for key, value in self.options if key.rpartition(".")[2] != "budget"]
        return replace(self, options=tuple(kept))

    def warm_up(self) -> Spec:
        """The description to train first: a full table for methods that compress one, else this one."""
        return self if self.method.kind == "trained" else Spec("full", (), self.dim)


def cut_to_tiers(spec: Spec, table: str, num_embeddings: int, embedding_dim: int, counts: Tensor) -> tuple[Spec, str]:
    """(`spec` with no more centroids than the table's tiers have ids, as in compress_; a note of what was cut).

    The note is empty if nothing is cut, as where the table is planned on its rows. A description that is invalid for
    every table is returned unchanged; `build` raises the error.
    """
    keywords = spec.keywords(table)
    if "num_centroids" not in _keywords_of(spec.method) or "budget" in keywords:
        return spec, ""
    default = inspect.signature(spec.method.layer).parameters.get("num_centroids")
    if "num_centroids" not in keywords and default is not None and default.default is not None:
        return spec, ""  # a class of one's own, with a K of its own
    try:
        if _plans_by_default(spec, table, num_embeddings, embedding_dim, counts):
            return spec, ""
        tiers = Tiers.from_sizes((num_embeddings,))
        if "fractions" in _keywords_of(spec.method):
            fractions: Any = keywords.get("fractions", Quantization.fractions)
            tiers = Tiers.from_counts(counts, fractions=fractions, num_embeddings=num_embeddings)
        keywords.setdefault("num_subspaces", default_num_subspaces(embedding_dim))
        capacity = str(keywords.get("capacity", "centroids"))
        num_centroids = keywords.setdefault("num_centroids", _default_centroids(tiers, capacity))
        settings: dict[str, Any] = {name: keywords[name] for name in CHOSEN_BY_BUDGET if name in keywords}
        cut: Any = Quantization(**settings).cut_to(tiers).num_centroids
    except (TypeError, ValueError):
        return spec, ""
    per_tier: Any = num_centroids if isinstance(num_centroids, tuple) else (num_centroids,) * tiers.num_tiers
    if cut is None or cut == per_tier or len(per_tier) != tiers.num_tiers:
        return spec, ""
    ids = "/".join(f"{size:,}" for size in tiers.sizes)
    note = f"{table} table: K={_text(per_tier)} is cut to {_text(cut)}, since its tiers have {ids} ids"
    if "num_centroids" not in spec.keywords(table):  # the class cuts its default itself
        return spec, note
    return spec.with_option(table, "num_centroids", cut if len(cut) > 1 else cut[0]), note


def _plans_by_default(spec: Spec, table: str, num_embeddings: int, embedding_dim: int, counts: Tensor) -> bool:
    """Whether the layer of a description without a budget plans on its rows all the same."""
    cls = spec.method.layer
    if not issubclass(cls, MGQEmbedding):
        return False
    config = Quantization(**spec.keywords(table))  # type: ignore[arg-type]
    sizes, full_nbytes = (num_embeddings, embedding_dim, None), 4 * num_embeddings * embedding_dim
    return default_budget(config, None if cls.one_tier else counts, sizes, full_nbytes) is not None


def _default_centroids(tiers: Tiers, capacity: str) -> tuple[int, ...]:
    """The default K of each tier, for tiers with enough ids."""
    others = DEFAULT_HEAD_CENTROIDS if capacity == "subspaces" else DEFAULT_TAIL_CENTROIDS
    return (DEFAULT_HEAD_CENTROIDS, *(others for _ in tiers.sizes[1:]))


def build(
    spec: Spec,
    table: str,
    num_embeddings: int,
    embedding_dim: int,
    counts: Tensor,
    std: float,
    seed: int,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> nn.Module:
    """The embedding module of one table of the field `table`, its vectors initialised with standard deviation `std`.

    counts: int64 (num_embeddings,), training interactions per id. counts, seed and pairs (see TableInfo) are passed to
    the classes that take them.
    """
    cls = spec.method.layer
    keywords: dict[str, Any] = {**spec.method.fixed, **spec.keywords(table)}
    offered = {"counts": counts, "seed": seed % 2**31, "pairs": pairs}
    if issubclass(cls, MGQEmbedding) and cls.one_tier:
        del offered["counts"]
    for name in inspect.signature(cls).parameters:
        if name in offered:
            keywords.setdefault(name, offered[name])
    if spec.shared_budget is not None and keywords.get("quantizer", "vq") == "vq":
        # What this table gets of the shared budget is planned when all are trained; it is at least what a table takes.
        full = 4 * num_embeddings * embedding_dim
        share = budget_bytes(spec.shared_budget, full)
        keywords["budget"] = max(share, least_nbytes(num_embeddings, embedding_dim, None))
    try:
        module = cls(num_embeddings, embedding_dim, **keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"embedding {spec}, {table} table of {num_embeddings} ids: {error}") from error
    with torch.no_grad():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.shape == (num_embeddings, embedding_dim):
            weight.normal_(std=std)  # equal for all embeddings that start from full rows
            if isinstance(module, AdditiveEmbedding):
                module.codebooks.mul_(std)  # of sums like rows of standard deviation 1, until they start on the rows
        else:
            _scale(module, std, torch.arange(min(num_embeddings, 1000)))
    return module


def _scale(module: nn.Module, std: float, ids: Tensor) -> None:
    """Multiply the rows' parameters by one factor, after which the vectors of `ids` have standard deviation `std`.

    These are those of `row_parameters` where the class has it, else all. Vectors are homogeneous in them, of
    degree 1 for sums of rows and 2 for products; the degree is measured.
    """
    names = getattr(module, "row_parameters", ()) or [name for name, _ in module.named_parameters()]
    parameters = [module.get_parameter(name) for name in names]

    def spread(factor: float) -> float:
        for parameter in parameters:
            parameter.mul_(factor)
        return float(module(ids).std())

    once, twice = spread(1.0), spread(2.0)
    degree = math.log2(twice / once)
    spread(0.5 * (std / once) ** (1.0 / degree))


class FrozenEmbedding(nn.Module):
    """A frozen table as a module: forward(ids (...)) -> (..., d)."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = table
        self.num_embeddings: int = table.num_embeddings
        self.embedding_dim: int = table.embedding_dim

    def forward(self, input: Tensor) -> Tensor:
        rows: Tensor = self.table.lookup(input)
        return rows


def _keywords_of(method: Method) -> dict[str, tuple[Any, ...]]:
    """The keywords that a description may set, with their types.

    These are the class's own keywords, without those of nn.Embedding and those that the training loop sets.
    """
    cls = method.layer
    fixed = {"pairs", "rows", *method.fixed}
    if issubclass(cls, MGQEmbedding):
        hints = typing.get_type_hints(QuantizationOptions)
        names = [name for name in hints if not (cls.one_tier and name in BETWEEN_TIERS)]
    else:
        hints = typing.get_type_hints(cls.__init__)
        parameters = inspect.signature(cls).parameters.values()
        names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    known = {name: _alternatives(hints[name]) for name in names if name not in fixed}
    if method.settles:
        known["budget"] = (int, float, str)
    if issubclass(cls, MGQEmbedding) and cls.one_tier:  # one number, where others take one per tier
        known = {name: tuple(t for t in types if typing.get_origin(t) is not Sequence) for name, types in known.items()}
    return known


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or a single type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def _fits(value: Value, kinds: tuple[Any, ...]) -> bool:
    """Whether a value is of one of the types; a single number is also a sequence of one."""
    if isinstance(value, tuple):
        return any(
            all(_fits(part, typing.get_args(kind)) for part in value)
            for kind in kinds
            if typing.get_origin(kind) is Sequence
        )
    if isinstance(value, float) and not math.isfinite(value):
        return False
    types_of_value = {bool} if isinstance(value, bool) else {int, float} if isinstance(value, int) else {type(value)}
    return any(
        kind in types_of_value or (typing.get_origin(kind) is Sequence and _fits(value, typing.get_args(kind)))
        for kind in kinds
    )


def _as(value: Value, kinds: tuple[Any, ...]) -> Value:
    """A single number as a sequence of one, if the keyword takes only sequences."""
    if isinstance(value, (int, float)) and {bool, int, float}.isdisjoint(kinds):
        return (value,)
    return value


def _described(kinds: tuple[Any, ...]) -> str:
    """The types in the words of an error."""
    words = [_TYPES[kind] for kind in kinds if kind in _TYPES]
    for kind in kinds:
        if typing.get_origin(kind) is Sequence:
            (element,) = typing.get_args(kind)
            words.append(f"{_TYPES[element].removeprefix('a ')}s joined by slashes")
    return " or ".join(words)


def _value(text: str) -> Value:
    if "/" in text:
        parts = tuple(_value(part) for part in text.split("/"))
        if all(isinstance(part, (int, float)) for part in parts):
            return parts  # type: ignore[return-value]
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
