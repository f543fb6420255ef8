"""Files of faiss indexes to collections and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgqe.collection import Collection
from mgqe.files.atomic import fill_file
from mgqe.files.regular import require_replaceable
from mgqe.table.compact import CompactTable
from mgqe.table.faiss import import_faiss

ENDINGS = (".faiss", ".index")
INTEGERS = "int64"  # the only kind of ids that faiss holds


def is_faiss_file(path: Path) -> bool:
    """Whether a file begins like one that faiss wrote."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4)
    return len(head) == 4 and head[:2] in (b"Ix", b"Iw", b"IB") and head[2:].isalnum()


def read_faiss_file(path: Path) -> Collection:
    """The codes of an index as a collection, with the ids of an ``IndexIDMap``.

    Raises TypeError, ValueError as :meth:`mgqe.CompactTable.from_faiss`, and ValueError for a damaged file.
    """
    faiss = import_faiss("reading indexes")
    try:
        whole = faiss.read_index(str(path))  # which owns what is in it
    except RuntimeError as error:
        raise ValueError(f"{path}: faiss cannot read it: {str(error).splitlines()[0][:200]}") from error
    has_ids = isinstance(whole, (faiss.IndexIDMap, faiss.IndexIDMap2))
    ids = faiss.vector_to_array(whole.id_map) if has_ids else None
    try:
        return Collection(CompactTable.from_faiss(whole.index if has_ids else whole), ids)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def write_faiss_file(items: Collection, path: Path) -> int:
    """Write a collection as a faiss index and return the file's bytes. Ids of the kind int64 go with it.

    Raises ValueError, TypeError for a table that faiss cannot express or write; the message says what to do.
    """
    faiss = import_faiss("writing indexes")
    require_replaceable(path)
    if not isinstance(items.table, CompactTable):
        raise TypeError(f"a {type(items.table).__name__} has no codes: add table.to_dense() to a faiss.IndexFlatIP")
    index = items.table.to_faiss()
    if isinstance(index, faiss.IndexShards):
        raise ValueError(
            "the tiers differ in subspaces or codebooks, which faiss holds in an IndexShards and cannot write: use "
            "table.to_faiss() in memory, or make a table with one codebook and one num_subspaces"
        )
    if items.ids is not None and items.ids.kind == INTEGERS:
        rows, index.ntotal = index.ntotal, 0  # an IndexIDMap takes empty indexes only
        named = faiss.IndexIDMap(index)
        index.ntotal = named.ntotal = rows
        faiss.copy_array_to_vector(np.asarray(items.ids.ids(np.arange(rows)), np.int64), named.id_map)
        index = named
    fill_file(path, lambda file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write)))
    return path.stat().st_size
