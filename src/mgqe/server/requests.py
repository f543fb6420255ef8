"""What a request may hold, by the kind of the collection's ids. A misspelt field is an error, not a default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model

from mgqe.collection import Collection

STRICT = ConfigDict(extra="forbid", strict=True)
_RANGES = {"int64": (-(2**63), 2**63), "uint64": (0, 2**64), "rows": (0, 2**63)}


def kind_of(items: Collection) -> str:
    """The kind of a collection's ids; "rows" where they are the rows' numbers."""
    return "rows" if items.ids is None else items.ids.kind


def lookup_request(items: Collection, max_ids: int, unknown: str) -> Any:
    """The model of a body {"ids": [...], "unknown": "error"}."""
    ids: Any = (list[_id(items)], Field(max_length=max_ids))  # type: ignore[misc]
    return create_model("Lookup", __config__=STRICT, ids=ids, unknown=(_Rule, unknown))


def topk_request(items: Collection, users: Collection, max_k: int, max_queries: int, unknown: str) -> Any:
    """The model of a body {"ids" or "vectors": [...], "k": 10, "exclude": [...], ...}.

    Args:
        items: whose ids are returned, excluded or candidates.
        users: whose vectors are the queries of ``ids``.
    """
    item: Any = _id(items)
    lists = list[item] | list[list[item]]  # for all queries, or one list per query
    fields: dict[str, Any] = {
        "vectors": (list[list[float]] | None, Field(None, max_length=max_queries)),
        "ids": (list[_id(users)] | None, Field(None, max_length=max_queries)),  # type: ignore[misc]
        "k": (int, Field(10, le=max_k)),
        "exclude": (lists | None, None),
        "candidates": (lists | None, None),
        "score": (Literal["dot", "cosine"], "dot"),
        "unknown": (_Rule, unknown),
    }
    return create_model("TopK", __config__=STRICT, **fields)


_Rule = Literal["error", "zeros", "fallback"]


def _id(items: Collection) -> Any:
    kind = kind_of(items)
    if kind == "string":
        return str
    low, high = _RANGES[kind]
    return Annotated[int, Field(ge=low, lt=high)]
