"""The container of every file: a safetensors file with our metadata, written whole before anybody sees it.

docs/format.md specifies it byte by byte.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgqe.frozen import Config

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


class ArtifactError(ValueError):
    """A file is not a table that this version can read; the message says what is wrong with it."""


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
    shapes = {
        name: (pieces[0].dtype, (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:]))
        for name, pieces in tensors.items()
    }
    head, nbytes = encode_header(shapes, kind, config, **metadata)
    pieces_of = made or tensors.__getitem__
    elements = (tensor_bytes(piece) for name in element_order(shapes) for piece in pieces_of(name))
    return nbytes, chain([head], chain.from_iterable(elements))


def element_order(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> list[str]:
    """The tensors as a file has them. Wide elements first: every tensor then starts at a multiple of its element's
    size."""
    return sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))


def encode_header(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], kind: str, config: Config, **metadata: str
) -> tuple[bytes, int]:
    """What a file has before its elements, and how many bytes the file has with them.

    Args:
        shapes: each tensor's type and shape; its elements need not exist yet. They follow in :func:`element_order`.
    """
    about = {"format": FORMAT, "version": VERSION, "kind": kind, "config": config_text(config), **metadata}
    header: dict[str, Any] = {"__metadata__": about}
    offset = 0
    for name in element_order(shapes):
        dtype, shape = shapes[name]
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    head += b" " * (-(8 + len(head)) % DATA_ALIGNMENT)
    head = len(head).to_bytes(8, "little") + head
    return head, len(head) + offset


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
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


@contextmanager
def written(target: Path, chunks: Iterable[bytes | memoryview]) -> Iterator[Path]:
    """A new file beside ``target`` that holds ``chunks`` and is on the disk; gone when the block ends, whatever it did.

    The block gives the file its real name: by ``os.replace``, or by ``os.link``, which refuses a name that is taken.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # Made by hand and not by tempfile, which would leave the file readable by its owner alone.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the new name itself last; Windows cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def put(path: str | os.PathLike[str], nbytes: int, content: Iterable[bytes | memoryview]) -> None:
    """A file at the path, whole or not at all; what is a link is followed, since a rename would replace the link.

    Raises:
        OSError: it cannot be written; the message names the path, the bytes needed and the remedy.
    """
    target = Path(os.path.realpath(path))
    try:
        with written(target, content) as temporary:
            os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {nbytes:,} bytes ({error.strerror or error}); nothing at the path has changed. "
            "Check that the folder exists, may be written to and has the space",
            str(path),
        ) from error


def identity(path: str | os.PathLike[str] | int) -> tuple[int, int, int, int]:
    """What changes when another file takes the name."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def guarded(path: Path, exclusive: bool) -> Iterator[None]:
    """Keeps those who append to a file (not exclusive) and those who save over it (exclusive) apart; not readers.

    An advisory lock on the file, which a process that dies lets go of. Where there is no file yet, or the system has
    no such locks, nothing is kept apart: whoever appends then looks afterwards whether the file is still there.
    """
    descriptor = _lock(path, exclusive)
    try:
        yield
    finally:
        if descriptor is not None:
            import fcntl

            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a fork has a copy
            os.close(descriptor)


def _lock(path: Path, exclusive: bool) -> int | None:
    """A descriptor of the file, locked; None if that cannot be done."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = None
    try:
        while True:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if identity(path) == identity(descriptor):
                return descriptor
            os.close(descriptor)  # replaced while we waited
            descriptor = None
    except OSError:
        return None
    except BaseException:  # Control-C while waiting
        if descriptor is not None:
            os.close(descriptor)
        raise


def read(name: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and mapped tensors of a safetensors file.

    Raises OSError if it cannot be opened, ArtifactError if it is no whole file of the kind.
    """
    with open(name, "rb"):  # the usual OSError for a missing file, a folder, or no permission
        pass
    try:
        with safe_open(os.fspath(name), framework="pt", device="cpu") as file:
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


def decode_metadata(metadata: dict[str, str]) -> tuple[str, Config]:
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
        config = json.loads(text, object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"metadata 'config' is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"metadata 'config' must be a JSON object, got {text[:80]}")
    return metadata["kind"], config


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could take different ones of two equal keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
