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
        lookup_share: what a look-up of the frozen table is expected to take as a share of nn.Embedding's time; None
            where the table is left, or planned later.
    """

    path: str
    also: tuple[str, ...]
    num_embeddings: int
    embedding_dim: int
    bytes_before: int
    bytes_after: int | None
    compressed: bool
    why: str
    lookup_share: float | None = None


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
        known = any(row.lookup_share is not None for row in self.rows)
        cells = [("table", "rows x dim", "bytes", "frozen", "", "look-up*" if known else "", "")]
        for row in self.rows:
            after, share = "-", ""
            if row.bytes_after is not None:
                after, share = f"{row.bytes_after:,}", _share(row.bytes_after, row.bytes_before)
            name = row.path + "".join(f" = {path}" for path in row.also)
            size = f"{row.num_embeddings:,} x {row.embedding_dim}"
            lookup = "" if row.lookup_share is None else f"{row.lookup_share:.1f}"
            cells.append((name, size, f"{row.bytes_before:,}", after, share, lookup, row.why))
        total = f"{len(self.compressed)} of {len(self.rows)} compressed"
        share = _share(self.bytes_after, self.bytes_before)
        cells.append((total, "", f"{self.bytes_before:,}", f"{self.bytes_after:,}", share, "", ""))
        widths = [max(len(line[i]) for line in cells) for i in range(6)]
        lines = []
        for name, *numbers, why in cells:
            shown = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True) if width]
            lines.append("  ".join([name.ljust(widths[0]), *shown, why]))
        if known:
            lines.append("* share of nn.Embedding's time, estimated")
        return "\n".join(line.rstrip() for line in lines)


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.1f}%" if before else ""
