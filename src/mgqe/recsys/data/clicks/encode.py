"""Encodes a log of clicks into Parquet in two passes: one counts the values of each field, the other numbers them.

Memory holds one chunk of the log and the counts. Interrupted, it goes on with the chunks that are missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from xxhash import xxh3_64

from mgqe.convert.progress import Progress, shown
from mgqe.files.atomic import fill_file, read_json, write_json
from mgqe.files.locks import folder_lock
from mgqe.recsys.data.clicks.encoded import LOG, EncodedLog, chunk_file, digest_of, vocabulary_file
from mgqe.recsys.data.clicks.layouts import LABEL
from mgqe.recsys.data.clicks.parts import PARTS, RowParts
from mgqe.recsys.data.clicks.sources import Chunk, ClickSource
from mgqe.recsys.data.clicks.vocabulary import MISSING, FieldCounter, Vocabulary
from mgqe.recsys.data.held_out import TRAIN

COUNTED = "counted.json"  # is there once the first pass is done
VERSION = 1  # of what is written; another one is encoded anew


@dataclass(frozen=True)
class Encoding:
    """Settings by which a log is encoded.

    min_count: how often a value must occur in the training part for a row of its own; the others share one.
    hash_size: fields with more different values have so many rows, which values share by their hashes.
    """

    min_count: int
    hash_size: int | None
    parts: RowParts

    @property
    def text(self) -> str:
        """What tells it from others."""
        parts = [self.parts.name, self.parts.seed, self.min_count, self.hash_size]
        return json.dumps([VERSION, *parts])

    def folder_name(self, source: ClickSource) -> str:
        """A name that differs where the settings, or the names, sizes or times of the source's files do."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
        return f"encoded-{hashlib.sha256(f'{files} {self.text}'.encode()).hexdigest()[:12]}"


def encode(source: ClickSource, home: Path, encoding: Encoding, progress: Progress | bool | None = None) -> EncodedLog:
    """Encode a log into a folder below `home`, or find there what was encoded before.

    progress: see mgqe.convert.progress.shown.

    Raises:
        ValueError: the line of a file that is wrong, or a part without clicks or with nothing else. OSError: the folder
            cannot be written.
    """
    folder = home / encoding.folder_name(source)
    if not (folder / LOG).is_file():
        try:
            with folder_lock(folder):
                if not (folder / LOG).is_file():
                    _encode(source, folder, encoding, progress)
        except ValueError:
            if not (folder / COUNTED).is_file():  # a file is wrong: nothing is left behind
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # there is something else
                    home.rmdir()
            raise
    return EncodedLog.open(folder)


def _encode(source: ClickSource, folder: Path, encoding: Encoding, progress: Progress | bool | None) -> None:
    if not (folder / COUNTED).is_file():
        total = 0
        if encoding.parts.latest is not None:
            with shown(progress, "counting rows") as step:
                for at, chunk in enumerate(source.chunks(), start=1):
                    total += chunk.num_rows
                    step(at, None)
        with shown(progress, "counting values") as step:
            _count(source, folder, encoding, total, step)
    about = read_json(folder / COUNTED)
    with shown(progress, "encoding the log") as step:
        sizes = _write(source, folder, encoding, about, step)
    write_json(
        folder / LOG,
        {
            "fields": source.fields,
            "sizes": sizes,
            "clicks": about["clicks"],
            "split": encoding.parts.name,
            "digest": digest_of(about["content"], encoding.text),
        },
    )


def _count(source: ClickSource, folder: Path, encoding: Encoding, total: int, step: Progress) -> None:
    """The first pass: vocabularies of the training part, and COUNTED. total: the rows, where the parts depend on it."""
    counters = {field: FieldCounter(encoding.hash_size) for field in source.fields}
    num_chunks, sizes, clicks = 0, np.zeros(len(PARTS), np.int64), np.zeros(len(PARTS), np.int64)
    content = xxh3_64()
    for first, chunk in _numbered(source):
        content.update(chunk.content())
        frame = chunk.frame()
        parts = encoding.parts.of_rows(first, chunk.num_rows, total)
        sizes += np.bincount(parts, minlength=len(PARTS))
        clicks += np.bincount(parts, frame[LABEL].to_numpy(), len(PARTS)).astype(np.int64)
        for field, counter in counters.items():
            counter.add(_values(frame, field)[parts == TRAIN])
        num_chunks += 1
        step(num_chunks, None)
    for number, name in PARTS.items():
        if not 0 < clicks[number] < sizes[number]:
            raise ValueError(
                f"{source.files[0]}: expected rows with and without a click in the part {name} "
                f"({encoding.parts.name}), got {sizes[number]:,} rows, {clicks[number]:,} of them with one"
            )
    for field, counter in counters.items():
        counter.vocabulary(encoding.min_count).save(vocabulary_file(folder, field))
    write_json(
        folder / COUNTED,
        {
            "chunks": num_chunks,
            "rows": int(sizes.sum()),
            "clicks": {name: int(clicks[number]) for number, name in PARTS.items()},
            "content": content.hexdigest(),
        },
    )


def _write(
    source: ClickSource, folder: Path, encoding: Encoding, about: dict[str, Any], step: Progress
) -> dict[str, list[int]]:
    """The second pass: a file per chunk and part, unless it is there; returns the rows of each."""
    vocabularies = {field: Vocabulary.load(vocabulary_file(folder, field)) for field in source.fields}
    sizes: dict[str, list[int]] = {name: [] for name in PARTS.values()}
    for at, (first, chunk) in enumerate(_numbered(source)):
        parts = encoding.parts.of_rows(first, chunk.num_rows, about["rows"])
        files = {number: chunk_file(folder, name, at) for number, name in PARTS.items()}
        if not all(file.is_file() for file in files.values()):
            frame = chunk.frame()
            rows = {field: vocabularies[field].rows(_values(frame, field)) for field in source.fields}
            encoded = pl.DataFrame({LABEL: frame[LABEL], **rows})
            for number, file in files.items():
                fill_file(file, encoded.filter(pl.Series(parts == number)).write_parquet)
        for number, name in PARTS.items():
            sizes[name].append(int((parts == number).sum()))
        step(at + 1, about["chunks"])
    return sizes


def _numbered(source: ClickSource) -> Iterator[tuple[int, Chunk]]:
    """Each chunk with the number of its first row."""
    first = 0
    for chunk in source.chunks():
        yield first, chunk
        first += chunk.num_rows


def _values(frame: pl.DataFrame, field: str) -> np.ndarray:
    values: np.ndarray = frame[field].fill_null(MISSING).to_numpy()
    return values
