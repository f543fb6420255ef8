"""Codes <-> bits: rows of codes, each code 1 to 16 bits wide, each row starting on a byte.

In a row, code j occupies bits [j * bits, (j + 1) * bits) of the row's little-endian bit string: bit i of the
row is bit i % 8 of byte i // 8. Spare high bits of the last byte are zero.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Union

import torch
from torch import Tensor

from mgqe.ops.layout.packed_format import MAX_BITS, MAX_CENTROIDS
from mgqe.ops.layout.pieces import check_bits, mixed_row_bytes
from mgqe.ops.reference import codes_of

Bits = Union[int, Sequence[int]]  # noqa: UP007  Of all codes of a row, or of each; evaluated on import.
GROUP = 8  # 8 codes of b bits fill b bytes exactly, so a group's layout repeats
CHUNK_CODES = 1 << 15  # codes worked on at once: temporaries stay in cache, and below torch's grain for threads
MIXED_CHUNK = 1 << 17  # the same where every subspace is a call of its own
WORD = 16  # bits of a row that are put together at once; a code begins in one word and ends at most in the next


def bits_for(num_centroids: int) -> int:
    """Bits a code needs to name one of ``num_centroids`` centroids: max(1, ceil(log2 K)), 1 to 16.

    Raises ValueError unless 1 <= num_centroids <= 65,536.
    """
    if not 1 <= num_centroids <= MAX_CENTROIDS:
        raise ValueError(f"num_centroids must be between 1 and {MAX_CENTROIDS}, got {num_centroids}")
    return max(1, (num_centroids - 1).bit_length())


def code_dtype(num_centroids: int) -> torch.dtype:
    """The narrowest type that holds codes below K unpacked."""
    return torch.uint8 if num_centroids <= 2**8 else torch.int16 if num_centroids <= 2**15 else torch.int32


def row_bytes(num_subspaces: int, bits: Bits) -> int:
    """Bytes of one packed row of ``num_subspaces`` codes: ceil(num_subspaces * bits / 8), or ceil(sum of bits / 8)."""
    _check_layout(num_subspaces, bits)
    if not isinstance(bits, int):
        return mixed_row_bytes(bits)
    return -(-num_subspaces * bits // 8)


def pack(codes: Tensor, bits: Bits) -> Tensor:
    """Pack codes (n, num_subspaces) of any integer dtype, values in [0, 2**bits), into uint8 (n, row_bytes).

    ``bits``: of all codes, 1 to 16; or of each, 0 to 16, one after another without a gap.

    Raises:
        ValueError: wrong shape or bits, or a code that does not fit.
        TypeError: codes are not integers.
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"codes must be integers, got {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must have shape (n, num_subspaces), got {tuple(codes.shape)}")
    n, num_subspaces = codes.shape
    width = row_bytes(num_subspaces, bits)
    packed = torch.empty((n, width), dtype=torch.uint8, device=codes.device)
    step = max(1, (CHUNK_CODES if isinstance(bits, int) else MIXED_CHUNK) // num_subspaces)
    for start in range(0, n, step):
        if not isinstance(bits, int):
            packed[start : start + step] = _pack_mixed(signed(codes[start : start + step]), bits)
            continue
        chunk = codes[start : start + step].to(torch.int64)
        low, high = (int(x) for x in torch.aminmax(chunk))
        if low < 0 or high >= 1 << bits:
            offending = low if low < 0 else high
            raise ValueError(f"code {offending} does not fit {bits} bits: codes must be in 0 .. {(1 << bits) - 1}")
        packed[start : start + step] = _pack_rows(chunk.to(torch.int32), bits)[:, :width]
    return packed


def signed(codes: Tensor) -> Tensor:
    """Codes of a dtype that torch can compare: int64 instead of uint16, uint32 and uint64."""
    return codes.to(torch.int64) if codes.dtype in (torch.uint16, torch.uint32, torch.uint64) else codes


def unpack(packed: Tensor, num_subspaces: int, bits: Bits) -> Tensor:
    """Unpack uint8 (n, row_bytes) into int32 codes (n, num_subspaces): the inverse of :func:`pack`.

    Raises ValueError if the rows are not ``row_bytes(num_subspaces, bits)`` wide, TypeError if not uint8.
    """
    _check_packed(packed, num_subspaces, bits)
    n = packed.shape[0]
    codes = torch.empty((n, num_subspaces), dtype=torch.int32, device=packed.device)
    step = max(1, CHUNK_CODES // num_subspaces)
    for start in range(0, n, step):
        rows = packed[start : start + step]
        if isinstance(bits, int):
            codes[start : start + step] = _unpack_rows(rows, num_subspaces, bits)
        else:
            codes[start : start + step] = codes_of(rows, num_subspaces, bits)
    return codes


def spare_bits_are_zero(packed: Tensor, num_subspaces: int, bits: Bits) -> bool:
    """Whether the spare high bits of every row's last byte are zero, as the format demands."""
    _check_packed(packed, num_subspaces, bits)
    used = (num_subspaces * bits if isinstance(bits, int) else sum(bits)) % 8
    if used == 0 or packed.shape[0] == 0:
        return True
    return int(packed[:, -1].max()) < 1 << used


def _pack_mixed(codes: Tensor, bits: Sequence[int]) -> Tensor:
    """(n, D) integers -> (n, ceil(sum of bits / 8)) uint8."""
    columns = codes.T.contiguous()  # a code is then one pass over memory
    for j, (low, high, width) in enumerate(zip(columns.amin(1).tolist(), columns.amax(1).tolist(), bits, strict=True)):
        if low < 0 or high >= 1 << width:
            raise ValueError(
                f"a code of subspace {j} does not fit {width} bits: codes there must be in 0 .. {(1 << width) - 1}"
            )
    words = columns.new_zeros(-(-sum(bits) // WORD), codes.shape[0], dtype=torch.int32)
    for column, at, width in zip(columns.to(torch.int32), accumulate(bits, initial=0), bits, strict=False):
        word, shift = divmod(at, WORD)
        words[word : word + 1] |= column << shift  # of no word where there are no bits at the end
        if shift + width > WORD:
            words[word + 1] |= column >> (WORD - shift)
    rows = torch.stack([words >> (8 * byte) & 255 for byte in range(WORD // 8)], 2).to(torch.uint8)
    return rows.transpose(0, 1).reshape(codes.shape[0], -1)[:, : mixed_row_bytes(bits)]


def _pack_rows(codes: Tensor, bits: int) -> Tensor:
    """(n, D) int32 -> (n, ceil(D / 8) * bits) uint8: whole groups, the last one zero padded."""
    if bits == 8:
        return codes.to(torch.uint8)
    n, num_subspaces = codes.shape
    groups = -(-num_subspaces // GROUP)
    padded = codes.new_zeros((n, groups * GROUP))
    padded[:, :num_subspaces] = codes
    grouped = padded.view(n, groups, GROUP)
    if bits < 8 and sys.byteorder == "little":  # a group fits a word, whose first bytes are what is asked for
        words = grouped[:, :, 0].to(torch.int64)
        for j in range(1, GROUP):
            words |= grouped[:, :, j].to(torch.int64) << (j * bits)
        return words.unsqueeze(-1).view(torch.uint8)[:, :, :bits].reshape(n, groups * bits)
    out = torch.empty((n, groups, bits), dtype=torch.uint8, device=codes.device)
    for byte in range(bits):
        value = torch.zeros((n, groups), dtype=torch.int32, device=codes.device)
        for j in range(8 * byte // bits, min((8 * byte + 7) // bits, GROUP - 1) + 1):
            shift = j * bits - 8 * byte  # where code j starts, seen from this byte
            value |= grouped[:, :, j] << shift if shift >= 0 else grouped[:, :, j] >> -shift
        out[:, :, byte] = (value & 255).to(torch.uint8)
    return out.view(n, groups * bits)


def _unpack_rows(packed: Tensor, num_subspaces: int, bits: int) -> Tensor:
    """(n, row_bytes) uint8 -> (n, D) int32."""
    if bits == 8:
        return packed.to(torch.int32)
    n, width = packed.shape
    groups = -(-num_subspaces // GROUP)
    padded = torch.zeros((n, groups * bits), dtype=torch.int32, device=packed.device)
    padded[:, :width] = packed
    grouped = padded.view(n, groups, bits)
    out = torch.empty((n, groups, GROUP), dtype=torch.int32, device=packed.device)
    for j in range(GROUP):
        first, offset = divmod(j * bits, 8)
        value = grouped[:, :, first] >> offset
        for byte in range(first + 1, (j * bits + bits - 1) // 8 + 1):
            value |= grouped[:, :, byte] << (8 * (byte - first) - offset)
        out[:, :, j] = value & ((1 << bits) - 1)
    return out.view(n, groups * GROUP)[:, :num_subspaces]


def _check_layout(num_subspaces: int, bits: Bits) -> None:
    if num_subspaces < 1:
        raise ValueError(f"num_subspaces must be at least 1, got {num_subspaces}")
    if not isinstance(bits, int):
        if len(bits) != num_subspaces:
            raise ValueError(f"bits must be one number, or one per code, {num_subspaces}, got {len(bits)}")
        return check_bits(bits)
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be between 1 and {MAX_BITS}, got {bits}")


def _check_packed(packed: Tensor, num_subspaces: int, bits: Bits) -> None:
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed codes must be uint8, got {packed.dtype}")
    width = row_bytes(num_subspaces, bits)
    if packed.ndim != 2 or packed.shape[1] != width:
        raise ValueError(
            f"{num_subspaces} codes of {bits} bits take {width} bytes per row, got shape {tuple(packed.shape)}"
        )
