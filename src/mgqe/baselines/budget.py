"""What the baselines' ``within`` share: a table's file in bytes, and the most of something that fits into a budget.

A class with a method ``within(num_embeddings, embedding_dim, nbytes, **given)`` can be asked for by its bytes alone.
The method returns keywords of the class with which the file of the frozen table takes no more than ``nbytes``. Those
that the user has given are passed to it, and stay as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgqe.codec.packing import bits_for
from mgqe.files.container import encode_header
from mgqe.table.base import FrozenTable

CENTROIDS = tuple(1 << bits for bits in range(1, 9))  # K that a budget chooses from


class TooFewBytesError(ValueError):
    """No table of this size fits the bytes. least: the bytes of the smallest one."""

    def __init__(self, nbytes: int, least: int, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(
            f"{nbytes:,} bytes are too few for {num_embeddings:,} ids x {embedding_dim}: the least is {least:,} bytes, "
            "header included"
        )
        self.least = least


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values, which takes no memory, for tables whose bytes are counted."""
    return torch.empty(shape, dtype=dtype, device="meta")


def file_nbytes(table: FrozenTable) -> int:
    """Bytes of the file that ``mgqe.save`` writes of a table; its tensors may be without values."""
    tensors, config = table.to_tensors()
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return encode_header(shapes, table.kind, config)[1]


def most_within(numbers: Sequence[int], nbytes_of: Callable[[int], int], nbytes: int, size: tuple[int, int]) -> int:
    """The largest number that fits.

    Args:
        numbers: to choose from, ascending, of which more take more bytes. nbytes_of: a number -> bytes of the file.
        nbytes: what the file may take. size: N and d, for the error.

    Raises:
        TooFewBytesError: the first one does not fit.
    """
    fitting = bisect_right(numbers, nbytes, key=nbytes_of)
    if not fitting:
        raise TooFewBytesError(nbytes, nbytes_of(numbers[0]), *size)
    return numbers[fitting - 1]


def most_bits_within(
    pieces: Sequence[int],
    centroids: Sequence[int],
    nbytes_of: Callable[[int, int], int],
    nbytes: int,
    size: tuple[int, int],
) -> tuple[int, int]:
    """How many codes an id has and how many centroids each chooses from: the most bits per id that fit.

    Of equally many bits, the most centroids. Most of DPQ's shapes in studies/paper are of this rule at 20% and 10%,
    and near it below.

    Args:
        pieces, centroids: to choose from. nbytes_of: a number of each -> bytes of the file.
        nbytes: what the file may take. size: N and d, for the error.

    Raises:
        TooFewBytesError: none fits.
    """
    sizes = {(number, k): nbytes_of(number, k) for number in pieces for k in centroids}
    fitting = [shape for shape, taken in sizes.items() if taken <= nbytes]
    if not fitting:
        raise TooFewBytesError(nbytes, min(sizes.values()), *size)
    return max(fitting, key=lambda shape: (shape[0] * bits_for(shape[1]), shape[1]))


def centroids_up_to(num_embeddings: int) -> list[int]:
    """Powers of two from 2 to 256, no more than there are ids."""
    return [k for k in CENTROIDS if k <= max(CENTROIDS[0], num_embeddings)]
