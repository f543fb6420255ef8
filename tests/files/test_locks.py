"""Locks: one holder at a time, also where the system has no flock, as on Windows."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from mgqe.files import locks
from mgqe.files.locks import FOLDER_LOCK, file_lock, folder_lock


def is_free(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False


def test_a_folder_has_one_holder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with folder_lock(folder):
        assert not is_free(folder / FOLDER_LOCK)
    assert is_free(folder / FOLDER_LOCK)


def test_the_next_one_waits(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with folder_lock(tmp_path):
            order.append("second")

    with folder_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("exclusive", [True, False])
def test_without_flock_a_lock_file_stands_for_the_file(tmp_path: Path, monkeypatch, exclusive: bool) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / "table").touch()
    with file_lock(tmp_path / "table", exclusive):
        assert not is_free(tmp_path / ".table.lock")
    assert is_free(tmp_path / ".table.lock")
