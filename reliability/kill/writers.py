"""Writers, which write versions 0, 1 and 2 of an artefact, and tell which one is on the disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mgqe
from reliability.fuzz.models import Shop

VERSIONS = 3


class Writer:
    """Writes versions over each other.

    Attributes:
        calls: the function that is killed, for the report.
    """

    calls = "mgqe.save"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.versions = [self.make() for _ in range(VERSIONS)]
        self.expected: list[Tensor] = []

    def make(self) -> Any:
        """One version, in memory."""
        return _layer().freeze()

    def write(self, folder: Path, number: int) -> None:
        """Write version ``number % VERSIONS``."""
        mgqe.save(self.versions[number % VERSIONS], folder / "table.safetensors")

    def rows(self, folder: Path) -> Tensor:
        """The rows of the version on the disk."""
        return mgqe.load(folder / "table.safetensors", verify=True).to_dense()

    def prepare(self, folder: Path) -> None:
        """Write every version once, and then version 0."""
        folder.mkdir(parents=True)
        for number in (*range(VERSIONS), 0):
            self.write(folder, number)
            self.expected.append(self.rows(folder))

    def check(self, folder: Path, done: int) -> None:
        """AssertionError unless the version on the disk is the last one that was written completely, or the next."""
        rows = self.rows(folder)
        equal_versions = [n for n in range(VERSIONS) if torch.equal(rows, self.expected[n])]
        assert equal_versions, "neither the old nor the new version"
        assert equal_versions[0] in (done % VERSIONS, (done + 1) % VERSIONS), (
            f"version {equal_versions[0]} after {done}: one is lost"
        )

    def names(self, folder: Path) -> list[str]:
        """The names of all files, without random and running numbers."""
        return sorted(re.sub(r"[0-9a-f]{6,}", "*", str(path.relative_to(folder))) for path in folder.rglob("*"))


class Append(Writer):
    """Appends three equal rows per call."""

    calls = "mgqe.append"

    def prepare(self, folder: Path) -> None:
        """A table with one appended file."""
        folder.mkdir(parents=True)
        mgqe.save(self.versions[0], folder / "table.safetensors")
        self.base = self.versions[0].num_embeddings
        self.seen = 0
        self.write(folder, 0)

    def write(self, folder: Path, number: int) -> None:
        """Append, and after every 20 segments save the table as one file."""
        path = folder / "table.safetensors"
        mgqe.append(path, self.versions[0].lookup(torch.tensor([number % 50] * 3)))
        if number % 20 == 19:
            mgqe.save(mgqe.load(path), path)

    def check(self, folder: Path, done: int) -> None:
        """AssertionError unless all completed appends are on the disk, and at most one more."""
        rows = self.rows(folder)[self.base :]
        n, rest = divmod(len(rows), 3)
        assert not rest, "a part of what was appended"
        assert n - self.seen in (done, done + 1), f"{n - self.seen} appended, of {done} that had ended"
        triples = rows.view(n, 3, -1)
        assert torch.equal(triples[:, 0], triples[:, 1])
        assert torch.equal(triples[:, 0], triples[:, 2])
        self.seen = n

    def names(self, folder: Path) -> list[str]:
        """The distinct names of all files, since the number of segments varies."""
        return sorted({*super().names(folder)})


class FreezeTo(Writer):
    """Freezes layers into a file."""

    calls = "mgqe.freeze_to"

    def make(self) -> Any:
        """A trained layer."""
        return _layer()

    def write(self, folder: Path, number: int) -> None:
        """Freeze a version."""
        mgqe.freeze_to(self.versions[number % VERSIONS], folder / "table.safetensors")


class SaveModel(Writer):
    """Saves models over each other in one folder."""

    calls = "mgqe.save_model"

    def make(self) -> Any:
        """A frozen model."""
        model = Shop()
        mgqe.compress_(model, mgqe.CompressConfig(num_subspaces=4, num_centroids=8))
        mgqe.freeze_(model)
        return model

    def write(self, folder: Path, number: int) -> None:
        """Save a version."""
        mgqe.save_model(self.versions[number % VERSIONS], folder)

    def rows(self, folder: Path) -> Tensor:
        """The loaded model's scores."""
        with torch.no_grad():
            scores: Tensor = mgqe.load_model(Shop(), folder)()
        return scores


class Torchrec(Writer):
    """Freezes torchrec's tables into shards; needs torchrec."""

    calls = "mgqe.torchrec.freeze"

    def make(self) -> Any:
        """A collection of one table."""
        torchrec, ours = import_module("torchrec"), import_module("mgqe.torchrec")
        config = torchrec.EmbeddingBagConfig(
            name="item", num_embeddings=600, embedding_dim=8, feature_names=["seen"], weight_init_min=-1.0,
            weight_init_max=1.0,
        )  # fmt: skip
        settings = mgqe.CompressConfig(num_centroids=(16, 8), warmup_steps=0)
        return ours.QuantizedEmbeddingBagCollection([config], settings, counts={"item": torch.arange(600) + 1})

    def write(self, folder: Path, number: int) -> None:
        """Freeze a version."""
        import_module("mgqe.torchrec").freeze(self.versions[number % VERSIONS], folder)

    def rows(self, folder: Path) -> Tensor:
        """The frozen table's rows."""
        return mgqe.load(folder / "item").to_dense()


def _layer() -> mgqe.MGQEmbedding:
    layer = mgqe.MGQEmbedding(2000, 16, counts=torch.arange(2000) + 1, num_centroids=(64, 16))
    mgqe.start_quantizing(layer)
    return layer


WRITERS: dict[str, Callable[[], Writer]] = {
    "save": Writer, "append": Append, "freeze_to": FreezeTo, "save_model": SaveModel, "torchrec": Torchrec,
}  # fmt: skip
