"""Options that several commands have: how text files are laid out, and where known data sets lie."""

from __future__ import annotations

from typing import Annotated

import typer

_PANEL = "Data"
UNUSUAL = "if it has no usual name; its number without a header."
Format = Annotated[
    str | None,
    typer.Option(
        help="Layout of your file: csv, parquet, inter, pairs, lines. By default it is recognised. pairs: `user item` "
        "rows in time order; lines: `user item item ...`.",
        rich_help_panel=_PANEL,
    ),
]
UserColumn = Annotated[str | None, typer.Option(help=f"Column with the user, {UNUSUAL}", rich_help_panel=_PANEL)]
ItemColumn = Annotated[str | None, typer.Option(help=f"Column with the item, {UNUSUAL}", rich_help_panel=_PANEL)]
Separator = Annotated[
    str | None,
    typer.Option(
        help="What separates the fields of text files: one character or several, such as :: or \\t (a tab).",
        rich_help_panel=_PANEL,
    ),
]
Quote = Annotated[
    str, typer.Option(help="What quotes fields of text files that hold separators.", rich_help_panel=_PANEL)
]
NoQuote = Annotated[
    bool,
    typer.Option("--no-quote", help="Nothing quotes fields: quotes are text like any other.", rich_help_panel=_PANEL),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether text files begin with the columns' names. Without a header, columns are named by their numbers, "
        "from 1. By default there is one, and a first line that looks like data is an error.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        envvar="MGQE_DATA_DIR",
        help="Folder that holds a folder for each known data set, such as DIR/ml-1m.",
        rich_help_panel=_PANEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Where training steps are made: cpu, cuda, cuda:1, or auto, the GPU where there is one. Judging, "
        "planning and freezing are on the CPU.",
        rich_help_panel="Training",
    ),
]
PREFER_TAIL_HELP = (
    "Let every id count alike in the plan, however rare: rare ids keep more, and frequent ones less. By default an id "
    "weighs a power of its count. What the plan is expected to lose of frequent ids (head) and of the others (tail) is "
    "printed."
)
PREFER_HELP = (
    "speed or size: of the shapes that lose about as little the one that looks up fastest, or the one that loses least."
)
