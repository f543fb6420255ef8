"""Where a layer keeps its rows while they train: full, in 16 bits, behind codes, or in a sketch.

One argument of the layers, ``rows``, chooses: docs/large_tables.md says what each costs, in bytes and in quality.
"""

from mgqe.nn.rows.config import ROWS, CachedRows, CodeRows, NarrowRows, Rows, SketchRows, resolve_rows
from mgqe.nn.rows.store import RowStore

__all__ = ["ROWS", "CachedRows", "CodeRows", "NarrowRows", "RowStore", "Rows", "SketchRows", "resolve_rows"]
