"""Byte strings in one buffer, and the 64-bit hash of an id, which is part of the file format (docs/format.md).

Python's own hash differs from process to process, and a data-frame library's may differ from version to version. This
one is the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection of 64 bits. It is applied to an
integer, or to the eight-byte words of a string one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio, odd
MASK = 2**64 - 1
WORD = 8  # bytes; every buffer of strings ends in as many zeros, so that a whole word can be read at its end


@dataclass(frozen=True)
class Strings:
    """Byte strings in one buffer: string i is ``buffer[starts[i] : starts[i] + lengths[i]]``.

    Attributes:
        buffer: uint8; at least eight bytes longer than the end of the last string.
        starts, lengths: int64 (n,).
    """

    buffer: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: slice | np.ndarray) -> Strings:
        """Some of the strings, in the same buffer."""
        return Strings(self.buffer, self.starts[index], self.lengths[index])

    def word(self, number: int, index: np.ndarray) -> np.ndarray:
        """Word ``number`` of the strings in ``index``, each longer than 8 * number: little-endian, padded by zeros."""
        # A view with one entry per byte, which is the word that begins there.
        windows = np.ndarray((len(self.buffer) - WORD + 1,), "<u8", self.buffer, strides=(1,))
        words = windows[self.starts[index] + WORD * number]
        missing = np.maximum(WORD * (number + 1) - self.lengths[index], 0).astype(np.uint64)
        padded: np.ndarray = (words << (8 * missing)) >> (8 * missing)
        return padded

    def equal(self, other: Strings) -> np.ndarray:
        """Whether string i of this one equals string i of the other: bool (n,)."""
        same: np.ndarray = self.lengths == other.lengths
        pending, number = np.flatnonzero(same & (self.lengths > 0)), 0
        while pending.size:
            matches = self.word(number, pending) == other.word(number, pending)
            same[pending[~matches]] = False
            number += 1
            pending = pending[matches & (self.lengths[pending] > WORD * number)]
        return same


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, element by element: uint64 -> uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x


def hash_integers(bits: np.ndarray, seed: int) -> np.ndarray:
    """mix(bits xor seed * GOLDEN): uint64 (n,), negative ids in two's complement -> uint64 (n,)."""
    return mix(bits ^ np.uint64(seed * GOLDEN & MASK))


def hash_strings(strings: Strings, seed: int) -> np.ndarray:
    """h_0 = (seed + length) * GOLDEN, h_(i+1) = mix(h_i xor word i): the last h of each string, uint64 (n,)."""
    hashes: np.ndarray = (strings.lengths.astype(np.uint64) + np.uint64(seed)) * np.uint64(GOLDEN)
    pending, number = np.flatnonzero(strings.lengths > 0), 0
    while pending.size:
        hashes[pending] = mix(hashes[pending] ^ strings.word(number, pending))
        number += 1
        pending = pending[strings.lengths[pending] > WORD * number]
    return hashes


def hash_keys(keys: np.ndarray | Strings, seed: int) -> np.ndarray:
    """The hashes of integers or of strings."""
    return hash_strings(keys, seed) if isinstance(keys, Strings) else hash_integers(keys, seed)
