"""A table in a folder: the codes in several files, written by as many processes; docs/format.md specifies it.

Each file of codes ("shard") has the packed rows of some ids. The index, ``table.safetensors``, has all other tensors
and names the shards; it is written last and renamed into place, so that a folder holds a whole table or none.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.layout import CODES, TableLayout
from mgqe.codec.tensors import check_codes
from mgqe.files.atomic import write_aside
from mgqe.files.container import (
    ArtifactError,
    Shapes,
    config_of_kind,
    decode_metadata,
    encode,
    encode_elements,
    read,
    tensor_bytes,
)
from mgqe.files.reader import MAX_ROWS, Config, Reader
from mgqe.ops.layout.packed_format import MAX_TIERS
from mgqe.table.compact import CompactTable
from mgqe.table.growth import Extent
from mgqe.table.snapshot import Snapshot

INDEX = "table.safetensors"
INDEX_KIND = "compact-sharded"
SHARD_KIND = "compact-shard"
MAX_SHARDS = 10_000  # all are mapped at once
_NAME = re.compile(r"shard-[0-9a-f]{16}-\d{5}\.safetensors")


def new_set() -> str:
    """A name for the shards of one freeze: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


def shard_path(folder: Path, set_name: str, number: int) -> Path:
    """Where the shard of that number is."""
    return folder / f"shard-{set_name}-{number:05d}.safetensors"


def is_shard(file: Path) -> bool:
    """Whether a file has the name of a shard."""
    return _NAME.fullmatch(file.name) is not None


def tier_order(num_tiers: int) -> list[int]:
    """The tiers as a shard has their rows, one after another."""
    return sorted(range(num_tiers), key=str)  # tensors are ordered by name


def write_shard(folder: Path, set_name: str, number: int, shapes: Shapes, chunks: Iterable[Tensor]) -> int:
    """Write a shard, chunk by chunk as they come, and return the file's bytes. It appears whole or not at all.

    Args:
        folder: must exist.
        set_name, number: its name.
        shapes: of the tensors in it, as :meth:`TableLayout.code_tensors` gives them for the rows of each tier.
        chunks: the packed rows, uint8 (any, row_bytes), of the tiers in :func:`tier_order`.

    Raises:
        OSError: it cannot be written; the message has the bytes needed and the remedy.
        ValueError: chunks of another size than ``shapes`` says.
    """
    target = shard_path(folder, set_name, number)
    elements = chain.from_iterable(map(tensor_bytes, chunks))
    nbytes, content = encode_elements(shapes, SHARD_KIND, {"set": set_name, "number": number}, elements)
    with readable_error(target, nbytes), write_aside(target, content) as temporary:
        os.replace(temporary, target)
    return nbytes


@contextmanager
def prepared_index(
    folder: Path, set_name: str, frame: dict[str, Tensor], config: Config, shards: Sequence[Sequence[int]]
) -> Iterator[tuple[Path, int]]:
    """An index under a temporary name, on the disk, and its bytes; the block ends with :func:`publish_index`, or not.

    Args:
        frame: the tensors of :func:`mgqe.codec.tensors.lay_out_frame`.
        config: of the table's layout.
        shards: of each shard, how many rows of each tier it has.

    Raises OSError as :func:`write_shard`.
    """
    whole = {**config, "set": set_name, "shards": [list(sizes) for sizes in shards]}
    nbytes, content = encode({name: [tensor] for name, tensor in frame.items()}, INDEX_KIND, whole)
    target = folder / INDEX
    with readable_error(target, nbytes), write_aside(target, content) as temporary:
        yield temporary, nbytes


def publish_index(folder: Path, temporary: Path) -> None:
    """Make the new table the folder's table, in place of the old one, if there was one."""
    os.replace(temporary, folder / INDEX)


def remove_other_shards(folder: Path, set_name: str) -> None:
    """Delete the shards of earlier freezes, which no index names any more, and what interrupted ones left behind."""
    keep = f"shard-{set_name}-"
    for path in folder.iterdir():
        stale = _NAME.fullmatch(path.name) and not path.name.startswith(keep)
        unfinished = path.name.startswith(".") and path.name.endswith(".tmp") and keep not in path.name
        if stale or unfinished:
            with suppress(OSError):  # a shard that stays behind is named by no index
                path.unlink()


def withdraw(folder: Path, set_name: str) -> None:
    """Remove the shards of a freeze that failed, unless the folder's index names them already."""
    with suppress(OSError, ValueError):
        if published_set(folder) == set_name:
            return
    for path in folder.glob(f"*shard-{set_name}-*"):
        path.unlink(missing_ok=True)


def published_set(folder: Path) -> str | None:
    """The name of the shards that the folder's index names; None where the file is no such index.

    Raises OSError where there is none, ArtifactError where it is no whole file.
    """
    kind, config = decode_metadata(read(folder / INDEX)[0])
    set_name = config.get("set") if kind == INDEX_KIND and isinstance(config, dict) else None
    return set_name if isinstance(set_name, str) else None


def files_of(folder: Path) -> list[Path]:
    """The index of a folder that holds a table, and its shards."""
    return [folder / INDEX, *sorted(folder.glob(f"shard-{published_set(folder)}-*.safetensors"))]


