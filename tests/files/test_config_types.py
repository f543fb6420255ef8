"""A config with JSON of any wrong type is an ArtifactError that names the file."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_safetensors import read_raw, write_raw

import mgqe
from mgqe import baselines
from mgqe.table import sharded as shards

WRONG: list[Any] = [
    None, True, 3, -1, 2**70, 1.5, "x", "", [], [[]], [None], [1, "a"], ["x"], {}, {"a": 1}, [[1, 2]], float("inf"),
]  # fmt: skip


def compact() -> mgqe.CompactTable:
    torch.manual_seed(0)
    return mgqe.MGQEmbedding(60, 8, counts=torch.randperm(60) + 1).freeze()


def one_file(make: Callable[[], Any]) -> Callable[[Path], tuple[list[Path], Path]]:
    def write(folder: Path) -> tuple[list[Path], Path]:
        mgqe.save(make(), folder / "table")
        return [folder / "table"], folder / "table"

    return write


def appended(folder: Path) -> tuple[list[Path], Path]:
    mgqe.save(compact(), folder / "table")
    mgqe.append(folder / "table", torch.ones(3, 8))
    return list(folder.glob("table.append-*")), folder / "table"


def sharded(folder: Path) -> tuple[list[Path], Path]:
    tensors, config = compact().to_tensors()
    name, codes = shards.new_set(), [tensors.pop(f"codes.{g}") for g in range(2)]
    shapes = {f"codes.{g}": (rows.dtype, tuple(rows.shape)) for g, rows in enumerate(codes)}
    shards.write_shard(folder, name, 0, shapes, codes)
    with shards.prepared_index(folder, name, tensors, config, [[len(rows) for rows in codes]]) as (temporary, _):
        shards.publish_index(folder, temporary)
    return list(folder.glob("*.safetensors")), folder


def id_map(folder: Path) -> tuple[list[Path], Path]:
    pytest.importorskip("polars")
    (folder / "log.csv").write_text("item\n7\n7\n9\n")
    mgqe.IdMap.from_log(str(folder / "log.csv"), "item").save(folder / "map")
    return [folder / "map"], folder / "map"


ARTEFACTS: dict[str, Callable[[Path], tuple[list[Path], Path]]] = {
    "compact": one_file(compact),
    "appended": appended,
    "sharded": sharded,
    "id map": id_map,
    **{
        name: one_file(lambda name=name: getattr(baselines, name)(20, 8, padding_idx=1).freeze())  # type: ignore[misc]
        for name in baselines.__all__
        if name.endswith("Embedding") and name not in ("PQEmbedding", "RecJPQEmbedding")
    },
}


def variants(config: dict[str, Any]) -> Iterator[Any]:
    """Variants in which the config, one of its entries or one item of a list has another type."""
    for wrong in WRONG:
        yield wrong
        for name, value in config.items():
            yield {**config, name: wrong}
            for place in range(len(value)) if isinstance(value, list) else ():
                changed = copy.deepcopy(config)
                changed[name][place] = wrong
                yield changed


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_config_of_other_types_is_refused_by_name(name: str, tmp_path: Path) -> None:
    files, target = ARTEFACTS[name](tmp_path)
    read = mgqe.IdMap.load if name == "id map" else mgqe.load
    read(target)
    for file in files:
        raw = file.read_bytes()
        metadata, parts = read_raw(file)
        config = json.loads(metadata["config"])
        for changed in variants(config):
            if json.dumps(changed) == json.dumps(config):
                continue
            write_raw(file, {**metadata, "config": json.dumps(changed)}, parts)  # with correct checksums
            try:
                read(target)
            except mgqe.ArtifactError as error:
                assert file.name in str(error), changed  # noqa: PT017
            else:
                # Another number in a descriptive entry is another table, and no wrong type.
                assert isinstance(changed, dict), changed
        file.write_bytes(raw)


def test_a_sharded_index_whose_config_is_no_object_is_refused(tmp_path: Path) -> None:
    files, _ = sharded(tmp_path)
    index = next(file for file in files if file.name == "table.safetensors")
    metadata, parts = read_raw(index)
    write_raw(index, {**metadata, "config": "[1, 2]"}, parts)
    with pytest.raises(
        mgqe.ArtifactError, match=r"table\.safetensors: metadata 'config' must be a JSON object, got \[1, 2"
    ):
        mgqe.load(tmp_path)
