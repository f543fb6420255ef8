"""Whole files: what may be replaced, the mode bits, and the aside files of killed writers."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from paths import GOLDEN
from table_cases import CASES, build

import mgqe
from mgqe.files import aside as asides
from mgqe.files import locks
from mgqe.files.aside import aside_file, aside_folder, remove_abandoned
from mgqe.files.atomic import fill_file, read_json, write_json, write_whole
from mgqe.files.regular import open_regular
from mgqe.files.weights import save_weights
from mgqe.recsys.train.checkpoint import save_epoch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs, modes and flock")
TABLE = build(CASES[0]).table


def save_figure(path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    fill_file(path, lambda file: pyplot.figure().savefig(file, format="png"))


def save_map(path):
    mgqe.IdMap.load(GOLDEN / "idmap" / "int32.safetensors").save(path)


WRITERS = {
    "table": lambda path: mgqe.save(TABLE, path),
    "weights": lambda path: save_weights({"a": torch.ones(2)}, path),
    "json": lambda path: write_json(path, {}),
    "bytes": lambda path: write_whole(path, 1, [b"x"]),
    "figure": save_figure,
    "freeze_to": lambda path: mgqe.freeze_to(mgqe.DPQEmbedding(20, 4, num_subspaces=2, num_centroids=4), path),
    "id map": save_map,
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def umask():
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


@each_writer
@pytest.mark.parametrize("linked", [False, True])
def test_a_fifo_is_not_replaced(write, linked, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "fifo"
    if linked:
        path = tmp_path / "link"
        path.symlink_to("fifo")
    with pytest.raises(OSError, match="only a regular file can be replaced, and this is a FIFO: choose another path"):
        write(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert not list(tmp_path.glob(".*"))


def test_devices_sockets_and_folders_are_not_replaced(tmp_path):
    for path, kind in ((Path("/dev/null"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"this is {kind}: choose another path"):
            mgqe.save(TABLE, path)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="this is a socket"):
            mgqe.save(TABLE, tmp_path / "socket")


def test_checkpoints_are_not_written_over_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "last.pt")
    with pytest.raises(OSError, match="this is a FIFO"):
        save_epoch(tmp_path, {"best_epoch": 0}, is_best=True)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("read", [mgqe.load, mgqe.IdMap.load, read_json, open_regular, lambda p: mgqe.append(p, TABLE)])
def test_reading_a_fifo_is_an_error_and_no_wait(read, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises((OSError, ValueError), match="expected a regular file, this is a FIFO"):
        read(tmp_path / "fifo")


@each_writer
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_a_new_file_has_the_mode_that_the_umask_leaves(write, mask, tmp_path, umask):
    umask(mask)
    write(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


@each_writer
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640, 0o444, 0o666])
def test_a_file_keeps_its_mode_when_it_is_replaced(write, mode, tmp_path, umask):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    umask(0o077)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() != b"old"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_no_moment_has_a_file_that_is_open_to_more_than_the_old_one(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    seen = []
    fill_file(tmp_path / "a", lambda _: seen.extend(stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()))
    assert seen == [0o600, 0o600]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from mgqe.files.aside import aside_file
    def fill(file):
        file.write(b"half"); file.flush()
        if sys.argv[2] == "fork" and os.fork() == 0:
            print("forked", os.getpid(), flush=True)
            signal.pause()
        if sys.argv[2] != "alive":
            os.kill(os.getpid(), signal.SIGKILL)
        print("alive", flush=True)
        signal.pause()
    with aside_file(Path(sys.argv[1]), fill):
        pass
"""


def start(path, how):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path), how], stdout=subprocess.PIPE, text=True
    )


