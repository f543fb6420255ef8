"""freeze_to: a layer frozen straight into a file, without its codes in memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch

from mgqe.files.regular import require_replaceable
from mgqe.nn.freezing import frozen_chunks
from mgqe.nn.quantized import QuantizedEmbedding
from mgqe.table.compact import CompactTable
from mgqe.table.io import save_chunks


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
    if not isinstance(layer, QuantizedEmbedding):
        raise TypeError(
            f"expected an MGQEmbedding, DPQEmbedding or a bag of these, got {type(layer).__name__}: frozen tables, and "
            "what freeze() of other layers gives, are written by mgqe.save, whole models by mgqe.save_model"
        )
    if not (folder := Path(os.path.realpath(path)).parent).is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"no folder {folder}: make it first; nothing was changed", os.fspath(path)
        )
    require_replaceable(Path(path))
    with torch.no_grad():
        layer.prepare_to_freeze()
        shapes, config, chunks = frozen_chunks(layer)
        return save_chunks(shapes, CompactTable.kind, config, chunks, path)
