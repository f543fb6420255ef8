"""The command plan: which configuration of a table loses least within a budget."""

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
from mgqe.codec.layout import frozen_nbytes
from mgqe.codec.packing import bits_for
from mgqe.codec.planning import COUNTS_POWER, Plan, Problem, budget_bytes
from mgqe.codec.planning.budget import EXPECTED
from mgqe.codec.planning.loss import predicted
from mgqe.codec.planning.planner import check_limits
from mgqe.codec.tiers import Tiers
from mgqe.ids.logs.numbers import read_numbers
from mgqe.ids.logs.paths import path_exists
from mgqe.ids.logs.text_layout import TextLayout
from mgqe.recsys.study.text_table import TextTable

FILES = (".npy", ".parquet", ".pq", ".csv")  # and any file that exists, whatever its name
NO_LIMIT = 2**62
commands = typer.Typer()


@commands.command(
    help="Find what a table should become within a budget of bytes: tiers, subspaces, centroids and their type.\n\n"
    "The configuration that is expected to lose least is shown with its exact bytes, beside the default (the 10% of "
    "ids that are most frequent with 256 centroids, the others with 64) and with the line of Python that makes it. "
    "With --weight the best candidates are tried out on the trained rows.\n\n"
    "[bold]Counts[/bold] say how often each id occurs in training: an .npy file with one number per id; Parquet or "
    "text files with one row per interaction (--column holds the ids) or one per id (--column holds the counts, "
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
        bool, typer.Option("--counted", help="--column holds counts, one row per id, not the ids of interactions.")
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
        float,
        typer.Option(
            help="How much more a frequent id's error counts: 0 as much as others', 1 in proportion to its count."
        ),
    ] = COUNTS_POWER,
    data_dir: DataDir = None,
    separator: Separator = ",",
    quote: Quote = '"',
    no_quote: NoQuote = False,
    header: Header = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    _check_budget(budget)  # before files are read, which may take long
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
    layout = TextLayout.of("," if separator is None else separator, "" if no_quote else quote, header)
    counted_ids = None if counts is None else _read_counts(counts, column, counted, field, rows, data_dir, layout)
    if counted_ids is not None and rows not in (None, len(counted_ids)):
        raise ValueError(f"--rows is {rows}, but there are {len(counted_ids)} counts, one per id: leave --rows out")
    rows = rows if counted_ids is None else len(counted_ids)
    if rows is None:
        raise ValueError("how many rows? Give --counts, --weight, or --rows (N)")
    width = int(dim if table is None else table.shape[1])  # type: ignore[arg-type]
    problem = Problem.of(
        rows,
        width,
        counted_ids,
        table,
        None,
        max_tiers=max_tiers,
        max_centroids=max_centroids,
        counts_power=counts_power,
    )
    chosen = problem.plan(budget_bytes(budget, problem.full_nbytes))
    default = _default(problem, counted_ids)
    if as_json:
        print(json.dumps({**_as_json(chosen), "default": default}, indent=1))
        return
    _show(chosen, default)


def _check_budget(budget: str) -> None:
    """ValueError for a text that is no budget of any table."""
    try:
        budget_bytes(budget, NO_LIMIT)
    except ValueError:
        raise ValueError(f"--budget {budget}: {EXPECTED}, more than nothing and less than all") from None


