"""Ids appended to a file: small files beside it, which touch nothing that is there. docs/format.md specifies them.

A segment ``<name>.append-<base>-000001`` holds packed rows, and says to which base they belong and with which id they
start. It appears whole or not at all, under a number that no other writer to that base can take as well.
"""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.layout import CENTROIDS, MATRIX, MEAN, SCALES
from mgqe.codec.tensors import check_codes
from mgqe.files.atomic import write_aside
from mgqe.files.container import ArtifactError, config_of_kind, decode_metadata, encode, open_stored, read, tensor_bytes
from mgqe.files.locks import file_identity, file_lock
from mgqe.files.reader import MAX_ROWS, Config, Reader
from mgqe.table.compact import CompactTable
from mgqe.table.growth import check_tier, check_vectors
from mgqe.table.segment_files import all_segment_files, segment_files, segment_path
from mgqe.table.segment_record import check_record, extend_record, lost, read_record

KIND = "compact-append"
CODES_NAME = "codes"  # of a segment's only tensor
MAX_ATTEMPTS = 1000  # at taking the next number; each failure is another writer's success


@dataclass(frozen=True)
class Segment:
    """One appended file.

    Attributes:
        first_id: the id of its first row.
        tier: the tier of all its rows.
        rows: packed codes, uint8 (n, row_bytes), n >= 1.
    """

    path: Path
    first_id: int
    tier: int
    rows: Tensor

    @property
    def end(self) -> int:
        """The id after its last."""
        return self.first_id + self.rows.shape[0]


def table_fingerprint(metadata: Mapping[str, str], table: CompactTable) -> str:
    """What a segment records of its base: sha256 over all that gives its codes and ids a meaning.

    Codes of the base are left out: appended rows do not depend on them, and reading them would read the whole file.
    A table that replaces one with appended files gets another ``generation``, so that a segment never fits both.
    """
    digest = hashlib.sha256()
    for text in (metadata["config"], metadata.get("generation", "")):
        digest.update(text.encode() + b"\0")
    transform = table.snapshot.transform_tensors().values()
    for tensor in (*table.snapshot.centroids, *table.snapshot.scales, *transform):
        for chunk in tensor_bytes(tensor):
            digest.update(chunk)
    return digest.hexdigest()


def read_segment(path: Path, table: CompactTable, base_fingerprint: str, verify: bool | None = None) -> Segment:
    """An appended file. Its codes are read only to compare them with their checksums.

    Raises ArtifactError naming the file, what is wrong and the remedy.
    """
    try:
        metadata, tensors = read(path, verify)
        reader = Reader(tensors, config_of_kind(metadata, KIND))
        reader.choice("base", {base_fingerprint})
        base = table.snapshot.base
        first_id = reader.integer("first_id", base.num_embeddings, MAX_ROWS)
        tier = reader.integer("tier", 0, len(base.tiers) - 1)
        rows = reader.tensor(CODES_NAME, torch.uint8, (None, base.tiers[tier].row_bytes))
        reader.finish()
        return Segment(path, first_id, tier, rows)
    except ValueError as error:
        raise _refusal(path, error) from error


def read_extents(
    base: Path, fingerprint: str, table: CompactTable, mmap: bool, verify: bool | None = None
) -> Iterator[tuple[int, Tensor]]:
    """What was appended to a base, in order of ids: tiers and packed rows, neighbours of a tier joined.

    Args:
        base: the file, links resolved.
        fingerprint, table: its table_fingerprint, and what it holds.
        mmap: rows of a file that stands alone stay mapped; all others are read into memory.

    Raises:
        ArtifactError: a file is damaged, or ids are missing or given twice; the message names the file.
    """
    record = read_record(base, fingerprint, verify)  # before the files are listed, see there
    every_file = all_segment_files(base)
    files = segment_files(base, fingerprint)
    others = sorted({*every_file} - {path for _, path in files})
    if others:
        warnings.warn(
            f"{others[0]}{f' and {len(others) - 1} more' if others[1:] else ''} left out: appended to another table "
            f"than the one now at {base}. Delete them, or save the table again, which removes such files",
            RuntimeWarning,
            stacklevel=5,
        )
    ends, segments = [table.num_embeddings], []
    for _, path in files:
        segment = read_segment(path, table, fingerprint, verify)
        if segment.first_id != ends[-1]:
            what = "a file before it is missing" if segment.first_id > ends[-1] else "ids are given twice"
            raise _refusal(path, ValueError(f"starts with id {segment.first_id}, not {ends[-1]}: {what}"))
        ends.append(segment.end)
        try:
            check_codes(CODES_NAME, segment.rows, table.snapshot.base.tiers[segment.tier])
        except ValueError as error:
            raise _refusal(path, error) from error
        segments.append(segment)
    check_record(record, base, fingerprint, [segment.path for segment in segments], ends)
    for tier, neighbours in groupby(segments, key=lambda segment: segment.tier):
        rows = [segment.rows for segment in neighbours]
        yield tier, rows[0] if mmap and len(rows) == 1 else ops.join_in_large_pages(rows)


