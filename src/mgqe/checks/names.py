"""Names and values in the messages of errors: what a user may have meant or given, and what an error is about."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name nearest to a wrong one, for the middle of a message: " (did you mean 'rank'?)", or ""."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


@contextmanager
def errors_about(name: str) -> Iterator[None]:
    """Put a name, such as a module's path, before the message of an IndexError, TypeError or ValueError within."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def brief(value: Any) -> str:
    """A value on one line of at most 80 characters, since a hostile file may hold a very long one."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
