"""The command inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import mgqe
from mgqe.cli.terminal import clean_errors, output
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import INDEX, files_of

commands = typer.Typer()


@commands.command(
    help="Look into a table's file: bytes by part, tiers, bits a code, how much of the codebook is in use.",
    epilog="Example:\n\n  mgqe inspect run/item.mgqe.safetensors",
)
@clean_errors
def inspect(file: Annotated[Path, typer.Argument(help="A file that mgqe.save wrote, or a folder of shards.")]) -> None:
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
