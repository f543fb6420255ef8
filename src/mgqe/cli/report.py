"""The command report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mgqe.cli.terminal import AsJson, clean_errors, output, say
from mgqe.files.destination import check_folder
from mgqe.recsys.study.analysis import StudyResults
from mgqe.recsys.study.declaration import FILE, read_declaration
from mgqe.recsys.study.pictures import all_pictures
from mgqe.recsys.study.records import read_results
from mgqe.recsys.study.runs import RESULTS
from mgqe.recsys.study.speed import SPEED, read_speeds
from mgqe.recsys.study.tables import all_tables
from mgqe.recsys.study.text_table import fill

commands = typer.Typer()


@commands.command(
    help="Tables and pictures of a study, from its declaration (OUT/study.toml) and OUT/results.jsonl.\n\n"
    "Of a method's candidates within a budget the one that is best on validation is reported, on test: by NDCG@10 over "
    "the whole catalogue, or by the AUC. Differences are paired by seed, with 95% intervals. Times of look-ups and "
    "searches stand beside bytes where OUT/speed.json has them.",
    epilog="Examples:\n\n"
    "  mgqe report mine\n\n"
    "  mgqe report studies/paper --pictures docs/pictures --into docs/results.md",
)
@clean_errors
def report(
    out: Annotated[Path, typer.Argument(help="A study's folder.")],
    pictures: Annotated[Path | None, typer.Option(help="Folder for the pictures. Default: OUT/pictures.")] = None,
    into: Annotated[
        list[Path] | None,
        typer.Option(help="Put the tables between <!-- NAME --> and <!-- /NAME --> of this text file; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    for path in into or ():
        if not path.is_file():
            raise ValueError(f"--into: there is no file {path}")
    check_folder(pictures or out / "pictures", "--pictures")
    if (out / RESULTS).is_file() and not (out / FILE).is_file():
        raise ValueError(
            f"{out} is of mgqe compare, which shows its results when it is called again with the same arguments: "
            f"expected the folder of mgqe study, with a {FILE}"
        )
    declaration = read_declaration(out / FILE)
    records = read_results(out / RESULTS).records
    if not records:
        raise ValueError(f"{out / RESULTS} has no results: run mgqe study {out / FILE} --out {out}")
    results = StudyResults(declaration, records, read_speeds(out / SPEED))
    every = all_tables(results)
    tables = {name: table for name, table in every.items() if table.rows}
    drawn = all_pictures(results, pictures or out / "pictures")
    blocks = {name: table.markdown() if table.rows else "" for name, table in every.items()}  # no old ones stay
    missing = {path: tables.keys() & fill(path, blocks) for path in into or ()}
    if as_json:
        shown = {name: asdict(table) for name, table in tables.items()}
        print(json.dumps({"tables": shown, "pictures": [str(path) for path in drawn]}, indent=1))
        return
    for name, table in tables.items():
        parts = table.parts(output.width)
        for number, part in enumerate(parts, 1):
            output.print(part.terminal(output.width))
            output.print(f"({name}{f', {number} of {len(parts)}' if len(parts) > 1 else ''})\n", style="dim")
    if "doubted" in tables:
        say("some full tables may be weak, so that what is level with them proves nothing: see the table `doubted`")
    for path in drawn:
        output.print(f"picture {path}", soft_wrap=True, highlight=False)
    for path, lacking in missing.items():
        output.print(f"{path}: {len(tables) - len(lacking)} tables written", soft_wrap=True, highlight=False)
