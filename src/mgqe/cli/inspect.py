"""The command inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mgqe
from mgqe.cli.terminal import clean_errors, output
from mgqe.recsys.study.text_table import TextTable
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import INDEX, files_of

commands = typer.Typer()


@commands.command(
    help="Look into a table's file: bytes by part, tiers, bits per code, how much of the codebook is in use.",
    epilog="Example:\n\n  mgqe inspect run/item.mgqe.safetensors",
)
@clean_errors
def inspect(file: Annotated[Path, typer.Argument(help="A file that mgqe.save wrote, or a folder of shards.")]) -> None:
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
