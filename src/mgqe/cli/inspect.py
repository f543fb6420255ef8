"""The command inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mgqe
from mgqe.cli.lookups import table_lookup_share
from mgqe.cli.packages import missing_packages
from mgqe.cli.terminal import clean_errors, output
from mgqe.codec.planning.speed import in_words
from mgqe.collection.folder import is_collection, table_of
from mgqe.files.atomic import fill_file
from mgqe.recsys.study.text_table import TextTable
from mgqe.table.base import FrozenTable
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import INDEX, files_of

commands = typer.Typer()


@commands.command(
    help="Look into a table's file: bytes by part, tiers, bits per code, how much of the codebook is in use.",
    epilog="Examples:\n\n  mgqe inspect run/item.mgqe.safetensors\n\n"
    "  mgqe inspect run/item.mgqe.safetensors --plot bits.png",
)
@clean_errors
def inspect(
    file: Annotated[Path, typer.Argument(help="A file that mgqe.save wrote, a folder of shards, or a collection.")],
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the bits of each tier and coordinate to this PNG file.")
    ] = None,
) -> None:
    if plot is not None and missing_packages(("matplotlib",)):
        raise ImportError("inspect --plot needs matplotlib")
    if is_collection(file):
        ids = mgqe.Collection.load(file).ids
        about = "rows are numbered" if ids is None else f"{ids!r}"
        output.print(f"{file}: a collection; {about}", highlight=False, markup=False, soft_wrap=True)
        file = table_of(file)
    is_folder = file.is_dir()
    if is_folder and not (file / INDEX).exists() and (tables := sorted(file.glob("*.mgqe.safetensors"))):
        raise ValueError(f"{file} is the folder of a run: name one of its tables, such as {tables[0]}")
    table = mgqe.load(file)
    appended = [] if is_folder else all_segment_files(file.resolve())
    files = files_of(file) if is_folder else [file, *appended, *all_records(file.resolve())]
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
            "over the file makes one file of them",
            highlight=False,
            soft_wrap=True,
        )
    sizes = TextTable("Bytes", ["part", "bytes", "of float32"])
    by_part = table.nbytes_by_part()
    for name, size in {**by_part, "header": on_disk - sum(by_part.values()), "file": on_disk}.items():
        sizes.rows.append([name, f"{size:,}", f"{100 * size / full:.2f}%" if full else ""])
    output.print(sizes.terminal())
    if isinstance(table, mgqe.CompactTable):
        output.print()
        output.print(_tiers(table).terminal())
        output.print(f"{in_words(table_lookup_share(table))}, for ids that are alike frequent", highlight=False)
    if plot is not None:
        _draw(table, plot)


def _draw(table: FrozenTable, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    figure = mgqe.plot_bits(table)
    fill_file(path, lambda file: figure.savefig(file, format="png", dpi=110))
    output.print(f"picture written to {path}", highlight=False, soft_wrap=True)


def _tiers(table: mgqe.CompactTable) -> TextTable:
    tiers = TextTable(
        "Tiers, most frequent first",
        ["tier", "ids", "subspaces", "centroids", "bits/code", "bytes/id", "in use", "perplexity"],
    )
    for stats in table.codebook_stats():
        tier = table.config.tiers[stats.tier]
        bits = str(tier.bits) if not tier.code_bits else f"{min(tier.code_bits)} to {max(tier.code_bits)}"
        tiers.rows.append(
            [
                str(stats.tier),
                f"{stats.num_ids:,}",
                str(stats.num_subspaces),
                str(stats.num_centroids),
                bits,
                str(tier.row_bytes),
                f"{100 * stats.usage:.0f}%",
                f"{stats.perplexity:.1f}",
            ]
        )
    return tiers
