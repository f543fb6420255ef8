"""Checksums of a file: one per block of each tensor, and one of the header and all block checksums.

docs/format.md specifies them. The algorithm is XXH3 with 64 bits, which finds damage and does not protect against
deliberate changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from xxhash import xxh3_64, xxh3_64_digest, xxh3_64_hexdigest

CHECKSUMS = "checksums"  # the tensor that holds them, the last in the file
BLOCK_BYTES = 1 << 20
DIGEST_BYTES = 8


def num_blocks(nbytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """The number of blocks of a tensor of ``nbytes`` bytes; the last may be short, and an empty tensor has none."""
    return -(-nbytes // block_bytes)


def checksum_shape(sizes: Iterable[int], block_bytes: int = BLOCK_BYTES) -> tuple[int, int]:
    """The shape of the tensor of checksums for tensors of ``sizes`` bytes."""
    return sum(num_blocks(size, block_bytes) for size in sizes) + 1, DIGEST_BYTES


def header_digest(head: bytes, digests: bytes) -> bytes:
    """The last checksum: that of the file's bytes before the first tensor and of the digests of all blocks."""
    return xxh3_64_digest(head + digests)


def json_checksum(content: dict[str, Any]) -> str:
    """The checksum of a JSON object, keys sorted, without its entry ``checksum``: 16 hexadecimal digits."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return xxh3_64_hexdigest(json.dumps(rest, sort_keys=True).encode())


class BlockHasher:
    """Computes the digests of the blocks of tensors whose bytes arrive in order, in chunks of any length.

    Args:
        sizes: bytes of each tensor, in the order of the file.
    """

    def __init__(self, sizes: Sequence[int], block_bytes: int = BLOCK_BYTES) -> None:
        self._block_lengths = (
            min(block_bytes, size - start) for size in sizes for start in range(0, size, block_bytes)
        )
        self._hash = xxh3_64()
        self._missing_of_block = 0  # bytes
        self._missing = sum(sizes)

    def update(self, chunk: bytes | memoryview) -> Iterator[bytes]:
        """The digests of the blocks that end in this chunk. Raises ValueError for more bytes than the tensors have."""
        rest = memoryview(chunk)
        self._missing -= len(rest)
        if self._missing < 0:
            self.finish()
        while len(rest):
            self._missing_of_block = self._missing_of_block or next(self._block_lengths)
            head = rest[: self._missing_of_block]
            self._hash.update(head)
            rest, self._missing_of_block = rest[len(head) :], self._missing_of_block - len(head)
            if not self._missing_of_block:
                yield self._hash.digest()
                self._hash.reset()

    def finish(self) -> None:
        """Raise ValueError unless the tensors' bytes have all arrived."""
        if self._missing:
            raise ValueError(f"got {-self._missing:+,} bytes compared with the sizes of the tensors")


def with_checksums(
    head: bytes, sizes: Sequence[int], chunks: Iterable[bytes | memoryview]
) -> Iterator[bytes | memoryview]:
    """A file's bytes in chunks: its head, the tensors' bytes, and the checksums of both.

    Args:
        head: all bytes before the first tensor.
        sizes: bytes of each tensor, in the order of the file, without the checksums.
        chunks: the bytes of these tensors, in chunks of any length.

    Raises ValueError at the end if there are more or fewer bytes than ``sizes`` says.
    """
    hasher, digests = BlockHasher(sizes), bytearray()
    yield head
    for chunk in chunks:
        for digest in hasher.update(chunk):
            digests += digest
        yield chunk
    hasher.finish()
    yield bytes(digests)
    yield header_digest(head, bytes(digests))
