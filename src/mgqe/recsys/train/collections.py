"""The collections of a run: a folder per table, in which it is asked in the data's own ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from torch import nn

from mgqe.collection.folder import MANIFEST, remove_folder, write_folder
from mgqe.ids import IdMap
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.tasks.base import TableInfo
from mgqe.recsys.train.artifacts import TABLE


def write_collections(
    model: nn.Module, tables: Mapping[str, TableInfo], ids: Mapping[str, FileIds], out: Path
) -> list[str]:
    """Write OUT/PATH for each table that is saved as OUT/PATH.mgqe.safetensors, and return these paths.

    The table's file gets a second name there, and is not copied where the system lets files have several names.

    Args:
        ids: field -> the data's ids of its rows; without them, the table is asked by its rows.
    """
    weight = getattr(model, "query_weight", None)
    maps = {field: IdMap.from_ids(plain_column(of_field.ids)) for field, of_field in ids.items()}
    for path, info in tables.items():
        write_folder(out / path, out / f"{path}{TABLE}", maps.get(info.field), weight)
    return list(tables)


def remove_collections(out: Path) -> None:
    """Remove the collections in a run's folder."""
    for manifest in out.glob(f"*/{MANIFEST}"):
        remove_folder(manifest.parent)


def plain_column(ids: pl.Series) -> Any:
    """Ids that id maps take: integers, text and bytes as they are, others as the text that polars makes of them."""
    is_plain = ids.dtype.is_integer() or ids.dtype in (pl.String, pl.Binary)
    return ids if is_plain else ids.cast(pl.String)
