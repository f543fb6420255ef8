"""One factory for every embedding: `full`, `mgqe:D=32,K=64/16`, `lowrank:r=8` -> modules for users and items.

A description is a name and, after a colon, options: `NAME:key=value,key=value`. Several values are joined by a
slash (`K=256/64`). A field's name before a key sets it for the tables of that field (`item.K=64/16`). Every
keyword of the class may be given by its own name; the usual ones have short names as well.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Value = int | float | bool | str | tuple[int | float, ...]
NEVER = 2**62  # warm-up steps of a layer whose warm-up the training loop ends


@dataclass(frozen=True)
class Method:
    """A kind of embedding.

    where: `module:class` of the embedding. short: short names of its keywords. summary: one line for --help.
    kind: `trained`: one training, as it is. `post`: trained as a full table, compressed once at the end.
    `quantised`: trained as a full table for a warm-up, then on, through its codes.
    """

    where: str
    kind: Literal["trained", "post", "quantised"]
    summary: str
    short: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Callable[..., nn.Module]:
        """The class, imported when it is first needed."""
        module, _, name = self.where.partition(":")
        loaded: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        return loaded


_CODES = {"D": "num_subspaces", "K": "num_centroids", "centroids": "centroid_dtype"}
_NO_WARM_UP_OF_ITS_OWN = {"warmup_steps": NEVER}
METHODS: dict[str, Method] = {
    "full": Method("mgqe.baselines:FullEmbedding", "trained", "a full table; full:d=16 is one with 16 dimensions"),
    "mgqe": Method(
        "mgqe:MGQEmbedding",
        "quantised",
        "codes, more centroids for frequent ids: mgqe:D=32,K=64/16,centroids=int8 or mgqe:budget=5%",
        _CODES,
        _NO_WARM_UP_OF_ITS_OWN,
    ),
    "dpq": Method(
        "mgqe:DPQEmbedding", "quantised", "codes, all ids alike: dpq:D=32,K=64", _CODES, _NO_WARM_UP_OF_ITS_OWN
    ),
    "pq": Method("mgqe.baselines:PQEmbedding", "post", "codes of a trained full table: pq:D=32,K=64", _CODES),
    "scalar": Method(
        "mgqe.baselines:ScalarQuantizedEmbedding", "post", "a trained full table, b bits a value: scalar:bits=4"
    ),
    "lowrank": Method("mgqe.baselines:LowRankEmbedding", "trained", "N x r times r x d: lowrank:r=8", {"r": "rank"}),
    "hash": Method(
        "mgqe.baselines:HashEmbedding",
        "trained",
        "ids share rows: hash:buckets=500,hashes=2",
        {"buckets": "num_buckets", "hashes": "num_hashes"},
    ),
    "qr": Method(
        "mgqe.baselines:QREmbedding",
        "trained",
        "quotient and remainder: qr:remainders=64,operation=mult",
        {"remainders": "num_remainders"},
    ),
    "recjpq": Method(
        "mgqe.baselines:RecJPQEmbedding",
        "trained",
        "fixed codes from an SVD of who took what: recjpq:D=16,K=256,centroids=int8",
        _CODES,
    ),
}


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
        if name not in METHODS:
            raise ValueError(f"no embedding {name!r}{_perhaps(name, METHODS)}: expected one of {', '.join(METHODS)}")
        options: dict[str, Value] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
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
        """Fields that have options of their own."""
        return {key.rpartition(".")[0] for key, _ in self.options if "." in key}

    def check_fields(self, fields: Collection[str]) -> None:
        """ValueError when an option is for a field that the model does not have."""
        for owner in sorted(self.owners - set(fields)):
            known = ", ".join(f"{name}." for name in sorted(set(fields)))
            raise ValueError(f"embedding {self}: expected {known} before a key, got {owner!r}{_perhaps(owner, fields)}")

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    def __str__(self) -> str:
        pairs = [("d", self.dim)] if self.dim is not None else []
        written = ",".join(f"{key}={_text(value)}" for key, value in [*pairs, *self.options])
        return f"{self.name}:{written}" if written else self.name

    def keywords(self, table: str) -> dict[str, Value]:
        """Keyword arguments of the class for tables of the field `table`; ValueError for a key it does not have."""
        allowed = _keywords_of(self.method)
        found: dict[str, Value] = {}
        for key, value in sorted(self.options, key=lambda option: "." in option[0]):
            owner, dot, bare = key.rpartition(".")
            keyword = self.method.short.get(bare, bare)
            if keyword not in allowed:
                short = {name: f"{key} or {name}" for key, name in self.method.short.items()}
                known = ", ".join(["d", *(short.get(name, name) for name in sorted(allowed))])
                hint = _perhaps(bare, [*allowed, *self.method.short])
                raise ValueError(f"embedding {self}: no option {bare!r}{hint}: expected {known}")
            if not dot or owner == table:
                found[keyword] = value
        return found

    def warm_up(self) -> Spec:
        """What is trained first: a full table for those that compress one, else the same."""
        return self if self.method.kind == "trained" else Spec("full", (), self.dim)


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
    """The embedding module of one table of the field `table`, its vectors drawn with standard deviation `std`.

    counts: int64 (num_embeddings,), training interactions an id, seed, and pairs (TableInfo): for the classes that
    ask for them.
    """
    cls = spec.method.load()
    keywords: dict[str, Any] = {**spec.method.fixed, **spec.keywords(table)}
    offered = {"counts": counts, "seed": seed % 2**31, "pairs": pairs}
    for name in inspect.signature(cls).parameters:
        if name in offered:
            keywords.setdefault(name, offered[name])
    try:
        module = cls(num_embeddings, embedding_dim, **keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"embedding {spec}, {table} table of {num_embeddings} ids: {error}") from error
    with torch.no_grad():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.shape == (num_embeddings, embedding_dim):
            weight.normal_(std=std)  # the same draw for all that start from full rows
        else:
            _scale(module, std, torch.arange(min(num_embeddings, 1000)))
    return module


def _scale(module: nn.Module, std: float, ids: Tensor) -> None:
    """Multiply all parameters alike, so that the vectors of `ids` have standard deviation `std`.

    Vectors are homogeneous in the parameters, of a degree that is tried out: 1 for sums of rows, 2 for products.
    """

    def spread(factor: float) -> float:
        for parameter in module.parameters():
            parameter.mul_(factor)
        return float(module(ids).std())

    once, twice = spread(1.0), spread(2.0)
    degree = math.log2(twice / once)
    spread(0.5 * (std / once) ** (1.0 / degree))


class FrozenEmbedding(nn.Module):
    """A frozen table where a model expects a module: forward(ids (...)) -> (..., d)."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = table
        self.num_embeddings: int = table.num_embeddings
        self.embedding_dim: int = table.embedding_dim

    def forward(self, input: Tensor) -> Tensor:
        rows: Tensor = self.table.lookup(input)
        return rows


def _keywords_of(method: Method) -> set[str]:
    """What a description may set: the class's own keywords, not nn.Embedding's nor those that the loop decides."""
    parameters = inspect.signature(method.load()).parameters.values()
    own = {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    return own - {"counts", "tiers", "pairs", "rows"} - set(method.fixed)


def _perhaps(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
