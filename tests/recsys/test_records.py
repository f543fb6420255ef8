"""The results file: a line a run, whole whatever happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recsys_data import TINY

from mgqe.recsys.study.records import (
    append_result,
    failure_of,
    read_results,
    record_of,
    run_key,
    settings_of,
    write_results,
)


def metrics() -> dict[str, Any]:
    names = (
        "metric", "quality", "embedding_bytes", "full_embedding_bytes", "embedding_bytes_by_table",
        "embedding_bytes_by_part", "codebooks", "peak_memory_bytes", "seconds", "seconds_per_epoch", "epochs",
        "best_epoch", "data_summary", "commit", "versions", "machine",
    )  # fmt: skip
    first = {"epoch": 0, "hr@10": 0.25}
    second = {"epoch": 1, "hr@10": 1 / 3, "loss": 0.5}
    history = {"full": [first, second], "annealed": [first], "quantised": [first, second]}
    return {**dict.fromkeys(names), "quality": {"hr@10": 1 / 3, "tail_hr@10": float("nan")}, "history": history}


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "folder/results.jsonl"
    config = replace(TINY, embedding="mgqe:D=4,K=4/2", data_dir="here")
    append_result(path, record_of("gmf", config, metrics()))
    append_result(path, failure_of("gmf", replace(config, seed=4), "the loss is not a number"))
    found = read_results(path)
    assert found.damaged == ()
    first, second = found.records
    assert first["key"] == run_key("gmf", config)
    assert first["quality"] == {"hr@10": 0.333333, "tail_hr@10": None}
    # Of a run that starts from a shared warm-up, the warm-up's curves are the full table's.
    assert first["history"] == {"quantised": {"epoch": [0, 1], "hr@10": [0.25, 0.333333], "loss": [None, 0.5]}}
    assert set(record_of("gmf", TINY, metrics())["history"]) == {"full", "annealed", "quantised"}
    assert (second["status"], second["reason"]) == ("failed", "the loss is not a number")
    assert first["settings"].keys() & {"dim", "data_dir", "patience"} == {"dim", "patience"}
    assert settings_of(replace(TINY, dim=64)).keys() & {"dim"} == set()


def test_where_the_data_lie_decides_nothing() -> None:
    assert run_key("a", replace(TINY, data_dir="x", threads=2)) == run_key("a", TINY)
    assert run_key("a", TINY) != run_key("b", TINY)
    assert run_key("a", TINY) != run_key("a", replace(TINY, seed=99))
    assert run_key("a", TINY.with_embedding("mgqe:K=4/2,D=4")) == run_key("a", TINY.with_embedding("mgqe:D=4,K=4/2"))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_costs_that_run_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    for seed in (1, 2):
        append_result(path, failure_of("gmf", replace(TINY, seed=seed), "for a test"))
    path.write_bytes(path.read_bytes()[:-cut])
    found = read_results(path)
    lost = cut > 1  # the line's end alone is not missed
    assert [record["seed"] for record in found.records] == ([1] if lost else [1, 2])
    assert found.damaged == ((2,) if lost else ())
    # What comes after is not glued to it.
    append_result(path, failure_of("gmf", replace(TINY, seed=3), "for a test"))
    again = read_results(path)
    assert [record["seed"] for record in again.records] == ([1, 3] if lost else [1, 2, 3])
    write_results(path, again.records)
    assert read_results(path).damaged == ()


def test_lines_of_other_kinds_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'[1]\n{"key": 3}\n\n\xff\xfe\n' + json.dumps({"key": "a", "status": "done"}).encode())
    found = read_results(path)
    assert found.damaged == (1, 2, 4)
    assert list(found.done()) == ["a"]


def test_the_last_record_of_a_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, failure_of("gmf", TINY, "first"))
    append_result(path, failure_of("gmf", TINY, "second"))
    assert [record["reason"] for record in read_results(path).done().values()] == ["second"]
    assert read_results(tmp_path / "none").records == []
