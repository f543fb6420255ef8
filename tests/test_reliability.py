"""The fuzzer and the kill tests find the faults that are planted here. docs/reliability.md reports their long runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch
from paths import ROOT

import mgqe

pytest.importorskip("polars")
if not hasattr(os, "fork") or not Path("/proc/self/statm").exists():
    pytest.skip("needs fork and /proc", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from reliability.fuzz import mutations, outcome, run, use
from reliability.fuzz.build import Artefact, read_files
from reliability.fuzz.compact import compact_table
from reliability.fuzz.mutations import MUTATIONS, mutate
from reliability.fuzz.outcome import Outcome, judge
from reliability.fuzz.run import Fuzzer, Result, case_of
from reliability.fuzz.safetensors_bytes import unchecked
from reliability.fuzz.tally import Tally, text_table
from reliability.kill.__main__ import kill_writer
from reliability.kill.runs import contents
from reliability.kill.writers import WRITERS, Writer
from reliability.record import write_record


@pytest.fixture
def artefact(tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    mgqe.save(compact_table(7), folder / "table.safetensors")
    (folder / "notes.json").write_text('{"a": [1, {"b": "c"}]}')
    (folder / "notes-1").write_bytes(b"0123456789")
    return Artefact("compact", "bits-7", True, read_files(folder))


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_changes_something_and_is_repeatable(artefact, name):
    changed = 0
    for seed in range(30):
        twice = []
        for _ in range(2):
            files = dict(artefact.files)
            with suppress(mutations.NotApplicable):
                MUTATIONS[name](Random(seed), files)
            twice.append(files)
        assert twice[0] == twice[1]
        changed += twice[0] != artefact.files
    assert changed > 5
    assert mutate(Random(1), artefact.files) == mutate(Random(1), artefact.files)


def test_a_case_is_known_by_its_number(artefact):
    assert case_of([artefact], 3, 5) == case_of([artefact], 3, 5)
    assert case_of([artefact], 3, 5).files != case_of([artefact], 3, 6).files
    assert case_of([artefact], 4, 5).files != case_of([artefact], 3, 5).files


def test_a_file_of_format_1_holds_the_same_table(artefact, tmp_path):
    outcome.write_files(tmp_path / "old", unchecked(artefact.files))
    assert b'"version":"1"' in (tmp_path / "old" / "table.safetensors").read_bytes()
    assert mgqe.load(tmp_path / "old" / "table.safetensors").equal(compact_table(7))


def raising(error):
    def use(kind, folder, verify):
        raise type(error)(str(error).replace("HERE", str(folder)))

    return use


def warning(kind, folder, verify):
    warnings.warn(f"{folder}/a: left out", RuntimeWarning, stacklevel=2)
    return b"other"


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (lambda *_: b"same", "identical"),
        (lambda *_: b"other", "different"),
        (warning, "warned"),
        (raising(mgqe.ArtifactError("HERE/table.safetensors: damaged")), "refused"),
        (raising(FileNotFoundError("HERE/table.safetensors")), "refused"),
        (raising(ValueError("damaged")), "unclear"),
        (raising(KeyError("HERE/table.safetensors")), "unclear"),
        (raising(ValueError("HERE" + "x" * 3000)), "unclear"),
        (raising(MemoryError()), "memory"),
        (raising(RuntimeError("can't allocate memory: you tried to allocate 9 bytes")), "memory"),
    ],
)
def test_outcomes(artefact, tmp_path, monkeypatch, used, expected):
    monkeypatch.setattr(use, "use", used)
    assert judge(artefact, tmp_path / "case", artefact.files, b"same").name == expected


def test_a_crash_a_hang_and_a_wait_end_one_case_alone(artefact, tmp_path, monkeypatch):
    def judged(artefact, folder, files, expected):
        number = len(list(tmp_path.glob("tried-*")))
        (tmp_path / f"tried-{number}").touch()
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        while number == 4:
            pass
        time.sleep(100 if number == 6 else 0)
        return Outcome("refused")

    monkeypatch.setattr(run, "judge", judged)
    monkeypatch.setattr(run, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(run, "SECONDS", 2.0)
    found: list[Result] = []
    tried = Fuzzer([artefact], 0, tmp_path, found.append).run(1, 10, lambda number: number < 18)
    assert tried == len(found) == 8
    assert [result.number for result in found] == list(range(10, 18))
    names = [result.outcome.name for result in found]
    assert names == ["refused", "refused", "crash", "refused", "hang", "refused", "hang", "refused"]
    assert found[2].outcome.message == "SIGKILL"


def test_damage_is_refused_and_a_reader_that_checks_nothing_is_found_out(artefact, tmp_path, monkeypatch):
    def tally_of() -> Tally:
        tally = Tally()
        Fuzzer([artefact], 1, tmp_path, tally.add).run(1, 0, lambda number: number < 300)
        return tally

    assert tally_of().failures == 0
    monkeypatch.setattr("mgqe.files.container.StoredFile.check", lambda *_: None)
    assert tally_of().failures > 3


def test_the_table_of_outcomes(tmp_path):
    tally = Tally()
    for kind, name in [("run", "refused"), ("run", "crash"), ("run, format 1", "different"), ("run", "different")]:
        tally.add(Result(1, kind, "a", "one bit", Outcome(name)))
    assert tally.failures == len(tally.bad) == 2
    header, rows = Tally.of(tally.record()).rows(0)
    assert header == ["what", "files", "refused", "different", "crash"]
    assert rows == [["run", "3", "1", "1", "1"], ["run, format 1", "1", "", "1", ""], ["all", "4", "1", "2", "1"]]
    assert text_table(header, rows).splitlines()[1] == "run                3        1          1      1"
    write_record(tmp_path / "record", {"counts": tally.record()})
    assert json.loads((tmp_path / "record").read_text())["counts"] == tally.record()
    assert '["run", "one bit", "crash", 1]' in (tmp_path / "record").read_text()


@pytest.mark.parametrize("name", ["save", "append", "save_model"])
def test_writers_survive_kills(name, tmp_path):
    assert kill_writer(name, 5, Random(0), tmp_path)["kills"] == 5


class InPlace(Writer):
    """A faulty writer, which writes into the old file."""

    def write(self, folder, number):
        mgqe.save(self.versions[number % 3], folder / "new")
        content = (folder / "new").read_bytes()
        (folder / "new").unlink()
        with open(folder / "table.safetensors", "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.05)  # longer than all else that it does, so that most kills come now
            file.write(content[len(content) // 2 :])


class Untidy(Writer):
    """A faulty writer, which leaves a file behind."""

    def write(self, folder, number):
        super().write(folder, number)
        (folder / f"left-{time.monotonic_ns()}").touch()


@pytest.mark.parametrize("writer", [InPlace, Untidy])
def test_a_writer_that_tears_or_litters_is_found_out(writer, tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, "bad", writer)
    with pytest.raises((AssertionError, ValueError, OSError)):
        kill_writer("bad", 200, Random(0), tmp_path)


def test_what_holds_times_is_not_compared(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        record = {"quality": 0.5, "seconds": seconds, "runs": [{"seconds_per_epoch": seconds, "seed": 1}]}
        (tmp_path / name / "metrics.json").write_text(json.dumps(record))
        (tmp_path / name / "results.jsonl").write_text(json.dumps(record) + "\n")
        (tmp_path / name / "table").write_bytes(b"1")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (tmp_path / "b" / "table").write_bytes(b"2")
    assert contents(tmp_path / "a") != contents(tmp_path / "b")


def test_tables_of_every_number_of_bits_are_built():
    tables = [compact_table(bits) for bits in range(1, 17)]
    assert {bits for table in tables for bits in table.config.bits} >= set(range(1, 17))
    assert {table.config.centroid_dtype for table in tables} == {"float32", "float16", "int8"}
    assert {table.config.order is None for table in tables} == {True, False}
    assert {table.fallback is None for table in tables} == {True, False}
    assert {table.padding_idx is None for table in tables} == {True, False}
    assert {len(set(table.config.codebook_of)) > 1 for table in tables} == {True, False}
    assert {table.num_embeddings == 0 for table in tables} == {True, False}
    assert all(torch.isfinite(table.to_dense()).all() for table in tables)
