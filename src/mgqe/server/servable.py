"""What can be served, checked before the server starts."""

from __future__ import annotations

from mgqe.collection import Collection
from mgqe.collection.collection import UNKNOWN
from mgqe.table.compact import CompactTable


def check_servable(items: Collection, users: Collection, unknown: str) -> None:
    """Raises TypeError or ValueError for collections that cannot be served; the message names the remedy."""
    for each in {id(items): items, id(users): users}.values():
        if not isinstance(each, Collection):
            raise TypeError(f"expected a collection, got {type(each).__name__}: mgqe.Collection(table, ids) makes one")
        if each.ids is not None and each.ids.kind == "binary":
            raise ValueError(
                "the ids are bytes, which JSON does not have: make the collection with ids of text, such as "
                "[one.hex() for one in ids]"
            )
    if not isinstance(items.table, CompactTable):
        raise TypeError(
            f"a {type(items.table).__name__} has no top-K: serve a table of codes, as mgqe.compress_table or "
            "`mgqe compress` makes one of its rows"
        )
    if items.ids is not None:
        items.ids.ids([0])  # ValueError: a map of hashes alone cannot give ids back
    if users.table.embedding_dim != items.table.embedding_dim:
        raise ValueError(
            f"the users' vectors have {users.table.embedding_dim} dimensions and the items' "
            f"{items.table.embedding_dim}: give the two collections of one model"
        )
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown must be one of {', '.join(UNKNOWN)}, got {unknown!r}")
    for each in (items, users) if unknown == "fallback" else ():
        if getattr(each.table, "fallback", None) is None:
            raise ValueError('unknown="fallback" needs a table with one: table.with_fallback(vector)')