def append(path: str | os.PathLike[str], vectors: Tensor, tier: int | None = None) -> Tensor:
    """Add ids for vectors to a saved table, without rewriting it.

    Writes one small file beside it, ``<path>.append-<base>-000001`` and so on, about 250 bytes and the codes;
    nothing that is there is touched. The file is on the disk when this returns, or, whatever happens before, not
    there at all.
    Several processes may append at once. Tables loaded before do not change; :func:`mgqe.load` reads the base and
    all that was appended, and saving what it returns over ``path`` makes one file of them.

    Args:
        path: a file that :func:`mgqe.save` wrote, of a CompactTable.
        vectors: (n, d) float32, float16 or bfloat16 on the CPU. Collect many in a call: each makes a file.
        tier: whose centroids the ids get: default: the last.

    Returns:
        int64 (n,): the new ids.

    Raises:
        TypeError, ValueError: as :meth:`CompactTable.append`.
        ArtifactError: (a ValueError) the file, or the last one appended to it, is not such a table or is damaged.
        OSError: the file cannot be read, or a new one not be written.
    """
    target = Path(os.path.realpath(path))
    for _ in range(MAX_ATTEMPTS):
        before = file_identity(path)
        with file_lock(target, exclusive=False):
            ids = _try_to_append(path, target, before, vectors, tier)
        if ids is not None:
            return ids
    raise OSError(errno.EAGAIN, "other writers appended or saved again and again meanwhile: try later", str(path))


def _try_to_append(
    path: str | os.PathLike[str], target: Path, before: tuple[int, ...], vectors: Tensor, tier: int | None
) -> Tensor | None:
    """The new ids; None if another writer came first."""
    try:
        fingerprint, table = _open_base(os.fspath(path))
        tier_number = check_tier(tier, table.num_tiers)
        rows = table.snapshot.packed(check_vectors(vectors, table.embedding_dim, table.device), tier_number)
        number, first_id = _next_number(target, table, fingerprint)
    except FileNotFoundError:  # the table was replaced, and what was appended to it removed
        return None
    n = rows.shape[0]
    if first_id + n > MAX_ROWS:
        raise ValueError(f"a table has at most {MAX_ROWS} rows, this one would have {first_id + n}")
    if n:
        segment = segment_path(target, fingerprint, number)
        if not _publish(segment, target, {"base": fingerprint, "first_id": first_id, "tier": tier_number}, rows):
            return None
        if not _belongs(segment, path, before, fingerprint):
            return None
        extend_record(target, fingerprint, number, first_id + n)
    return torch.arange(first_id, first_id + n, device="cpu")


def _open_base(name: str) -> tuple[str, CompactTable]:
    """Fingerprint and base, without what was appended; only what gives codes a meaning is looked at and verified."""
    try:
        stored = open_stored(name)
        codebooks = CENTROIDS.format(""), SCALES.format(""), MEAN, MATRIX
        stored.check_tensors(name for name in stored.tensors if name.startswith(codebooks))
        metadata, tensors = stored.metadata, stored.tensors
        kind, config = decode_metadata(metadata)
        if kind != CompactTable.kind:
            sharded = kind == "compact-sharded"
            remedy = ": load its folder, append to the table in memory and save it as one file" if sharded else ""
            raise ValueError(
                f"ids can be appended to tables of kind {CompactTable.kind!r}, this one is {kind!r}{remedy}"
            )
        table = CompactTable.from_tensors(tensors, config)
        table.snapshot.validate_codebooks()
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}") from error
    return table_fingerprint(metadata, table), table


def _next_number(target: Path, table: CompactTable, fingerprint: str) -> tuple[int, int]:
    """The number for a new file and the first id in it, which follow from the last file alone."""
    record = read_record(target, fingerprint)
    files = segment_files(target, fingerprint)
    number, end = 0, table.num_embeddings
    if files:
        number, end = files[-1][0], read_segment(files[-1][1], table, fingerprint).end
    if number < record.segments:
        raise lost(record, target, fingerprint, number + 1, end)
    return number + 1, end


def refuse_to_lose(table: CompactTable, target: Path, path: str | os.PathLike[str]) -> None:
    """Raise ValueError if a table would be saved over ids that were appended to its file since it was read.

    Call it while the file is locked.
    """
    origin = table.origin
    if origin is None or origin.target != os.fspath(target):
        return
    try:
        fingerprint, base = _open_base(os.fspath(target))
        if fingerprint != origin.fingerprint:
            return
    except (OSError, ArtifactError):  # gone, or damaged: nobody can read what was appended to it
        return
    try:
        end = _next_number(target, base, fingerprint)[1]
    except (OSError, ArtifactError) as error:
        raise ValueError(
            f"{os.fspath(path)}: ids were appended to the file, and not all of them can be read ({error}). Saving here "
            "would delete their files: save under another name"
        ) from error
    if end > origin.num_embeddings:
        raise ValueError(
            f"{os.fspath(path)}: {end - origin.num_embeddings} ids were appended to the file since this table was "
            "read from it, and would be lost: load it again, or save under another name"
        )


def _publish(path: Path, base: Path, config: Config, rows: Tensor) -> bool:
    """Write an appended file, with the mode bits of its base; False if its number is taken."""
    nbytes, content = encode({CODES_NAME: [rows]}, KIND, config)
    try:
        with write_aside(path, content, like=base) as temporary:
            os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        lacks_links = error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
        remedy = (
            "The file system has no hard links: load the table, append to it in memory and save it"
            if lacks_links
            else "Check that the folder may be written to and has the space"
        )
        raise OSError(
            error.errno,
            f"could not append {nbytes:,} bytes ({error.strerror or error}); nothing has changed. {remedy}",
            str(path),
        ) from error
    return True


def _belongs(segment: Path, path: str | os.PathLike[str], before: tuple[int, ...], fingerprint: str) -> bool:
    """Whether a new file was appended to the table that is at ``path`` now; if not, it is taken away again."""
    if file_identity(path) == before or _open_base(os.fspath(path))[0] == fingerprint:
        return True
    segment.unlink(missing_ok=True)
    return False


def _refusal(path: Path, error: ValueError) -> ArtifactError:
    return ArtifactError(
        f"{path}: {error}. The table itself may be whole: restore this file, or move it and those with higher "
        f"numbers away, and {path.name.rpartition('-')[0]}-record with them, to load the table without what they add"
    )
