"""A log of clicks in Parquet: a file of rows and labels for each chunk and part, which are read in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from mgqe.files.atomic import read_json
from mgqe.recsys.data.clicks.layouts import LABEL
from mgqe.recsys.data.clicks.vocabulary import Vocabulary

LOG = "log.json"  # is there once everything is
TOGETHER = 8  # chunks that are in memory together, in which rows change places

Rows = tuple[Tensor, Tensor]  # rows of the fields' tables int32 (n, f), labels float32 (n,)


def vocabulary_file(folder: Path, field: str) -> Path:
    """The file of a field's vocabulary."""
    return folder / f"vocabulary-{field}.parquet"


def chunk_file(folder: Path, part: str, chunk: int) -> Path:
    """The file of a part of a chunk: the fields as uint32, the label as uint8."""
    return folder / f"{part}-{chunk:05d}.parquet"


@dataclass(frozen=True)
class EncodedLog:
    """A log that `encode` has written in `folder`.

    fields: in the order of the columns. sizes: part -> rows of each chunk. clicks: part -> its rows with label 1.
    digest: of the log's content and of the settings that it was encoded with. split: the rule.
    """

    folder: Path
    fields: tuple[str, ...]
    sizes: Mapping[str, tuple[int, ...]]
    clicks: Mapping[str, int]
    digest: str
    split: str

    @classmethod
    def open(cls, folder: Path) -> EncodedLog:
        """What `encode` wrote there."""
        about = read_json(folder / LOG)
        sizes = {part: tuple(numbers) for part, numbers in about["sizes"].items()}
        return cls(folder, tuple(about["fields"]), sizes, about["clicks"], about["digest"], about["split"])

    def num_rows(self, part: str) -> int:
        """The rows of a part."""
        return sum(self.sizes[part])

    @cached_property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Field -> its rows."""
        return {field: Vocabulary.load(vocabulary_file(self.folder, field)) for field in self.fields}

    def read(self, part: str, chunk: int) -> Rows:
        """A chunk of a part, in the order of the log."""
        frame = pl.read_parquet(chunk_file(self.folder, part, chunk))
        columns = [torch.from_numpy(frame[field].cast(pl.Int32).to_numpy().copy()) for field in self.fields]
        return torch.stack(columns, dim=1), torch.from_numpy(frame[LABEL].cast(pl.Float32).to_numpy().copy())

    def shuffled(self, part: str, batch_size: int, generator: torch.Generator) -> Iterator[Rows]:
        """All rows of a part, `batch_size` at a time, in an order that `generator` determines.

        The chunks come in random order, TOGETHER at a time, and the rows of these in random order.
        """
        sizes = self.sizes[part]
        order = [chunk for chunk in torch.randperm(len(sizes), generator=generator).tolist() if sizes[chunk]]
        left: Rows | None = None
        for start in range(0, len(order), TOGETHER):
            read = [self.read(part, chunk) for chunk in order[start : start + TOGETHER]]
            read = read if left is None else [left, *read]
            rows, labels = (torch.cat(columns) for columns in zip(*read, strict=True))
            places = torch.randperm(len(labels), generator=generator)
            whole = len(labels) - len(labels) % batch_size
            for chosen in torch.split(places[:whole], batch_size):
                if len(chosen):  # fewer rows than a batch
                    yield rows[chosen], labels[chosen]
            left = rows[places[whole:]], labels[places[whole:]]
        if left is not None and len(left[1]):
            yield left

    def spread(self, part: str, most: int) -> Iterator[Rows]:
        """At most `most` rows of a part, evenly spread over it, in the order of the log, chunk by chunk."""
        step, position = -(-self.num_rows(part) // most), 0
        for chunk, size in enumerate(self.sizes[part]):
            first = -position % step
            if first < size:
                rows, labels = self.read(part, chunk)
                yield rows[first::step], labels[first::step]
            position += size


def digest_of(content: str, settings: str) -> str:
    """A digest of a log's content, whose own digest is passed, and of settings."""
    return hashlib.sha256(f"{content} {settings}".encode()).hexdigest()
