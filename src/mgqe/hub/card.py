"""The card of a folder, README.md: what is in it, how large it is, what is known of it, and how to open it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from mgqe.table.base import FrozenTable
from mgqe.table.compact import CompactTable

CARD = "README.md"


class About(TypedDict, total=False):
    """What only its author knows of a table, collection or model; each entry may be left out.

    Attributes:
        name: the heading. Default: the folder's or the repository's name.
        description: what the ids are, where the vectors come from: Markdown.
        budget: what the bytes were to be, such as "5%".
        metric: by what the budget was spent, such as "gradients of the click loss".
        figures: what was measured, such as ``{"recall@10 against the full matrix": 0.953}``.
        license: as the hub names it, such as "apache-2.0".
        tags: further words to be found by.
    """

    name: str
    description: str
    budget: int | float | str
    metric: str
    figures: Mapping[str, float | str]
    license: str
    tags: Sequence[str]


def check_about(about: Mapping[str, object]) -> None:
    """TypeError: an entry that :class:`About` does not have."""
    unknown = sorted(about.keys() - About.__annotations__.keys())
    if unknown:
        raise TypeError(f"a card has no entry {unknown[0]!r}: it has {', '.join(About.__annotations__)}")


def card(
    name: str, what: str, opening: str, tables: Mapping[str, FrozenTable], others: Mapping[str, int], about: About
) -> str:
    """The text of README.md.

    Args:
        name: of the repository or the folder.
        what: the first words of the sentence on sizes, such as "A collection".
        opening: lines of Python that open it.
        tables: by their names.
        others: bytes of what is no table, by name.
    """
    full = sum(4 * table.num_embeddings * table.embedding_dim for table in tables.values())
    small = sum(table.nbytes for table in tables.values())
    parts = [
        _front_matter(about),
        f"# {about.get('name', name)}",
        about.get("description", "").strip(),
        f"{what}, made with the Python package mgqe (`pip install mgqe`). The vectors are stored as codes and "
        f"centroids, in {small:,} bytes. As float32 they would take {full:,}{_share(small, full)}.",
        f"```python\n{opening.strip()}\n```",
        "## Sizes",
        _sizes(tables, others),
        _tiers(tables),
        *_known(about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(about: About) -> str:
    license_line = [f"license: {about['license']}"] if "license" in about else []
    tags = [f"- {tag}" for tag in ("mgqe", "embeddings", "quantization", *about.get("tags", ()))]
    return "\n".join(["---", "library_name: mgqe", *license_line, "tags:", *tags, "---"])


def _share(small: int, full: int) -> str:
    return f": this is {100 * small / full:.1f}% of it" if full else ""


def _sizes(tables: Mapping[str, FrozenTable], others: Mapping[str, int]) -> str:
    rows = [
        (
            name,
            f"{table.num_embeddings:,} x {table.embedding_dim}",
            f"{4 * table.num_embeddings * table.embedding_dim:,}",
            f"{table.nbytes:,}",
        )
        for name, table in tables.items()
    ]
    rows += [(name, "", "", f"{nbytes:,}") for name, nbytes in others.items() if nbytes]
    return _markdown(("", "ids x dimensions", "bytes as float32", "bytes here"), rows)


def _tiers(tables: Mapping[str, FrozenTable]) -> str:
    rows = [
        (name, str(g), f"{ids:,}", f"{tier.row_bytes}", f"{4 * table.embedding_dim}")
        for name, table in tables.items()
        if isinstance(table, CompactTable)
        for g, (ids, tier) in enumerate(zip(table.tiers.sizes, table.config.tiers, strict=True))
    ]
    return _markdown(("", "tier", "ids", "bytes of an id's codes", "bytes of its row as float32"), rows) if rows else ""


def _known(about: About) -> Iterable[str]:
    if "budget" in about:
        yield f"The budget was {about['budget']}" + (f", spent by {about['metric']}." if "metric" in about else ".")
    elif "metric" in about:
        yield f"The bytes were spent by {about['metric']}."
    if about.get("figures"):
        yield "## Figures"
        yield _markdown(("measure", "value"), [(name, str(value)) for name, value in about["figures"].items()])


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, whose columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
