"""The hash index of an id map: a directory of buckets, and in each bucket fingerprints and rows.

Bucket b holds the rows whose hash begins with the k bits of b, sorted by the next eight bits, the fingerprint, then by
row. A look-up reads two neighbouring entries of the directory, the fingerprints of the bucket, and the rows whose
fingerprint is equal: 1.02 rows on average for a bucket of six. The caller then compares the ids themselves, so that a
false match is impossible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgqe.ids.stored_ids import DamagedMap

MAX_IDS = 2**31 - 1  # rows are int32
MAX_BUCKET = 64  # longer buckets come from ids chosen to collide, or from a hostile file
FINGERPRINT_BITS = 8
CHUNK = 1 << 16  # look-ups at a time, so that their arrays stay in the processor's cache
MAX_SEEDS = 16


@dataclass(frozen=True)
class Index:
    """Finds the rows that may have a hash.

    Attributes:
        directory: int32 (2^k + 1,): bucket b is entries directory[b] to directory[b + 1] - 1.
        fingerprints: uint8 (N,).
        rows: int32 (N,).
    """

    directory: np.ndarray
    fingerprints: np.ndarray
    rows: np.ndarray

    def candidates(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which, rows), both int64: ``rows[i]`` may be the row of ``hashes[which[i]]``, uint64 (n,).

        Raises:
            DamagedMap: the arrays of the index contradict each other.
        """
        bits, n = bucket_bits(len(self.rows)), len(self.rows)
        bucket, fingerprint = split(hashes, bits)
        start, end = self.directory[bucket].astype(np.int64), self.directory[bucket + 1].astype(np.int64)
        length = end - start
        if len(hashes) and (start.min() < 0 or end.max() > n or length.min() < 0 or length.max() > MAX_BUCKET):
            raise DamagedMap("the directory of buckets is damaged")
        ends = np.cumsum(length)
        which = np.repeat(np.arange(len(hashes)), length)
        entry = np.arange(len(which)) + np.repeat(start - ends + length, length)
        equal = np.flatnonzero(self.fingerprints[entry] == fingerprint[which])
        which, rows = which[equal], self.rows[entry[equal]].astype(np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= n):
            raise DamagedMap(f"a row lies outside 0 to {n - 1}")
        return which, rows


def bucket_bits(n: int) -> int:
    """k for n ids: buckets have 4 to 8 ids on average, and more from 2^29 ids on, so that an entry fits 64 bits."""
    return max(0, min((n // 4).bit_length() - 1, 64 - FINGERPRINT_BITS - _row_bits(n)))


def _row_bits(n: int) -> int:
    """Bits of the largest row."""
    return max(1, (n - 1).bit_length())


def split(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket (int64), which is the top ``bits`` bits, and the fingerprint (uint8), which is the next eight."""
    bucket = (hashes >> np.uint64(63 - bits)) >> np.uint64(1)  # two shifts, since NumPy cannot shift by 64 bits
    fingerprint = (hashes << np.uint64(bits)) >> np.uint64(64 - FINGERPRINT_BITS)
    return bucket.astype(np.int64), fingerprint.astype(np.uint8)


def build_index(hashes: np.ndarray) -> Index | None:
    """The index of the ids with these hashes, in row order, uint64 (N,); None if a bucket is too long.

    The hashes are overwritten. Peak memory is about twice that of the hashes.
    """
    n = len(hashes)
    bits, shift = bucket_bits(n), _row_bits(n)
    # Bucket, fingerprint and row are packed into one number, so that one array is sorted in place.
    entries = hashes
    entries >>= np.uint64(64 - bits - FINGERPRINT_BITS)
    entries <<= np.uint64(shift)
    entries |= np.arange(n, dtype=np.uint64)
    entries.sort()
    rows, fingerprints = np.empty(n, np.int32), np.empty(n, np.uint8)
    lengths = np.zeros(1 << bits, np.int64)
    for start in range(0, n, 1 << 22):
        chunk = entries[start : start + (1 << 22)]
        end = start + len(chunk)
        rows[start:end] = chunk & np.uint64((1 << shift) - 1)
        chunk = chunk >> np.uint64(shift)
        fingerprints[start:end] = chunk & np.uint64((1 << FINGERPRINT_BITS) - 1)
        buckets = (chunk >> np.uint64(FINGERPRINT_BITS)).astype(np.int64)
        first = int(buckets[0])
        counts = np.bincount(buckets - first)
        lengths[first : first + len(counts)] += counts
    if lengths.max() > MAX_BUCKET:
        return None
    directory = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=directory[1:])
    return Index(directory, fingerprints, rows)
