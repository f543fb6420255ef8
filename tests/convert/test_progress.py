"""Progress: what a user's function is called with, and the lines where there is no terminal."""

from __future__ import annotations

import io
import time

import pytest
import torch
from torch import nn

import mgqe
from mgqe.convert import progress
from mgqe.convert.progress import shown


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"item": nn.Embedding(900, 16), "user": nn.Embedding(700, 16), "day": nn.Embedding(7, 2)})


def test_compress_counts_tables() -> None:
    seen = []
    mgqe.compress_(model(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (2, 3), (3, 3)]  # the table of days stays as it is


def test_long_work_prints_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)
    monkeypatch.setattr("sys.stderr", text := io.StringIO())

    def wait_for(line: str) -> None:
        deadline = time.monotonic() + 60
        while line not in text.getvalue():
            assert time.monotonic() < deadline, text.getvalue()
            time.sleep(0.001)

    with shown(None, "working") as step:
        wait_for("mgqe: working, 0 done, 0 s\n")
        step(1_000, 2_000)
        wait_for("mgqe: working, 1,000 of 2,000, ")
        step(3, None)
        wait_for("mgqe: working, 3 done, ")
    lines = text.getvalue()
    time.sleep(0.01)
    assert text.getvalue() == lines


def test_short_work_and_false_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    mgqe.compress_(model())
    mgqe.compress_(model(), progress=False)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    mgqe.compress_(model())
    assert "compressing tables" in terminal.getvalue()


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a function of \(done, total\), None or False, got str"):
        mgqe.compress_(model(), progress="bar")
