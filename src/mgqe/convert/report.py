"""What compress_ did and why, as a table to print."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableReport:
    """One table of the model.

    Attributes:
        path: the first path of the module.
        also: its other paths.
        num_embeddings, embedding_dim: N and d.
        bytes_before: of its rows.
        bytes_after: of the file of its frozen table, computed in advance; None where it was not computed.
        compressed: whether it was swapped.
        why: what it became, or why it was left.
    """

    path: str
    also: tuple[str, ...]
    num_embeddings: int
    embedding_dim: int
    bytes_before: int
    bytes_after: int | None
    compressed: bool
    why: str


@dataclass(frozen=True)
class CompressReport:
    """All tables of a model; ``print`` it."""

    rows: tuple[TableReport, ...]

    @property
    def compressed(self) -> tuple[str, ...]:
        """Paths of the tables that were swapped."""
        return tuple(row.path for row in self.rows if row.compressed)

    @property
    def bytes_before(self) -> int:
        """Of all tables."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Of all tables once frozen, those that were left included."""
        return sum(row.bytes_after if row.compressed and row.bytes_after else row.bytes_before for row in self.rows)

    def __str__(self) -> str:
        cells = [("table", "rows x dim", "bytes", "frozen", "", "")]
        for row in self.rows:
            after, share = "-", ""
            if row.bytes_after is not None:
                after, share = f"{row.bytes_after:,}", _share(row.bytes_after, row.bytes_before)
            name = row.path + "".join(f" = {path}" for path in row.also)
            size = f"{row.num_embeddings:,} x {row.embedding_dim}"
            cells.append((name, size, f"{row.bytes_before:,}", after, share, row.why))
        total = f"{len(self.compressed)} of {len(self.rows)} compressed"
        share = _share(self.bytes_after, self.bytes_before)
        cells.append((total, "", f"{self.bytes_before:,}", f"{self.bytes_after:,}", share, ""))
        widths = [max(len(line[i]) for line in cells) for i in range(5)]
        lines = []
        for name, size, before, after, share, why in cells:
            numbers = zip((size, before, after, share), widths[1:], strict=True)
            lines.append("  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in numbers), why]))
        return "\n".join(line.rstrip() for line in lines)


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.1f}%" if before else ""
