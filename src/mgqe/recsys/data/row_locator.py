"""Names the file and the line of a frame's row, for errors."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mgqe.ids.logs.log import ROW

FILE = "\0file"


@dataclass(frozen=True)
class RowLocator:
    """Finds the origin of a frame's rows by its columns FILE and ROW.

    unit: "line" or "row". first: the number of the first one.
    """

    paths: list[str]
    unit: str
    first: int = 0

    def describe(self, frame: pl.DataFrame, row: int) -> str:
        """The file and the line or row of a row of the frame."""
        return f"{self.paths[frame[FILE][row]]}, {self.unit} {frame[ROW][row] + self.first}"