def _show(chosen: Plan, default: dict[str, Any]) -> None:
    shape = f"{chosen.num_embeddings:,} ids x {chosen.embedding_dim}"
    title = f"{shape}: at most {chosen.budget:,} bytes of {chosen.full_nbytes:,}"
    tiers = TextTable(title, ["tier", "ids", "subspaces", "centroids", "bits per id", "squares lost"])
    for g, (n, d, k, e) in enumerate(
        zip(chosen.tiers.sizes, chosen.num_subspaces, chosen.num_centroids, chosen.errors, strict=True)
    ):
        tiers.rows.append([str(g), f"{n:,}", str(d), str(k), str(d * bits_for(k)), _per_cent(e)])
    output.print(tiers.terminal())
    codebooks = (
        "one tier"
        if chosen.tiers.num_tiers == 1
        else "one codebook"
        if chosen.share_codebook
        else "one codebook per tier"
    )
    how = "measured on the rows" if chosen.measured else "predicted for Gaussian rows"
    output.print(
        f"{codebooks}, {chosen.centroid_dtype} centroids; squares lost are {how}\n", highlight=False, soft_wrap=True
    )
    costs = TextTable("", ["", "bytes", "of the table", "lost, weighted"])
    for name, nbytes, loss in (
        ("this plan", chosen.nbytes, chosen.loss),
        ("the default", default["nbytes"], default["loss"]),
        ("the default, int8", default["int8"]["nbytes"], default["int8"]["loss"]),
    ):
        costs.rows.append([name, f"{nbytes:,}", f"{100 * nbytes / chosen.full_nbytes:.2f}%", _per_cent(loss)])
    output.print(costs.terminal())
    if chosen.measured:
        output.print("what the defaults lose is predicted", highlight=False)
    output.print(f"\n{chosen.python()}", highlight=False, markup=False, soft_wrap=True)


def _per_cent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _as_json(chosen: Plan) -> dict[str, Any]:
    return {
        "num_embeddings": chosen.num_embeddings,
        "embedding_dim": chosen.embedding_dim,
        "budget": chosen.budget,
        "nbytes": chosen.nbytes,
        "full_nbytes": chosen.full_nbytes,
        "tier_sizes": chosen.tiers.sizes,
        **chosen.settings(),
        "loss": chosen.loss,
        "errors": chosen.errors,
        "measured": chosen.measured,
        "python": chosen.python(),
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
    default: dict[str, Any] = {
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
    return {**default, **costs[0], "int8": costs[1]}


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
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if tensor is None:
        wide = [name for name, values in tensors.items() if values.ndim == 2]
        if len(wide) != 1:
            raise ValueError(f"{path} holds {', '.join(sorted(tensors))}: say which with --tensor")
        tensor = wide[0]
    if tensor not in tensors:
        raise ValueError(f"{path} has no tensor {tensor!r}: it holds {', '.join(sorted(tensors))}")
    return _as_rows(tensors[tensor], path)


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
    source: str,
    column: str | None,
    counted: bool,
    field: str,
    rows: int | None,
    data_dir: str | None,
    layout: TextLayout,
) -> Tensor:
    """Counts, one per id, from what --counts names."""
    path = Path(source)
    if path.suffix.lower() not in FILES and (not path_exists(source) or _is_data_set_or_weights(source)):
        return _of_data_set(source, field, data_dir)
    if not path_exists(source):
        raise ValueError(f"--counts: no file {path}")
    if path.suffix.lower() == ".npy":
        numbers = _load_npy(path)
        if getattr(numbers, "dtype", None) is None or numbers.dtype.kind not in "iuf":
            raise ValueError(
                f"--counts {source}: expected one number per id, got {getattr(numbers, 'dtype', 'an archive')}"
            )
        return torch.from_numpy(numbers)
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


def _is_data_set_or_weights(source: str) -> bool:
    """Whether a path is a folder with the name of a known data set, or a file of weights."""
    from mgqe.recsys.data.datasets import DATASETS

    return source in DATASETS or Path(source).suffix.lower() == ".safetensors"


def _of_data_set(name: str, field: str, data_dir: str | None) -> Tensor:
    from mgqe.recsys.data.datasets import DATASETS, load_data
    from mgqe.recsys.data.splits import leave_one_out

    if name != "planted" and name not in DATASETS:
        raise ValueError(
            f"--counts {name!r}: expected a file ({', '.join(FILES)}) or a known data set: "
            f"planted, {', '.join(DATASETS)}"
        )
    split = leave_one_out(load_data(name, data_dir))
    return split.item_counts if field == "item" else split.user_counts
