"""The commands of a whole study: study, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import TaskID

from mgqe.cli.terminal import RunBars, clean_errors, errors, make_progress, output
from mgqe.cli.train import DataDir, app, check_jobs, say, seeds_of
from mgqe.files.atomic import fill_file
from mgqe.recsys.study.compare import Event
from mgqe.recsys.study.declaration import read_grid
from mgqe.recsys.study.records import read_results
from mgqe.recsys.study.runs import RESULTS, Pace, check_plan, default_jobs, plan_runs, run_grid
from mgqe.recsys.train.checkpoint import check_folder

GRID = "study.toml"

Chosen = Annotated[list[str] | None, typer.Option("--pair", help="Only this task and data set; repeatable.")]


@app.command(
    help="Run a declared study: tasks x data x embeddings x budgets x seeds, several runs at a time.\n\n"
    "CONFIG is a TOML file; studies/paper/study.toml is one to start from. OUT/results.jsonl gets a line as each run "
    "ends: settings, seed, commit, versions, machine, bytes by part, quality on validation and test, time, memory. "
    "What is there is not run again, so that a study goes on after a kill, or after more was declared. A run that "
    "fails is recorded with its reason and the others go on.\n\n"
    "Then: [bold]mgqe report OUT[/bold].",
    epilog="Examples:\n\n"
    "  mgqe study studies/paper/study.toml --data-dir DATA --out mine\n\n"
    "  mgqe study studies/paper/study.toml --data-dir DATA --out mine --pair gmf-ml-1m --seeds 1",
)
@clean_errors
def study(
    config: Annotated[Path, typer.Argument(help="The declaration.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: the declaration's.")] = None,
    data_dir: DataDir = None,
    pair: Chosen = None,
    seeds: Annotated[str, typer.Option(help="Only these seeds, joined by commas.")] = "",
    jobs: Annotated[int, typer.Option(help="Runs at the same time. Default: as many as there are cores.")] = 0,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Say what there is to do, and do nothing.")] = False,
) -> None:
    grid = read_grid(config, data_dir)
    out = out or config.parent
    plan = plan_runs(grid, out, pair or (), seeds_of(seeds) if seeds else (), retry)
    if plan.results.damaged:
        listed = ", ".join(map(str, plan.results.damaged))
        errors.print(f"mgqe: {out / RESULTS}: line {listed} is not whole; its run is made again", style="yellow")
    output.print(f"{len(plan.kept)} runs are there, {len(plan.todo)} to do ({len(plan.failed)} failed before)")
    if dry or not plan.todo:
        for pair_, run in plan.todo:
            output.print(f"  {pair_.name}: {run.name}", highlight=False, markup=False)
        return
    jobs = default_jobs() if jobs == 0 else jobs
    check_jobs(jobs)
    check_folder(out)
    for note in check_plan(plan):
        say(note)
    out.mkdir(parents=True, exist_ok=True)
    if config.resolve() != (out / GRID).resolve():
        fill_file(out / GRID, lambda file: file.write(config.read_bytes()))
    pace = Pace(plan.todo, jobs)
    pace.learn(plan.results.records, grid.pairs)
    pair_of = {run.folder: pair for pair, run in plan.todo}
    with make_progress() as progress:
        total: TaskID = progress.add_task("all runs", total=len(plan.todo), detail=_left(pace))

        bars = RunBars(progress, lambda run: f"{pair_of[run.folder].name}: {run.name}")

        def show(event: Event) -> None:
            if not bars.show(event):
                return
            pace.end(event, pair_of[event.run.folder])
            if event.error is not None:
                progress.print(f"{bars.name(event.run)} failed: {event.error}")
            progress.update(total, advance=1, detail=_left(pace))

        records = run_grid(plan, out, jobs, show)
    failed = [record for record in records if record["status"] == "failed"]
    output.print(f"{len(records) - len(failed)} runs done, {len(failed)} failed; {out / RESULTS}", soft_wrap=True)
    output.print(f"now: mgqe report {out}", soft_wrap=True)


@app.command(
    help="Tables and pictures of a study, from its declaration (OUT/study.toml) and OUT/results.jsonl.\n\n"
    "Of a method's candidates within a budget the one that is best on validation is reported, on test. Differences "
    "are paired by seed, with 95% intervals.",
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
) -> None:
    from mgqe.recsys.study.analysis import StudyResults
    from mgqe.recsys.study.pictures import all_pictures
    from mgqe.recsys.study.tables import all_tables
    from mgqe.recsys.study.text_table import fill

    for path in into or ():
        if not path.is_file():
            raise ValueError(f"--into: there is no file {path}")
    check_folder(pictures or out / "pictures", "--pictures")
    grid = read_grid(out / GRID)
    found = read_results(out / RESULTS)
    if not found.records:
        raise ValueError(f"{out / RESULTS} has no results: run mgqe study {out / GRID} --out {out}")
    asked = StudyResults(grid, found.records)
    tables = all_tables(asked)
    wide = Console(width=max(output.width, 170), soft_wrap=True)  # a table that is cut helps nobody
    for name, table in tables.items():
        wide.print(table.terminal())
        wide.print(f"({name})\n", style="dim")
    for path in all_pictures(asked, pictures or out / "pictures"):
        output.print(f"picture {path}", soft_wrap=True, highlight=False)
    for path in into or ():
        missing = fill(path, {name: table.markdown() for name, table in tables.items()})
        output.print(f"{path}: {len(tables) - len(missing)} tables put in", soft_wrap=True, highlight=False)


def _left(pace: Pace) -> str:
    seconds = pace.left()
    if seconds is None:
        return ""
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
