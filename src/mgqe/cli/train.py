"""The commands: train, compare, inspect."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mgqe.cli.log_options import Header, NoQuote, Quote, Separator
from mgqe.cli.terminal import RunBar, RunBars, clean_errors, errors, make_progress, output
from mgqe.recsys.data.files import FORMATS
from mgqe.recsys.models.embeddings import METHODS
from mgqe.recsys.models.registry import MODELS, choose_model
from mgqe.recsys.train.checkpoint import check_folder
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import METRICS
from mgqe.recsys.train.tuned import tuned_settings

_EMBEDDINGS = "\n\n".join(f"  [bold]{name}[/bold]: {method.summary}" for name, method in METHODS.items())

app = typer.Typer(
    name="mgqe",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Compact embeddings for recommenders: train, compare and look into small tables.\n\n"
    "Start with [bold]mgqe train --out run[/bold], which needs no data of yours.",
)
Data = Annotated[
    str | None,
    typer.Option(
        show_default="planted",
        help="[bold]planted[/bold] (made on the spot), ml-1m, ml-1m-ncf, ml-100k, amazon-apps, amazon-games, frappe "
        "(files in --data-dir), or the path of your own file, of a folder of files, or a pattern in quotes.",
        rich_help_panel="Data",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        envvar="MGQE_DATA_DIR",
        help="Folder that holds a folder for each known data set, such as DIR/ml-1m.",
        rich_help_panel="Data",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help=f"Layout of your file: {', '.join(FORMATS)}. By default it is recognised. pairs: `user item` rows in "
        "time order; lines: `user item item ...`.",
        rich_help_panel="Data",
    ),
]
_UNUSUAL = "if it has no usual name; without a header, its number from 1"
UserColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with the user, if it has no usual name; its number without a header.", rich_help_panel="Data"
    ),
]
ItemColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with the item, if it has no usual name; its number without a header.", rich_help_panel="Data"
    ),
]
TimeColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with the time, if it has no usual name; its number without a header.", rich_help_panel="Data"
    ),
]
SplitBy = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="How the data are divided: leave-one-out; ratio:80/10/10 of each user's items, in order; time:20% (the "
        "last of the time), time:2015-06-01 (from then on), or validation and test as in time:10%/20%; latest:20% of "
        "the interactions. Default: leave-one-out. By the other rules, users and items that "
        "are not in the training part are left out and counted.",
        rich_help_panel="Data",
    ),
]
TrainFile = Annotated[
    str | None,
    typer.Option("--train", help="A file to train on, instead of --data; with --test.", rich_help_panel="Data"),
]
ValidFile = Annotated[
    str | None,
    typer.Option(
        "--valid",
        help="A file to validate on. Default: the last training item of each user with two or more.",
        rich_help_panel="Data",
    ),
]
TestFile = Annotated[
    str | None, typer.Option("--test", help="A file to test on; with --train.", rich_help_panel="Data")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting, repeatable: "
        + ", ".join(
            f"{field.name}={field.default}"
            for field in fields(TrainConfig)
            if field.name
            in (
                "dim", "batch_size", "learning_rate", "weight_decay", "dropout", "init_std", "negatives", "max_epochs",
                "patience", "warm_up_epochs", "anneal_epochs", "anneal_learning_rate", "quantised_epochs",
                "quantised_learning_rate", "centroid_learning_rate", "eval_negatives", "eval_users",
                "max_length", "num_blocks", "num_heads", "loss", "windows", "mlp_layers",
                "context_columns",
            )
        )
        + ".",
        rich_help_panel="Training",
    ),
]  # fmt: skip
Threads = Annotated[int, typer.Option(help="Threads for torch, a run.", rich_help_panel="Training")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start afresh where --out holds a run already.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help=f"What to learn: {', '.join(dict.fromkeys(info.task for info in MODELS.values()))}. By default what "
        "--model is for, or ranking.",
        rich_help_panel="Training",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"The model: {', '.join(MODELS)}. By default the task's first.",
        rich_help_panel="Training",
    ),
]


@app.command(
    help="Train a recommender on compact embeddings and write small files that serve.\n\n"
    "Writes OUT/user.mgqe.safetensors and OUT/item.mgqe.safetensors (the tables), OUT/user_ids.parquet and "
    "OUT/item_ids.parquet (your ids, row by row), OUT/model.safetensors and OUT/metrics.json. The figures are of "
    "the files, loaded again. Interrupted, the same command goes on where it stopped.\n\n"
    f"[bold]Embeddings[/bold] (--embedding NAME or NAME:key=value,key=value)\n\n{_EMBEDDINGS}",
    epilog="Examples:\n\n"
    "  mgqe train --out run\n\n"
    "  mgqe train --data ml-1m --data-dir DATA --embedding mgqe:D=32,K=64/16 --seed 7 --out run\n\n"
    "  mgqe train --data clicks.csv --user-column visitor --item-column page --out run\n\n"
    "  mgqe train --data ratings.txt --format pairs --embedding full:d=16 --out small\n\n"
    "  mgqe train --data ratings.dat --separator :: --no-header --user-column 1 --item-column 2 --time-column 4 "
    "--out run\n\n"
    "  mgqe train --data clicks.csv --split time:10%/10% --out later\n\n"
    "  mgqe train --train may.csv --valid june.csv --test july.csv --out months",
)
@clean_errors
def train(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    data: Data = None,
    data_dir: DataDir = None,
    format: Format = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    embedding: Annotated[
        str, typer.Option(help="What the tables are, see above; K is cut to what a small table can use.")
    ] = "mgqe",
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 7,
    task: TaskName = None,
    model: ModelName = None,
    split: SplitBy = None,
    train: TrainFile = None,
    valid: ValidFile = None,
    test: TestFile = None,
    threads: Threads = 1,
    setting: Set = None,
    overwrite: Overwrite = False,
) -> None:
    from mgqe.recsys.train.run import train_run

    task, model = choose_model(task, model)
    data = _data_of(data, train, test)
    config = TrainConfig(
        data=data,
        data_dir=data_dir,
        format=format,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        separator=separator,
        quote="" if no_quote else quote,
        header=header,
        task=task,
        model=model,
        split=split,
        valid=valid,
        test=test,
        embedding=embedding,
        seed=seed,
        threads=threads,
    )
    config = config.with_settings([*tuned_settings(model, data), *(setting or ())])
    done_before = (out / METRICS).is_file() and not overwrite
    with make_progress() as progress:
        bar = RunBar(progress, str(config.spec))
        metrics = train_run(config, out, overwrite, on_epoch=bar.show, on_note=say)
    if done_before:
        output.print(f"{out} holds this run already; --overwrite trains it again")
    output.print(_figures(metrics, out))


@app.command(
    help="Train several embeddings with several seeds; show quality against counted bytes.\n\n"
    "Writes OUT/results.json and OUT/size_quality.png besides a folder a run (OUT/runs). Embeddings that compress "
    "a full table share one training of it a seed. Finished runs are kept: add an embedding or a seed and only "
    "that is trained. An embedding may have settings of its own: full:d=16@weight_decay=0.\n\n"
    f"[bold]Embeddings[/bold] (--embedding NAME or NAME:key=value,key=value, repeatable)\n\n{_EMBEDDINGS}",
    epilog="Examples:\n\n"
    "  mgqe compare --embedding full --embedding full:d=16 --embedding mgqe --out study\n\n"
    "  mgqe compare --data ml-1m --data-dir DATA --embedding full --embedding mgqe:D=32,K=64/16 "
    "--embedding dpq:D=32,K=64 --seeds 1,2,3 --jobs 2 --out study",
)
@clean_errors
def compare(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            help="An embedding, see above; K is cut to what a small table can use. Default: full, full:d=16, mgqe."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, joined by commas.")] = "1,2,3",
    data: Data = None,
    data_dir: DataDir = None,
    format: Format = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    task: TaskName = None,
    model: ModelName = None,
    split: SplitBy = None,
    train: TrainFile = None,
    valid: ValidFile = None,
    test: TestFile = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, each in its own process.")] = 1,
    threads: Threads = 1,
    setting: Set = None,
    overwrite: Overwrite = False,
) -> None:
    from mgqe.recsys.study.compare import RESULTS, Comparison, Event, check_places, check_study, is_finished, run_study
    from mgqe.recsys.study.summary import picture, summarise, terminal_table

    task, model = choose_model(task, model)
    data = _data_of(data, train, test)
    base = TrainConfig(
        data=data,
        data_dir=data_dir,
        format=format,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        separator=separator,
        quote="" if no_quote else quote,
        header=header,
        task=task,
        model=model,
        split=split,
        valid=valid,
        test=test,
        threads=threads,
    ).with_settings([*tuned_settings(model, data), *(setting or ())])
    study = Comparison(base, tuple(embedding or ("full", "full:d=16", "mgqe")), seeds_of(seeds), out)
    check_jobs(jobs)
    check_folder(out)
    check_places(study, overwrite)
    for note in check_study(study):
        say(note)
    failures: list[Event] = []
    kept = [] if overwrite else [run for run in study.runs() if is_finished(study, run)]
    with make_progress() as progress:
        total = progress.add_task("all runs", total=len(study.runs()), detail="")
        bars = RunBars(progress, lambda run: run.name)

        def show(event: Event) -> None:
            if not bars.show(event):
                return
            if event.error is not None:
                failures.append(event)
            progress.advance(total)

        metrics = run_study(study, jobs, overwrite, show)
    if metrics:
        rows = summarise(metrics)
        output.print(terminal_table(rows, f"{data}: {model} with {_seeds(len(study.seeds))}"))
        image = picture(rows, out / "size_quality.png", f"{data}, {model}: size against quality")
        output.print(f"results {out / RESULTS}\npicture {image}", soft_wrap=True, highlight=False)
    if kept:
        output.print(f"{len(kept)} of {len(study.runs())} runs were finished before; --overwrite trains them again")
    if failures:
        listed = "; ".join(f"{event.run.name}: {event.error}" for event in failures)
        raise ValueError(f"{len(failures)} of {len(study.runs())} runs failed: {listed}")


@app.command(
    help="Look into a table's file: bytes by part, tiers, bits a code, how much of the codebook is in use.",
    epilog="Example:\n\n  mgqe inspect run/item.mgqe.safetensors",
)
@clean_errors
def inspect(file: Annotated[Path, typer.Argument(help="A file that mgqe.save wrote, or a folder of shards.")]) -> None:
    import mgqe
    from mgqe.table.segment_files import all_records, all_segment_files
    from mgqe.table.sharded import INDEX, files_of

    whole = file.is_dir()
    if whole and not (file / INDEX).exists() and (tables := sorted(file.glob("*.mgqe.safetensors"))):
        raise ValueError(f"{file} is the folder of a run: name one of its tables, such as {tables[0]}")
    table = mgqe.load(file)
    appended = [] if whole else all_segment_files(file.resolve())
    files = files_of(file) if whole else [file, *appended, *all_records(file.resolve())]
    on_disk = sum(path.stat().st_size for path in files)
    full = 4 * table.num_embeddings * table.embedding_dim
    output.print(
        f"{file}: {type(table).__name__}, {table.num_embeddings:,} ids x {table.embedding_dim} dimensions",
        highlight=False,
        soft_wrap=True,
    )
    if appended:
        output.print(
            f"with ids appended in {len(appended)} file{'s'[: len(appended) > 1]} beside it; saving the loaded table "
            "over the file makes one of all",
            highlight=False,
            soft_wrap=True,
        )
    parts = Table("part", title="Bytes", title_justify="left")
    parts.add_column("bytes", justify="right")
    parts.add_column("of float32", justify="right")
    held = table.nbytes_by_part()
    for name, size in {**held, "header": on_disk - sum(held.values()), "file": on_disk}.items():
        parts.add_row(name, f"{size:,}", f"{100 * size / full:.2f}%" if full else "")
    output.print(parts)
    if isinstance(table, mgqe.CompactTable):
        tiers = Table("tier", title="Tiers, most frequent first", title_justify="left")
        for name in ("ids", "subspaces", "centroids", "bits a code", "bytes an id", "in use", "perplexity"):
            tiers.add_column(name, justify="right")
        for stats in table.codebook_stats():
            bits = table.config.bits[stats.tier]
            tiers.add_row(
                str(stats.tier),
                f"{stats.num_ids:,}",
                str(stats.num_subspaces),
                str(stats.num_centroids),
                str(bits),
                str(-(-stats.num_subspaces * bits // 8)),
                f"{stats.used:.1f} = {100 * stats.usage:.0f}%",
                f"{stats.perplexity:.1f}",
            )
        output.print(tiers)


def _figures(metrics: dict[str, Any], out: Path) -> Table:
    quality, size, full = metrics["quality"], metrics["embedding_bytes"], metrics["full_embedding_bytes"]
    table = Table(title=f"{metrics['data']}: {metrics['embedding']}", title_justify="left", show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    sampled = metrics["config"]["negatives" if metrics["metric"] == "auc" else "eval_negatives"]
    recall = "recall@10" in quality  # of splits that give users several test items
    ranked, figures = ("HR@10, NDCG@10" + ", recall@10" * recall, ("hr@10", "ndcg@10", "recall@10")[: 2 + recall])
    shown: dict[str, dict[str, tuple[str, ...]]] = {
        "auc": {
            f"AUC, log loss ({sampled} sampled negatives a positive)": ("auc", "logloss"),
            "AUC of frequent items, of the others": ("head_auc", "tail_auc"),
            "calibration error, mean predicted / mean observed": ("ece", "calibration"),
        },
        "hr@10": {
            f"{ranked} ({sampled} sampled negatives)": figures,
            f"{ranked} (full catalogue)": tuple(f"full_{name}" for name in figures),
        },
    }
    for what, names in shown[metrics["metric"]].items():
        table.add_row(what, "  ".join(f"{quality[name]:.4f}" for name in names))
    for row in _split_rows(metrics.get("split", {})):
        table.add_row(*row)
    table.add_row("bytes of the tables' files", f"{size:,} = {100 * size / full:.1f}% of {full:,}")
    for phase, seconds in metrics["seconds_per_epoch"].items():
        if seconds is not None:
            table.add_row(f"seconds an epoch ({phase})", f"{seconds:.2f}, {metrics['epochs'][phase]} epochs")
    table.add_row("written to", str(out))
    return table


def say(note: str) -> None:
    """A word before the work begins, on standard error."""
    errors.print(f"mgqe: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def check_jobs(jobs: int) -> None:
    """ValueError for fewer than one run at a time."""
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {jobs}")


def _data_of(data: str | None, train: str | None, test: str | None) -> str:
    """What --data or --train names."""
    if train is None:
        return "planted" if data is None else data
    if data is not None:
        raise ValueError(f"give --data {data} or --train {train}, not both")
    if test is None:
        raise ValueError(f"--train {train} needs --test FILE; to divide one file: --data {train} --split RULE")
    return train


def _split_rows(split: dict[str, Any]) -> list[tuple[str, str]]:
    """How the data were divided, for the table of figures."""
    if not split or "interactions" not in split:
        return []
    sizes = "  ".join(f"{size:,}" for size in split["interactions"].values())
    cold = split["cold"]["test"]
    ids = ", ".join(f"{number:,} {name}" for name, number in cold.items() if name != "interactions" and number)
    rows = [(f"split {split['rule']}: train, validation, test", sizes)]
    if cold["interactions"]:
        what = "left out of" if split["cold_rule"].startswith("left out") else "in"
        rows.append((f"interactions {what} the test whose ids were never trained", f"{cold['interactions']:,}: {ids}"))
    return rows


def seeds_of(text: str) -> tuple[int, ...]:
    """What --seeds says; ValueError for anything but whole numbers joined by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds: expected whole numbers joined by commas such as 1,2,3, got {text!r}") from None


def _seeds(number: int) -> str:
    """How many seeds, and what is shown of them."""
    return "1 seed" if number == 1 else f"{number} seeds, mean and 95% interval"
