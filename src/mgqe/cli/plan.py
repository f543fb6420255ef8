"""The command plan: what a table becomes within a budget, by its trained rows or by its counts alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from torch import Tensor

import mgqe
from mgqe.checks.rows import as_rows
from mgqe.cli.counts_files import Counts
from mgqe.cli.options import PREFER_HELP, PREFER_TAIL_HELP, DataDir, Format, Header, NoQuote, Quote, Separator
from mgqe.cli.terminal import AsJson, clean_errors, output
from mgqe.cli.vector_files import read_noted
from mgqe.codec.capacity import resolve_capacity
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.planning import COUNTS_POWER, Plan, Problem, RowsPlan, budget_bytes
from mgqe.codec.planning.budget import check_budget
from mgqe.codec.planning.loss import predicted
from mgqe.codec.planning.planner import MAX_CENTROIDS, MAX_TIERS, check_limits
from mgqe.codec.planning.shapes import SPEED, check_preference
from mgqe.codec.tiers import Tiers
from mgqe.recsys.study.text_table import TextTable

commands = typer.Typer()


@commands.command(
    help="Show what a table becomes within a budget of bytes, before anything is compressed.\n\n"
    "With --weight, a trained table, this is the plan that a layer with this budget makes of these rows: which "
    "coordinates are kept, how they are joined to subspaces, and how many bits each tier spends on them. --queries is "
    "a sample of what the rows are multiplied with, by which errors are measured. Without --weight it is an even shape "
    "by the counts alone, with as many bits for every subspace: tiers, subspaces, centroids and their type, beside the "
    "even default (the 10% of ids that are most frequent with 256 centroids, the others with 64), whose bytes a layer "
    "without a budget spends. Both are shown with their exact bytes, and with the line of Python that makes the "
    "table.\n\n"
    "[bold]Counts[/bold] say how often each id occurs in training: an .npy file with one number per id; an id map "
    "of `mgqe ids`; Parquet or text files with one row per interaction (--column holds the ids, which may be numbers "
    "or text) or one per id (--column holds the counts, with --counted); a log as mgqe train reads it; or the name of "
    "a known data set, whose training part is counted. Of the last two --field says whether items or users are "
    "counted. Without counts there is one tier.",
    epilog="Examples:\n\n"
    "  mgqe plan --weight items.npy --counts counts.npy --budget 5%\n\n"
    "  mgqe plan --weight items.npy --queries users.npy --budget 5% --json\n\n"
    "  mgqe plan --counts counts.npy --dim 64 --budget 5%\n\n"
    "  mgqe plan --counts clicks.parquet --column item --dim 64 --budget 200000\n\n"
    "  mgqe plan --counts ml-1m --data-dir DATA --field item --dim 64 --budget 10%",
)
@clean_errors
def plan(
    budget: Annotated[str, typer.Option(help="5% or 0.05 of the full table, or a whole number of bytes.")],
    counts: Annotated[
        str | None, typer.Option(help="A file of counts or ids, or a known data set's name, see above.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Of Parquet or text files, the column to read; without a header, its number.")
    ] = None,
    counted: Annotated[
        bool, typer.Option("--counted", help="--column holds counts, one row per id, not the ids of interactions.")
    ] = False,
    field: Annotated[
        str, typer.Option(help="Of a log or a known data set: item or user, or a field of frappe, criteo or avazu.")
    ] = "item",
    weight: Annotated[
        Path | None, typer.Option(help="A trained table (N, d), in any format that compress reads.")
    ] = None,
    tensor: Annotated[str | None, typer.Option(help="Of a file with several matrices, the name of one.")] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="With --weight: what its rows are multiplied with, floats (n, d) in the same formats."),
    ] = None,
    prefer: Annotated[str, typer.Option(help=f"With --weight: {PREFER_HELP}")] = SPEED,
    prefer_tail: Annotated[
        bool, typer.Option("--prefer-tail", help=f"With --weight and --counts: {PREFER_TAIL_HELP}")
    ] = False,
    dim: Annotated[int | None, typer.Option(help="d. Needed without --weight.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="N. Default: that of --weight, or as many as there are counts or ids.")
    ] = None,
    max_tiers: Annotated[int, typer.Option(help="Without --weight: 1, 2 or 3.")] = MAX_TIERS,
    max_centroids: Annotated[int, typer.Option(help="Without --weight: the largest K.")] = MAX_CENTROIDS,
    counts_power: Annotated[
        float,
        typer.Option(
            help="Without --weight: how much more a frequent id's error counts: 0 as much as others', 1 in proportion "
            "to its count."
        ),
    ] = COUNTS_POWER,
    data_dir: DataDir = None,
    format: Format = None,
    separator: Separator = None,
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    check_preference(prefer)
    check_budget(budget, "--budget ")  # before files are read, which may take long
    if queries is not None and weight is None:
        raise ValueError("--queries goes with --weight, the table whose rows are multiplied with them")
    if prefer != SPEED and weight is None:
        raise ValueError("--prefer goes with --weight, the table whose shapes it chooses among")
    if prefer_tail and (weight is None or counts is None):
        raise ValueError(
            "--prefer-tail goes with --weight and --counts: the rows that are planned, and which ids are rare; without "
            "--weight, --counts-power 0 lets all ids count alike"
        )
    check_limits(2 if rows is None else rows, max_tiers, max_centroids, counts_power)
    table = None if weight is None else as_rows(read_noted(weight, tensor=tensor).rows, str(weight))
    if table is None and dim is None:
        raise ValueError("--dim (d) is needed without --weight")
    if table is not None and dim not in (None, table.shape[1]):
        raise ValueError(f"--dim is {dim}, but {weight} has rows of {table.shape[1]} dimensions: leave --dim out")
    if table is not None and rows not in (None, len(table)):
        raise ValueError(f"--rows is {rows}, but {weight} has {len(table)} rows: leave --rows out")
    rows = rows if table is None else len(table)
    counted_ids = None
    if counts is not None:
        named = Counts(counts, column, counted, field, data_dir, format, separator, "" if no_quote else quote, header)
        counted_ids = named.read(rows, is_numbered=table is not None)
    if counted_ids is not None and rows not in (None, len(counted_ids)):
        raise ValueError(f"--rows is {rows}, but there are {len(counted_ids)} counts, one per id: leave --rows out")
    rows = rows if counted_ids is None else len(counted_ids)
    if rows is None:
        raise ValueError("how many rows? Give --counts, --weight, or --rows (N)")
    width = int(dim if table is None else table.shape[1])  # type: ignore[arg-type]
    limits: dict[str, Any] = {"max_tiers": max_tiers, "max_centroids": max_centroids, "counts_power": counts_power}
    if table is None:
        problem = Problem.of(rows, width, counted_ids, **limits)
        _show_even(problem.plan(budget_bytes(budget, problem.full_nbytes)), _default(problem, counted_ids), as_json)
        return
    sample = None if queries is None else as_rows(read_noted(queries).rows, str(queries))
    limits.update(prefer=prefer, prefer_tail=prefer_tail)
    chosen = mgqe.plan(rows, width, budget, counts=counted_ids, weight=table, queries=sample, **limits)
    assert isinstance(chosen, RowsPlan)
    _show_mixed(chosen, as_json)


# ---- plans of trained rows -------------------------------------------------------------------------------------


def _show_mixed(chosen: RowsPlan, as_json: bool) -> None:
    capacity = chosen.capacity
    bits = [tier.code_bits for tier in capacity.tiers]
    if as_json:
        more = {
            "code_bits": bits,
            "widths": capacity.widths,
            "num_coordinates": capacity.num_coordinates,
            "centroid_dtype": chosen.centroid_dtype,
            "matrix_dtype": capacity.matrix_dtype,
            "metric": chosen.metric,
            "prefer": chosen.prefer,
            "prefer_tail": chosen.prefer_tail,
            "head_and_tail": chosen.head_and_tail,
            "compared": [{"tier_sizes": sizes, "loss": loss} for sizes, loss in chosen.compared],
        }
        print(json.dumps({**_as_json(chosen), **more}, indent=1))
        return
    _show_title(chosen)
    tiers = TextTable("", ["tier", "ids", "bits per id", "squares lost"])
    for g, (size, each, error) in enumerate(zip(capacity.sizes, bits, chosen.errors, strict=True)):
        tiers.rows.append([str(g), f"{size:,}", str(sum(each)), _per_cent(error)])
    output.print(tiers.terminal(output.width))
    facts = Table.grid(padding=(0, 2))
    for name, fact in {
        "bytes": f"{chosen.nbytes:,}, {100 * chosen.nbytes / chosen.full_nbytes:.2f}% of the table{chosen.limit}",
        "lost": f"{_per_cent(chosen.loss)} of the weighted squares",
        **_head_and_tail(chosen),
        "look-up": f"{chosen.lookup_share:.1f} of nn.Embedding's time, estimated",
        "coordinates": f"{capacity.num_coordinates} of {chosen.embedding_dim} are kept",
        "subspaces": f"{len(capacity.widths)}, of widths {' '.join(map(str, capacity.widths))}",
        "codebooks": f"{_codebooks(chosen)}, {chosen.centroid_dtype} centroids, {capacity.matrix_dtype} matrix",
        "errors count": "by the queries" if chosen.metric == "queries" else "alike in all directions (no --queries)",
        **_weights(chosen),
        "tiers compared": "; ".join(f"{_tiers(sizes)}: {_per_cent(loss)} lost" for sizes, loss in chosen.compared),
    }.items():
        facts.add_row(name, fact)
    output.print()
    output.print(facts)
    _show_python(chosen)


def _head_and_tail(chosen: RowsPlan) -> dict[str, str]:
    """What frequent ids and the others lose; nothing where no counts say which are frequent."""
    if chosen.head_and_tail is None:
        return {}
    head, tail = map(_per_cent, chosen.head_and_tail)
    return {"head, tail": f"{head} lost of the 10% of ids that are most frequent, {tail} of the others"}


def _weights(chosen: RowsPlan) -> dict[str, str]:
    """How much each id counts; nothing where no counts say which are frequent."""
    if chosen.counts is None:
        return {}
    return {"ids count": "alike (--prefer-tail)" if chosen.prefer_tail else "by the root of their counts"}


def _tiers(sizes: tuple[int, ...]) -> str:
    return "one tier" if len(sizes) == 1 else f"{' / '.join(f'{size:,}' for size in sizes)} ids"


# ---- even shapes from counts -----------------------------------------------------------------------------------


def _show_even(chosen: Plan, default: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({**_as_json(chosen), **chosen.settings(), "default": default}, indent=1))
        return
    _show_title(chosen)
    tiers = TextTable("", ["tier", "ids", "subspaces", "centroids", "bits per id", "squares lost"])
    for g, (tier, error) in enumerate(zip(chosen.capacity.tiers, chosen.errors, strict=True)):
        d, k = tier.num_subspaces, tier.num_centroids
        tiers.rows.append([str(g), f"{tier.ids:,}", str(d), str(k), str(d * tier.bits), _per_cent(error)])
    output.print(tiers.terminal(output.width))
    output.print(
        f"{_codebooks(chosen)}, {chosen.centroid_dtype} centroids; squares lost are predicted for Gaussian rows\n",
        highlight=False,
    )
    costs = TextTable("", ["", "bytes", "of the table", "lost, weighted", "look-up*"])
    for name, nbytes, loss, lookup in (
        ("this plan", chosen.nbytes, chosen.loss, chosen.lookup_share),
        ("the even default", default["nbytes"], default["loss"], default["lookup_share"]),
        ("the even default, int8", default["int8"]["nbytes"], default["int8"]["loss"], default["lookup_share"]),
    ):
        share = f"{100 * nbytes / chosen.full_nbytes:.2f}%"
        costs.rows.append([name, f"{nbytes:,}", share, _per_cent(loss), f"{lookup:.1f}"])
    output.print(costs.terminal(output.width))
    output.print("* share of nn.Embedding's time, estimated", highlight=False)
    _show_python(chosen)


def _default(problem: Problem, counts: Tensor | None) -> dict[str, Any]:
    """The even shape of MGQEmbedding's defaults (DPQEmbedding's without counts), its bytes and its predicted loss."""
    space = problem.space
    n, d = space.vocabulary.size, space.embedding_dim
    tiers = Tiers.from_sizes((n,)) if counts is None else Tiers.from_counts(counts)
    capacity = resolve_capacity(
        d, tiers.sizes, num_subspaces=None, num_centroids=None, capacity="centroids", share_codebook=True,
        share_subspaces=False,
    )  # fmt: skip
    default: dict[str, Any] = {
        "tier_sizes": tiers.sizes,
        "num_subspaces": capacity.num_subspaces,
        "num_centroids": capacity.num_centroids,
        "lookup_share": problem.lookup_share(capacity),
    }
    costs = [
        {
            "nbytes": frozen_nbytes(tiers, capacity, None, dtype),
            "loss": predicted(space, tiers.sizes, capacity, dtype)[0],
        }
        for dtype in ("float32", "int8")
    ]
    return {**default, **costs[0], "int8": costs[1]}


# ---- both ------------------------------------------------------------------------------------------------------


def _show_title(chosen: Plan) -> None:
    shape = f"{chosen.num_embeddings:,} ids x {chosen.embedding_dim}"
    output.print(f"{shape}: at most {chosen.budget:,} bytes of {chosen.full_nbytes:,}\n", highlight=False)


def _codebooks(chosen: Plan) -> str:
    if chosen.tiers.num_tiers == 1:
        return "one tier"
    return "one codebook" if chosen.capacity.share_codebook else "one codebook per tier"


def _per_cent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _show_python(chosen: Plan) -> None:
    output.print(f"\n{chosen.python()}", highlight=False, markup=False, soft_wrap=True)


def _as_json(chosen: Plan) -> dict[str, Any]:
    return {
        "num_embeddings": chosen.num_embeddings,
        "embedding_dim": chosen.embedding_dim,
        "budget": chosen.budget,
        "nbytes": chosen.nbytes,
        "full_nbytes": chosen.full_nbytes,
        "tier_sizes": chosen.tiers.sizes,
        "loss": chosen.loss,
        "errors": chosen.errors,
        "lookup_share": chosen.lookup_share,
        "python": chosen.python(),
    }
