"""A model's own weights in a file: the container of docs/format.md, kind ``weights``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from mgqe.files.atomic import write_whole
from mgqe.files.checksums import CHECKSUMS
from mgqe.files.container import FORMAT, ArtifactError, config_of_kind, encode, open_stored, stored_checksum
from mgqe.files.reader import Config

KIND = "weights"


def save_weights(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], about: Config | None = None) -> int:
    """Write tensors to a whole file and return its bytes.

    Args:
        about: the file's ``config``, in which :func:`companion_files` finds the files that belong to it.

    Raises:
        TypeError: a type that no file holds, such as complex. ValueError: a tensor has the name of the checksums.
        OSError: the file cannot be written.
    """
    nbytes, content = encode({name: [tensor] for name, tensor in tensors.items()}, KIND, about or {})
    write_whole(path, nbytes, content)
    return nbytes


def load_weights(path: str | os.PathLike[str], verify: bool | None = True) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote, or any other safetensors file, which has no checksums.

    Args:
        verify: as for :func:`mgqe.load`.

    Returns:
        copies of the tensors, which later changes of the file do not reach.

    Raises:
        ArtifactError: the file is of another kind, damaged or cut short; the message names it.
        OSError: it cannot be read.
    """
    return read_weights(path, verify)[0]


def read_weights(path: str | os.PathLike[str], verify: bool | None = True) -> tuple[dict[str, Tensor], Config]:
    """Like :func:`load_weights`, with the file's ``config``, which is empty in a file without checksums."""
    about: Config = {}
    try:
        stored = open_stored(path, any_dtype=True)
        stored.check(verify)
        # The second condition finds a file of ours whose damaged metadata name another format.
        if stored.metadata.get("format") == FORMAT or CHECKSUMS in stored.tensors:
            about = config_of_kind(stored.metadata, KIND)
    except ValueError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error
    return {name: tensor.clone() for name, tensor in stored.tensors.items()}, about


def companion_files(path: str | os.PathLike[str], about: Config) -> dict[Path, str]:
    """The files in the same folder that belong to a file of weights, and the last checksum of each.

    Args:
        about: the file's ``config``, as :func:`read_weights` returns it: its entry ``files`` maps names to checksums.

    Raises ArtifactError if the entry is malformed or names a file outside the folder.
    """
    files = about.get("files", {}) if isinstance(about, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(checksum, str) and Path(name).name == name for name, checksum in files.items()
    ):
        raise ArtifactError(f"{os.fspath(path)}: config entry 'files' must map names of files to checksums")
    return {Path(path).with_name(name): checksum for name, checksum in files.items()}


def companion_problems(path: str | os.PathLike[str], about: Config) -> Iterator[str]:
    """A line for each file that belongs to a file of weights and is missing or was saved with another one."""
    for file, checksum in companion_files(path, about).items():
        if not file.is_file():
            yield f"{file} is missing: {Path(path).name} names it. Copy the folder again, every file of it"
        elif stored_checksum(file) != checksum:
            yield (
                f"{file}: not the file that {Path(path).name} was saved with, or damaged: its last checksum is another "
                "one. Copy the folder again, every file of it"
            )
