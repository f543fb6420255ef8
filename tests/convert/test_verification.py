"""mgqe.verify and `mgqe verify`: every artefact, every kind of damage, the exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from paths import GOLDEN
from raw_safetensors import read_raw, write_raw
from safetensors.torch import save_file
from sharded_table import N, write
from table_cases import CASES, build

import mgqe
from mgqe.convert import verification as verification_module
from mgqe.convert.verification import verification
from mgqe.files import container
from mgqe.files.checksums import json_checksum
from mgqe.files.weights import save_weights
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import shard_path

TABLE = build(CASES[3]).table


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 8
    path.write_bytes(content)


def appended(folder):
    path = folder / "items.safetensors"
    mgqe.save(TABLE, path)
    for seed in range(2):
        mgqe.append(path, torch.randn(3, TABLE.embedding_dim, generator=torch.Generator().manual_seed(seed)))
    return path


def test_a_table_with_appended_ids(tmp_path):
    path = appended(tmp_path)
    result = mgqe.verify(path)
    assert set(result.files) == set(tmp_path.iterdir())
    assert result.nbytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert result.without_checksums == result.damage == ()
    for file in tmp_path.iterdir():
        was = file.read_bytes()
        flip(file)
        with pytest.raises(mgqe.ArtifactError, match=f"{file.name}: the header or the list of checksums is damaged"):
            mgqe.verify(path)
        file.write_bytes(was)
    all_segment_files(path)[-1].unlink()
    with pytest.raises(mgqe.ArtifactError, match=r"000002: this file is missing, and with it the ids from 333 to 335"):
        mgqe.verify(path)


def test_the_file_is_named_as_it_was_given(tmp_path, monkeypatch):
    mgqe.save(TABLE, tmp_path / "a")
    flip(tmp_path / "a", -200)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mgqe.ArtifactError, match=r"^a: tensor 'codes"):
        mgqe.verify("a")


def test_every_damaged_block_of_every_file_is_named(tmp_path):
    rows = torch.randint(0, 255, (300_000, 8), dtype=torch.uint8)  # 2.4 MB: three blocks
    book = torch.randn(8, 256, 1)
    table = mgqe.CompactTable.from_codes(mgqe.Tiers.from_sizes((300_000,)), [rows.long()], [book], (0,), (256,))
    for name in ("a.safetensors", "b.safetensors"):
        mgqe.save(table, tmp_path / name)
    content = (tmp_path / "a.safetensors").read_bytes()
    start = content.index(rows.numpy().tobytes()[:64])
    for block in (0, 2):
        flip(tmp_path / "a.safetensors", start + (block << 20) + 5)
    flip(tmp_path / "b.safetensors", start - 8)  # in the centroids, which lie before the codes
    seen = []
    damage = verification(tmp_path, lambda done, of: seen.append((done, of))).damage
    assert [line.partition(": ")[2].partition(" is damaged")[0] for line in damage] == [
        "tensor 'codes.0', block 0 of 3 (its bytes 0 to 1,048,575)",
        "tensor 'codes.0', block 2 of 3 (its bytes 2,097,152 to 2,399,999)",
        "tensor 'centroids.0', block 0 of 1 (its bytes 0 to 8,191)",
    ]
    assert [Path(line.partition(": ")[0]).name[0] for line in damage] == ["a", "a", "b"]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (2 * len(content), 2 * len(content))


@pytest.mark.parametrize("by_index", [False, True])
def test_a_folder_of_shards(by_index, tmp_path):
    _, set_name = write(tmp_path / "t", (0, 500, N))
    target = tmp_path / "t" / "table.safetensors" if by_index else tmp_path / "t"
    assert len(mgqe.verify(target).files) == 3
    second = shard_path(tmp_path / "t", set_name, 1)
    was = second.read_bytes()
    flip(second, -50)
    with pytest.raises(mgqe.ArtifactError, match=r"00001\.safetensors: tensor 'codes"):
        mgqe.verify(target)
    second.write_bytes(was)
    mgqe.verify(target)
    second.unlink()
    with pytest.raises(mgqe.ArtifactError, match="shard 1 is missing"):
        mgqe.verify(target)


def test_an_id_map_and_weights(tmp_path):
    for name in ("map", "weights"):
        if name == "map":
            shutil.copy(GOLDEN / "idmap" / "string.safetensors", tmp_path / name)
        else:
            save_weights({"a": torch.ones(3, dtype=torch.float64)}, tmp_path / name)
        mgqe.verify(tmp_path / name)
        flip(tmp_path / name, -30)
        with pytest.raises(mgqe.ArtifactError, match="damaged"):
            mgqe.verify(tmp_path / name)


def test_contradictions_are_damage_even_where_checksums_are_right(tmp_path):
    mgqe.save(TABLE, tmp_path / "a")
    metadata, tensors = read_raw(tmp_path / "a")
    write_raw(
        tmp_path / "a", {**metadata, "config": metadata["config"].replace('"padding_idx":', '"padding":')}, tensors
    )
    with pytest.raises(mgqe.ArtifactError, match="config has no entry 'padding_idx'"):
        mgqe.verify(tmp_path / "a")


def test_files_without_checksums_are_listed(tmp_path):
    old = GOLDEN / "version-1"
    result = mgqe.verify(old)
    assert len(result.files) == len(result.without_checksums) == sum(path.is_file() for path in old.rglob("*"))
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    assert mgqe.verify(tmp_path).without_checksums == (tmp_path / "foreign.safetensors",)


def test_a_lost_table_is_noticed_where_its_segments_are(tmp_path):
    appended(tmp_path).unlink()
    with pytest.raises(mgqe.ArtifactError, match=r"items\.safetensors is missing: the table that items.*appended to"):
        mgqe.verify(tmp_path)


def test_a_lost_index_is_noticed_where_its_shards_are(tmp_path):
    write(tmp_path / "t", (0, 500, N))
    (tmp_path / "t" / "table.safetensors").unlink()
    with pytest.raises(mgqe.ArtifactError, match=r"table\.safetensors is missing: without it shard-.* is no table"):
        mgqe.verify(tmp_path)


def test_files_of_any_name_are_verified_in_a_folder(tmp_path):
    mgqe.save(TABLE, tmp_path / "a.safetensors")
    mgqe.save(TABLE, tmp_path / "items.bin")
    mgqe.append(tmp_path / "items.bin", torch.zeros(1, TABLE.embedding_dim))
    shutil.copy(GOLDEN / "idmap" / "string.safetensors", tmp_path / "ids")
    (tmp_path / "notes.txt").write_text("not ours")
    assert {file.name for file in mgqe.verify(tmp_path).files} == {
        file.name for file in tmp_path.iterdir() if file.name != "notes.txt"
    }
    flip(tmp_path / "ids", -200)
    with pytest.raises(mgqe.ArtifactError, match="ids: tensor"):
        mgqe.verify(tmp_path)


def frozen_collection(folder):
    """A collection of one table as mgqe.torchrec.freeze writes it."""
    _, set_name = write(folder / "t", (0, 500, N))
    about = {"format": "mgqe-collection", "version": "2", "set": set_name, "tables": [{"name": "t"}]}
    (folder / "collection.json").write_text(json.dumps({**about, "checksum": json_checksum(about)}))


def test_a_collection_has_the_tables_that_its_manifest_names(tmp_path):
    frozen_collection(tmp_path)
    assert len(mgqe.verify(tmp_path).files) == 3
    for file in (tmp_path / "t").iterdir():
        file.unlink()
    write(tmp_path / "t", (0, 500, N))
    with pytest.raises(mgqe.ArtifactError, match=r"table\.safetensors: of another freeze than collection\.json"):
        mgqe.verify(tmp_path)
    shutil.rmtree(tmp_path / "t")
    mgqe.save(TABLE, tmp_path / "other.safetensors")
    with pytest.raises(mgqe.ArtifactError, match=r"table\.safetensors is missing: collection\.json names its table"):
        mgqe.verify(tmp_path)


@pytest.mark.parametrize("moment", ["when they are listed", "when they are read"])
def test_files_that_another_save_removes_are_not_damage(moment, tmp_path, monkeypatch):
    path = appended(tmp_path)
    name = "stored_files" if moment == "when they are listed" else "open_stored"
    work = getattr(verification_module, name)

    def saved_over_after(*arguments, **options):
        result = work(*arguments, **options)
        mgqe.save(build(CASES[3]).table, path)
        return result

    monkeypatch.setattr(verification_module, name, saved_over_after)
    assert mgqe.verify(path).files == (path,)


def test_a_file_that_is_removed_while_it_is_opened_is_missing_and_not_damaged(tmp_path, monkeypatch):
    mgqe.save(TABLE, tmp_path / "a")
    safe_open = container.safe_open

    def removed_before(name, **options):
        (tmp_path / "a").unlink()
        return safe_open(name, **options)

    monkeypatch.setattr(container, "safe_open", removed_before)
    with pytest.raises(FileNotFoundError):
        container.open_stored(tmp_path / "a")


def test_paths_with_nothing_to_verify(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file in this folder"):
        mgqe.verify(tmp_path)
    with pytest.raises(FileNotFoundError):
        mgqe.verify(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(mgqe.ArtifactError, match="text: not a whole safetensors file"):
        mgqe.verify(tmp_path / "text")


def run(*arguments):
    testing = pytest.importorskip("typer.testing", reason="needs mgqe[recsys]")
    from mgqe.cli.app import app

    return testing.CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "500"})


def test_the_command_says_what_is_damaged_by_its_exit_status(tmp_path):
    path = appended(tmp_path)
    done = run(path)
    assert done.exit_code == 0, done.output
    assert "4 files compared with their checksums" in done.output
    assert "nothing is damaged" in done.output
    flip(path, -200)
    done = run(path)
    assert done.exit_code == 1
    assert "items.safetensors: tensor 'codes.2', block 0 of 1" in done.output
    assert "1 damaged or missing" in done.output


def test_the_command_says_which_files_have_no_checksums():
    done = run(GOLDEN / "version-1" / "hash.safetensors")
    assert done.exit_code == 0
    assert "hash.safetensors: a file of version 1 has no checksums to verify" in done.output
    assert "0 files compared with their checksums, 1 without any" in done.output


def test_a_missing_path_is_a_usage_error_and_not_damage(tmp_path):
    assert run(tmp_path / "none").exit_code == 2


def test_the_folder_of_a_run(tmp_path):
    from mgqe.recsys.train.config import TrainConfig
    from mgqe.recsys.train.run import train_run

    train_run(TrainConfig(data="planted", embedding="full:d=4", max_epochs=1), tmp_path / "run")
    result = mgqe.verify(tmp_path / "run")
    names = sorted(file.name.split(".")[0] for file in result.files)  # those of the two collections are table and ids
    assert names == ["ids", "ids", "item", "model", "table", "table", "user"]
    flip(tmp_path / "run" / "model.safetensors", -12)
    with pytest.raises(mgqe.ArtifactError, match=r"model\.safetensors: "):
        mgqe.verify(tmp_path / "run")


def test_all_records_are_those_of_the_file_alone(tmp_path):
    path = appended(tmp_path)
    for name in ("items.safetensors.append-0123abcd-record.bak", "xitems.safetensors.append-0123abcd-record"):
        (tmp_path / name).write_bytes(b"mine")
    assert len(all_records(path)) == 1
