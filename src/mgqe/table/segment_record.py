"""How many files were appended to a table, in a small file beside them, so that a lost one is noticed, even the last.

It is written after the appended file, so there may be more of these than it says, where a process died between the two
steps; the next process to append corrects that. There are never fewer, unless one was lost.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from mgqe.files.atomic import write_aside
from mgqe.files.container import ArtifactError, config_of_kind, encode, read, stored_checksum
from mgqe.files.locks import file_lock
from mgqe.files.reader import MAX_ROWS, Reader
from mgqe.table.segment_files import record_path, segment_path

KIND = "compact-append-record"


@dataclass(frozen=True)
class Record:
    """What is known of the files appended to a base.

    Attributes:
        segments: how many.
        end: the id after the last of theirs.
        digest: of the last checksums of all of them, 16 hexadecimal digits; empty if there are none.
    """

    segments: int = 0
    end: int = 0
    digest: str = ""

    def with_segments(self, paths: Sequence[Path], end: int) -> Record:
        """After further files were appended."""
        digest = self.digest
        for path in paths:
            digest = xxh3_64_hexdigest(bytes.fromhex(digest + stored_checksum(path)))
        return Record(self.segments + len(paths), end, digest)


def read_record(base: Path, fingerprint: str, verify: bool | None = None) -> Record:
    """What is recorded of a base with this fingerprint; an empty record if there is no file.

    Read it before listing the appended files: while others append, there may then be more of these, but not fewer.

    Raises ArtifactError naming the file, what is wrong and the remedy.
    """
    path = record_path(base, fingerprint)
    try:
        metadata, tensors = read(path, verify)
        reader = Reader(tensors, config_of_kind(metadata, KIND))
        reader.choice("base", {fingerprint})
        record = Record(
            reader.integer("segments", 1, MAX_ROWS), reader.integer("end", 1, MAX_ROWS), reader.hexadecimal("digest")
        )
        reader.finish()
    except FileNotFoundError:
        return Record()
    except ValueError as error:
        raise ArtifactError(
            f"{path}: {error}. The table and what was appended to it may be whole: restore this file, or delete it to "
            "load the table without knowing whether an appended file was lost"
        ) from error
    return record


def check_record(record: Record, base: Path, fingerprint: str, paths: Sequence[Path], ends: Sequence[int]) -> None:
    """Raise ArtifactError unless all files that are recorded are there and are those that were recorded.

    Args:
        paths: of the appended files, in the order of their numbers, without gaps.
        ends: N of the base, and the id after the last one of each file.
    """
    if len(paths) < record.segments:
        raise lost(record, base, fingerprint, len(paths) + 1, ends[-1])
    if record != Record().with_segments(paths[: record.segments], ends[record.segments]) and record.segments:
        raise ArtifactError(
            f"{paths[record.segments - 1]}: this file, or one with a lower number, is another one than was appended: "
            f"{record_path(base, fingerprint).name} records other checksums. Restore the files from one copy"
        )


def lost(record: Record, base: Path, fingerprint: str, number: int, first_id: int) -> ArtifactError:
    """The error for a file that is recorded and not there."""
    return ArtifactError(
        f"{segment_path(base, fingerprint, number)}: this file is missing, and with it the ids from {first_id} to "
        f"{record.end - 1} that were appended to the table. Restore it, or delete "
        f"{record_path(base, fingerprint).name} to load the table without them"
    )


def extend_record(base: Path, fingerprint: str, number: int, end: int) -> None:
    """Record that the appended file of this number is there, and those of lower ones; ``end``: the id after its last.

    Where it cannot be written nothing is lost: the appended file is there, and the next append records it as well.
    """
    path = record_path(base, fingerprint)
    with suppress(OSError, ArtifactError):
        while not _try_to_extend(path, base, fingerprint, number, end):
            pass


def _try_to_extend(path: Path, base: Path, fingerprint: str, number: int, end: int) -> bool:
    """False if another process was first."""
    with file_lock(path, exclusive=True):
        old = read_record(base, fingerprint)
        if old.segments >= number:
            return True
        paths = [segment_path(base, fingerprint, n) for n in range(old.segments + 1, number + 1)]
        new = old.with_segments(paths, end)
        config = {"base": fingerprint, "segments": new.segments, "end": new.end, "digest": new.digest}
        with write_aside(path, encode({}, KIND, config)[1], like=base) as temporary:
            if old.segments:
                os.replace(temporary, path)
                return True
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            return True
