"""The command compress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from torch import Tensor

from mgqe.checks.rows import as_rows
from mgqe.cli.counts_files import Counts
from mgqe.cli.lookups import table_lookup_share
from mgqe.cli.options import PREFER_HELP, PREFER_TAIL_HELP, Header, NoQuote, Quote, Separator
from mgqe.cli.terminal import AsJson, clean_errors, make_progress, output
from mgqe.cli.vector_files import read_all, read_noted
from mgqe.codec.planning.budget import check_budget
from mgqe.codec.planning.shapes import SPEED, check_prefer_tail, check_preference
from mgqe.codec.planning.speed import in_words
from mgqe.collection import Collection
from mgqe.convert.table import compress_table
from mgqe.convert.table_check import TableCheck, check_table
from mgqe.files.destination import check_folder
from mgqe.ids import IdMap
from mgqe.recsys.study.text_table import TextTable
from mgqe.table.compact import CompactTable
from mgqe.vectors.read import FORMATS

commands = typer.Typer()


@commands.command(
    help="Make a matrix of vectors small: one command from a file to a folder that looks up and searches.\n\n"
    f"FILE is {FORMATS}.\n\n"
    "Writes the folder OUT with the table and the ids beside each other, which mgqe.Collection.load opens, and prints "
    "bytes before and after, what is lost, and how many of the true nearest rows a search still finds.",
    epilog="Examples:\n\n"
    "  mgqe compress items.npy --budget 5%\n\n"
    "  mgqe compress items.npy --ids names.txt --budget 5% --counts clicks.parquet --count-column item\n\n"
    "  mgqe compress vectors.parquet --ids product --vectors embedding --queries users.npy\n\n"
    "  mgqe compress model.pt --tensor item.weight --out items",
)
@clean_errors
def compress(
    file: Annotated[Path, typer.Argument(help="The vectors, see above.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write. Default: FILE without its ending.")] = None,
    budget: Annotated[str, typer.Option(help="5% or 0.05 of the matrix, or a whole number of bytes.")] = "10%",
    ids: Annotated[
        str | None,
        typer.Option(help="The column of ids, or a file of them: text with one per line, .npy, or a JSON list."),
    ] = None,
    vectors: Annotated[str | None, typer.Option(help="Of a table, the column of vectors.")] = None,
    tensor: Annotated[str | None, typer.Option(help="Of a file with several matrices, the name of one.")] = None,
    counts: Annotated[
        str | None,
        typer.Option(
            help="How often each id occurs, so that frequent ones get more bits: .npy with one number per row, or a "
            "log whose --count-column is counted."
        ),
    ] = None,
    count_column: Annotated[
        str | None, typer.Option(help="Of a log, the column of ids to count, if it has no usual name of items.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="What rows are multiplied with, such as users' vectors: bits go where scores feel them."),
    ] = None,
    prefer: Annotated[str, typer.Option(help=PREFER_HELP)] = SPEED,
    prefer_tail: Annotated[bool, typer.Option("--prefer-tail", help=f"With --counts: {PREFER_TAIL_HELP}")] = False,
    check: Annotated[bool, typer.Option(help="Compare with the full matrix.")] = True,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    folder = _folder(file, out)
    check_budget(budget, "--budget ")
    check_preference(prefer)
    check_prefer_tail(prefer_tail, counts)
    check_folder(folder)  # before the work, which may take long
    sample = None if queries is None else as_rows(read_noted(queries).rows, str(queries))
    read, listed = read_all(file, tensor, ids, vectors)
    id_map = None if listed is None else IdMap.from_ids(listed)
    rows = as_rows(read.rows, str(file))
    counted = None
    if counts is not None:
        source = Counts(counts, count_column, separator=separator, quote="" if no_quote else quote, header=header)
        counted = source.read(len(rows), id_map)
    known = {"counts": counted, "queries": sample, "prefer": prefer, "prefer_tail": prefer_tail}
    try:
        table, found = _work(rows, budget, known, check)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    nbytes = Collection(table, id_map).save(folder)
    lookup = table_lookup_share(table, counted)
    if as_json:
        share = {"lookup_share": lookup}
        named = {"matrix": read.name}
        print(json.dumps({**_as_json(folder, rows, table, id_map, nbytes, found), **named, **share}, indent=1))
    else:
        _show(folder, read.name, rows, table, id_map, nbytes, found, lookup)


def _folder(file: Path, out: Path | None) -> Path:
    folder = file.with_suffix("") if out is None else out
    if folder.exists() and folder.resolve() == file.resolve():
        raise ValueError(f"--out is needed, since {file} is there already: name the folder to write")
    return folder


def _work(rows: Tensor, budget: str, known: Mapping[str, Any], check: bool) -> tuple[CompactTable, TableCheck | None]:
    with make_progress() as progress:

        def bar(what: str) -> Any:
            task = progress.add_task(what, total=len(rows), detail="rows")
            return lambda done, total: progress.update(task, completed=done, total=total)

        table = compress_table(rows, budget, **known, progress=bar("compressing"))
        found = check_table(rows, table, queries=known["queries"], progress=bar("comparing")) if check else None
    return table, found


def _show(
    folder: Path,
    matrix: str,
    rows: Tensor,
    table: CompactTable,
    ids: IdMap | None,
    nbytes: int,
    found: TableCheck | None,
    lookup: float,
) -> None:
    sizes = TextTable("", ["", "bytes", "of the matrix"])
    for name, size in {
        escape(" ".join(["matrix", *([matrix] if matrix else []), f"{len(rows):,} x {rows.shape[1]}"])): rows.nbytes,
        "table": table.nbytes,
        "ids": 0 if ids is None else ids.nbytes,
        "files": nbytes,
    }.items():
        if size:
            sizes.rows.append([name, f"{size:,}", f"{100 * size / rows.nbytes:.2f}%"])
    output.print(sizes.terminal(output.width))
    tiers = TextTable("", ["tier", "ids", "bits per id", *(["squares lost"] if found else [])])
    for number, tier in enumerate(table.config.tiers):
        lost = [f"{100 * found.errors[number]:.2f}%"] if found else []
        tiers.rows.append([str(number), f"{tier.ids:,}", str(sum(tier.code_bits)), *lost])
    output.print()
    output.print(tiers.terminal(output.width))
    output.print(in_words(lookup), highlight=False)
    if found is not None:
        asked = "queries" if found.asked == "queries" else "rows that look for others like them"
        figures = ", ".join(f"recall@{k} {value:.3f}" for k, value in found.recall.items())
        output.print(f"\n{figures}, of {found.queries} {asked}", highlight=False, soft_wrap=True)
    output.print(f"\nwritten to {folder}", highlight=False, soft_wrap=True)
    example = _example(ids)
    output.print(
        f"items = mgqe.Collection.load({str(folder)!r}); items.neighbours({example!r}, 10)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _example(ids: IdMap | None) -> Any:
    if ids is None:
        return 0
    first = ids.ids([0])[0]
    return first.item() if isinstance(first, np.generic) else first


def _as_json(
    folder: Path, rows: Tensor, table: CompactTable, ids: IdMap | None, nbytes: int, found: TableCheck | None
) -> dict[str, Any]:
    return {
        "out": str(folder),
        "num_embeddings": len(rows),
        "embedding_dim": rows.shape[1],
        "matrix_nbytes": rows.nbytes,
        "table_nbytes": table.nbytes,
        "ids_nbytes": None if ids is None else ids.nbytes,
        "nbytes": nbytes,
        "tier_sizes": [tier.ids for tier in table.config.tiers],
        "bits_per_id": [sum(tier.code_bits) for tier in table.config.tiers],
        **(
            {}
            if found is None
            else {
                "squares_lost": found.error,
                "squares_lost_by_tier": list(found.errors),
                **{f"recall@{k}": value for k, value in found.recall.items()},
                "queries": found.queries,
                "asked": found.asked,
            }
        ),
    }
