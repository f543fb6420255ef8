"""Options of `mgqe train` and `mgqe compare`: the data, the model and the settings of every run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from mgqe.cli.options import UNUSUAL, DataDir, Device, Format, Header, ItemColumn, NoQuote, Quote, Separator, UserColumn
from mgqe.codec.planning.budget import check_budget
from mgqe.codec.planning.shapes import check_preference
from mgqe.recsys.models.methods import METHODS
from mgqe.recsys.models.registry import MODELS, choose_model
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.tuned import tuned_settings

EMBEDDINGS = "\n\n".join(f"  [bold]{name}[/bold]: {method.summary}" for name, method in METHODS.items())
_DATA, _TRAINING = "Data", "Training"
# Settings that are options of their own, and so not among those of --set.
_OPTIONS = (
    "data", "data_dir", "format", "user_column", "session_column", "item_column", "repeats", "time_column", "separator",
    "quote", "header", "split", "valid", "test", "task", "model", "embedding", "seed", "label", "threads", "device",
    "metrics", "select_by", "min_count", "k_core",
)  # fmt: skip

Data = Annotated[
    str | None,
    typer.Option(
        show_default="planted",
        help="[bold]planted[/bold] (generated), ml-1m, ml-1m-ncf, ml-1m-split, ml-100k, amazon-apps, amazon-games, "
        "beauty-split, frappe, criteo, avazu (files in --data-dir), criteo-like (generated), or the path of your own "
        "file, of a folder of files, or a pattern in quotes.",
        rich_help_panel=_DATA,
    ),
]
SessionColumn = Annotated[
    str | None,
    typer.Option(
        help="For sequential models: column with the session, instead of the user. An item that comes again in a "
        "session stays there, and the last item of each is judged, whatever came before it.",
        rich_help_panel=_DATA,
    ),
]
Repeats = Annotated[
    str | None,
    typer.Option(
        help="keep or drop an item that comes again; keep is for sequential models. Default: keep it in sessions; of "
        "users only the first time counts.",
        rich_help_panel=_DATA,
    ),
]
TimeColumn = Annotated[str | None, typer.Option(help=f"Column with the time, {UNUSUAL}", rich_help_panel=_DATA)]
SplitBy = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="How the data are divided: leave-one-out (the last item of each user is for the test); random (any "
        "item is); ratio:80/10/10 of each user's items, in order; time:20% (the "
        "last of the time), time:2015-06-01 (from then on), or validation and test as in time:10%/20%; latest:20% of "
        "the interactions. Default: leave-one-out, or random where a "
        "file has no times. By the other rules, users and items that "
        "are not in the training part are left out and counted.",
        rich_help_panel=_DATA,
    ),
]
KCore = Annotated[
    int,
    typer.Option(
        "--k-core",
        help="Leave out users and items with fewer interactions than this, counted anew until none has, before the "
        "split.",
        rich_help_panel=_DATA,
    ),
]
MinCount = Annotated[
    int | None,
    typer.Option(
        "--min-count",
        help="Leave out items with fewer interactions than this, first. In logs of clicks, values of a field that "
        "occur less often share one row.",
        rich_help_panel=_DATA,
    ),
]
TrainFile = Annotated[
    str | None,
    typer.Option("--train", help="A file to train on, instead of --data; with --test.", rich_help_panel=_DATA),
]
ValidFile = Annotated[
    str | None,
    typer.Option(
        "--valid",
        help="A file to validate on. Default: the last training item of each user with two or more, a random one where "
        "files have no times.",
        rich_help_panel=_DATA,
    ),
]
TestFile = Annotated[str | None, typer.Option("--test", help="A file to test on; with --train.", rich_help_panel=_DATA)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting, repeatable: "
        + ", ".join(f"{field.name}={field.default}" for field in fields(TrainConfig) if field.name not in _OPTIONS)
        + ".",
        rich_help_panel=_TRAINING,
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        help="More figures of the whole catalogue, joined by commas: hr, ndcg, recall or mrr at any depth, as in "
        "recall@20,mrr@10. --set eval_negatives=0 leaves out those among sampled items.",
        rich_help_panel=_TRAINING,
    ),
]
SelectBy = Annotated[
    str,
    typer.Option(
        help="The figure of the whole catalogue by which the best epoch is chosen on validation.",
        rich_help_panel=_TRAINING,
    ),
]
Threads = Annotated[int, typer.Option(help="Threads for torch, per run.", rich_help_panel=_TRAINING)]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help=f"What to learn: {', '.join(dict.fromkeys(info.task for info in MODELS.values()))}. By default what "
        "--model is for, or ranking.",
        rich_help_panel=_TRAINING,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", help=f"The model: {', '.join(MODELS)}. By default the task's first.", rich_help_panel=_TRAINING
    ),
]
BUDGET_HELP = (
    "What the files of all tables may take: 5% of the full tables, or bytes such as 200000. Tiers, axes, bits and "
    "centroids are chosen so that the model loses least."
)
DEFAULT_BUDGET = "10%"
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Train again what --out holds already, from the beginning.")
]


def config_of(
    data: Data = None,
    data_dir: DataDir = None,
    format: Format = None,
    user_column: UserColumn = None,
    session_column: SessionColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    split: SplitBy = None,
    repeats: Repeats = None,
    min_count: MinCount = None,
    k_core: KCore = 1,
    train: TrainFile = None,
    valid: ValidFile = None,
    test: TestFile = None,
    task: TaskName = None,
    model: ModelName = None,
    threads: Threads = 1,
    device: Device = "cpu",
    metrics: Metrics = "",
    select_by: SelectBy = "ndcg@10",
    setting: Set = None,
) -> TrainConfig:
    """The configuration that the options describe, with the settings that are tuned for its model and data."""
    task, model = choose_model(task, model)
    data = _data_of(data, train, test)
    config = TrainConfig(
        data=data, data_dir=data_dir, format=format, user_column=user_column, session_column=session_column,
        item_column=item_column, time_column=time_column, separator=separator, quote="" if no_quote else quote,
        header=header, split=split, repeats=repeats, min_count=min_count, k_core=k_core, valid=valid, test=test,
        task=task, model=model, threads=threads, device=device, metrics=metrics, select_by=select_by,
    )  # fmt: skip
    return config.with_settings([*tuned_settings(model, data, setting or ()), *(setting or ())])


def with_budget(embedding: str | None, budget: str | None, prefer: str | None = None, prefer_tail: bool = False) -> str:
    """The embedding of the options --embedding, --budget, --prefer and --prefer-tail; by default MGQE within 10%.

    Raises ValueError for what is no budget, where both give one, or both say what is preferred, or --prefer says
    something else.
    """
    name = embedding or "mgqe"
    given = {"budget": budget or (None if embedding else DEFAULT_BUDGET), "prefer": prefer}
    if budget is not None:
        check_budget(budget, "--budget ")
    if prefer is not None:
        check_preference(prefer)
    if prefer_tail:
        given["prefer_tail"] = "true"
    for option, value in given.items():
        if value is None:
            continue
        if f"{option}=" in name:
            written = "--prefer-tail" if option == "prefer_tail" else f"--{option} {value}"
            raise ValueError(f"--embedding {name} has {option}= already: leave {written} out")
        name += f"{',' if ':' in name else ':'}{option}={value}"
    return name


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `config_of` in place of its parameter `config`, which gets what they describe."""
    shared = inspect.signature(config_of, eval_str=True).parameters
    declared = inspect.signature(command, eval_str=True).parameters
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in declared.items()
        for parameter in (shared.values() if name == "config" else (parameter,))
    ]

    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        config = config_of(**{name: options.pop(name) for name in shared})
        command(**options, config=config)

    del wrapped.__wrapped__  # typer would read the command's own signature
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _data_of(data: str | None, train: str | None, test: str | None) -> str:
    """What --data or --train names."""
    if train is None:
        return "planted" if data is None else data
    if data is not None:
        raise ValueError(f"give --data {data} or --train {train}, not both")
    if test is None:
        raise ValueError(f"--train {train} needs --test FILE; to divide one file: --data {train} --split RULE")
    return train