def test_the_next_save_removes_what_a_killed_one_left(tmp_path):
    assert start(tmp_path / "a", "killed").wait() == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    mgqe.save(TABLE, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_unfinished_folder_goes_when_its_writer_has_died_and_not_before(tmp_path):
    with aside_folder(tmp_path / "a") as mine:
        (mine / "part").write_bytes(b"part")
        remove_abandoned(tmp_path)
        assert (mine / "part").exists()
        code = """
            import os, sys
            from pathlib import Path
            from mgqe.files.aside import aside_folder
            with aside_folder(Path(sys.argv[1])) as folder:
                (folder / "part").write_bytes(b"part")
                os.kill(os.getpid(), 9)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], check=False)
        assert len(list(tmp_path.iterdir())) == 2
        remove_abandoned(tmp_path)
        assert list(tmp_path.iterdir()) == [mine]
    assert not list(tmp_path.iterdir())


def test_an_unfinished_file_stays_as_long_as_its_writer_lives(tmp_path):
    with start(tmp_path / "a", "alive") as writer:
        assert writer.stdout.readline() == "alive\n"
        mgqe.save(TABLE, tmp_path / "a")
        assert len(list(tmp_path.iterdir())) == 2
        writer.kill()
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_unfinished_file_stays_as_long_as_a_fork_of_its_writer_may_write_to_it(tmp_path):
    with start(tmp_path / "a", "fork") as writer:
        child = int(writer.stdout.readline().split()[1])
        try:
            assert writer.wait() == -signal.SIGKILL
            remove_abandoned(tmp_path)
            assert len(list(tmp_path.iterdir())) == 1
        finally:
            os.kill(child, signal.SIGKILL)
    for _ in range(500):  # until the system has removed the orphaned process
        remove_abandoned(tmp_path)
        if not list(tmp_path.iterdir()):
            break
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_in_another_thread_is_alive(tmp_path):
    with aside_file(tmp_path / "a", lambda file: file.write(b"x")) as temporary:
        other = threading.Thread(target=write_whole, args=(tmp_path / "a", 1, [b"y"]))
        other.start()
        other.join()
        assert temporary.exists()


@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize(
    ("host", "pid", "days", "goes"),
    [
        ("here", 2**22 + 1, 0, True),  # no such process
        # This process, or another one with its number: the lock decides, if there are locks.
        pytest.param("here", os.getpid(), 2, None, id="this process"),
        ("0123abcd", 1, 0, False),  # of another machine, and new
        ("0123abcd", 1, 2, True),
        (None, None, 0, False),  # of an older version
        (None, None, 2, True),
    ],
)
def test_whose_unfinished_files_are_removed(host, pid, days, goes, has_locks, tmp_path, monkeypatch):
    if not has_locks:
        monkeypatch.setattr(locks, "fcntl", None)
    owner = "" if host is None else f"{asides._host() if host == 'here' else host}-{pid}-"
    path = tmp_path / f".a.{owner}01234567.tmp"
    path.write_bytes(b"half")
    old = time.time() - days * 24 * 60 * 60
    os.utime(path, (old, old))
    remove_abandoned(tmp_path)
    expected = has_locks if goes is None else goes and (has_locks or host == "here")
    assert path.exists() != expected


def test_other_files_are_not_taken_for_unfinished_ones(tmp_path):
    names = ["a.tmp", ".a.tmp", ".a.0123.tmp", ".a.ghijklmn.tmp", "a.01234567.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".f.01234567.tmp").mkdir()
    os.mkfifo(tmp_path / ".g.01234567.tmp")
    remove_abandoned(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*names, ".f.01234567.tmp", ".g.01234567.tmp"}


def test_a_name_as_long_as_the_system_has_them_can_be_written(tmp_path):
    name = "é" * 127
    write_whole(tmp_path / name, 1, [b"x"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_fork_does_not_keep_the_lock_of_a_file_that_has_its_name(tmp_path):
    """Otherwise the next writer would wait for the end of the forked process."""
    children = []

    def fill(file):
        file.write(b"x")
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)

    try:
        fill_file(tmp_path / "a", fill)
        with open(tmp_path / "a", "rb") as file:
            assert locks.try_lock(file.fileno(), wait=False) is True
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_an_appended_file_is_as_private_as_its_base(tmp_path):
    base = tmp_path / "items"
    mgqe.save(mgqe.DPQEmbedding(20, 4, num_centroids=4).freeze(), base)
    base.chmod(0o600)
    mgqe.append(base, torch.zeros(2, 4))
    assert len(list(tmp_path.iterdir())) == 3  # the base, the appended file and their record
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_folder_is_being_written_to_while_a_file_is_unfinished(tmp_path):
    assert not asides.has_writer(tmp_path)
    with aside_file(tmp_path / "table", lambda file: file.write(b"x")):
        assert asides.has_writer(tmp_path)
    assert not asides.has_writer(tmp_path)
    assert not asides.has_writer(tmp_path / "nowhere")


def test_a_file_that_is_not_locked_yet_is_removed_under_the_lock(tmp_path, monkeypatch):
    """Its writer then sees that it is gone, and makes another one: nothing is written to a file without a name."""
    seen, take = [], asides.try_lock

    def clean_first(descriptor, wait):
        if wait and not seen:
            seen.append(True)
            remove_abandoned(tmp_path)
        return take(descriptor, wait=wait)

    monkeypatch.setattr(asides, "try_lock", clean_first)
    write_whole(tmp_path / "a", 1, [b"x"])
    assert seen
    assert (tmp_path / "a").read_bytes() == b"x"
    seen.clear()
    with aside_folder(tmp_path / "b") as folder:
        assert seen
        assert folder.is_dir()


def test_a_file_is_removed_while_its_lock_is_held(tmp_path, monkeypatch):
    aside = tmp_path / f".a.{asides._host()}-1-00000000.tmp"
    aside.touch()
    closed = []
    close = os.close
    monkeypatch.setattr(asides.os, "close", lambda number: (closed.append(aside.exists()), close(number)))
    remove_abandoned(tmp_path)
    assert closed == [False]


def test_an_error_after_the_rename_does_not_say_that_nothing_has_changed(tmp_path, monkeypatch):
    def no_folder(path, flags, *mode):
        if path == tmp_path:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode)

    opened = os.open
    monkeypatch.setattr(asides.os, "open", no_folder)
    with pytest.raises(OSError, match="the new content is at the path"):
        write_whole(tmp_path / "a", 1, [b"x"])
    assert (tmp_path / "a").read_bytes() == b"x"
