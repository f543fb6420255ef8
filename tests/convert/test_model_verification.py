"""Damage to a model's folder: loading sees it, and `mgqe verify` names it."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from manifest_tools import copy_changed, seal
from model_folder_stress import TABLES, Many
from typer.testing import CliRunner

import mgqe
from mgqe import ArtifactError
from mgqe.cli.app import app
from mgqe.convert import saves
from mgqe.convert.verification import verification


@pytest.fixture
def folder(tmp_path):
    mgqe.save_model(Many(1.0).frozen(), tmp_path / "model")
    return tmp_path / "model"


def flip(path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_an_undamaged_folder(folder):
    result = verification(folder)
    assert result.damage == result.without_checksums == ()
    assert {file.name for file in result.files} == set(os.listdir(folder))
    mgqe.verify(folder.parent)
    assert mgqe.load_model(Many(-1.0), folder, verify=True).values() == {1.0}


@pytest.mark.parametrize("name", ["manifest", "dense", "tables.5"])
def test_a_flipped_bit_anywhere_is_seen(folder, name):
    (file,) = folder.glob(f"{name}.*")
    content = file.read_bytes()
    for position in range(0, len(content), 13):
        flip(file, position, position % 8)
        with pytest.raises(ArtifactError, match=name.split(".")[0]):
            mgqe.load_model(Many(-1.0), folder)
        assert any(file.name in line for line in verification(folder).damage), position
        file.write_bytes(content)
    assert mgqe.load_model(Many(-1.0), folder).values() == {1.0}


def foreign(folder, file) -> None:
    """A table of another save, of the same size."""
    mgqe.save_model(Many(2.0).frozen(), folder.parent / "other")
    (other,) = (folder.parent / "other").glob("tables.5.*")
    shutil.copy(other, file)
    shutil.rmtree(folder.parent / "other")


FAULTS = {
    "missing": (lambda folder, file: file.unlink(), "is missing"),
    "cut short": (lambda folder, file: os.truncate(file, 100), "has 100 bytes, expected"),
    "of another save": (foreign, "not the file that was saved here, or damaged"),
    "a FIFO": (lambda folder, file: (file.unlink(), os.mkfifo(file)), "is missing"),
    "a folder": (lambda folder, file: (file.unlink(), file.mkdir()), "is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verify", [None, True, False])
def test_a_file_that_is_not_the_one_that_was_saved(folder, fault, verify):
    (file,) = folder.glob("tables.5.*")
    break_it, message = FAULTS[fault]
    break_it(folder, file)
    with pytest.raises(ArtifactError, match=message) as caught:
        mgqe.load_model(Many(-1.0), folder, verify=verify)
    assert file.name in str(caught.value)
    assert any(file.name in line for line in verification(folder).damage)


def test_two_tables_with_swapped_files_are_seen(folder):
    tables = [next(folder.glob(f"tables.{n}.*")) for n in (1, 2)]
    full = mgqe.baselines.FullEmbedding(50, 4, _weight=torch.full((50, 4), 7.0))
    model = Many(1.0).frozen()
    model.tables[1] = mgqe.CompactEmbedding(full.freeze())
    mgqe.save_model(model, folder)
    tables = [next(folder.glob(f"tables.{n}.*")) for n in (1, 2)]
    contents = [table.read_bytes() for table in tables]
    for table, content in zip(tables, reversed(contents), strict=True):
        table.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tables\.1\.\w+\.safetensors: not the file that was saved here"):
        mgqe.load_model(Many(-1.0), folder)
    assert [tables[n].name in line for n, line in enumerate(verification(folder).damage)] == [True, True]


def test_a_manifest_without_its_files_and_files_without_their_manifest(folder):
    text = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    assert any("manifest.json: is missing" in line for line in verification(folder).damage)
    (folder / "manifest.json").write_bytes(text)
    mgqe.verify(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert len(verification(folder).damage) == TABLES + 1


def test_a_wrong_manifest_is_damage_as_well(folder, tmp_path):
    lying = copy_changed(folder, tmp_path / "lying", lambda m: m["tables"][0].update(padding_idx=50))
    assert any("'padding_idx' must be less than 50" in line for line in verification(lying).damage)


def test_a_folder_of_version_1_says_that_it_has_no_checksums(folder, tmp_path):
    def older(manifest):
        manifest["version"] = 1
        for entry in (*manifest["tables"], manifest["dense"], manifest):
            entry.pop("checksum", None)

    result = verification(copy_changed(folder, tmp_path / "old", older, sealed=False))
    assert result.damage == ()
    assert [file.name for file in result.without_checksums] == ["manifest.json"]


def test_a_manifest_stands_for_its_folder(folder):
    assert verification(folder / "manifest.json") == verification(folder)
    (lost,) = folder.glob("dense.*")
    lost.unlink()
    with pytest.raises(ArtifactError, match=r"dense\..* is missing"):
        mgqe.verify(folder / "manifest.json")


def test_files_of_other_saves_are_not_damage(folder):
    (dense,) = folder.glob("dense.*")
    with saves.in_use(dense):
        mgqe.save_model(Many(2.0).frozen(), folder)
    assert dense.exists()
    flip(dense, 100)
    mgqe.verify(folder)


def test_a_folder_that_is_saved_over_while_it_is_verified(folder):
    saved = []

    def save_again(done, of) -> None:
        if len(saved) < 3:
            saved.append(done)
            mgqe.save_model(Many(float(len(saved))).frozen(), folder)

    assert mgqe.verify(folder, save_again).damage == ()
    assert len(saved) == 3


def test_the_command(folder):
    run = CliRunner().invoke(app, ["verify", str(folder)])
    assert run.exit_code == 0, run.output
    assert f"{TABLES + 2} files compared with their checksums" in run.output
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["class"] = "Other"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run = CliRunner().invoke(app, ["verify", str(folder)])
    assert run.exit_code == 1
    (folder / "manifest.json").write_bytes(seal(manifest))
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
