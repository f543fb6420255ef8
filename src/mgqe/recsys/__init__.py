"""The recommender wing: data files, training, metrics. An extra (`pip install mgqe[recsys]`); no part of the core."""

from __future__ import annotations

import importlib.util
import sys

REQUIRED = ("polars", "typer", "rich", "matplotlib", *(("tomli",) if sys.version_info < (3, 11) else ()))


def missing_extra() -> str | None:
    """One line that says what to install, or None when everything the wing needs is there."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"mgqe: the recommender wing needs {', '.join(missing)}; run: pip install mgqe[recsys]"
