"""The container of every file: a safetensors file with our metadata, written whole before anybody sees it.

docs/format.md specifies it byte by byte.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from math import prod
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize, safe_open
from torch import Tensor

from mgqe.files.atomic import open_regular
from mgqe.files.checksums import (
    BLOCK_BYTES,
    CHECKSUMS,
    DIGEST_BYTES,
    BlockHasher,
    checksum_shape,
    header_digest,
    num_blocks,
    with_checksums,
)
from mgqe.files.locks import file_identity
from mgqe.files.reader import Config

FORMAT = "mgqe"
VERSION = "2"
OLD_VERSIONS = ("1",)  # without checksums
NO_CHECKSUMS = "a file of version 1 has no checksums to verify: load it and save it again"
MAX_CONFIG_CHARS = 1 << 20
DATA_ALIGNMENT = 64  # the first tensor starts on a cache line; the header is padded with spaces
MAX_MESSAGE = 2000  # characters
WRITE_CHUNK = 1 << 24  # bytes

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
VERIFIED_BYTES = 1 << 26  # of a file are compared with their checksums without being asked for: about 10 ms
RESTORE = "Restore the file from a copy, or write it again"

DTYPE_NAMES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
WEIGHT_DTYPE_NAMES = DTYPE_NAMES | {
    torch.float64: "F64",
    torch.int16: "I16",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # types that numpy has as well, by their bytes


Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class ArtifactError(ValueError):
    """A file is not a table that this version can read; the message says what is wrong with it.

    A file may hold text of any length, so the middle of a long message is left out.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if len(text) <= MAX_MESSAGE else f"{text[:1000]} ... {text[-500:]}")


def config_text(config: Config) -> str:
    """A configuration as the metadata hold it."""
    return json.dumps(config, separators=(",", ":"), allow_nan=False)


def encode(
    tensors: Mapping[str, Sequence[Tensor]],
    kind: str,
    config: Config,
    made: Callable[[str], Iterable[Tensor]] | None = None,
    **metadata: str,
) -> tuple[int, Iterator[bytes | memoryview]]:
    """A file's bytes: how many, and the bytes themselves in chunks.

    Args:
        tensors: each as the pieces that make it when joined along the first axis.
        kind, config: what the file says about itself; ``metadata`` is added to that.
        made: where ``tensors`` are shapes alone (on the meta device): a tensor's pieces by its name, asked for once and
            in the order in which the file has them.

    Written here and not by the safetensors package, so that equal tables are equal bytes under every version.
    """
    shapes = {name: (pieces[0].dtype, _joined_shape(pieces)) for name, pieces in tensors.items()}
    pieces_of = made or tensors.__getitem__
    elements = (tensor_bytes(piece) for name in element_order(shapes) for piece in pieces_of(name))
    return encode_elements(shapes, kind, config, chain.from_iterable(elements), **metadata)


def encode_elements(
    shapes: Shapes, kind: str, config: Config, elements: Iterable[bytes | memoryview], **metadata: str
) -> tuple[int, Iterator[bytes | memoryview]]:
    """:func:`encode` of tensors whose bytes come one after another.

    Args:
        shapes: each tensor's type and shape.
        elements: their bytes in :func:`element_order`, in any pieces. More or fewer than ``shapes`` says are a
            ValueError when the last has been written.
    """
    head, nbytes = encode_header(shapes, kind, config, **metadata)
    sizes = [_nbytes(shapes[name]) for name in element_order(shapes)]
    return nbytes, with_checksums(head, sizes, elements)


def _joined_shape(pieces: Sequence[Tensor]) -> tuple[int, ...]:
    if len(pieces) == 1:
        return tuple(pieces[0].shape)
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


def _nbytes(shape: tuple[torch.dtype, tuple[int, ...]]) -> int:
    return prod(shape[1]) * shape[0].itemsize


def element_order(shapes: Shapes) -> list[str]:
    """The tensors as a file has them, before the checksums. Wide elements first: every tensor then starts at a multiple
    of its element's size."""
    return sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))


