"""What users have seen, by a log of interactions in the layouts that `mgqe train` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mgqe.cli.open_collection import as_id
from mgqe.cli.terminal import say
from mgqe.collection import Collection


@dataclass(frozen=True)
class LogLayout:
    """How a log is laid out, as the options of `mgqe train` say it."""

    format: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    separator: str | None = None
    quote: str = '"'
    header: bool | None = None


def seen_items(log: str, users: Sequence[Any], items: Collection, layout: LogLayout) -> list[list[Any]]:
    """Of each user the ids of the items in its rows of a log, of the kind of the collection's ids.

    Users and ids are compared as text, so that 7 in the log is "7" in a collection of strings.

    Raises:
        ValueError: a log that cannot be read, or whose items are not those of the collection. ImportError: polars is
            not installed.
    """
    import polars as pl

    from mgqe.recsys.data.columns import Columns
    from mgqe.recsys.data.files import read_any

    columns = Columns(
        layout.user_column, layout.item_column, separator=layout.separator, quote=layout.quote, header=layout.header
    )
    names = [_text(user) for user in users]
    frame = read_any(log, layout.format, columns).rename({"session": "user"}, strict=False)
    frame = frame.select(pl.col("user").cast(pl.String), pl.col("item").cast(pl.String))
    rows = frame.filter(pl.col("user").is_in(names)).unique().group_by("user").agg("item").rows()
    seen = {user: [one for text in of_user if (one := _of_kind(items, text)) is not None] for user, of_user in rows}
    for name in dict.fromkeys(names):
        if name not in seen:
            say(f"{log} has no row of {name}, so that nothing is left out for it")
    if seen and not any(one in items for of_user in seen.values() for one in of_user):
        example = next(text for _, of_user in rows for text in of_user)
        raise ValueError(
            f"{log}: none of the items of these users is in the collection, such as {example!r}: name its columns with "
            "--user-column and --item-column"
        )
    return [seen.get(name, []) for name in names]


def _text(one: Any) -> str:
    return one.decode(errors="backslashreplace") if isinstance(one, bytes) else str(one)


def _of_kind(items: Collection, text: str) -> Any:
    """An id of the collection's kind; None if the text is none."""
    try:
        return as_id(items, text)
    except ValueError:
        return None
