"""A folder that is saved over while it is loaded: the reader gets either model, no error, and no file is left over."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest
import torch
from model_folder_stress import TABLES, Many, stress
from paths import SUPPORT
from torch import nn

import mgqe
from mgqe import ArtifactError
from mgqe.convert import read, saves

FILES = TABLES + 2


def save(value: float, folder) -> None:
    mgqe.save_model(Many(value).frozen(), folder)


@pytest.fixture
def folder(tmp_path):
    save(1.0, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch):
    """Whether the system has file locks."""
    if request.param == "no locks":
        monkeypatch.setattr(saves, "_lock", lambda file, exclusive: None)
    return request.param == "locks"


def replacing(monkeypatch, folder, times: int, name: str = "load") -> list[float]:
    """Save another model over the folder before each of the first reads of a table."""
    real, values = getattr(read, name), []

    def reading(*args, **keywords):
        if len(values) < times:
            values.append(2.0 + len(values))
            save(values[-1], folder)
        return real(*args, **keywords)

    monkeypatch.setattr(read, name, reading)
    return values


@pytest.mark.parametrize("times", [1, 3, 12])
@pytest.mark.parametrize("moment", ["load", "read_files", "_dense", "in_use"])
def test_a_folder_replaced_several_times_while_it_is_read(folder, monkeypatch, locks, moment, times):
    values = replacing(monkeypatch, folder, times, moment)
    loaded = mgqe.load_model(Many(-1.0), folder).values()
    assert values
    assert loaded in [{value} for value in (1.0, *values)]
    assert locks or loaded == {1.0 + times}  # the last model, after as many failed attempts
    save(99.0, folder)
    assert len(os.listdir(folder)) == FILES  # the files that the reader needed are removed


def test_a_save_stays_while_it_is_read_and_no_longer(folder):
    before = set(os.listdir(folder)) - {"manifest.json"}
    (dense,) = folder.glob("dense.*")
    with saves.in_use(dense):
        save(2.0, folder)
        save(3.0, folder)
        assert before < set(os.listdir(folder))
        assert len(os.listdir(folder)) == FILES + len(before)
    save(4.0, folder)
    assert not before & set(os.listdir(folder))


def test_readers_do_not_wait_for_each_other_nor_for_writers(folder):
    (dense,) = folder.glob("dense.*")
    with saves.in_use(dense), saves.in_use(dense):
        done = threading.Thread(target=save, args=(2.0, folder), daemon=True)
        done.start()
        done.join(30)
        assert not done.is_alive()
    assert mgqe.load_model(Many(-1.0), folder).values() == {2.0}


def test_two_simultaneous_saves_leave_one_complete_model(folder):
    threads = [threading.Thread(target=save, args=(float(n), folder)) for n in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mgqe.load_model(Many(-1.0), folder).values()) == 1
    assert len(os.listdir(folder)) == FILES


def test_a_file_that_is_really_missing_is_reported_at_once(folder, monkeypatch, locks):
    attempts = replacing(monkeypatch, folder, 0, "read_files")
    next(folder.glob("tables.3.*")).unlink()
    with pytest.raises(ArtifactError, match=r"tables\.3\.\w+\.safetensors is missing"):
        mgqe.load_model(Many(-1.0), folder)
    assert attempts == []


def test_the_next_save_removes_what_interrupted_saves_and_appending_left(folder):
    for name in ("tables.0.00000000.safetensors", "dense.11111111.safetensors", "x.22222222.safetensors"):
        (folder / name).write_bytes(b"left behind")
    (table,) = folder.glob("tables.1.*")
    (folder / f"{table.name}.append-01234567-000001").write_bytes(b"appended")
    save(2.0, folder)
    assert len(os.listdir(folder)) == FILES


def test_a_mapped_model_survives_the_next_save(folder):
    loaded = mgqe.load_model(Many(-1.0), folder)
    save(2.0, folder)
    assert loaded.values() == {1.0}
    mgqe.save_model(loaded, folder)
    assert mgqe.load_model(Many(-1.0), folder).values() == {1.0}


def test_without_locks_an_unfinished_save_is_not_taken_for_an_interrupted_one(folder, monkeypatch):
    monkeypatch.setattr(saves, "_lock", lambda file, exclusive: None)
    monkeypatch.setattr("mgqe.files.locks._lock", lambda path, exclusive: None)
    unfinished, dead = folder / "tables.0.11111111.safetensors", folder / "tables.0.22222222.safetensors"
    for file in (unfinished, dead):
        file.write_bytes(b"")
    os.utime(dead, (1, 1))
    save(2.0, folder)
    assert unfinished.exists()
    assert not dead.exists()
    assert len(os.listdir(folder)) == FILES + 1
    threads = [threading.Thread(target=save, args=(float(n), folder)) for n in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mgqe.load_model(Many(-1.0), folder).values()) == 1


def test_windows_refuses_for_a_moment(folder, monkeypatch):
    refusals = iter([PermissionError(), PermissionError()])

    def work():
        if error := next(refusals, None):
            raise error
        return 7

    monkeypatch.setattr(saves, "WINDOWS", True)
    assert saves.retry_where_busy(work) == 7
    refusals = iter([PermissionError()])
    monkeypatch.setattr(saves, "WINDOWS", False)
    with pytest.raises(PermissionError):
        saves.retry_where_busy(work)


@pytest.mark.slow
def test_processes_and_threads(tmp_path):
    loads, saved, wrong = stress(tmp_path / "model", loads=150, seconds=300)
    assert not wrong
    assert loads >= 150
    assert saved >= 2
    save(1.0, tmp_path / "model")
    assert len(os.listdir(tmp_path / "model")) == FILES


class Named(nn.Module):
    """Paths that would give the same file name, or that of the dense weights."""

    def __init__(self, value: float) -> None:
        super().__init__()
        names = ["dense", "ä", "ö", "User", "user", "a b", "a_b", "x" * 200, "x" * 201]
        self.tables = nn.ModuleDict({name: nn.Embedding(50, 4) for name in names})
        self.dense = nn.Embedding(50, 4)
        self.bias = nn.Parameter(torch.full((3,), value))

    def frozen(self) -> Named:
        for n, name in enumerate(self.tables):
            self.tables[name] = mgqe.CompactEmbedding(Many(float(n)).frozen().tables[0].table)
        self.dense = mgqe.CompactEmbedding(Many(100.0).frozen().tables[0].table)
        return self


def test_every_table_has_a_file_of_its_own(tmp_path):
    mgqe.save_model(Named(0.5).frozen(), tmp_path)
    loaded = mgqe.load_model(Named(0.0), tmp_path)
    assert [float(table(torch.tensor(3))[0]) for table in loaded.tables.values()] == list(range(9))
    assert float(loaded.dense(torch.tensor(3))[0]) == 100.0
    assert loaded.bias.tolist() == [0.5] * 3
    assert len({name.lower() for name in os.listdir(tmp_path)}) == 12


# ---- a full disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", range(FILES))
def test_a_full_disk_names_the_file_and_changes_nothing(folder, monkeypatch, call, number):
    """For every file, from the dense weights to the manifest, and every call that finds the disk full."""
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    full = OSError(errno.ENOSPC, "No space left on device")
    done = []

    def failing(real):
        def called(*args, **keywords):
            done.append(args)
            if len(done) == number + 1:
                raise full
            return real(*args, **keywords)

        return called

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("mgqe.files.aside.open", _opening(done, number, full), raising=False)
        elif call == "replace":
            patch.setattr(os, "replace", failing(os.replace))
        else:
            patch.setattr(os, "fsync", _of_files(failing(os.fsync), os.fsync))
        with pytest.raises(OSError, match=r"could not write [\d,]+ bytes \(No space left on device\)") as caught:
            save(2.0, folder)
    assert caught.value.errno == errno.ENOSPC
    name = os.path.basename(caught.value.filename)
    expected = {0: "dense.", FILES - 1: "manifest.json"}.get(number, f"tables.{number - 1}.")
    assert name.startswith(expected)
    assert os.path.dirname(caught.value.filename) == os.fspath(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert mgqe.load_model(Many(-1.0), folder).values() == {1.0}


class Full:
    """A file whose first write finds the disk full, if its number is the chosen one."""

    def __init__(self, descriptor, opened: list, number: int, error: OSError) -> None:
        self.file = os.fdopen(descriptor, "wb")
        self.error = error if len(opened) == number else None
        opened.append(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def writelines(self, chunks):
        if self.error is not None:
            raise self.error
        return self.file.writelines(chunks)


def _opening(done: list, number: int, full: OSError):
    return lambda file, mode: Full(file, done, number, full) if mode == "wb" else open(file, mode)


def _of_files(failing, real):
    """fsync is called for folders too."""

    def called(descriptor):
        return failing(descriptor) if stat.S_ISREG(os.fstat(descriptor).st_mode) else real(descriptor)

    return called


def test_a_failure_after_the_manifest_is_written_removes_nothing(folder, monkeypatch):
    """The last call makes the manifest's name durable; when it fails, the name exists already."""

    def failing(descriptor):
        named = (folder / "manifest.json").read_bytes() != before
        if named and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor)

    before, real = (folder / "manifest.json").read_bytes(), os.fsync
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        save(2.0, folder)
    monkeypatch.undo()
    assert mgqe.load_model(Many(-1.0), folder).values() == {2.0}


@pytest.mark.skipif(os.name != "posix", reason="mode bits")
def test_a_save_keeps_the_mode_of_the_one_that_it_replaces(folder):
    for file in folder.iterdir():
        file.chmod(0o600)
    save(2.0, folder)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a process limit on file size")
def test_a_disk_that_is_really_full(tmp_path):
    """The system itself limits the size of files: the dense weights do not fit."""
    code = (
        "import resource, signal, sys, torch, mgqe; from model_folder_stress import Many\n"
        "model = Many(2.0).frozen(); model.extra = torch.nn.Parameter(torch.zeros(50_000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"mgqe.save_model(model, {os.fspath(tmp_path / 'model')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SUPPORT, check=False)
    assert "OSError" in done.stderr.splitlines()[-1]
    assert f"{tmp_path}/model/dense." in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path / "model") == []
