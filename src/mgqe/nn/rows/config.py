"""What ``rows=`` of the layers may be: a name, or one of these configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from torch import Tensor

from mgqe.checks.scalars import as_float, as_int, optional_int


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Codes for all ids; full rows for the most frequent ones, and for as many others as fit into a cache.

    An id that trains gets a place in the cache, which starts from its decoded codes. When the cache is nearly full,
    all of it is encoded and emptied. So codes are refined wherever training goes, and no raw table exists.

    Attributes:
        head_rows: how many ids have a row all the time: those of the first tiers, in order of ids within a tier.
            Default: all of the first tier where there are several, else none.
        cache_rows: places for the others, several times the distinct ids of a batch. Default: N / 16, at least 65,536.
        codes: integers (N, D) to start from, such as :func:`mgqe.baselines.recjpq.interaction_codes` gives, or None:
            the row of an id that has not trained is the centroid nearest to zero.
        init_std: standard deviation that the centroids of ``codes`` start with.

    With a budget the codes of the warm-up are those of one tier with D = d / 2 (d where it is odd) and 256 centroids.
    When it ends, all ids are encoded anew by the plan. ``head_rows`` is by default the first of the ``fractions`` of
    the ids.
    """

    head_rows: int | None = None
    cache_rows: int | None = None
    codes: Tensor | None = None
    init_std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("head_rows", "cache_rows"):
            object.__setattr__(self, name, optional_int(name, getattr(self, name), 0))
        object.__setattr__(self, "init_std", as_float("init_std", self.init_std))


@dataclass(frozen=True, eq=False)
class CodeRows:
    """Fixed codes, such as those made of users' interactions; the centroids alone train (RecJPQ, WSDM'24).

    Attributes:
        codes: integers (N, D) in [0, K) of each id's tier.
        init_std: standard deviation that the centroids start with.
    """

    codes: Tensor
    init_std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "init_std", as_float("init_std", self.init_std))


@dataclass(frozen=True)
class NarrowRows:
    """Rows with fewer dimensions than vectors, for ``quantizer="sx"``: they choose keys, and values are served.

    A row has ``key_dim`` dimensions per subspace, as the keys do (DPQ, arXiv 1908.09756, section 2.2). In the warm-up
    a vector's subspace is a linear map of the row's, learnt per subspace; the values start as maps of the keys.

    Attributes:
        key_dim: dimensions of a key, 1 to the values' d / D.
    """

    key_dim: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_dim", as_int("key_dim", self.key_dim, 1))


@dataclass(frozen=True)
class SketchRows:
    """Rows from a hashed sketch that is clustered again at intervals (CCE, NeurIPS'23).

    A row's subspace j is centroid p_j(id), which all ids with that pointer share, plus an entry of a hashed table.
    There are as many subspaces as in the frozen table, or d / 2 where a budget chooses those (d where it is odd).
    Every ``interval`` training passes all ids are assigned to new centroids of these sums, and the hashed table starts
    again at zero with another hash.

    Attributes:
        buckets: entries of the hashed table per subspace. Default N / 16, at least 256.
        num_centroids: of the pointers, per subspace; 2 to 65,536.
        interval: training passes between two clusterings; 0 for none.
        clusterings: how many there are at most, so that training comes to rest.
    """

    buckets: int | None = None
    num_centroids: int = 256
    interval: int = 1000
    clusterings: int = 6

    def __post_init__(self) -> None:
        for name, least in (("buckets", 1), ("num_centroids", 2), ("interval", 0), ("clusterings", 0)):
            checked = optional_int if name == "buckets" else as_int
            object.__setattr__(self, name, checked(name, getattr(self, name), least))
        if self.num_centroids > 65_536:
            raise ValueError(f"num_centroids must be at most 65,536, got {self.num_centroids}")


ROWS = ("float32", "bfloat16", "cached", "narrow", "sketch")
Rows = Union[str, CachedRows, CodeRows, NarrowRows, SketchRows]  # noqa: UP007  Evaluated on import.


def has_all_rows(rows: Rows) -> bool:
    """Whether every id has a row of d numbers whenever it is asked for, and no code before the warm-up is over."""
    return isinstance(rows, SketchRows) or (isinstance(rows, str) and rows in ("float32", "bfloat16", "sketch"))


def can_be_planned(rows: Rows) -> bool:
    """Whether rows of d numbers can be read of all ids when the warm-up ends, and codes be made of them then."""
    return has_all_rows(rows) or isinstance(rows, CachedRows) or (isinstance(rows, str) and rows == "cached")


def resolve_rows(rows: Rows) -> Rows:
    """A name or a configuration -> "float32", "bfloat16", or a configuration; ValueError for anything else."""
    if isinstance(rows, (CachedRows, CodeRows, NarrowRows, SketchRows)):
        return rows
    defaults: dict[str, Rows] = {"cached": CachedRows(), "narrow": NarrowRows(), "sketch": SketchRows()}
    if rows in ROWS:
        return defaults.get(rows, rows)
    raise ValueError(
        f"rows must be one of {ROWS}, or a CachedRows, CodeRows, NarrowRows or SketchRows of mgqe.nn.rows, got {rows!r}"
    )
