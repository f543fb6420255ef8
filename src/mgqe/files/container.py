"""The container of every file: a safetensors file with metadata and checksums. docs/format.md specifies its bytes."""

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
from mgqe.files.regular import open_regular

FORMAT = "mgqe"
VERSION = "2"
OLD_VERSIONS = ("1",)  # without checksums
NO_CHECKSUMS = "a file of version 1 has no checksums to verify: `mgqe convert`, or load and save, writes it anew"
MAX_CONFIG_CHARS = 1 << 20
DATA_ALIGNMENT = 64  # the first tensor starts on a cache line; the header is padded with spaces
MAX_MESSAGE = 2000  # characters
WRITE_CHUNK = 1 << 24  # bytes

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
VERIFIED_BYTES = 1 << 26  # bytes of a file that are compared with their checksums by default: about 10 ms
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
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes; numpy has all of these


Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class ArtifactError(ValueError):
    """A file cannot be read by this version, or is damaged; the message says what is wrong with it.

    A file may hold text of any length, so the middle of a long message is left out.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if len(text) <= MAX_MESSAGE else f"{text[:1000]} ... {text[-500:]}")


def config_text(config: Config) -> str:
    """A configuration as JSON, as the metadata hold it."""
    return json.dumps(config, separators=(",", ":"), allow_nan=False)


def encode(
    tensors: Mapping[str, Sequence[Tensor]], kind: str, config: Config, **metadata: str
) -> tuple[int, Iterator[bytes | memoryview]]:
    """The number of bytes of a file, and the bytes in chunks.

    Args:
        tensors: each as a list of tensors that are joined along the first axis.
        kind, config: the file's kind and configuration; ``metadata`` is added to these.

    The safetensors package does not write the file, so that equal tables give equal bytes under each of its versions.
    """
    shapes = {name: (chunks[0].dtype, _joined_shape(chunks)) for name, chunks in tensors.items()}
    elements = (tensor_bytes(chunk) for name in element_order(shapes) for chunk in tensors[name])
    return encode_elements(shapes, kind, config, chain.from_iterable(elements), **metadata)


def encode_elements(
    shapes: Shapes, kind: str, config: Config, elements: Iterable[bytes | memoryview], **metadata: str
) -> tuple[int, Iterator[bytes | memoryview]]:
    """Like :func:`encode`, for tensors that are given by their bytes.

    Args:
        shapes: each tensor's type and shape.
        elements: their bytes in :func:`element_order`, in chunks of any length. After the last one, ValueError is
            raised if there were more or fewer bytes than ``shapes`` says.
    """
    head, nbytes = encode_header(shapes, kind, config, **metadata)
    sizes = [_nbytes(shapes[name]) for name in element_order(shapes)]
    return nbytes, with_checksums(head, sizes, elements)


def _joined_shape(chunks: Sequence[Tensor]) -> tuple[int, ...]:
    if len(chunks) == 1:
        return tuple(chunks[0].shape)
    return (sum(chunk.shape[0] for chunk in chunks), *chunks[0].shape[1:])


def _nbytes(shape: tuple[torch.dtype, tuple[int, ...]]) -> int:
    return prod(shape[1]) * shape[0].itemsize


def element_order(shapes: Shapes) -> list[str]:
    """The names of the tensors in the order of the file, without the checksums.

    Tensors of wide elements come first, so that each starts at a multiple of its element size.
    """
    return sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))


def encode_header(shapes: Shapes, kind: str, config: Config, **metadata: str) -> tuple[bytes, int]:
    """The bytes of a file before its elements, and the number of bytes of the whole file, checksums included.

    Args:
        shapes: each tensor's type and shape. The elements follow in :func:`element_order`.

    Raises ValueError for a tensor with the name of the checksums.
    """
    if CHECKSUMS in shapes:
        raise ValueError(f"a tensor cannot be named {CHECKSUMS!r}: that tensor holds the checksums of all others")
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
    flat = flat.view(_INTEGERS[flat.dtype.itemsize])
    step = WRITE_CHUNK // tensor.element_size()
    for start in range(0, flat.numel(), step):
        array = flat[start : start + step].cpu().numpy()
        if sys.byteorder == "big":
            array = array.byteswap()
        yield array.view(np.uint8).data


class StoredFile:
    """An open safetensors file: its metadata, its tensors, and the checksums of both.

    Attributes:
        metadata: name -> text.
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
            self._read_checksums()

    def _read_checksums(self) -> None:
        block_bytes = self.metadata.get("block_bytes", "")
        if not re.fullmatch(r"[1-9][0-9]{0,11}", block_bytes):
            raise ArtifactError(f"metadata 'block_bytes' must be a number of bytes, got {block_bytes[:40]!r}")
        self._block_bytes = int(block_bytes)
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
            verify: True compares all checksums, False none. None compares that of the header and those of the smallest
                tensors, as many as have ``VERIFIED_BYTES`` together.
        """
        if verify is not None and not isinstance(verify, bool):
            raise TypeError(f"verify must be True, False or None, got {verify!r}")
        if verify is False:
            return
        self.check_tensors(self.tensors if verify else self._smallest())

    def _smallest(self) -> list[str]:
        """The smallest tensors, as many as have ``VERIFIED_BYTES`` together."""
        names = sorted(self.tensors, key=lambda name: self.tensors[name].nbytes)
        ends = accumulate(self.tensors[name].nbytes for name in names)
        return [name for name, end in zip(names, ends, strict=True) if end <= VERIFIED_BYTES]

    def check_tensors(self, names: Iterable[str]) -> None:
        """Raise ArtifactError at the first wrong checksum of the header or of these tensors."""
        for damage in self.damage(names):
            raise ArtifactError(damage)

    def damage(
        self, names: Iterable[str] | None = None, advance: Callable[[int], object] | None = None
    ) -> Iterator[str]:
        """A line of text for a damaged header and for each damaged block; none for a file without checksums.

        Args:
            names: the tensors to read; by default all.
            advance: called with the number of bytes of each block after it has been read.
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
    """Open a safetensors file and map its tensors into memory. The checksums are not compared yet.

    Args:
        any_dtype: accept tensors of any type, not only of those that tables hold.

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
                if file_identity(name) == before:  # raises FileNotFoundError if the file has been removed since
                    raise
                continue
            if file_identity(name) == before:  # else another file has taken the name since: start again
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
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:  # the last three for impossible shapes
        raise ArtifactError(f"not a whole safetensors file ({error})") from error
    return metadata, tensors


def parse_stored(content: bytes) -> StoredFile:
    """Read a file from its bytes, copying the tensors. Raises ArtifactError if they are no whole file of the kind."""
    try:
        types = {name: dtype for dtype, name in DTYPE_NAMES.items()}
        tensors = {}
        for name, entry in deserialize(content):  # type: ignore[no-untyped-call]
            if entry["dtype"] not in types:
                raise ArtifactError(f"tensor {name!r} has type {entry['dtype']}, which no table holds")
            tensors[name] = _tensor(bytearray(entry["data"]), types[entry["dtype"]], entry["shape"])
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:  # the last three for impossible shapes
        raise ArtifactError(f"not a whole safetensors file ({error})") from error
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    return StoredFile(head, _header(head).get("__metadata__", {}), tensors)


def _tensor(data: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    if not data:  # which frombuffer refuses
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _offsets(head: bytes) -> dict[str, list[int]]:
    """The first and the last byte of each tensor, of a header that safetensors accepts."""
    return {name: entry["data_offsets"] for name, entry in _header(head).items() if name != "__metadata__"}


def _header(head: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(head[8:], object_pairs_hook=reject_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the header is not JSON ({error})") from error
    return header


def read(name: str | os.PathLike[str], verify: bool | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and mapped tensors of a safetensors file, verified as :meth:`StoredFile.check` says.

    Raises OSError if it cannot be opened or is no regular file, ArtifactError if it is damaged or no whole file of the
    kind.
    """
    stored = open_stored(name)
    stored.check(verify)
    return stored.metadata, stored.tensors


def stored_checksum(name: str | os.PathLike[str]) -> str:
    """A file's last checksum, that of its header and of all other checksums, as hexadecimal digits.

    It means nothing in a file of version 1. Raises OSError if the file cannot be read or is no regular file.
    """
    with open_regular(name) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - DIGEST_BYTES))
        return file.read(DIGEST_BYTES).hex()


def decode_metadata(metadata: dict[str, str]) -> tuple[str, Config]:
    """(kind, configuration) of a file; ArtifactError if its metadata are those of another format or malformed."""
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"metadata 'format' must be {FORMAT!r}, got {metadata.get('format')!r}: no file of mgqe")
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
    """The configuration of a file that must be of one kind; ArtifactError if it is of another."""
    kind, config = decode_metadata(metadata)
    if kind != expected:
        raise ArtifactError(f"metadata 'kind' must be {expected!r}, got {kind!r}")
    return config


def reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for two equal keys, of which two readers might use different ones."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries
