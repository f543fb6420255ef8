"""What --counts names: .npy of one number per id, an id map, a log whose ids are counted, or a known data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgqe.cli.train_layouts import read_ids
from mgqe.convert.verification import begins_as_ours
from mgqe.files.container import ArtifactError
from mgqe.ids import IdMap
from mgqe.ids.logs.numbers import read_numbers
from mgqe.ids.logs.paths import path_exists
from mgqe.ids.logs.text_layout import TextLayout

FILES = (".npy", ".safetensors", ".parquet", ".pq", ".csv")  # and any file that exists, whatever its name


@dataclass(frozen=True)
class Counts:
    """Where counts come from.

    Attributes:
        source: a file, such as an id map that `mgqe ids` wrote, a folder or a pattern; or the name of a known data set.
        column: of a log, the column of ids; None: the one of ``field``, as `mgqe train` finds it.
        is_counted: ``column`` holds counts, one row per id, instead of ids.
        field: item or user; of a known data set for click prediction also another one of its fields.
        data_dir: of known data sets.
        format, separator, quote, header: the log's layout.
    """

    source: str
    column: str | None = None
    is_counted: bool = False
    field: str = "item"
    data_dir: str | None = None
    format: str | None = None
    separator: str | None = None
    quote: str = '"'
    header: bool | None = None

    def read(self, num_embeddings: int | None, ids: IdMap | None = None, is_numbered: bool = True) -> Tensor:
        """How often each id occurs: (N,).

        Args:
            num_embeddings: N; None: as many as there are counts, or ids in the log.
            ids: of the rows, by which the log's ids find theirs.
            is_numbered: without ``ids``, rows have the numbers 0 to N - 1, and the log's ids must be such numbers.
                Otherwise ids may also be of another type, and their counts come in falling order.

        Raises ValueError, which names --counts, the source and the remedy.
        """
        if self._is_data_set():
            return self._of_data_set()
        if self.field not in ("item", "user"):
            raise ValueError(f"--field must be item or user of a log, got {self.field!r}")
        if not path_exists(self.source):
            raise ValueError(f"--counts: no file {self.source}")
        try:
            path = Path(self.source)
            array = _load(path) if path.suffix.lower() == ".npy" else None
            if array is not None and array.dtype.kind != "U":
                return as_counts(array, num_embeddings)
            if array is not None:
                return _of_rows(_map_of(array), num_embeddings, ids, is_numbered)
            if path.suffix == ".safetensors" or (path.is_file() and begins_as_ours(path)):
                return _of_rows(_load_map(path), num_embeddings, ids, is_numbered)
            if self.is_counted:
                return self._numbers()
            return _of_rows(self._count(None if ids is None else ids.kind), num_embeddings, ids, is_numbered)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"--counts {self.source}: {error.args[0]}") from error

    def _numbers(self) -> Tensor:
        if self.column is None:
            raise ValueError("say which column holds the counts")
        separator = "," if self.separator is None else self.separator
        return read_numbers(self.source, self.column, TextLayout.of(separator, self.quote, self.header))

    def _count(self, kind: str | None) -> IdMap:
        if self.column is not None:
            separator = "," if self.separator is None else self.separator
            return IdMap.from_log(
                self.source, self.column, kind=kind, separator=separator, quote=self.quote, header=self.header
            )
        try:
            frame = read_ids([self.source], self.field, self.format, self.separator, self.quote, self.header)
        except ValueError as error:
            raise ValueError(f"say which column holds the ids: no log as `mgqe train` reads it: {error}") from error
        return IdMap.from_log(frame, self.field, kind=kind)

    def _is_data_set(self) -> bool:
        """Whether it names a known data set; nothing else that is no file or pattern does."""
        if Path(self.source).suffix.lower() in FILES:
            return False
        if not path_exists(self.source):
            return True
        if Path(self.source).is_file():
            return False
        from mgqe.recsys.data.datasets import KNOWN

        return self.source in KNOWN

    def _of_data_set(self) -> Tensor:
        from mgqe.recsys.data.datasets import CLICK_LOGS, DATASETS, KNOWN
        from mgqe.recsys.models.registry import choose_model
        from mgqe.recsys.tasks.registry import RunData
        from mgqe.recsys.train.config import TrainConfig

        if self.source not in KNOWN:
            raise ValueError(
                f"--counts {self.source!r}: expected a file ({', '.join(FILES)}) or a known data set: "
                f"{', '.join(KNOWN)}"
            )
        clicks = self.source in CLICK_LOGS or (self.source in DATASETS and not DATASETS[self.source].ordered)
        task, model = choose_model("ctr" if clicks else "ranking", None)
        data = RunData.load(
            TrainConfig(
                data=self.source, data_dir=self.data_dir, task=task, model=model, eval_users=1, eval_negatives=1
            )
        ).task
        counts: dict[str, Tensor] = {info.field: info.counts for info in data.tables.values()}
        if self.field not in counts:
            raise ValueError(f"--field must be one of {', '.join(counts)}, got {self.field!r}")
        return counts[self.field]


def load_counts(path: Path) -> Tensor:
    """The counts (N,) of an .npy file. Raises ValueError, which names the file, for anything else."""
    try:
        return as_counts(_load(path), None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def as_counts(numbers: np.ndarray, num_embeddings: int | None) -> Tensor:
    """An array as counts. Raises ValueError for anything but one number per id."""
    wanted = "one number per id" if num_embeddings is None else f"{num_embeddings:,} numbers, one per row"
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or num_embeddings not in (None, len(numbers)):
        matrix = ": `mgqe compress` makes a table of a matrix" if numbers.ndim == 2 else ""
        raise ValueError(f"expected {wanted}, got {numbers.dtype} {numbers.shape}{matrix}")
    return torch.from_numpy(numbers)


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"cannot be read as .npy: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("expected one array, got an archive")
    return array


def _load_map(path: Path) -> IdMap:
    try:
        return IdMap.load(path)
    except ArtifactError as error:
        raise ValueError(f"expected an id map, as `mgqe ids` writes it: {error}") from error


def _map_of(ids: np.ndarray) -> IdMap:
    import polars as pl

    return IdMap.from_log(pl.DataFrame({"id": ids.ravel()}), "id")


def _of_rows(counted: IdMap, num_embeddings: int | None, ids: IdMap | None, is_numbered: bool) -> Tensor:
    """The counts of a map, by rows."""
    if ids is not None:
        rows = counted.rows(ids.ids(torch.arange(len(ids))), unknown=-1)
        if not bool((rows >= 0).any()):
            raise ValueError("none of the ids in the log is the id of a row")
        return torch.where(rows >= 0, counted.counts[rows.clamp(min=0)], 0)
    if num_embeddings is None:
        return counted.counts
    is_integers = counted.kind in ("int64", "uint64")
    if is_integers:
        listed = torch.from_numpy(np.asarray(counted.ids(torch.arange(len(counted)))).astype(np.int64))
        outside = (listed < 0) | (listed >= num_embeddings)
        if bool(outside.any()):
            raise ValueError(
                f"id {int(listed[outside][0])} is outside the rows, 0 to {num_embeddings - 1}: name the rows' ids "
                "(--ids), or without a table leave --rows out"
            )
        return torch.zeros(num_embeddings, dtype=torch.int64).index_put((listed,), counted.counts)
    if is_numbered:
        raise ValueError(f"the log's ids are of kind {counted.kind}, and rows have numbers: name their ids (--ids)")
    if len(counted) > num_embeddings:
        raise ValueError(f"{len(counted):,} ids occur, more than --rows {num_embeddings}: leave --rows out")
    return torch.cat([counted.counts, counted.counts.new_zeros(num_embeddings - len(counted))])
