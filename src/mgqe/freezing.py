"""From a layer to its frozen table, piece by piece: no more than the packed codes is ever held, or not even these."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgqe.artifact import save_pieces
from mgqe.frozen import Config
from mgqe.inference import outside_inference
from mgqe.layout import lay_out_frame
from mgqe.packing import bits_for, pack, row_bytes
from mgqe.rows import SWEEP_ROWS
from mgqe.table import CompactTable
from mgqe.whole_files import replaceable

if TYPE_CHECKING:
    from mgqe.quantized import QuantizedEmbedding

Pieces = Callable[[str], Iterator[Tensor]]


def frozen_pieces(layer: QuantizedEmbedding) -> tuple[dict[str, Tensor], Config, Pieces]:
    """What a layer freezes to: every tensor's shape and type, the configuration, and the tensors in pieces.

    Codes have a shape alone; the pieces of a tensor, joined along the first axis, fill it.
    """
    tiers, capacity = layer.tiers, layer.capacity
    small, config = lay_out_frame(
        tiers,
        layer.quantizer.served(),
        capacity.codebook_of,
        capacity.num_subspaces,
        capacity.num_centroids,
        layer._zero_row,
        layer.centroid_dtype,
    )
    shapes = dict(small)
    for g, (n, subspaces, k) in enumerate(
        zip(tiers.sizes, capacity.num_subspaces, capacity.num_centroids, strict=True)
    ):
        shapes[f"codes.{g}"] = torch.empty(n, row_bytes(subspaces, bits_for(k)), dtype=torch.uint8, device="meta")

    def pieces(name: str) -> Iterator[Tensor]:
        if name in small:
            yield small[name]
            return
        tier = int(name.removeprefix("codes."))
        bits = bits_for(capacity.num_centroids[tier])
        for ids in tiers.member_chunks(tier, SWEEP_ROWS):
            yield pack(layer.codes_of(ids.to(layer.raw_weight.device), tier).cpu(), bits)

    return shapes, config, pieces


@outside_inference
def frozen_table(layer: QuantizedEmbedding) -> CompactTable:
    """The table on the CPU, in memory."""
    shapes, config, pieces = frozen_pieces(layer)
    tensors = {}
    for name, shape in shapes.items():
        whole = torch.empty(shape.shape, dtype=shape.dtype, device="cpu")
        start = 0
        for piece in pieces(name):
            whole[start : start + piece.shape[0]] = piece
            start += piece.shape[0]
        tensors[name] = whole
    return CompactTable.from_tensors(tensors, config)


def freeze_to(layer: QuantizedEmbedding, path: str | os.PathLike[str]) -> int:
    """Freeze a layer straight into a file: what ``mgqe.save(layer.freeze(), path)`` writes, byte for byte.

    Over a file with appended ids these are gone, as with save, and the new one has a generation of its own.

    Codes go to the disk as they are worked out, some thousands of rows at a time, so that a table of any size needs
    no memory beside the layer's own. The file appears whole or not at all.

    Returns:
        the file's bytes.

    Raises:
        TypeError: not an MGQEmbedding, DPQEmbedding or a bag of these. ValueError: rows or centroids that are NaN.
        OSError: the file cannot be written; what was at the path stays as it was.
    """
    from mgqe.quantized import QuantizedEmbedding

    if not isinstance(layer, QuantizedEmbedding):
        raise TypeError(
            f"expected an MGQEmbedding, DPQEmbedding or a bag of these, got {type(layer).__name__}: frozen tables, and "
            "what freeze() of other layers gives, are written by mgqe.save, whole models by mgqe.save_model"
        )
    if not (folder := Path(os.path.realpath(path)).parent).is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"no folder {folder}: make it first; nothing was changed", os.fspath(path)
        )
    replaceable(Path(path))
    with torch.no_grad():
        layer.prepare_to_freeze()
        shapes, config, pieces = frozen_pieces(layer)
        return save_pieces(shapes, CompactTable.kind, config, pieces, path)
