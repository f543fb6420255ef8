"""Which columns of a table hold vectors or dimensions, and which one ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

VECTOR_NAMES = ("vector", "embedding", "vec", "emb", "embeddings", "vectors", "values")
ID_NAMES = ("id", "ids", "item", "item_id", "itemid", "key", "word", "token", "name", "user", "user_id")
LISTED = 5  # columns that a text names
IdColumn = str | Literal[False] | None


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are.

    Attributes:
        vector: the column of vectors, or None where each of ``dimensions`` has a column.
        ids: the column of ids, or None where there is none.
        unsure: dimensions of whole numbers between those of floats, whose names say nothing.
        left_out: what is neither ids nor vectors, in the table's order.
    """

    vector: str | None
    dimensions: tuple[str, ...]
    ids: str | None
    unsure: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the vectors are called."""
        if self.vector is not None:
            return self.vector
        first, last = self.dimensions[0], self.dimensions[-1]
        return f"{first} to {last}" if len(self.dimensions) > LISTED else ", ".join(self.dimensions)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user is told of a choice that may not be meant."""
        whole = f"the whole numbers of {_listed(self.unsure)} are taken for numbers of the vectors"
        left_out = f"left out: {_listed(self.left_out)} (the vectors are {self.name})"
        return (*([whole] if self.unsure else []), *([left_out] if self.left_out else []))


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def choose_columns(schema: Mapping[str, Any], ids: IdColumn = None, vector: str | None = None) -> Columns:
    """The columns of a table, by their names and types.

    Without a column of vectors those of floats are dimensions. So are whole numbers between them, or with the name of
    one of them but for its number, such as d7 beside d6 and d8: all numbers of a dimension may happen to be whole.

    Args:
        schema: name -> polars' type, in the table's order.
        ids: the column of ids, False for none; by default the only one that is named like one, or the only one that
            is no dimension.
        vector: the column of vectors; by default the only list column, or the only text that is named like one.

    Raises ValueError where there is no such column, or several may be meant.
    """
    for name in (ids, vector):
        if name and name not in schema:
            raise ValueError(f"there is no column {name!r}: it has {', '.join(schema)}")
    vector = vector or _vector_column(schema)
    dimensions, unsure = ((), ()) if vector else _dimensions(schema, ids)
    if not vector and not dimensions:
        raise ValueError(f"no column holds vectors or floats: it has {', '.join(schema)}")
    rest = [name for name in schema if name != vector and name not in dimensions]
    if ids is None:
        ids = _id_column(rest, unsure)
    return Columns(vector, dimensions, ids or None, unsure, tuple(name for name in rest if name != ids))


def _vector_column(schema: Mapping[str, Any]) -> str | None:
    import polars as pl

    lists = [name for name, kind in schema.items() if isinstance(kind, (pl.List, pl.Array))]
    if len(lists) > 1:
        raise ValueError(f"columns {', '.join(lists)} hold lists: name the one of vectors with vectors= (--vectors)")
    texts = [name for name, kind in schema.items() if kind == pl.String and name.lower() in VECTOR_NAMES]
    return lists[0] if lists else texts[0] if len(texts) == 1 else None


def _dimensions(schema: Mapping[str, Any], ids: IdColumn) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(all dimensions; those of whole numbers whose names say nothing, any of which may be the ids)."""
    names = list(schema)
    floats = [name for name, kind in schema.items() if kind.is_float() and name != ids]
    if not floats:
        return (), ()
    between = names[names.index(floats[0]) : names.index(floats[-1])]
    series = {_series(name) for name in floats} - {None}
    whole = [
        name for name, kind in schema.items() if kind.is_integer() and name != ids and name.lower() not in ID_NAMES
    ]
    numbered = [name for name in whole if _series(name) in series]
    unsure = [name for name in whole if name in between and name not in numbered]
    chosen = {*floats, *numbered, *unsure}
    return tuple(name for name in names if name in chosen), tuple(unsure)


def _series(name: str) -> str | None:
    """What a name has before its number; None without one."""
    match = re.fullmatch(r"(.*?)\d+", name)
    return match[1] if match else None


def _id_column(rest: list[str], unsure: tuple[str, ...]) -> str | None:
    named = [name for name in rest if name.lower() in ID_NAMES]
    possible = named or [*rest, *unsure]
    if not possible:
        return None
    if len(possible) == 1 and not (unsure and not named):
        return possible[0]
    ask = f"which of {', '.join(possible)} holds the ids? Name it with ids= (--ids)"
    if unsure and not named:
        ask += (
            ". Whole numbers between floats are dimensions then; without ids call all dimensions alike, such as d0, d1"
        )
    raise ValueError(ask)
