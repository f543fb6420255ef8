"""A log of clicks that is made up: power laws of the size of Criteo's, and labels with a planted structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mgqe.convert.progress import Progress, shown
from mgqe.files.atomic import fill_file
from mgqe.files.locks import folder_lock
from mgqe.ids.strings import hash_integers
from mgqe.recsys.data.clicks.layouts import LABEL
from mgqe.recsys.data.clicks.sources import ParquetSource

FIELDS = tuple(f"C{number}" for number in range(1, 27))
SMALLEST = 10  # ids of the smallest field
ROWS_PER_ID = 4  # of the largest field: 40 million rows have 10 million ids
POWER = 1.1  # an id's frequency falls with its number to this power
RANK = 2  # of the crosses of fields
OWN, CROSSED = 0.2, 0.35  # standard deviations of an id's own effect, and of its coordinates in the crosses
BIAS = -2.0  # a quarter of the rows are clicks, as in Criteo's log
CHUNK = 2**17  # rows of a file


def vocabulary_sizes(num_rows: int) -> list[int]:
    """The number of ids of each field: from SMALLEST, in equal ratios, to a fourth of the rows."""
    largest = max(SMALLEST, num_rows // ROWS_PER_ID)
    return [round(SMALLEST * (largest / SMALLEST) ** (at / (len(FIELDS) - 1))) for at in range(len(FIELDS))]


def planted_logits(ids: np.ndarray) -> np.ndarray:
    """The log odds of a click, float64 (n,), for ids int64 (n, 26).

    bias + sum over fields of an effect of the id + sum over pairs of fields of <z_k, z_l>, where z_k has RANK
    coordinates; effects and coordinates are normal, determined by the field and the id.
    """
    logits: np.ndarray = np.full(len(ids), BIAS)
    total, squares = np.zeros((RANK, len(ids))), np.zeros(len(ids))
    for field in range(ids.shape[1]):
        logits += OWN * _normal(ids[:, field], field, 0)
        for coordinate in range(RANK):
            z = CROSSED * _normal(ids[:, field], field, 1 + coordinate)
            total[coordinate] += z
            squares += z * z
    logits += 0.5 * ((total * total).sum(axis=0) - squares)
    return logits


def _normal(ids: np.ndarray, field: int, use: int) -> np.ndarray:
    """A standard normal number for each id, by Box and Muller from two halves of a hash."""
    hashes = hash_integers(ids.view(np.uint64), 1 + 97 * field + use)
    radius = ((hashes >> np.uint64(32)).astype(np.float64) + 1.0) / 2**32
    angle = (hashes & np.uint64(2**32 - 1)).astype(np.float64) / 2**32
    normal: np.ndarray = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)
    return normal


def draw(num_rows: int, chunk: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Chunk number `chunk` of a log of `num_rows`: ids int64 (n, 26), labels uint8 (n,)."""
    num = min(CHUNK, num_rows - chunk * CHUNK)
    generator = np.random.default_rng([seed, chunk])
    columns = []
    for size in vocabulary_sizes(num_rows):  # the inverse of the power law's distribution function
        most = (size + 1.0) ** (1.0 - POWER) - 1.0
        numbers = (generator.random(num) * most + 1.0) ** (1.0 / (1.0 - POWER)) - 1.0
        columns.append(np.minimum(numbers.astype(np.int64), size - 1))
    ids = np.ascontiguousarray(np.stack(columns, axis=1))
    return ids, (generator.random(num) < 1.0 / (1.0 + np.exp(-planted_logits(ids)))).astype(np.uint8)


def generate(home: Path, num_rows: int, seed: int = 0, progress: Progress | bool | None = None) -> ParquetSource:
    """Write the log into a folder below `home`, a chunk at a time, or find there what was written before."""
    # The constants above are part of the name: what other versions made up is another log.
    folder = home / f"{num_rows}-rows-seed-{seed}-rank-{RANK}-{OWN}-{CROSSED}"
    files = [folder / f"rows-{chunk:05d}.parquet" for chunk in range(-(-num_rows // CHUNK))]
    if not all(file.is_file() for file in files):
        with folder_lock(folder), shown(progress, "making up clicks") as step:
            for chunk, file in enumerate(files):
                if not file.is_file():
                    ids, labels = draw(num_rows, chunk, seed)
                    columns = {name: ids[:, at].astype(np.uint32) for at, name in enumerate(FIELDS)}
                    fill_file(file, pl.DataFrame({LABEL: labels, **columns}).write_parquet)
                step(chunk + 1, len(files))
    return ParquetSource(files, FIELDS)
