"""One file a frozen table: safetensors with a versioned header, written atomically, loaded by memory mapping.

docs/format.md specifies the file byte by byte. There is no pickle in it, so loading a stranger's file runs no
code of theirs; a file that cannot be right is refused with :class:`ArtifactError`.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgqe.frozen import Config, FrozenTable
from mgqe.table import CompactTable

FORMAT = "mgqe"
VERSION = "1"
MAX_CONFIG_CHARS = 1 << 20
DATA_ALIGNMENT = 64  # the first tensor starts on a cache line; the header is padded with spaces
WRITE_CHUNK = 1 << 24  # bytes

DTYPE_NAMES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}

_KINDS: dict[str, type[FrozenTable]] = {CompactTable.kind: CompactTable}


class ArtifactError(ValueError):
    """A file is not a table that this version can read; the message says what is wrong with it."""


def register_kind(table: type[FrozenTable]) -> type[FrozenTable]:
    """Class decorator: let :func:`load` make tables of this class, under its ``kind``."""
    known = _KINDS.setdefault(table.kind, table)
    if known is not table:
        raise ValueError(f"kind {table.kind!r} is taken by {known.__name__}")
    return table


def save(table: FrozenTable, path: str | os.PathLike[str]) -> int:
    """Write a frozen table to ``path`` and return the file's bytes.

    The file appears whole or not at all: it is written under a temporary name in the same folder, flushed to
    the disk and renamed over ``path``. If anything fails, what was at ``path`` before stays as it was.

    Raises:
        TypeError: not a frozen table (call ``freeze()`` on the layer first).
        OSError: the file cannot be written; the message names the path, the bytes needed and the remedy.
    """
    if not isinstance(table, FrozenTable):
        raise TypeError(f"expected a frozen table, got {type(table).__name__}: save what its freeze() returns")
    tensors, config = table.tensor_pieces()
    header, ordered = _encode_header(tensors, table.kind, config)
    nbytes = len(header) + sum(t.nbytes for t in ordered)
    target = Path(os.path.realpath(path))  # rename would replace a link, not what it points to
    try:
        _write_atomically(target, header, ordered)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {nbytes:,} bytes ({error.strerror or error}); nothing at the path has changed. "
            "Check that the folder exists, may be written to and has the space",
            str(path),
        ) from error
    return nbytes


def load(path: str | os.PathLike[str], *, mmap: bool = True) -> FrozenTable:
    """Read a table that :func:`save` wrote.

    Args:
        path: the file.
        mmap: map the file: rows are read from the disk when first looked up, and shared between processes.
            The file must then not be cut short while the table lives (saving over it is safe). False reads
            everything into memory.

    Raises:
        ArtifactError: (a ValueError) the file is not of this format or version, is cut short, or its parts
            contradict each other; the message names the part.
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    with open(name, "rb"):  # the usual OSError for a missing file, a folder, or no permission
        pass
    try:
        metadata, tensors = _read(name)
        kind, config = _decode_metadata(metadata)
        table = _table_class(kind).from_tensors(
            tensors if mmap else {key: t.clone() for key, t in tensors.items()}, config
        )
        table.validate()
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}") from error
    return table


def _encode_header(tensors: dict[str, list[Tensor]], kind: str, config: Config) -> tuple[bytes, list[Tensor]]:
    """The 8-byte length, the JSON header and its padding; and the tensors' pieces in the order in which they follow.

    Written here and not by the safetensors package, so that equal tables are equal bytes under every version.
    """
    # Wide elements first: every tensor then starts at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "kind": kind,
            "config": json.dumps(config, separators=(",", ":"), allow_nan=False),
        }
    }
    offset, ordered = 0, []
    for name in names:
        first, end = tensors[name][0], offset + sum(piece.nbytes for piece in tensors[name])
        rows = [sum(piece.shape[0] for piece in tensors[name])] if first.ndim else []
        header[name] = {
            "dtype": DTYPE_NAMES[first.dtype],
            "shape": [*rows, *first.shape[1:]],
            "data_offsets": [offset, end],
        }
        offset = end
        ordered += tensors[name]
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, ordered


def _tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's elements, little-endian and in C order, in chunks."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.dtype == torch.bfloat16:  # numpy has no such type
        flat = flat.view(torch.int16)
    step = WRITE_CHUNK // tensor.element_size()
    for start in range(0, flat.numel(), step):
        array = flat[start : start + step].cpu().numpy()
        if sys.byteorder == "big":
            array = array.byteswap()
        yield array.view(np.uint8).data


def _write_atomically(target: Path, header: bytes, tensors: list[Tensor]) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # Made by hand and not by tempfile, which would leave the file readable by its owner alone.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(header)
            for tensor in tensors:
                for part in _tensor_bytes(tensor):
                    file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # makes the rename itself last; Windows cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and mapped tensors of a safetensors file."""
    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {}
            for key in file.keys():  # noqa: SIM118  (not a dict)
                dtype = file.get_slice(key).get_dtype()
                if dtype not in DTYPE_NAMES.values():
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


def _decode_metadata(metadata: dict[str, str]) -> tuple[str, Config]:
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"metadata 'format' must be {FORMAT!r}, got {metadata.get('format')!r}: not such a table")
    version = metadata.get("version")
    if version != VERSION:
        raise ArtifactError(
            f"metadata 'version' must be {VERSION!r}, got {version!r}: read it with the mgqe that wrote it"
        )
    for key in ("kind", "config"):
        if key not in metadata:
            raise ArtifactError(f"metadata {key!r} is missing")
    text = metadata["config"]
    if len(text) > MAX_CONFIG_CHARS:
        raise ArtifactError(f"metadata 'config' has {len(text)} characters, more than {MAX_CONFIG_CHARS}")
    try:
        config = json.loads(text, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"metadata 'config' is not JSON ({error})") from error
    return metadata["kind"], config


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could take different ones of two equal keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _table_class(kind: str) -> type[FrozenTable]:
    if kind not in _KINDS:
        import_module("mgqe.baselines")  # their tables register themselves on import
    if kind not in _KINDS:
        raise ArtifactError(f"metadata 'kind' is {kind!r}, but this version knows {sorted(_KINDS)}")
    return _KINDS[kind]
