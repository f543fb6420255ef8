"""The command on ids: ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mgqe.cli.inspections import map_figures
from mgqe.cli.options import Format, Header, NoQuote, Quote, Separator
from mgqe.cli.terminal import AsJson, clean_errors, make_progress, output
from mgqe.cli.train_layouts import read_ids
from mgqe.files.destination import check_file
from mgqe.ids import IdMap
from mgqe.ids.logs.id_columns import KINDS

MIB = 1 << 20
commands = typer.Typer()


@commands.command(
    help="Count the ids of a log of any length, and number them by frequency.\n\n"
    "Reads Parquet or text files in bounded memory and writes OUT, a compact file that mgqe.IdMap.load maps: ids of "
    "any type to rows, and back, the most frequent id in row 0.",
    epilog="Examples:\n\n"
    "  mgqe ids 'clicks-*.parquet' --column item --out items.safetensors\n\n"
    "  mgqe ids clicks.csv --column product --kind string --min-count 5 --out products.safetensors\n\n"
    "  mgqe ids ratings.dat --separator :: --no-header --column 2 --out films.safetensors\n\n"
    "  mgqe ids lists.txt --field item --format lines --out items.safetensors\n\n"
    "  mgqe ids 'sessions/*.parquet' --column clicked --column bought --ignore 0 --memory 1000 --out items.safetensors",
)
@clean_errors
def ids(
    log: Annotated[list[str], typer.Argument(help="Files, folders of files, or a pattern in quotes.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that holds ids, its number without a header; repeatable, for one numbering of several."
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="Instead of --column: item or user, of a log in any layout that mgqe train reads, which is then read "
            "into memory."
        ),
    ] = None,
    format: Format = None,
    min_count: Annotated[int, typer.Option(help="Leave out ids that occur less often.")] = 1,
    max_ids: Annotated[int | None, typer.Option(help="Keep at most so many, the most frequent.")] = None,
    kind: Annotated[
        str | None, typer.Option(help=f"What the ids are: {', '.join(KINDS)}. Default: as the column has them.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="An id not to count, such as padding; repeatable.")] = None,
    memory: Annotated[
        int, typer.Option(help="MiB for counting. If the different ids do not fit, the log is read several times.")
    ] = 4096,
    keep_ids: Annotated[bool, typer.Option(help="Keep the strings, or 64-bit hashes of them alone.")] = True,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    if memory < 1:
        raise ValueError(f"--memory: expected a whole number of MiB, 1 or more, got {memory}")
    if (column is None) == (field is None):
        raise ValueError("which ids? Give --column NAME, or --field item (or user) for a log as mgqe train reads it")
    if format is not None and field is None:
        raise ValueError(f"--format {format} goes with --field; --column reads Parquet and text with columns")
    check_file(out)  # before the work, which may take long
    marks = "" if no_quote else quote
    source: Any = log if field is None else read_ids(log, field, format, separator, marks, header)
    names = [field] if field is not None else column or []
    layout: dict[str, Any] = {"separator": separator or ",", "quote": marks, "header": header}
    try:
        with make_progress() as progress:
            task = progress.add_task("counting", total=1, detail="")
            id_map = IdMap.from_log(
                source,
                names,
                min_count=min_count,
                max_ids=max_ids,
                memory_limit=memory * MIB,
                kind=kind,
                ignore=[text if kind == "string" else as_id(text) for text in ignore or ()],
                keep_ids=keep_ids,
                **(layout if field is None else {}),
                on_pass=lambda done, of: progress.update(task, completed=done, total=of, detail="passes over the log"),
            )
    except (KeyError, TypeError) as error:  # no such column, ids of another type
        raise ValueError(error.args[0]) from error
    nbytes = id_map.save(out)
    table, facts = map_figures(id_map, nbytes)
    if as_json:
        print(json.dumps({"out": str(out), "columns": names, **facts}, indent=1))
        return
    output.print(f"{', '.join(names)}: {id_map.kind} ids", highlight=False, markup=False)
    output.print(table.terminal(output.width))
    output.print(f"written to {out}", soft_wrap=True, highlight=False)


def as_id(text: str) -> int | str:
    """What --ignore says: a number if it looks like one."""
    try:
        return int(text)
    except ValueError:
        return text
