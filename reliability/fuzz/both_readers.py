"""mgqe_reader beside mgqe: both open a file or both refuse it, and what both open has the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mgqe
import mgqe_reader

UNKNOWN_KINDS = "this reader knows 'compact' alone"  # the baselines' tables, which only mgqe reads


def load_both(load: Callable[[Path], Any], read: Callable[[Path], Any], path: Path) -> tuple[Any, Any]:
    """What mgqe loads, and what mgqe_reader opens: None for a table of a baseline.

    Raises what mgqe raises if both refuse the file, RuntimeError if one does.
    """
    refused: Exception | None = None
    try:
        mine = read(path)
    except (ValueError, OSError) as error:
        mine, refused = None, error
    try:
        theirs = load(path)
    except (ValueError, OSError) as error:
        if refused is None:
            raise RuntimeError(f"mgqe_reader opens what mgqe refuses: {error}") from error
        raise
    if refused is not None and UNKNOWN_KINDS not in str(refused):
        raise RuntimeError(f"mgqe_reader refuses what mgqe opens: {refused}") from refused
    return theirs, mine


def require_same_table(mine: mgqe_reader.Table, theirs: mgqe.CompactTable, rows: Tensor) -> None:
    """RuntimeError unless rows, bags and searches have the same bits. ``rows``: the first of mgqe's."""
    n = len(rows)
    ids = np.arange(n)
    _require_same("rows", mine.lookup(ids), rows)
    if n:
        _require_same("bags", mine.bag(ids[None], mode="mean"), theirs.bag(torch.arange(n)[None], mode="mean"))
        for score in ("dot", "cosine"):
            mine_found, found = _found(mine, rows[:2].numpy(), score), _found(theirs, rows[:2], score)
            if isinstance(found, str) != isinstance(mine_found, str):
                raise RuntimeError(f"mgqe and mgqe_reader disagree about a search: {found} and {mine_found}")
            for one, other in zip(mine_found, found, strict=True) if not isinstance(found, str) else ():
                _require_same(score, one, other)


def _found(table: Any, queries: Any, score: str) -> Any:
    try:
        return table.topk(queries, min(3, table.num_embeddings), score=score)
    except ValueError as error:
        return str(error)


def require_same_ids(mine: mgqe_reader.IdMap, theirs: mgqe.IdMap) -> None:
    """RuntimeError unless both give the same ids and rows."""
    rows = np.arange(len(theirs))
    if len(mine) != len(rows) or mine.kind != theirs.kind:
        raise RuntimeError("mgqe_reader opens another id map")
    if theirs.nbytes_by_part().get("ids.hashes") is None:
        ids = theirs.ids(rows)
        if list(mine.ids(rows)) != list(ids):
            raise RuntimeError("mgqe_reader has other ids")
        _require_same("rows of ids", mine.rows(ids, unknown=-1), theirs.rows(ids, unknown=-1))


def _require_same(what: str, mine: np.ndarray, theirs: Tensor) -> None:
    if mine.tobytes() != theirs.numpy().tobytes():
        raise RuntimeError(f"mgqe_reader has other {what}")
