"""All commands. One whose packages are not installed says so when it is called, and the others work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer
from rich.markup import escape
from typer.models import CommandInfo

from mgqe.cli.packages import missing_packages
from mgqe.cli.terminal import errors, output

EXPERIMENTS = ("polars", "matplotlib", "torchmetrics", *(("tomli",) if sys.version_info < (3, 11) else ()))
SERVER = ("starlette", "uvicorn", "httptools", "pydantic", "orjson")
# Command -> what it needs of the packages that its extra brings.
COMMANDS: dict[str, tuple[str, ...]] = {
    "compress": (),
    "topk": (),
    "neighbours": (),
    "serve": SERVER,
    "export": (),
    "convert": (),
    "train": ("polars", "torchmetrics"),
    "compare": EXPERIMENTS,
    "study": EXPERIMENTS,
    "report": EXPERIMENTS,
    "inspect": (),
    "verify": (),
    "ids": ("polars",),
    "plan": (),
    "doctor": (),
}

EXTRAS = {"serve": "serve"}  # command -> the extra that has its packages; else recsys

# The modules of this package that have a command of another name.
MODULES = {"topk": "search", "neighbours": "search"}


def make_app() -> typer.Typer:
    """The command line with every command."""
    app = typer.Typer(
        name="mgqe",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        help="Compact embeddings for recommenders: compress, train, compare and search small tables.\n\n"
        "Start with [bold]mgqe compress items.npy --budget 5%[/bold], or with [bold]mgqe train --out run[/bold], which "
        "needs no data of yours.",
    )
    app.callback()(_options)
    for name, packages in COMMANDS.items():
        if missing := missing_packages(packages):
            takes_anything = {"ignore_unknown_options": True, "allow_extra_args": True}
            needs = f"needs {', '.join(missing)}; run: pip install 'mgqe[{EXTRAS.get(name, 'recsys')}]'"
            app.command(name, help=f"Not available: {escape(needs)}", context_settings=takes_anything)(
                _refuse(name, needs)
            )
        else:
            module = import_module(f"mgqe.cli.{MODULES.get(name, name)}")
            app.registered_commands += [each for each in module.commands.registered_commands if _name(each) == name]
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from mgqe.cli.doctor import about

        output.print(about(), highlight=False, soft_wrap=True)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What comes before the command."""


def _name(command: CommandInfo) -> str:
    return command.name or command.callback.__name__  # type: ignore[union-attr]


def _refuse(name: str, needs: str) -> Callable[[], None]:
    def command() -> None:
        errors.print(f"mgqe: {name} {needs}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)

    return command


app = make_app()
