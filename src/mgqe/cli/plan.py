"""The command plan: a budget in, a configuration out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from mgqe.cli.options import DataDir, Header, NoQuote, Quote, Separator
from mgqe.cli.terminal import clean_errors, output
from mgqe.codec.capacity import resolve_capacity
from mgqe.codec.packing import bits_for
from mgqe.codec.planning import COUNTS_POWER, Plan, Problem, budget_bytes
from mgqe.codec.planning.budget import EXPECTED
from mgqe.codec.planning.planner import check_limits
from mgqe.codec.planning.predict import predicted
from mgqe.codec.size import frozen_nbytes
from mgqe.codec.tiers import Tiers
from mgqe.ids.logs.layout import Layout
from mgqe.ids.logs.numbers import read_numbers
from mgqe.ids.logs.paths import exists
from mgqe.recsys.study.text_table import TextTable

FILES = (".npy", ".parquet", ".pq", ".csv")  # and whatever is there under another name
NO_LIMIT = 2**62
commands = typer.Typer()


@commands.command(
    help="Find what a table should become within a budget of bytes: tiers, subspaces, centroids and their type.\n\n"
    "The configuration that is expected to lose least is shown with its exact bytes, beside the default (the 10% of "
    "ids that are most frequent with 256 centroids, the others with 64) and with the line of Python that makes it. "
    "With --weight the best candidates are tried out on the trained rows.\n\n"
    "[bold]Counts[/bold] say how often each id occurs in training: an .npy file with one number an id; Parquet or text "
    "files with a row an interaction (--column holds the ids) or a row an id (--column holds the counts, "
    "with --counted); or the name of a known data set, whose training part is counted (--field user or item). Without "
    "counts there is one tier.",
    epilog="Examples:\n\n"
    "  mgqe plan --counts counts.npy --dim 64 --budget 5%\n\n"
    "  mgqe plan --counts clicks.parquet --column item --dim 64 --budget 200000\n\n"
    "  mgqe plan --counts ml-1m --data-dir DATA --field item --dim 64 --budget 10%\n\n"
    "  mgqe plan --weight items.npy --counts counts.npy --budget 5% --json",
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
        bool, typer.Option("--counted", help="--column holds counts, a row an id, not the ids of interactions.")
    ] = False,
    field: Annotated[str, typer.Option(help="Of a known data set: item or user.")] = "item",
    weight: Annotated[
        Path | None, typer.Option(help="A trained table (N, d): .npy, or .safetensors (with --tensor).")
    ] = None,
    tensor: Annotated[str | None, typer.Option(help="Which tensor of a .safetensors file.")] = None,
    dim: Annotated[int | None, typer.Option(help="d. Needed without --weight.")] = None,
    rows: Annotated[int | None, typer.Option(help="N. Needed where ids are counted, or with neither file.")] = None,
    max_tiers: Annotated[int, typer.Option(help="1, 2 or 3.")] = 3,
    max_centroids: Annotated[int, typer.Option(help="The largest K.")] = 256,
    counts_power: Annotated[
        float, typer.Option(help="How much more a frequent id's error counts: 0 alike, 1 by the interaction.")
    ] = COUNTS_POWER,
    data_dir: DataDir = None,
    separator: Separator = ",",
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    _check_budget(budget)  # said before files are read, which may take long
    if field not in ("item", "user"):
        raise ValueError(f"--field must be item or user, got {field!r}")
    check_limits(2 if rows is None else rows, max_tiers, max_centroids, counts_power)
    table = None if weight is None else _read_weight(weight, tensor)
    if table is None and dim is None:
        raise ValueError("--dim (d) is needed without --weight")
    if table is not None and dim not in (None, table.shape[1]):
        raise ValueError(f"--dim is {dim}, but {weight} has rows of {table.shape[1]} dimensions: leave --dim out")
    if table is not None and rows not in (None, len(table)):
        raise ValueError(f"--rows is {rows}, but {weight} has {len(table)} rows: leave --rows out")
    rows = rows if table is None else len(table)
    layout = Layout.of("," if separator is None else separator, "" if no_quote else quote, header)
    known = None if counts is None else _read_counts(counts, column, counted, field, rows, data_dir, layout)
    if known is not None and rows not in (None, len(known)):
        raise ValueError(f"--rows is {rows}, but there are {len(known)} counts, one an id: leave --rows out")
    rows = rows if known is None else len(known)
    if rows is None:
        raise ValueError("how many rows? Give --counts, --weight, or --rows (N)")
    width = int(dim if table is None else table.shape[1])  # type: ignore[arg-type]
    problem = Problem.of(
        rows, width, known, table, None, max_tiers=max_tiers, max_centroids=max_centroids, counts_power=counts_power
    )
    made = problem.plan(budget_bytes(budget, problem.full_nbytes))
    beside = _default(problem, known)
    if as_json:
        print(json.dumps({**_as_json(made), "default": beside}, indent=1))
        return
    _show(made, beside)


def _check_budget(budget: str) -> None:
    """ValueError for a text that is no budget of any table."""
    try:
        budget_bytes(budget, NO_LIMIT)
    except ValueError:
        raise ValueError(f"--budget {budget}: {EXPECTED}, more than nothing and less than all") from None


def _show(made: Plan, beside: dict[str, Any]) -> None:
    title = f"{made.num_embeddings:,} ids x {made.embedding_dim}: at most {made.budget:,} bytes of {made.full_nbytes:,}"
    parts = TextTable(title, ["tier", "ids", "subspaces", "centroids", "bits an id", "squares lost"])
    for g, (n, d, k, e) in enumerate(
        zip(made.tiers.sizes, made.num_subspaces, made.num_centroids, made.errors, strict=True)
    ):
        parts.rows.append([str(g), f"{n:,}", str(d), str(k), str(d * bits_for(k)), _per_cent(e)])
    output.print(parts.terminal())
    shared = "one tier" if made.tiers.num_tiers == 1 else "one codebook" if made.share_codebook else "a codebook a tier"
    how = "measured on the rows" if made.measured else "predicted, as of Gaussian rows"
    output.print(
        f"{shared}, {made.centroid_dtype} centroids; squares lost are {how}\n", highlight=False, soft_wrap=True
    )
    whole = TextTable("", ["", "bytes", "of the table", "lost, weighted"])
    for name, nbytes, loss in (
        ("this plan", made.nbytes, made.loss),
        ("the default", beside["nbytes"], beside["loss"]),
        ("the default, int8", beside["int8"]["nbytes"], beside["int8"]["loss"]),
    ):
        whole.rows.append([name, f"{nbytes:,}", f"{100 * nbytes / made.full_nbytes:.2f}%", _per_cent(loss)])
    output.print(whole.terminal())
    if made.measured:
        output.print("what the defaults lose is predicted", highlight=False)
    output.print(f"\n{made.python()}", highlight=False, markup=False, soft_wrap=True)


def _per_cent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _as_json(made: Plan) -> dict[str, Any]:
    return {
        "num_embeddings": made.num_embeddings,
        "embedding_dim": made.embedding_dim,
        "budget": made.budget,
        "nbytes": made.nbytes,
        "full_nbytes": made.full_nbytes,
        "tier_sizes": made.tiers.sizes,
        **made.settings(),
        "loss": made.loss,
        "errors": made.errors,
        "measured": made.measured,
        "python": made.python(),
    }


def _default(problem: Problem, counts: Tensor | None) -> dict[str, Any]:
    """MGQEmbedding's default (DPQEmbedding's without counts) with its bytes and what it is predicted to lose."""
    space = problem.space
    n, d = space.vocabulary.size, space.embedding_dim
    tiers = Tiers.from_sizes((n,)) if counts is None else Tiers.from_counts(counts)
    capacity = resolve_capacity(
        d, tiers.sizes, num_subspaces=None, num_centroids=None, capacity="centroids", share_codebook=True,
        share_subspaces=False,
    )  # fmt: skip
    found: dict[str, Any] = {
        "tier_sizes": tiers.sizes,
        "num_subspaces": capacity.num_subspaces,
        "num_centroids": capacity.num_centroids,
    }
    costs = [
        {
            "nbytes": frozen_nbytes(tiers, capacity, None, dtype),
            "loss": predicted(space, tiers.sizes, capacity, dtype)[0],
        }
        for dtype in ("float32", "int8")
    ]
    return {**found, **costs[0], "int8": costs[1]}


def _read_weight(path: Path, tensor: str | None) -> Tensor:
    if not path.is_file():
        raise ValueError(f"--weight: no file {path}")
    if path.suffix == ".npy":
        return _as_rows(torch.from_numpy(_load_npy(path)), path)
    if path.suffix != ".safetensors":
        raise ValueError(f"--weight: expected .npy or .safetensors, got {path}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if tensor is None:
        wide = [name for name, values in held.items() if values.ndim == 2]
        if len(wide) != 1:
            raise ValueError(f"{path} holds {', '.join(sorted(held))}: say which with --tensor")
        tensor = wide[0]
    if tensor not in held:
        raise ValueError(f"{path} has no tensor {tensor!r}: it holds {', '.join(sorted(held))}")
    return _as_rows(held[tensor], path)


def _as_rows(values: Tensor, path: Path) -> Tensor:
    if values.ndim != 2 or not values.is_floating_point():
        raise ValueError(f"{path}: expected rows of floats (N, d), got {values.dtype} of shape {tuple(values.shape)}")
    return values


def _load_npy(path: Path) -> np.ndarray:
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as .npy: {error}") from error
    return values


def _read_counts(
    source: str, column: str | None, counted: bool, field: str, rows: int | None, data_dir: str | None, layout: Layout
) -> Tensor:
    """Counts, one an id, from what --counts names."""
    path = Path(source)
    if path.suffix.lower() not in FILES and (not exists(source) or _is_no_log(source)):
        return _of_data_set(source, field, data_dir)
    if not exists(source):
        raise ValueError(f"--counts: no file {path}")
    if path.suffix.lower() == ".npy":
        found = _load_npy(path)
        if getattr(found, "dtype", None) is None or found.dtype.kind not in "iuf":
            raise ValueError(f"--counts {source}: expected a number an id, got {getattr(found, 'dtype', 'an archive')}")
        return torch.from_numpy(found)
    if column is None:
        raise ValueError(f"--counts {source}: say which column holds the ids (or the counts, with --counted): --column")
    try:
        if counted:
            return read_numbers(source, column, layout)
        if rows is None:
            raise ValueError("ids are counted, so that --rows (N) is needed, or --weight")
        from mgqe.ids.counting import count_ids

        return count_ids(
            source, rows, column=column, separator=layout.separator, quote=layout.quote, header=layout.header
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--counts {source}: {error.args[0]}") from error


def _is_no_log(source: str) -> bool:
    """Whether something that is there is a folder named as a known data set, or a file of weights."""
    from mgqe.recsys.data.datasets import DATASETS

    return source in DATASETS or Path(source).suffix.lower() == ".safetensors"


def _of_data_set(name: str, field: str, data_dir: str | None) -> Tensor:
    from mgqe.recsys.data.datasets import DATASETS, leave_one_out, load_data

    if name != "planted" and name not in DATASETS:
        raise ValueError(
            f"--counts {name!r}: expected a file ({', '.join(FILES)}) or a known data set: "
            f"planted, {', '.join(DATASETS)}"
        )
    split = leave_one_out(load_data(name, data_dir))
    return split.item_counts if field == "item" else split.user_counts