@contextmanager
def readable_error(path: Path, nbytes: int) -> Iterator[None]:
    """OSErrors of writing a file, with the bytes needed and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {nbytes:,} bytes ({error.strerror or error}); the table that was there is untouched. "
            "Check that the folder exists on this machine, may be written to and has the space",
            str(path),
        ) from error


def read_sharded(
    index: Path, tensors: dict[str, Tensor], config: Config, mmap: bool, verify: bool | None = None
) -> CompactTable:
    """The table of an index that has been read, its shards beside it.

    With ``mmap`` codes stay mapped. In a table in frequency order those of a tier in a shard are a range of ids, which
    the table holds as it holds ids appended to it; in a tier map a tier has several arrays, one behind the other. Where
    there would be more than 256 ranges or arrays, the rows of a tier are joined in memory.

    Raises:
        ArtifactError: a shard is missing, damaged, or not as the index says; the message names it.
    """
    config = dict(config)
    reader = Reader({}, {name: config.pop(name) for name in ("set", "shards") if name in config})
    set_name = reader.hexadecimal("set")
    rest = Reader({}, config)
    layout = TableLayout.read(rest)
    rest.finish()
    shards = _shard_sizes(reader.value("shards"), layout.sizes)
    paths = [shard_path(index.parent, set_name, number) for number in range(len(shards))]
    codes_of_shard = [
        _read_shard(path, set_name, number, layout.code_tensors(sizes), verify)
        for number, (path, sizes) in enumerate(zip(paths, shards, strict=True))
    ]
    rows_of_tier = [_filled(codes_of_shard, name) for name in layout.code_tensors()]
    split = any(len(rows) > 1 for rows in rows_of_tier)
    arrays = layout.num_tiers + sum(map(len, rows_of_tier)) - 1
    if mmap and split and layout.order is None and arrays <= MAX_TIERS:
        return CompactTable(_of_ranges(tensors, layout, rows_of_tier))
    if mmap and split and layout.order is not None and arrays <= MAX_TIERS:
        no_rows = [torch.empty((0, tier.row_bytes), dtype=torch.uint8, device="cpu") for tier in layout.tiers]
        filled = [rows or [none] for rows, none in zip(rows_of_tier, no_rows, strict=True)]
        return CompactTable(Snapshot.from_tensors(tensors, config, filled))
    codes = {
        name: _joined(rows, shape, mmap)
        for rows, (name, (_, shape)) in zip(rows_of_tier, layout.code_tensors().items(), strict=True)
    }
    return CompactTable.from_tensors({**tensors, **codes}, config)


def _of_ranges(tensors: dict[str, Tensor], layout: TableLayout, rows_of_tier: Sequence[Sequence[Tensor]]) -> Snapshot:
    """A table in frequency order, whose tiers' packed rows are in several tensors: ranges of ids, none copied.

    The first range is the base, with no rows in the other tiers, and the others are extents behind it.
    """
    ranges = [(g, rows) for g, of_tier in enumerate(rows_of_tier) for rows in of_tier]
    first, of_first = ranges[0]
    sizes = [of_first.shape[0] if g == first else 0 for g in range(layout.num_tiers)]
    begun = replace(layout.resized(sizes, None), padding_idx=None)  # which may be an id of another range
    codes = {
        name: torch.empty(shape, dtype=dtype, device="cpu") for name, (dtype, shape) in begun.code_tensors().items()
    }
    codes[CODES.format(first)] = of_first
    snapshot = Snapshot.from_tensors({**tensors, **codes}, begun.to_json())
    for g, rows in ranges[1:]:
        check_codes(CODES.format(g), rows, layout.tiers[g])
    base = replace(begun, padding_idx=layout.padding_idx)
    return replace(snapshot, base=base, extents=tuple(Extent(g, rows) for g, rows in ranges[1:]))


def _filled(codes_of_shard: Sequence[dict[str, Tensor]], name: str) -> list[Tensor]:
    """The packed rows of a tier in the shards that have some."""
    return [codes[name] for codes in codes_of_shard if codes[name].shape[0]]


def _joined(filled: list[Tensor], shape: tuple[int, ...], mmap: bool) -> Tensor:
    """A tier's packed rows from the shards that have some, as one tensor of this shape."""
    if not filled:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")
    return filled[0] if mmap and len(filled) == 1 else ops.join_in_large_pages(filled)


def _shard_sizes(entry: object, sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The rows of each tier in each shard, which must add up to the tiers' sizes."""
    if not isinstance(entry, list) or len(entry) > MAX_SHARDS:
        raise ValueError(f"config entry 'shards' must be a list of at most {MAX_SHARDS} shards")
    shards = [Reader({}, {"shards": rows}).integers("shards", 0, MAX_ROWS, length=len(sizes)) for rows in entry]
    totals = [sum(rows[g] for rows in shards) for g in range(len(sizes))]
    if totals != list(sizes):
        raise ValueError(f"config entry 'shards' has {totals} rows of the tiers, 'sizes' says {list(sizes)}")
    return shards


def _read_shard(path: Path, set_name: str, number: int, shapes: Shapes, verify: bool | None) -> dict[str, Tensor]:
    try:
        metadata, tensors = read(path, verify)
        reader = Reader(tensors, config_of_kind(metadata, SHARD_KIND))
        reader.choice("set", {set_name})
        reader.integer("number", number, number)
        codes = {name: reader.tensor(name, dtype, shape) for name, (dtype, shape) in shapes.items()}
        reader.finish()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"shard {number} is missing: there is no {path.name} in {path.parent}. Copy every file of the folder"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"shard {path.name}: {error}") from error
    return codes
