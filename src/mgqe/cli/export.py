"""The command export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

import mgqe
from mgqe.checks.names import errors_about
from mgqe.cli.open_collection import Folder, open_collection
from mgqe.cli.terminal import clean_errors, output
from mgqe.files.destination import check_file

commands = typer.Typer()
EXPORTER = "torch.onnx"  # its logger, which tells of packages that this does not need


@commands.command(
    help="Write a table as an ONNX file that looks rows up from the packed codes, by standard operators.\n\n"
    "Its input is ids, int64 (n,), the numbers of rows; its output is vectors, float32 (n, d). With --bag its input is "
    "(B, L), and its output the sum, mean or maximum of each bag. A whole model is exported in Python, by "
    "mgqe.export_onnx.",
    epilog="Examples:\n\n  mgqe export items --onnx items.onnx\n\n  mgqe export items --onnx history.onnx --bag mean",
)
@clean_errors
def export(
    folder: Folder,
    onnx: Annotated[Path, typer.Option(help="The file to write.")],
    bag: Annotated[str | None, typer.Option(help="sum, mean or max: of bags of ids.")] = None,
) -> None:
    check_file(onnx, "--onnx")
    items = open_collection(folder)
    with errors_about(str(folder)), _quiet():
        if bag is None:
            module = mgqe.CompactEmbedding(items.table)
            ids = torch.zeros(2, dtype=torch.int64)
        else:
            module = mgqe.CompactEmbeddingBag(items.table, mode=bag)
            ids = torch.zeros((2, 2), dtype=torch.int64)
        free = (dict.fromkeys(range(ids.ndim), torch.export.Dim.DYNAMIC),)
        nbytes = mgqe.export_onnx(module, ids, onnx, dynamic_shapes=free, input_names=["ids"], output_names=["vectors"])
    shape = "(n,)" if bag is None else "(B, L)"
    sizes = f"{items.table.embedding_dim} numbers each, {nbytes:,} bytes"
    output.print(f"{onnx}: ids {shape} to {sizes}", highlight=False, soft_wrap=True)
    if items.ids is not None:
        output.print(
            f"ids are numbers of rows: mgqe.Collection.load({str(folder)!r}).rows(...) gives those of your ids",
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says to its developers."""
    logger = logging.getLogger(EXPORTER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
