"""The command study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgqe.cli.experiments import check_jobs, seeds_of, train_with_bars
from mgqe.cli.options import DataDir, Device
from mgqe.cli.terminal import clean_errors, output, say
from mgqe.files.atomic import fill_file
from mgqe.files.destination import check_folder
from mgqe.recsys.study.declaration import FILE, Pair, read_declaration
from mgqe.recsys.study.execute import Run
from mgqe.recsys.study.records import Record
from mgqe.recsys.study.runs import RESULTS, PendingRuns, check_pending, default_jobs, pending_runs

commands = typer.Typer()


@commands.command(
    help="Run a declared study: tasks x data x embeddings x budgets x seeds, several runs at a time.\n\n"
    "CONFIG is a TOML file; studies/budget/study.toml is one to start from. OUT/results.jsonl gets a line as each run "
    "ends: settings, seed, commit, versions, machine, bytes by part, quality on validation and test, time, memory. "
    "Runs that it has are not run again, so that a study goes on after a kill, or when more is declared. A run that "
    "fails, such as one whose budget nothing fits, is recorded with its reason, and the others go on.\n\n"
    "Then: [bold]mgqe report OUT[/bold].",
    epilog="Examples:\n\n"
    "  mgqe study studies/budget/study.toml --data-dir DATA --out mine\n\n"
    "  mgqe study studies/budget/study.toml --data-dir DATA --out mine --pair gmf-ml-1m --method MGQE --seeds 1",
)
@clean_errors
def study(
    config: Annotated[Path, typer.Argument(help="The declaration.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: the declaration's.")] = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    pair: Annotated[list[str] | None, typer.Option("--pair", help="Only this task and data set; repeatable.")] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Only this method, and full tables; repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Only these seeds, joined by commas.")] = "",
    jobs: Annotated[int, typer.Option(help="Runs at the same time. Default: as many as there are cores.")] = 0,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="List the runs to do, and do nothing.")] = False,
) -> None:
    declaration = read_declaration(config, data_dir, device)
    out = out or config.parent

    def undone(retry: bool = False) -> PendingRuns:
        return pending_runs(declaration, out, pair or (), seeds_of(seeds) if seeds else (), retry, methods=method or ())

    runs = undone(retry)
    if damaged := ", ".join(map(str, runs.results.damaged)):
        say(f"{out / RESULTS}: line {damaged} is not whole; its run is repeated")
    output.print(f"{len(runs.recorded)} runs are done, {len(runs.pending)} to do ({len(runs.failed)} failed before)")
    if runs.waiting:
        output.print(
            f"{len(runs.waiting)} are of further seeds of methods with several candidates: of these, the one that "
            f"validation prefers with {_seeds(declaration.candidate_seeds)} is run",
            soft_wrap=True,
        )
    if dry or not runs.pending:
        for pair_, run in runs.pending:
            output.print(f"  {_name(pair_, run)}", highlight=False, markup=False, soft_wrap=True)
        return
    jobs = default_jobs() if jobs == 0 else jobs
    check_jobs(jobs)
    check_folder(out)
    records: list[Record] = []
    while runs.pending:  # further seeds become pending once the first ones have ended
        for note in check_pending(runs, records_impossible=True):
            say(note)
        if config.resolve() != (out / FILE).resolve():
            fill_file(out / FILE, lambda file: file.write(config.read_bytes()))
        records += train_with_bars(runs, out, jobs, _name)
        runs = undone()
    failed = sum(record["status"] == "failed" for record in records)
    output.print(f"{len(records) - failed} runs done, {failed} failed; {out / RESULTS}", soft_wrap=True)
    output.print(f"now: mgqe report {out}", soft_wrap=True)


def _seeds(number: int | None) -> str:
    return "the first seed" if number == 1 else f"the first {number} seeds"


def _name(pair: Pair, run: Run) -> str:
    return f"{pair.name}: {run.name}"
