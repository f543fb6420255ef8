"""A run's folder that is written again while it is read, and files of it that do not belong together."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
import torch
from recsys_data import tiny_config, write_tiny

import mgqe
from mgqe import ArtifactError
from mgqe.files import consistent
from mgqe.files.weights import read_weights, save_weights
from mgqe.recsys.train import artifacts as shipping
from mgqe.recsys.train.artifacts import MODEL, TABLE, load_run, ship
from mgqe.recsys.train.run import train_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_run(tiny_config(write_tiny(folder), embedding="full"), folder / "run")
    return folder / "run"


def write(out, value: float) -> None:
    """The run's model again, every weight of the one value."""
    model = load_run(out)
    paths = [file.name.removesuffix(TABLE) for file in out.glob(f"*{TABLE}")]
    for path in paths:
        old = model.get_submodule(path)
        rows = torch.full((old.num_embeddings, old.embedding_dim), value)
        full = mgqe.baselines.FullEmbedding(*rows.shape, _weight=rows)
        model.set_submodule(path, full) if hasattr(model, "set_submodule") else setattr(model, path, full)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    ship(model, dict.fromkeys(paths), out)


def values(model) -> set[float]:
    """All values of a model: one, if it is whole."""
    tables = [module.table for module in model.modules() if isinstance(module, shipping.FrozenEmbedding)]
    own = {value for parameter in model.parameters() for value in parameter.flatten().tolist()}
    return own | {value for table in tables for value in table.to_dense().flatten().tolist()}


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    write(tmp_path / "run", 1.0)
    return tmp_path / "run"


def test_every_load_is_one_whole_run(copy):
    stop, wrong = threading.Event(), []

    def loads() -> None:
        while not stop.is_set():
            try:
                found = values(load_run(copy))
                if len(found) != 1:
                    wrong.append(found)
            except Exception as error:
                wrong.append(error)

    readers = [threading.Thread(target=loads) for _ in range(2)]
    for reader in readers:
        reader.start()
    for value in range(2, 12):
        write(copy, float(value))
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_run_between_its_files_is_waited_for(copy, monkeypatch):
    old = (copy / MODEL).read_bytes()
    write(copy, 2.0)
    new = (copy / MODEL).read_bytes()
    (copy / MODEL).write_bytes(old)  # the tables are written, the rest not yet
    (copy / "aside").write_bytes(new)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            os.replace(copy / "aside", copy / MODEL)

    monkeypatch.setattr(consistent.time, "sleep", pause)
    assert values(load_run(copy)) == {2.0}
    assert len(pauses) == 3


@pytest.mark.parametrize("fault", ["missing", "foreign", "swapped"])
def test_files_that_do_not_belong_together_are_named(copy, run, monkeypatch, fault):
    monkeypatch.setattr(consistent, "ATTEMPTS", 0)
    item, user = copy / f"item{TABLE}", copy / f"user{TABLE}"
    if fault == "missing":
        item.unlink()
    elif fault == "foreign":
        shutil.copy(run / item.name, item)
    else:
        item.rename(copy / "aside")
        user.rename(item)
        (copy / "aside").rename(user)
    message = r"item\.mgqe\.safetensors( is missing|: not the file that model)"
    with pytest.raises(ArtifactError, match=message):
        load_run(copy)
    with pytest.raises(ArtifactError, match=message):
        mgqe.verify(copy)


def test_names_that_lead_out_of_the_folder_are_refused(copy):
    weights, about = read_weights(copy / MODEL)
    for files in ({f"../{name}": checksum for name, checksum in about["files"].items()}, [], {"a": 3}):
        save_weights(weights, copy / MODEL, {"files": files})
        with pytest.raises(ArtifactError, match="'files' must map names of files to checksums"):
            load_run(copy)


def test_a_run_that_is_not_finished_says_so(copy):
    (copy / MODEL).unlink()
    with pytest.raises(FileNotFoundError, match="no finished run is here"):
        load_run(copy)


def test_runs_without_checksums_are_read(copy):
    from safetensors.torch import load_file, save_file

    weights = {name: value for name, value in load_file(copy / MODEL).items() if name != "checksums"}
    save_file(weights, copy / MODEL)
    assert values(load_run(copy)) == {1.0}
