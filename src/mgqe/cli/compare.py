"""The command compare: a small study of one task and data set, declared by its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mgqe.cli.experiments import check_jobs, seeds_of, train_with_bars
from mgqe.cli.options import PREFER_HELP, PREFER_TAIL_HELP
from mgqe.cli.run_options import BUDGET_HELP, DEFAULT_BUDGET, EMBEDDINGS, Overwrite, takes_config, with_budget
from mgqe.cli.terminal import AsJson, clean_errors, output, say
from mgqe.files.destination import check_folder
from mgqe.recsys.models.methods import import_methods
from mgqe.recsys.study.analysis import StudyResults
from mgqe.recsys.study.comparison import PAIR, Comparison
from mgqe.recsys.study.execute import Run, check_folders
from mgqe.recsys.study.pictures import comparison_picture
from mgqe.recsys.study.records import read_results
from mgqe.recsys.study.runs import RESULTS, check_pending, pending_runs
from mgqe.recsys.study.tables import comparison_table, head_and_tail_table, more_figures_table
from mgqe.recsys.train.advice import advice
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import METRICS

PICTURE = "size_quality.png"
commands = typer.Typer()


@commands.command(
    help="Train several embeddings with several seeds; show quality against counted bytes.\n\n"
    "Writes OUT/results.jsonl, one line per run as mgqe study does, OUT/size_quality.png, and a folder for each run "
    "in OUT/runs. Embeddings that compress a full table share its training, once per seed. Finished runs are kept "
    "and shown: name another embedding or seed and only that is trained. An embedding may have settings of its own: "
    "full:d=16@weight_decay=0.\n\n"
    f"[bold]Embeddings[/bold] (--embedding NAME or NAME:key=value,key=value, repeatable)\n\n{EMBEDDINGS}",
    epilog="Examples:\n\n"
    "  mgqe compare --budget 5% --budget 2% --out study\n\n"
    "  mgqe compare --embedding full --embedding full:d=16 --embedding mgqe --out study\n\n"
    "  mgqe compare --data ml-1m --data-dir DATA --embedding full --embedding mgqe:D=32,K=64/16 "
    "--embedding dpq:D=32,K=64 --seeds 1,2,3 --jobs 2 --out study",
)
@clean_errors
@takes_config
def compare(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    config: TrainConfig,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{BUDGET_HELP} Repeatable: MGQE and DPQ (one tier) within each. [default: {DEFAULT_BUDGET}]"
        ),
    ] = None,
    prefer: Annotated[
        str | None, typer.Option(help=f"{PREFER_HELP} Of the embeddings of --budget. [default: speed]")
    ] = None,
    prefer_tail: Annotated[
        bool, typer.Option("--prefer-tail", help=f"{PREFER_TAIL_HELP} Of MGQE within --budget.")
    ] = False,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            help="An embedding, see above, instead of those of --budget or with them; K is cut to what a small table "
            "can use. Default: full, full:d=16, and those of --budget."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "1,2,3",
    jobs: Annotated[int, typer.Option(help="Runs at the same time, each in its own process.")] = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    embeddings = _embeddings(embedding, budget, prefer, prefer_tail)
    import_methods(embeddings)
    study = Comparison.of(config, embeddings, seeds_of(seeds))
    check_jobs(jobs)
    check_folder(out)
    check_folders([run for _, run in study.runs()], out, overwrite)

    def repeat(run: Run) -> bool:  # a run is done when it has its record and its files
        return overwrite or not (out / run.folder / METRICS).is_file()

    runs = pending_runs(study, out, retry=True, repeat=repeat)
    for note in check_pending(runs):
        say(note)
    new = train_with_bars(runs, out, jobs, lambda pair, run: run.name, overwrite)
    records = read_results(out / RESULTS).records
    results = StudyResults(study.with_earlier(records), records)
    title = f"{config.data}, {config.model}: size against quality"
    if as_json:
        image = comparison_picture(results, PAIR, out / PICTURE, title) if results.groups(PAIR) else None
        print(json.dumps({"results": records, "picture": image and str(image)}, indent=1))
    elif results.groups(PAIR):
        seeds_each = [len(group.by_seed) for group in results.groups(PAIR)]
        fewest, most = min(seeds_each), max(seeds_each)
        over = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
        over += ", mean and 95% interval" if most > 1 else ""
        table = comparison_table(results, PAIR, f"{config.data}: {config.model} with {over}")
        output.print(table.terminal(output.width))
        for more in (head_and_tail_table(results, PAIR), more_figures_table(results, PAIR)):
            if more.rows:
                output.print()
                output.print(more.terminal(output.width))
        image = comparison_picture(results, PAIR, out / PICTURE, title)
        output.print(f"results {out / RESULTS}\npicture {image}", soft_wrap=True, highlight=False)
    doubted = (record for group in results.groups(PAIR) for record in group.by_seed.values() if advice(record))
    if record := next(doubted, None):  # the largest table's comes first
        for note in advice(record):
            say(f"{record['embedding']}, seed {record['seed']}: {note}")
    number = len(runs.pending) + len(runs.recorded)
    if runs.recorded and not as_json:
        output.print(f"{len(runs.recorded)} of {number} runs were finished before; --overwrite trains them again")
    if failed := [record for record in new if record["status"] == "failed"]:
        listed = "; ".join(f"{record['embedding']}, seed {record['seed']}: {record['reason']}" for record in failed)
        raise ValueError(f"{len(failed)} of {number} runs failed: {listed}")


def _embeddings(
    embeddings: list[str] | None, budgets: list[str] | None, prefer: str | None = None, prefer_tail: bool = False
) -> list[str]:
    """The embeddings of the options --embedding, --budget, --prefer and --prefer-tail."""
    if embeddings is None:
        embeddings, budgets = ["full", "full:d=16"], budgets or [DEFAULT_BUDGET]
    if prefer is not None and not budgets:
        raise ValueError(
            f"--prefer {prefer} says how --budget is spent: give --budget, or write prefer={prefer} into --embedding"
        )
    if prefer_tail and not budgets:
        raise ValueError(
            "--prefer-tail says how --budget is spent: give --budget, or write prefer_tail=true into --embedding"
        )
    one_tier = [(name, prefer_tail and name == "mgqe") for name in ("mgqe", "dpq")]  # DPQ knows no rare ids
    return embeddings + [with_budget(name, budget, prefer, tail) for budget in budgets or () for name, tail in one_tier]
