"""What the command plan reads: a trained table, queries, and counts from files or known data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgqe.ids.logs.numbers import read_numbers
from mgqe.ids.logs.paths import path_exists
from mgqe.ids.logs.text_layout import TextLayout

FILES = (".npy", ".parquet", ".pq", ".csv")  # and any file that exists, whatever its name


def read_queries(path: Path) -> Tensor:
    """The vectors of an .npy file, as --queries names it; checked where they are used."""
    if not path.is_file():
        raise ValueError(f"--queries: no file {path}")
    return torch.from_numpy(_load_npy(path))


def read_weight(path: Path, tensor: str | None) -> Tensor:
    """The trained rows (N, d) that --weight and --tensor name."""
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


def read_counts(
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
