"""Where the rows of a frame come from: what an error names."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mgqe.ids.logs.log import ROW

FILE = "\0file"


@dataclass(frozen=True)
class RowLocator:
    """Where the rows of a frame come from, by its columns FILE and ROW."""

    paths: list[str]
    unit: str
    first: int = 0  # what the first row is called

    def describe(self, frame: pl.DataFrame, row: int) -> str:
        """A row of the frame, as an error names it."""
        return f"{self.paths[frame[FILE][row]]}, {self.unit} {frame[ROW][row] + self.first}"


def fields_excerpt(fields: list[str]) -> str:
    """Fields as an error shows them."""
    text = " ".join(fields)
    return repr(text if len(text) <= 60 else text[:57] + "...")
