"""Hash -> rows that may have it: a directory of buckets, and in each bucket fingerprints and rows.

Bucket b holds the rows whose hash begins with the k bits of b, sorted by the next eight bits, the fingerprint, then by
row. A look-up reads two neighbours of the directory, the bucket's fingerprints, which lie together, and the rows behind
equal ones: 1.02 rows on average for a bucket of six. Whoever asks then compares the id itself, so nothing is ever
taken for what it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgqe.ids.stored_ids import DamagedMap

MAX_IDS = 2**31 - 1  # rows are int32
MAX_BUCKET = 64  # longer ones come from ids made to collide, or from a hostile file
FINGERPRINT_BITS = 8
CHUNK = 1 << 16  # look-ups at a time: what they need stays in the processor's cache
MAX_SEEDS = 16


@dataclass(frozen=True)
class Index:
    """Where each id's row is found.

    Attributes:
        directory: int32 (2^k + 1,): bucket b is entries directory[b] to directory[b + 1] - 1.
        fingerprints: uint8 (N,).
        rows: int32 (N,).
    """

    directory: np.ndarray
    fingerprints: np.ndarray
    rows: np.ndarray

    def candidates(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which, row), both int64: ``row`` may be that of ``hashes[which]``, uint64 (n,).

        Raises:
            Damaged: the index contradicts itself.
        """
        bits, n = bucket_bits(len(self.rows)), len(self.rows)
        bucket, fingerprint = split(hashes, bits)
        start, end = self.directory[bucket].astype(np.int64), self.directory[bucket + 1].astype(np.int64)
        length = end - start
        if len(hashes) and (start.min() < 0 or end.max() > n or length.min() < 0 or length.max() > MAX_BUCKET):
            raise DamagedMap("the directory of buckets is damaged")
        ends = np.cumsum(length)
        which = np.repeat(np.arange(len(hashes)), length)
        place = np.arange(len(which)) + np.repeat(start - ends + length, length)
        equal = np.flatnonzero(self.fingerprints[place] == fingerprint[which])
        which, row = which[equal], self.rows[place[equal]].astype(np.int64)
        if row.size and (row.min() < 0 or row.max() >= n):
            raise DamagedMap(f"a row lies outside 0 to {n - 1}")
        return which, row


def bucket_bits(n: int) -> int:
    """k for n ids: buckets of 4 to 8 ids on average; longer from 2^29 ids on, so that an entry fits 64 bits."""
    return max(0, min((n // 4).bit_length() - 1, 64 - FINGERPRINT_BITS - row_bits(n)))


def row_bits(n: int) -> int:
    """Bits of the largest row."""
    return max(1, (n - 1).bit_length())


def split(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket (int64), which is the top ``bits`` bits, and the fingerprint (uint8), which is the next eight."""
    bucket = (hashes >> np.uint64(63 - bits)) >> np.uint64(1)  # in two steps: a shift by 64 does nothing
    fingerprint = (hashes << np.uint64(bits)) >> np.uint64(64 - FINGERPRINT_BITS)
    return bucket.astype(np.int64), fingerprint.astype(np.uint8)


def build_index(hashes: np.ndarray) -> Index | None:
    """The index of the ids whose hashes these are, row by row, uint64 (N,); None if a bucket is too long.

    The hashes are used up. Memory: two bytes for each of theirs.
    """
    n = len(hashes)
    bits, shift = bucket_bits(n), row_bits(n)
    # Bucket, fingerprint and row in one number: sorted in place, with nothing beside it.
    entries = hashes
    entries >>= np.uint64(64 - bits - FINGERPRINT_BITS)
    entries <<= np.uint64(shift)
    entries |= np.arange(n, dtype=np.uint64)
    entries.sort()
    rows, fingerprints = np.empty(n, np.int32), np.empty(n, np.uint8)
    lengths = np.zeros(1 << bits, np.int64)
    for at in range(0, n, 1 << 22):
        part = entries[at : at + (1 << 22)]
        rows[at : at + len(part)] = part & np.uint64((1 << shift) - 1)
        part = part >> np.uint64(shift)
        fingerprints[at : at + len(part)] = part & np.uint64((1 << FINGERPRINT_BITS) - 1)
        part = (part >> np.uint64(FINGERPRINT_BITS)).astype(np.int64)
        first = int(part[0])
        found = np.bincount(part - first)
        lengths[first : first + len(found)] += found
    if lengths.max() > MAX_BUCKET:
        return None
    directory = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=directory[1:])
    return Index(directory, fingerprints, rows)
