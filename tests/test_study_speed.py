"""Times of a study's tables: tables of the shapes in its records, one measurement of each, a column in the report."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

from mgqe.codec.capacity import BY_COLUMNS
from mgqe.recsys.study.analysis import StudyResults
from mgqe.recsys.study.declaration import read_declaration
from mgqe.recsys.study.records import Record, read_results, write_results
from mgqe.recsys.study.runs import RESULTS
from mgqe.recsys.study.speed import LOOKUP, SEARCH, SPEED, Speeds, read_speeds
from mgqe.recsys.study.tables import pair_table

STUDY = ROOT / "studies" / "budget"
RECORDS = [record for record in read_results(STUDY / RESULTS).records if record["status"] == "done"]


@pytest.fixture(autouse=True)
def benchmarks_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def one_record(pair: str, embedding: str) -> Record:
    return next(each for each in RECORDS if (each["pair"], each["embedding"]) == (pair, embedding))


def test_times_are_read_by_pair_embedding_and_what(tmp_path: Path) -> None:
    path = tmp_path / SPEED
    assert read_speeds(path) == Speeds()
    rows = [
        {"pair": "a", "name": "dpq:D=4", "what": what, "ratio": ratio} for what, ratio in ((LOOKUP, 0.567), (SEARCH, 2))
    ]
    path.write_text(json.dumps({"results": rows}))
    speeds = read_speeds(path)
    assert speeds.measured("a") == [LOOKUP, SEARCH]
    assert speeds.measured("b") == []
    assert [speeds.text("a", "dpq:D=4", what) for what in (LOOKUP, SEARCH)] == ["0.57", "2.00"]
    assert speeds.text("a", "full", LOOKUP) == ""


@pytest.mark.parametrize("text", ["no JSON", "{}", '{"results": [{"pair": "a"}]}', '{"results": 3}'])
def test_a_file_that_holds_no_times_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / SPEED
    path.write_text(text)
    with pytest.raises(ValueError, match=r"speed\.json: not the times of a study: remove it, or write it by"):
        read_speeds(path)


def test_bits_fall_from_the_most_to_fit_the_centroids() -> None:
    from benchmarks.quality._study_tables import bits_like

    equal = {"num_ids": 3416, "num_subspaces": 4, "num_centroids": 16, "reachable": 16.0}
    assert bits_like(equal, 1.0) == [4, 4, 4, 4]
    falling = {**equal, "reachable": (16 + 8 + 8 + 4) / 4}
    assert bits_like(falling, 1.0) == [4, 3, 3, 2]
    few = {**equal, "num_ids": 5, "num_centroids": 16, "reachable": 5.0}  # no more are in reach than there are ids
    assert bits_like(few, 1.0)[0] == 4


def test_planned_shapes_are_those_of_the_records() -> None:
    """Tiers, codes and coordinates are the same, and the bytes of codes within 15%, in records of the first seed."""
    from benchmarks.quality._study_tables import measured_table, planned_capacity

    paths = {record["pair"]: measured_table(record) for record in RECORDS if record["embedding"] == "full"}
    planned = [record for record in RECORDS if (record.get("plan") or {}).get("embedding_dim") and record["seed"] == 1]
    assert len(planned) > 40
    for record in planned:
        path, dim = paths[record["pair"]], record["plan"]["embedding_dim"]
        parts, stats = record["embedding_bytes_by_part"][path], record["codebooks"][path]
        capacity = planned_capacity(parts, stats, dim)
        assert capacity.sizes == tuple(tier["num_ids"] for tier in stats)
        assert capacity.num_subspaces == tuple(tier["num_subspaces"] for tier in stats)
        assert capacity.num_coordinates * dim == parts["matrix"]
        assert (capacity.matrix_dtype == BY_COLUMNS) == ("column_scales" in parts)
        codes = sum(tier.ids * tier.row_bytes for tier in capacity.tiers)
        assert codes == pytest.approx(parts["codes"], rel=0.15), record["key"]


@pytest.mark.parametrize(
    ("pair", "embedding"),
    [
        ("sasrec-games", "mgqe:budget=10%@quantised_epochs=10"),  # levels, in two tiers with a map
        ("gmf-ml-1m", "dpq:budget=5%@quantised_epochs=10"),  # 32 dimensions
        ("gmf-ml-1m", "recjpq:budget=2%"),
        ("gmf-ml-1m", "additive:budget=2%@quantised_epochs=10"),
        ("wide-deep-frappe", "cce:budget=2%"),
        ("wide-deep-frappe", "lowrank:budget=10%"),
    ],
)
def test_a_table_like_that_of_a_record_has_its_bytes(pair: str, embedding: str) -> None:
    from benchmarks.quality._study_tables import measured_table, rows_of, table_like

    full, record = one_record(pair, "full"), one_record(pair, embedding)
    path = measured_table(full)
    rows = rows_of(full, path, 64)
    assert rows == {"sasrec-games": 23_715, "gmf-ml-1m": 3416, "wide-deep-frappe": 3923}[pair]
    frequent = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    table = table_like(record, path, rows, 64, frequent, seed=1)
    assert table.num_embeddings == rows
    parts, known = table.nbytes_by_part(), record["embedding_bytes_by_part"][path]
    assert parts["codes" if "codes" in known else "factors"] == pytest.approx(
        known["codes" if "codes" in known else "factors"], rel=0.15
    )
    if embedding.startswith("mgqe"):
        assert table.tiers.of(frequent[:100]).max() == 0  # the frequent ids are in the first tier
        assert parts["tier_map"] > 0


def test_from_records_to_the_columns_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.quality import study_speed

    shutil.copy(STUDY / "study.toml", tmp_path)
    listed = [one_record("gmf-ml-1m", name) for name in ("full", "mgqe:budget=5%", "svd:budget=5%")] + [
        one_record("wide-deep-frappe", name) for name in ("full", "mgqe:budget=5%")
    ]
    write_results(tmp_path / RESULTS, listed)
    monkeypatch.setattr(sys, "argv", ["study_speed", str(tmp_path), "--rounds", "1", "--calls", "1", "--ids", "16"])
    threads = torch.get_num_threads()
    try:
        study_speed.main()
    finally:
        torch.set_num_threads(threads)
    assert torch.is_grad_enabled()
    speeds = read_speeds(tmp_path / SPEED)
    study = StudyResults(read_declaration(tmp_path / "study.toml"), listed, speeds)
    ranked, clicks = pair_table(study, "gmf-ml-1m"), pair_table(study, "wide-deep-frappe")
    assert ranked.header[3:6] == ["bytes", LOOKUP, SEARCH]
    assert clicks.header[3:6] == ["bytes", LOOKUP, "valid, at the start"]  # nothing is searched there
    cells = {row[2]: row[4:6] for row in ranked.rows}
    assert cells["`full`"] == ["1.00", "1.00"]
    assert all(float(cell) > 0 for cell in cells["`mgqe:budget=5%`"])
    assert float(cells["`svd:budget=5%`"][0]) > 0
    assert cells["`svd:budget=5%`"][1] == ""  # these tables have no search of their own
    without = pair_table(StudyResults(study.declaration, listed), "gmf-ml-1m")
    assert without.header[3:5] == ["bytes", "NDCG@10, whole catalogue"]
