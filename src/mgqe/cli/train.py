"""The command train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mgqe.cli.experiments import RunBar
from mgqe.cli.options import PREFER_HELP, PREFER_TAIL_HELP
from mgqe.cli.run_options import BUDGET_HELP, DEFAULT_BUDGET, EMBEDDINGS, Overwrite, takes_config, with_budget
from mgqe.cli.terminal import AsJson, clean_errors, make_progress, output, say
from mgqe.recsys.models.methods import import_methods
from mgqe.recsys.study.text_table import TextTable
from mgqe.recsys.tasks.account import LEFT_OUT_BY, judged_note
from mgqe.recsys.tasks.metrics import RankMetric
from mgqe.recsys.train.advice import advice
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import METRICS, train_run

MOST_LISTED = 4  # tables of a model
POPULAR = "a list of the most frequent items instead"
commands = typer.Typer()


@commands.command(
    help="Train a recommender on compact embeddings and write small files that serve.\n\n"
    "Writes OUT/user.mgqe.safetensors and OUT/item.mgqe.safetensors (the tables), OUT/user_ids.parquet and "
    "OUT/item_ids.parquet (your ids, row by row), OUT/model.safetensors and OUT/metrics.json. The figures are of "
    "the files, loaded again. OUT/user and OUT/item are collections of the same tables, which answer in your ids. "
    "Interrupted, the same command goes on where it stopped.\n\n"
    f"[bold]Embeddings[/bold] (--embedding NAME or NAME:key=value,key=value)\n\n{EMBEDDINGS}",
    epilog="Examples:\n\n"
    "  mgqe train --out run\n\n"
    "  mgqe train --data ml-1m --data-dir DATA --budget 5% --out run\n\n"
    "  mgqe train --data ml-1m --data-dir DATA --embedding mgqe:D=32,K=64/16 --seed 7 --out run\n\n"
    "  mgqe train --data clicks.csv --user-column visitor --item-column page --out run\n\n"
    "  mgqe train --data ratings.txt --format pairs --embedding full:d=16 --out small\n\n"
    "  mgqe train --data ratings.dat --separator :: --no-header --user-column 1 --item-column 2 --time-column 4 "
    "--out run\n\n"
    "  mgqe train --data clicks.csv --split time:10%/10% --out later\n\n"
    "  mgqe train --data criteo --data-dir DATA --model dcn_v2 --budget 5% --out criteo\n\n"
    "  mgqe train --train may.csv --valid june.csv --test july.csv --out months\n\n"
    "  mgqe topk run/item --users run/user --query-id u1 -k 10",
)
@clean_errors
@takes_config
def train(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    config: TrainConfig,
    budget: Annotated[str | None, typer.Option(help=f"{BUDGET_HELP} [default: {DEFAULT_BUDGET}]")] = None,
    prefer: Annotated[str | None, typer.Option(help=f"{PREFER_HELP} [default: speed]")] = None,
    prefer_tail: Annotated[bool, typer.Option("--prefer-tail", help=PREFER_TAIL_HELP)] = False,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="What the tables are, see above, instead of --budget or with it; K is cut to what a small table can "
            "use. [default: mgqe]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 7,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    description = with_budget(embedding, budget, prefer, prefer_tail)
    import_methods([description])
    config = replace(config, embedding=description, seed=seed)
    was_finished = (out / METRICS).is_file() and not overwrite
    with make_progress() as progress:
        bar = RunBar(progress, str(config.spec))
        metrics = train_run(config, out, overwrite, on_epoch=bar.show, on_note=say, on_data=say)
    if as_json:
        print(json.dumps(metrics, indent=1))
        return
    if was_finished:
        output.print(f"{out} holds this run already; --overwrite trains it again")
    output.print(_figures(metrics).terminal(output.width))
    output.print(f"written to {out}", soft_wrap=True, highlight=False)
    for note in advice(metrics):
        say(note)


def _figures(metrics: dict[str, Any]) -> TextTable:
    quality, size, full = metrics["quality"], metrics["embedding_bytes"], metrics["full_embedding_bytes"]
    table = TextTable(f"{metrics['data']}: {metrics['embedding']}", ["figure", "value"])
    sampled = metrics["config"]["negatives" if metrics["metric"] == "auc" else "eval_negatives"]
    # Of splits that give users several test items; without sampled metrics --metrics may be what asked for it.
    recall = ("recall@10" if "hr@10" in quality else "full_recall@10") in quality
    ranked, figures = ("HR@10, NDCG@10" + ", recall@10" * recall, ("hr@10", "ndcg@10", "recall@10")[: 2 + recall])
    of_what = f"{sampled} sampled negatives per positive" if "head_auc" in quality else "of the test rows"
    figures_of: dict[str, dict[str, tuple[str, ...]]] = {
        "auc": {
            f"AUC, log loss ({of_what})": ("auc", "logloss"),
            "AUC of frequent items, of the others": ("head_auc", "tail_auc"),
            "calibration error, mean predicted / mean observed": ("ece", "calibration"),
        },
        "hr@10": {
            f"{ranked} in the whole catalogue": tuple(f"full_{name}" for name in figures),
            "NDCG@10 there of head and tail items": ("head_full_ndcg@10", "tail_full_ndcg@10"),
            POPULAR: tuple(f"popularity_full_{name}" for name in figures),
            f"{ranked} among {sampled} sampled items": figures,
        },
    }
    for title, names in figures_of[metrics["metric"].removeprefix("full_")].items():
        if all(name in quality for name in names):  # no sampled figures, and no popularity in runs of earlier versions
            table.rows.append([title, "  ".join(f"{quality[name]:.4f}" for name in names)])
    table.rows.extend(_asked_rows(metrics["config"], quality))
    if judged := judged_note(metrics.get("data_summary", {})):
        table.rows.append(["judged", judged])
    table.rows.extend(_split_rows(metrics.get("split", {})))
    table.rows.append(["bytes of the tables' files", f"{size:,} = {100 * size / full:.1f}% of {full:,}"])
    if metrics.get("plan"):
        table.rows.append(
            ["the budget's plan", f"{metrics['plan']['candidate']}, d={metrics['plan']['embedding_dim']}"]
        )
    if metrics.get("chosen"):
        table.rows.append(["the budget is spent on", metrics["chosen"]])
    if lost := (metrics.get("plan") or {}).get("head_and_tail"):  # not in runs of earlier versions
        listed = _largest(lost, max, lambda both: f"{100 * both[0]:.1f}% and {100 * both[1]:.1f}%")
        table.rows.append(["squares expected to be lost of the 10% most frequent ids, of the others", listed])
    if shares := (metrics.get("plan") or {}).get("lookup_shares"):  # not in runs of earlier versions
        listed = _largest(shares, float, lambda share: f"{share:.1f}")
        table.rows.append(["look-up, share of nn.Embedding's time, estimated", listed])
    for phase, seconds in metrics["seconds_per_epoch"].items():
        if seconds is not None:
            epochs = metrics["epochs"][phase]
            table.rows.append([f"seconds per epoch ({phase})", f"{seconds:.2f}, {epochs} epoch{'s' * (epochs != 1)}"])
    return table


def _largest(of_tables: dict[str, Any], size: Callable[[Any], float], text: Callable[[Any], str]) -> str:
    """What there is of each table, by path; of many tables the largest, and how many more there are."""
    paths = sorted(of_tables, key=lambda path: -size(of_tables[path])) if len(of_tables) > MOST_LISTED else of_tables
    shown = [f"{path} {text(of_tables[path])}" for path in paths][:MOST_LISTED]
    more = len(of_tables) - len(shown)
    return ", ".join(shown) + f", and less in {more} more ({METRICS})" * (more > 0)


def _asked_rows(config: dict[str, Any], quality: dict[str, float]) -> list[list[str]]:
    """The figures of --metrics and --select-by, for the table of figures; runs of earlier versions may lack them."""
    asked = RankMetric.asked(config.get("metrics", ""), config.get("select_by", TrainConfig.select_by))
    rows = []
    for title, prefix in ((f"{', '.join(map(str, asked))} in the whole catalogue", ""), (POPULAR, "popularity_")):
        names = [f"{prefix}full_{metric}" for metric in asked]
        if names and all(name in quality for name in names):
            rows.append([title, "  ".join(f"{quality[name]:.4f}" for name in names)])
    return rows


def _split_rows(split: dict[str, Any]) -> list[list[str]]:
    """How the data were divided, for the table of figures."""
    if not split or "interactions" not in split:
        return []
    sizes = "  ".join(f"{size:,}" for size in split["interactions"].values())
    cold = split.get("cold", {}).get("test", {"interactions": 0})  # logs of clicks do not say
    ids = ", ".join(f"{number:,} {name}" for name, number in cold.items() if name != "interactions" and number)
    rows = [[f"split {split['rule']}: train, validation, test", sizes]]
    for name, what in LEFT_OUT_BY.items():
        if (dropped := split.get(name)) is None:
            continue
        listed = ", ".join(f"{number:,} {name}" for name, number in dropped.items())
        rows.append([f"left out by {what}, before the split", listed])
    if cold["interactions"]:
        what = "left out of" if split["cold_rule"].startswith("left out") else "in"
        rows.append([f"interactions {what} the test whose ids were never trained", f"{cold['interactions']:,}: {ids}"])
    return rows
