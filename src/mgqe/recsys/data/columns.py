"""The columns of a file that hold the user or session, the item, the time and the context, and the file's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from mgqe.ids.logs.text import looks_like_data
from mgqe.ids.logs.text_layout import NO_HEADER, TextLayout
from mgqe.recsys.data.settings import DataSettings

SEPARATORS = (",", "\t", ";", "|", "::")
USUAL = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "reviewer_id", "customer_id", "visitorid"),
    "session": ("session_id", "sessionid", "session"),
    "item": (
        "item", "item_id", "itemid", "iid", "movie", "movie_id", "movieid", "product", "product_id", "productid",
        "asin", "book_id", "track_id", "business_id", "article_id", "app_id",
    ),
    "time": ("timestamp", "time", "ts", "datetime", "date", "unixreviewtime", "event_time", "created_at"),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the user, the item and the time; None: look for a usual name.

    session: instead of the user; where neither is named, a column with a usual name of a user comes first.
    context: names of further columns to read, each a category (weekday, country, ...).
    separator, quote, header: how csv files are laid out, see mgqe.ids.logs.text_layout. separator None: the one that
        occurs most often in the first line. Without a header, columns are named by their numbers from 1.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    context: tuple[str, ...] = ()
    separator: str | None = None
    quote: str | None = '"'
    header: bool | None = None
    session: str | None = None

    @classmethod
    def of(cls, config: DataSettings, context: tuple[str, ...] = ()) -> Columns:
        """From a run's configuration."""
        return cls(
            config.user_column, config.item_column, config.time_column, context, config.separator, config.quote,
            config.header, config.session_column,
        )  # fmt: skip

    @property
    def named(self) -> list[tuple[str, str]]:
        """(role, name) of the columns that are named."""
        roles = (("user", self.user), ("session", self.session), ("item", self.item), ("time", self.time))
        return [(role, name) for role, name in roles if name is not None]

    @property
    def lays_out(self) -> bool:
        """Whether a separator or a header is set, so that a text file must have columns."""
        return self.separator is not None or self.header is not None

    def layout(self, first: str) -> TextLayout:
        """The layout of a csv file that begins with this line."""
        separator = self.separator or max(SEPARATORS, key=lambda text: (first.count(text), len(text)))
        return TextLayout.of(separator, self.quote, self.header)


def pick_columns(path: str, names: Sequence[str], columns: Columns) -> dict[str, str]:
    """Role -> name of its column; ValueError if a column is missing or ambiguous."""
    column_of_role: dict[str, str] = {}
    lowered = {name.lower(): name for name in reversed(names)}
    all_names = ", ".join(names)
    for role, name in (_owner(columns, lowered), ("item", columns.item), ("time", columns.time)):
        if name is not None and name not in names and name.split(":")[0] not in names:
            raise ValueError(
                f"{path}: no column {name!r} for the {role}; it has {all_names}{_no_header(names, columns)}"
            )
        name = name or next((lowered[usual] for usual in USUAL[role] if usual in lowered), None)
        if name is None and role != "time":
            how = f"name it with --{role}-column"
            if columns.header is False:
                how = f"the file has no header: say which number it has, --{role}-column {2 if role == 'item' else 1}"
            raise ValueError(
                f"{path}: no column that looks like the {role} (such as {', '.join(USUAL[role][:3])}); it has "
                f"{all_names}; {how}{_no_header(names, columns)}"
            )
        if name is not None:
            column_of_role[role] = name
    _check_distinct(path, column_of_role)
    for name in columns.context:
        if name not in names:
            raise ValueError(f"{path}: no context column {name!r}; it has {all_names}")
        if name in USUAL or name in column_of_role.values():
            raise ValueError(
                f"{path}: column {name!r} cannot be context: it is the user, the item or the time, or named like them"
            )
    repeated = next((name for name in column_of_role.values() if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}, line 1: expected distinct column names, got {all_names}")
    column_of_role.update((name, name) for name in columns.context)
    return column_of_role


def _owner(columns: Columns, lowered: Mapping[str, str]) -> tuple[str, str | None]:
    """Whose a row is, "user" or "session", and the name of its column; `lowered`: names in lower case -> names."""
    if columns.session is not None:
        return "session", columns.session
    has_user = columns.user is not None or any(usual in lowered for usual in USUAL["user"])
    return "session" if not has_user and any(usual in lowered for usual in USUAL["session"]) else "user", columns.user


def owner_of(frame: pl.DataFrame) -> str:
    """Whose the rows of a frame are: the name of its column, "user" or "session"."""
    return "session" if "session" in frame.columns and "user" not in frame.columns else "user"


def _check_distinct(path: str, column_of_role: dict[str, str]) -> None:
    """ValueError if two roles have one column."""
    roles: dict[str, str] = {}
    for role, name in column_of_role.items():
        if name in roles:
            raise ValueError(
                f"{path}: column {name!r} cannot be both the {roles[name]} and the {role}: name another one with "
                f"--{role}-column or --{roles[name]}-column"
            )
        roles[name] = role


def _no_header(names: Sequence[str], columns: Columns) -> str:
    if len(names) == 1:
        return "; if it has several, say what separates them with --separator"
    if columns.header is None and any(map(looks_like_data, names)):
        return f"; if its first line is data, {NO_HEADER}, such as --user-column 1 --item-column 2 --time-column 4"
    return ""