def encode_header(shapes: Shapes, kind: str, config: Config, **metadata: str) -> tuple[bytes, int]:
    """What a file has before its elements, and how many bytes the whole file has, checksums included.

    Args:
        shapes: each tensor's type and shape; its elements need not exist yet. They follow in :func:`element_order`.

    Raises ValueError for a tensor with the name of the checksums.
    """
    if CHECKSUMS in shapes:
        raise ValueError(f"a tensor cannot be named {CHECKSUMS!r}: that one holds the checksums of all others")
    about = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "config": config_text(config),
        "block_bytes": str(BLOCK_BYTES),
        **metadata,
    }
    header: dict[str, Any] = {"__metadata__": about}
    checksums = (torch.uint8, checksum_shape(map(_nbytes, shapes.values())))
    offset = 0
    for name, (dtype, shape) in [*((name, shapes[name]) for name in element_order(shapes)), (CHECKSUMS, checksums)]:
        end = offset + _nbytes((dtype, shape))
        if dtype not in WEIGHT_DTYPE_NAMES:
            raise TypeError(f"tensor {name!r} has type {dtype}, which files cannot hold")
        header[name] = {"dtype": WEIGHT_DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    head += b" " * (-(8 + len(head)) % DATA_ALIGNMENT)
    head = len(head).to_bytes(8, "little") + head
    return head, len(head) + offset


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's elements, little-endian and in C order, in chunks."""
    flat = tensor.detach().contiguous().reshape(-1)
    flat = flat.view(_BITS[flat.dtype.itemsize])
    step = WRITE_CHUNK // tensor.element_size()
    for start in range(0, flat.numel(), step):
        array = flat[start : start + step].cpu().numpy()
        if sys.byteorder == "big":
            array = array.byteswap()
        yield array.view(np.uint8).data


class StoredFile:
    """A safetensors file that is open: what it says about itself, its tensors, and the checksums of both.

    Attributes:
        metadata: its strings.
        tensors: by name, in no order, without the checksums.
        has_checksums: False for files of version 1.
    """

    def __init__(self, head: bytes, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        self.metadata, self.tensors = metadata, tensors
        self.has_checksums = metadata.get("format") == FORMAT and metadata.get("version") == VERSION
        self._head = head
        self._block_bytes, self._digests = BLOCK_BYTES, b""
        self._first_block: dict[str, int] = {}
        if self.has_checksums:
            self._take_checksums()

    def _take_checksums(self) -> None:
        stated = self.metadata.get("block_bytes", "")
        if not re.fullmatch(r"[1-9][0-9]{0,11}", stated):
            raise ArtifactError(f"metadata 'block_bytes' must be a number of bytes, got {stated[:40]!r}")
        self._block_bytes = int(stated)
        order = sorted(self.tensors, key=_offsets(self._head).__getitem__)
        checksums = self.tensors.pop(CHECKSUMS, None)
        if checksums is None or order[-1] != CHECKSUMS:
            raise ArtifactError(f"the last tensor must be {CHECKSUMS!r}, got {order[-1:]}")
        total = 0
        for name in order[:-1]:
            self._first_block[name] = total
            total += num_blocks(self.tensors[name].nbytes, self._block_bytes)
        if checksums.dtype != torch.uint8 or tuple(checksums.shape) != (total + 1, DIGEST_BYTES):
            raise ArtifactError(
                f"tensor {CHECKSUMS!r} must be torch.uint8 of shape ({total + 1}, {DIGEST_BYTES}), got "
                f"{checksums.dtype} of shape {tuple(checksums.shape)}"
            )
        self._digests = b"".join(tensor_bytes(checksums))

    def check(self, verify: bool | None = None) -> None:
        """Compare checksums, and raise ArtifactError at the first that is wrong.

        Args:
            verify: True: all of them. False: none. None: that of the header, and those of the tensors, smallest first,
                that have no more than ``VERIFIED_BYTES`` together.
        """
        if verify is not None and not isinstance(verify, bool):
            raise TypeError(f"verify must be True, False or None, got {verify!r}")
        if verify is False:
            return
        self.check_tensors(self.tensors if verify else self._smallest())

    def _smallest(self) -> list[str]:
        """The smallest tensors, as many as have ``VERIFIED_BYTES`` together."""
        rising = sorted(self.tensors, key=lambda name: self.tensors[name].nbytes)
        ends = accumulate(self.tensors[name].nbytes for name in rising)
        return [name for name, end in zip(rising, ends, strict=True) if end <= VERIFIED_BYTES]

    def check_tensors(self, names: Iterable[str]) -> None:
        """Raise ArtifactError at the first wrong checksum of the header or of these tensors."""
        for damage in self.damage(names):
            raise ArtifactError(damage)

    def damage(
        self, names: Iterable[str] | None = None, advance: Callable[[int], object] | None = None
    ) -> Iterator[str]:
        """What is damaged, a line for the header and for each block; nothing in a file without checksums.

        Args:
            names: the tensors to read; by default all.
            advance: called with the bytes of each block that has been read.
        """
        if not self.has_checksums:
            return
        if header_digest(self._head, self._digests[:-DIGEST_BYTES]) != self._digests[-DIGEST_BYTES:]:
            yield f"the header or the list of checksums is damaged: its checksum is another one. {RESTORE}"
        for name in self._first_block if names is None else names:
            yield from self._tensor_damage(name, advance)

    def _tensor_damage(self, name: str, advance: Callable[[int], object] | None) -> Iterator[str]:
        tensor, first, size = self.tensors[name], self._first_block[name], self._block_bytes
        hasher = BlockHasher([tensor.nbytes], size)
        for number, digest in enumerate(chain.from_iterable(map(hasher.update, tensor_bytes(tensor)))):
            start, end = number * size, min((number + 1) * size, tensor.nbytes)
            if advance is not None:
                advance(end - start)
            at = DIGEST_BYTES * (first + number)
            if digest != self._digests[at : at + DIGEST_BYTES]:
                yield (
                    f"tensor {name!r}, block {number} of {num_blocks(tensor.nbytes, size)} (its bytes {start:,} to "
                    f"{end - 1:,}) is damaged: its checksum is another one. {RESTORE}"
                )


def open_stored(name: str | os.PathLike[str], any_dtype: bool = False) -> StoredFile:
    """A safetensors file, its tensors mapped into memory, its checksums not looked at yet.

    Args:
        any_dtype: take tensors of any type, not of those alone that tables hold.

    Raises OSError if it cannot be opened or is no regular file, ArtifactError if it is no whole file of the kind.
    """
    while True:
        with open_regular(name) as file:
            before = file_identity(file.fileno())
            head = file.read(8)
            head += file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
            try:
                metadata, tensors = _map(name, any_dtype)
            except ArtifactError:
                if file_identity(name) == before:  # FileNotFoundError where it was removed meanwhile
                    raise
                continue
            if file_identity(name) == before:  # else another file took the name meanwhile
                return StoredFile(head, metadata, tensors)


def _map(name: str | os.PathLike[str], any_dtype: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(os.fspath(name), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {}
            for key in file.keys():  # noqa: SIM118  (not a dict)
                dtype = file.get_slice(key).get_dtype()
                if dtype not in DTYPE_NAMES.values() and not any_dtype:
                    raise ArtifactError(f"tensor {key!r} has type {dtype}, which no table holds")
                tensors[key] = file.get_tensor(key)
    except (
        SafetensorError,
        RuntimeError,
        OverflowError,
        TypeError,
    ) as error:  # the last three: absurd shapes
        raise ArtifactError(f"not a whole safetensors file ({error})") from error
    return metadata, tensors


def parse_stored(content: bytes) -> StoredFile:
    """The same of a file's bytes, its tensors copied. Raises ArtifactError if they are no whole file of the kind."""
    try:
        parts = deserialize(content)  # type: ignore[no-untyped-call]
        types = {name: dtype for dtype, name in DTYPE_NAMES.items()}
        tensors = {}
        for name, part in parts:
            if part["dtype"] not in types:
                raise ArtifactError(f"tensor {name!r} has type {part['dtype']}, which no table holds")
            tensors[name] = _tensor(bytearray(part["data"]), types[part["dtype"]], part["shape"])
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:  # the last three: absurd shapes
        raise ArtifactError(f"not a whole safetensors file ({error})") from error
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    return StoredFile(head, _header(head).get("__metadata__", {}), tensors)


def _tensor(data: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    if not data:  # frombuffer wants some
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _offsets(head: bytes) -> dict[str, list[int]]:
    """Where each tensor of a header that safetensors accepts begins and ends."""
    return {name: entry["data_offsets"] for name, entry in _header(head).items() if name != "__metadata__"}


def _header(head: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(head[8:], object_pairs_hook=reject_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the header is not JSON ({error})") from error
    return header


def read(name: str | os.PathLike[str], verify: bool | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and mapped tensors of a safetensors file, checked as :meth:`StoredFile.check` says.

    Raises OSError if it cannot be opened or is no regular file, ArtifactError if it is no whole file of the kind or
    damaged.
    """
    stored = open_stored(name)
    stored.check(verify)
    return stored.metadata, stored.tensors


def stored_checksum(name: str | os.PathLike[str]) -> str:
    """A file's last checksum, which is of its header and all others, as hexadecimal digits; of no meaning in a file of
    version 1. Raises OSError if it cannot be read or is no regular file."""
    with open_regular(name) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - DIGEST_BYTES))
        return file.read(DIGEST_BYTES).hex()


def decode_metadata(metadata: dict[str, str]) -> tuple[str, Config]:
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"metadata 'format' must be {FORMAT!r}, got {metadata.get('format')!r}: not such a table")
    version = metadata.get("version")
    if version not in (VERSION, *OLD_VERSIONS):
        raise ArtifactError(
            f"metadata 'version' must be {' or '.join(map(repr, (*OLD_VERSIONS, VERSION)))}, got {version!r}: read it "
            "with the mgqe that wrote it"
        )
    for key in ("kind", "config"):
        if key not in metadata:
            raise ArtifactError(f"metadata {key!r} is missing")
    text = metadata["config"]
    if len(text) > MAX_CONFIG_CHARS:
        raise ArtifactError(f"metadata 'config' has {len(text)} characters, more than {MAX_CONFIG_CHARS}")
    try:
        config = json.loads(text, object_pairs_hook=reject_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"metadata 'config' is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"metadata 'config' must be a JSON object, got {text[:80]}")
    return metadata["kind"], config


def config_of_kind(metadata: dict[str, str], expected: str) -> Config:
    """The configuration of a file that must be of one kind; ArtifactError where it is of another."""
    kind, config = decode_metadata(metadata)
    if kind != expected:
        raise ArtifactError(f"metadata 'kind' must be {expected!r}, got {kind!r}")
    return config


def reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could take different ones of two equal keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
