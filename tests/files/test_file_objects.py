"""Saving to and loading from file objects."""

from __future__ import annotations

import io
import os
import tempfile

import pytest
import torch
from make_golden import golden_tables
from paths import GOLDEN
from table_cases import CASES, build

import mgqe

TABLE = build(CASES[3]).table


@pytest.mark.parametrize("name", golden_tables())
def test_bytes_in_memory_are_those_of_the_file(name):
    table, file = golden_tables()[name], io.BytesIO()
    assert mgqe.save(table, file) == len(file.getvalue())
    assert file.getvalue() == (GOLDEN / name).read_bytes()
    file.seek(0)
    loaded = mgqe.load(file)
    assert loaded.equal(table)
    before = GOLDEN / "version-1" / name
    if before.exists():  # kinds that came later were never written so
        assert mgqe.load(io.BytesIO(before.read_bytes())).equal(table)


@pytest.mark.parametrize("buffering", [-1, 0])
def test_open_files_are_written_and_read_from_where_they_are(buffering, tmp_path):
    with open(tmp_path / "a", "wb", buffering=buffering) as file:
        file.write(b"before")
        mgqe.save(TABLE, file)
    with open(tmp_path / "a", "rb", buffering=buffering) as file:
        file.seek(6)
        loaded = mgqe.load(file)
    (tmp_path / "a").unlink()
    assert loaded.equal(TABLE)
    with tempfile.TemporaryFile() as file:
        mgqe.save(TABLE, file)
        file.seek(0)
        assert mgqe.load(file, verify=True, mmap=False).equal(TABLE)


def test_a_file_that_takes_a_few_bytes_at_a_time():
    class Slow(io.RawIOBase):
        content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data[:100])
            return min(len(data), 100)

    file = Slow()
    assert mgqe.save(TABLE, file) == len(file.content)
    assert mgqe.load(io.BytesIO(file.content)).equal(TABLE)


def test_ids_appended_in_memory_go_into_the_bytes():
    table, file = build(CASES[3]).table, io.BytesIO()
    table.append(torch.zeros(2, table.embedding_dim))
    mgqe.save(table, file)
    file.seek(0)
    assert mgqe.load(file).num_embeddings == TABLE.num_embeddings + 2


def test_damage_names_the_open_file(tmp_path):
    mgqe.save(TABLE, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    damaged = content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]
    (tmp_path / "b").write_bytes(damaged)
    with open(tmp_path / "b", "rb") as file, pytest.raises(mgqe.ArtifactError, match=r"/b: tensor 'codes\.2', block 0"):
        mgqe.load(file)
    with pytest.raises(mgqe.ArtifactError, match="<BytesIO>: tensor"):
        mgqe.load(io.BytesIO(damaged))
    mgqe.load(io.BytesIO(content), verify=False)
    for cut in (b"", content[:7], content[:100], content[:-1], content + b"x", b"\xff" * 100):
        with pytest.raises(mgqe.ArtifactError, match="<BytesIO>: not a whole safetensors file"):
            mgqe.load(io.BytesIO(cut))


def test_a_file_that_takes_no_more_bytes_is_an_error_and_not_a_wait(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, bytes(1 << 20))  # as much as fits
    with (
        open(reading, "rb"),
        open(writing, "wb", buffering=0) as file,
        pytest.raises(BlockingIOError, match="takes no more bytes"),
    ):
        mgqe.save(TABLE, file)

    class Full(io.BytesIO):
        def write(self, content):
            return 0

    with pytest.raises(BlockingIOError, match="<Full>"):
        mgqe.save(TABLE, Full())


def test_what_verify_may_be_is_checked_for_open_files_too():
    file = io.BytesIO()
    mgqe.save(TABLE, file)
    with pytest.raises(TypeError, match="verify must be True, False or None, got 'yes'"):
        mgqe.load(io.BytesIO(file.getvalue()), verify="yes")


@pytest.mark.parametrize("path", [None, 7, [b"x"]])
def test_what_is_neither_a_path_nor_a_file_is_refused(path):
    for use in (mgqe.load, lambda path: mgqe.save(TABLE, path)):
        with pytest.raises(TypeError, match="expected a path or an open file, got "):
            use(path)


def test_files_of_text_and_indices_of_shards_are_refused(tmp_path):
    with pytest.raises(TypeError, match="<StringIO>: expected a file that is open for bytes, mode 'wb'"):
        mgqe.save(TABLE, io.StringIO())
    with pytest.raises(TypeError, match="<StringIO>: expected a file that is open for bytes, mode 'rb', but read str"):
        mgqe.load(io.StringIO("text"))
    with (
        open(GOLDEN / "compact-small.safetensors", encoding="utf-8") as file,
        pytest.raises(TypeError, match=r"small\.safetensors: expected a file that is open for bytes, mode 'rb' \("),
    ):
        mgqe.load(file)
    with (
        open(GOLDEN / "sharded" / "table.safetensors", "rb") as file,
        pytest.raises(mgqe.ArtifactError, match=r"table\.safetensors: the index of a folder of shards"),
    ):
        mgqe.load(file)
