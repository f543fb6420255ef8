"""read_vectors: rows and their ids from a file of any of the formats in which people keep them."""

from __future__ import annotations

import os
from pathlib import Path

from mgqe.vectors.arrays import read_npy, read_npz
from mgqe.vectors.columns import IdColumn
from mgqe.vectors.frames import read_frame
from mgqe.vectors.model_folders import is_model_folder, read_model_folder
from mgqe.vectors.tensors import read_safetensors, read_state_dict
from mgqe.vectors.vectors import Vectors
from mgqe.vectors.word_vectors import is_word_binary, read_word_binary, read_word_text

FRAMES = {".parquet": ",", ".pq": ",", ".csv": ",", ".tsv": "\t", ".jsonl": ",", ".ndjson": ",", ".json": ","}
STATE_DICTS = (".pt", ".pth", ".bin", ".ckpt")
WORDS = (".txt", ".vec", ".w2v", ".glove")
FORMATS = (
    ".npy, .npz, .safetensors, .pt or .bin (a state dict), .parquet, .csv, .tsv or .jsonl (a table with a column of "
    "vectors or one per dimension), .txt, .vec or .bin (word vectors), or a model's folder"
)


def read_vectors(
    path: str | os.PathLike[str], *, tensor: str | None = None, ids: IdColumn = None, vectors: str | None = None
) -> Vectors:
    """The rows of a file, and their ids where it has them. Nothing in it is run.

    Args:
        path: a file, or the folder of a model.
        tensor: of files with several tensors or arrays, the name of the matrix.
        ids, vectors: of tables, the columns of ids and of vectors; see :func:`mgqe.vectors.columns.choose_columns`.

    Raises:
        ValueError: a file of another format, damaged, or in which the matrix cannot be told; the message names the
            file, what it holds, and the remedy. OSError: it cannot be opened. ImportError: polars, which reads tables,
            is not installed.
    """
    path = Path(path)
    if not path.exists():
        what = "there is no such file"
        if not path.suffix and (len(path.parts) == 1 or (len(path.parts) == 2 and not path.parent.exists())):
            what += f"; if it is the name of a model on a hub, download it first: hf download {path} --local-dir FOLDER"
        raise FileNotFoundError(2, what, os.fspath(path))
    try:
        return _read(path, tensor, ids, vectors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path, tensor: str | None, ids: IdColumn, vectors: str | None) -> Vectors:
    ending = path.suffix.lower()
    is_frame = not path.is_dir() and ending in FRAMES
    if (ids is not None or vectors is not None) and not is_frame:
        raise ValueError(f"columns are named of tables alone ({', '.join(FRAMES)}), and this is none")
    if path.is_dir():
        if is_model_folder(path):
            return read_model_folder(path, tensor)
        raise ValueError(f"this folder holds no model: expected {FORMATS}")
    if ending == ".npz":
        return read_npz(path, tensor)
    if ending == ".safetensors":
        return read_safetensors(path, tensor)
    if ending == ".bin" and is_word_binary(path):
        return read_word_binary(path)
    if ending in STATE_DICTS:
        return read_state_dict(path, tensor)
    if tensor is not None:
        raise ValueError(f"a file {ending} has no tensors to name: leave tensor= (--tensor) out")
    if ending == ".npy":
        return read_npy(path)
    if is_frame:
        return read_frame(path, ids, vectors, FRAMES[ending])
    if ending in WORDS:
        return read_word_text(path)
    raise ValueError(f"files {ending or 'without an ending'} are not known: expected {FORMATS}")
