"""Model folders to verify: their manifests, and whether the files are those that the manifests name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mgqe.convert.manifest import FORMAT, MANIFEST, OLD_VERSIONS, Manifest, decode_manifest
from mgqe.convert.read import file_faults, manifest_bytes, read_files
from mgqe.convert.saves import dense_name, in_use, saved_files
from mgqe.files.container import ArtifactError


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder as its manifest describes it.

    Attributes:
        manifest: None if it cannot be read; ``fault`` then says why.
    """

    folder: Path
    manifest: Manifest | None
    fault: str | None = None

    @property
    def path(self) -> Path:
        """The manifest's path."""
        return self.folder / MANIFEST

    @property
    def has_checksum(self) -> bool:
        """Whether the manifest has a checksum."""
        return self.manifest is not None and self.manifest.version not in OLD_VERSIONS

    def files_of_other_saves(self) -> set[Path]:
        """Files of other saves, which exist while they are read or written."""
        if self.manifest is None:
            return set()
        own_files = tuple(entry.file for entry in self.manifest.files)
        names = (name for names in saved_files(self.folder).values() for name in names)
        return {self.folder / name for name in names if not name.startswith(own_files)}

    def damage(self) -> Iterator[str]:
        """What is wrong beyond the checksums inside the files."""
        if self.manifest is None:
            yield self.fault or ""
            return
        faults = list(file_faults(self.manifest, self.folder))
        yield from faults
        try:
            if not faults:
                read_files(self.manifest, self.folder, verify=False)
        except ArtifactError as error:
            yield str(error)


def open_models(path: Path, stack: ExitStack) -> list[ModelFolder]:
    """The models at a path and below. Other saves do not remove their files before the stack is closed."""
    if not path.is_dir():
        return []
    folders = [path, *(each for each in sorted(path.rglob("*")) if each.is_dir())]
    return [_open(folder, stack) for folder in folders if is_model(folder)]


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or did before it lost its manifest."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        return FORMAT.encode() in manifest.read_bytes() or bool(saved_files(folder))
    return any(dense_name(token) in names for token, names in saved_files(folder).items())


def _open(folder: Path, stack: ExitStack) -> ModelFolder:
    while True:
        try:
            text = manifest_bytes(folder)
            manifest = decode_manifest(text, folder / MANIFEST)
        except FileNotFoundError:
            fault = "is missing, which save_model writes last: saving was interrupted, or the folder was copied in part"
            return ModelFolder(folder, None, f"{folder / MANIFEST}: {fault}")
        except ArtifactError as error:
            return ModelFolder(folder, None, str(error))
        stack.enter_context(in_use(folder / manifest.dense.file))
        if manifest_bytes(folder) == text:  # else the files may have been removed before they were locked
            return ModelFolder(folder, manifest)
