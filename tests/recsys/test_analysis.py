"""From records to cells: budgets by counted bytes, candidates by validation, differences paired by seed."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mgqe.recsys.study.analysis import Interval, StudyResults
from mgqe.recsys.study.declaration import StudyDeclaration, read_declaration
from mgqe.recsys.study.records import run_key
from mgqe.recsys.study.tables import against_full, against_others, all_tables, leaderboard, pair_table, points, variants
from mgqe.recsys.study.text_table import TextTable, fill

DECLARATION = """
seeds = [1, 2, 3]
[pairs.a]
title = "A"
model = "gmf"
data = "planted"
[[methods]]
name = "MGQE"
budgets = { 20 = ["mgqe:D=8,K=8/4", "mgqe:D=8,K=16/4", "mgqe:D=8,K=32/4"], 5 = ["mgqe:D=4,K=4/2"] }
[[methods]]
name = "DPQ"
budgets = { 20 = ["dpq:D=8,K=4"] }
[[methods]]
name = "scalar"
budgets = { 20 = ["scalar:bits=4"] }
"""


@pytest.fixture
def declaration(tmp_path: Path) -> StudyDeclaration:
    path = tmp_path / "study.toml"
    path.write_text(DECLARATION)
    return read_declaration(path)


def record(
    declaration: StudyDeclaration, embedding: str, seed: int, size: int, valid: float, test: float
) -> dict[str, Any]:
    config = replace(declaration.pairs["a"].config.with_embedding(embedding), seed=seed)
    quality = {"hr@10": test, "valid_hr@10": valid, "ndcg@10": test / 2, "head_hr@10": test, "tail_hr@10": None}
    return {
        "key": run_key("a", config),
        "pair": "a",
        "embedding": embedding,
        "seed": seed,
        "status": "done",
        "metric": "hr@10",
        "quality": quality,
        "embedding_bytes": size,
        "full_embedding_bytes": 1000,
        "machine": {"processor": "one"},
        "seconds_per_epoch": {"full": 2.0, "quantised": 3.0},
        "epochs": {"full": 3, "annealed": 2},
        "best_epoch": {"full": 2, "annealed": 2},
        "peak_memory_bytes": 2**20,
        "codebooks": {"item": [{"tier": 0, "used": 3.0, "num_centroids": 4, "perplexity": 2.0}]},
        "history": {"quantised": {"hr@10": [0.65, valid]}} if embedding.startswith("mgqe") else {},
    }


@pytest.fixture
def study(declaration: StudyDeclaration) -> StudyResults:
    runs = [
        *((embedding, seed, size, valid, test) for embedding, size, valid, test in (
            ("full", 1000, 0.70, 0.600),
            ("mgqe:D=8,K=8/4", 150, 0.68, 0.605),
            ("mgqe:D=8,K=16/4", 190, 0.69, 0.595),  # better on validation, though worse on test: this one counts
            ("dpq:D=8,K=4", 140, 0.66, 0.590),
            ("scalar:bits=4", 180, 0.50, 0.450),
        ) for seed in (1, 2, 3)),
        *(("mgqe:D=8,K=32/4", seed, 201, 0.70, 0.61) for seed in (1, 2, 3)),  # over the budget, by counted bytes
    ]  # fmt: skip
    shift = {1: 0.00, 2: 0.01, 3: 0.02}
    records = [record(declaration, e, s, size, valid + shift[s], test + shift[s]) for e, s, size, valid, test in runs]
    records[4]["quality"]["hr@10"] += 0.002  # one seed's difference is not like the others'
    failed = {"key": "a {}", "status": "failed", "pair": "a", "embedding": "x", "seed": 1, "reason": "why"}
    return StudyResults(declaration, [*records, failed])


def test_the_candidate_within_the_budget_that_validation_prefers(study: StudyResults) -> None:
    cell = study.cell("a", "MGQE", 20)
    assert cell is not None
    assert cell.group.embedding == "mgqe:D=8,K=16/4"
    assert cell.rejected == ("mgqe:D=8,K=8/4",)
    assert cell.too_large == ("mgqe:D=8,K=32/4",)
    assert study.cell("a", "MGQE", 5) is None  # declared, not run
    assert [c.method for c in study.cells("a")] == ["MGQE", "DPQ", "scalar"]
    assert study.budgets("a") == [20.0, 5.0]


def test_the_whole_catalogue_chooses_where_all_candidates_have_it(study: StudyResults) -> None:
    ours = [group for name in ("mgqe:D=8,K=8/4", "mgqe:D=8,K=16/4") if (group := study.group("a", name)) is not None]
    for group, value in zip(ours, (0.2, 0.1), strict=True):
        assert study.cell("a", "MGQE", 20).group is ours[1]  # type: ignore[union-attr]  # by HR@10, until all have it
        for record in group.by_seed.values():
            record["quality"]["valid_full_ndcg@10"] = value
    cell = study.cell("a", "MGQE", 20)
    assert cell is not None
    assert cell.group is ours[0]
    rival = study.rival("a", "MGQE", 20)
    assert rival is not None
    assert rival.method == "DPQ"  # by HR@10
    for name, value in (("dpq:D=8,K=4", 0.1), ("scalar:bits=4", 0.2)):
        group = study.group("a", name)
        assert group is not None
        for record in group.by_seed.values():
            record["quality"]["valid_full_ndcg@10"] = value
    rival = study.rival("a", "MGQE", 20)
    assert rival is not None
    assert rival.method == "scalar"


def test_a_variant_of_a_method_is_no_rival(study: StudyResults) -> None:
    renamed = [replace(each, name=each.name.replace("DPQ", "MGQE, longer")) for each in study.declaration.methods]
    study.declaration = replace(study.declaration, methods=tuple(renamed))
    assert "MGQE, longer" in [cell.method for cell in study.cells("a")]
    rival = study.rival("a", "MGQE", 20)
    assert rival is not None
    assert rival.method == "scalar"
    # Less the full tables .600 and MGQE's .595 on test it has .590, with every seed.
    assert variants(study).rows == [["A", "HR@10", "MGQE, longer", "20%", "3", "-1.00 ± 0.00", "-0.50 ± 0.00"]]
    scalar = [replace(each, name=each.name.replace("scalar", "DPQ, longer")) for each in study.declaration.methods]
    study.declaration = replace(study.declaration, methods=tuple(scalar))
    assert study.rival("a", "MGQE", 20, besides=("DPQ",)) is None
    renamed = [replace(each, name=each.name.replace("MGQE, longer", "full, longer")) for each in renamed]
    for longer in study.group("a", "dpq:D=8,K=4").by_seed.values():  # type: ignore[union-attr]
        longer["embedding_bytes"] = 1001  # with a header
    study.declaration = replace(study.declaration, methods=tuple(renamed))
    assert variants(study).rows == [["A", "HR@10", "full, longer", "20%", "3", "-1.00 ± 0.00", "-1.00 ± 0.00"]]
    assert against_full(study).rows == [
        ["A", "HR@10", "0.6100", "-0.50 ± 0.00"],
        ["A (full, longer)", "HR@10", "0.6000", "+0.50 ± 0.00"],
    ]


def test_differences_are_paired_by_seed(study: StudyResults) -> None:
    cell, full = study.cell("a", "MGQE", 20), study.full("a")
    assert cell is not None
    gap = cell.group.over(full, "hr@10")
    assert gap is not None
    # -.5 points with each seed, however much seeds differ among themselves.
    assert gap.mean == pytest.approx(-0.5)
    assert gap.half_width == pytest.approx(0.0, abs=1e-9)
    other = study.group("a", "mgqe:K=8/4,D=8")  # written the other way round
    assert other is not None
    again = other.over(full, "hr@10")
    assert again is not None
    # +.5, +.7 and +.5 points: mean 17/30, Student's t with two degrees of freedom.
    assert again.mean == pytest.approx(17 / 30)
    assert again.half_width == pytest.approx(
        4.303 * math.sqrt(((0.2 / 3) ** 2 * 2 + (0.4 / 3) ** 2) / 2) / math.sqrt(3)
    )
    assert cell.group.over(full, "tail_hr@10") is None
    assert math.isnan(cell.group.figure("tail_hr@10").mean)


def test_tables(study: StudyResults) -> None:
    assert against_full(study).rows == [["A", "HR@10", "0.6100", "-0.50 ± 0.00"]]
    assert against_others(study).rows == [
        ["A", "HR@10", "20%", "19.0%", "14.0%", "+0.50 ± 0.00", "scalar", "+14.50 ± 0.00"]
    ]
    assert leaderboard(study).rows == [
        ["20%", "MGQE", "-0.50 ± 0.00", "1.0", "1"],
        ["20%", "DPQ", "-1.00 ± 0.00", "2.0", "1"],
        ["20%", "scalar", "-15.00 ± 0.00", "3.0", "1"],
    ]
    tables = all_tables(study)
    assert {"against-full", "against-others", "leaderboard", "pair-a", "codebooks", "cost", "failed"} == {
        name for name, table in tables.items() if table.rows
    }
    assert tables["pair-a"].rows[0][1:6] == ["full", "`full`", "100.00%", "", "0.7100"]
    assert [row[4] for row in tables["pair-a"].rows[1:]] == ["0.6500", "", ""]  # of curves that start there
    assert tables["cost"].rows == [["A", "2.0", "3.0", "1.50", "5", "1 MiB"]]
    assert tables["codebooks"].rows[0][2:] == ["0", "4", "3.0 = 75%", "2.0"]
    assert points(Interval(0.1234, math.nan)) == "+0.12"
    assert points(None) == ""


def test_weak_full_tables_are_named(study: StudyResults) -> None:
    """Those of seeds 2 and 3, by what the most frequent items get; a compact table that is as weak is not."""
    assert all_tables(study)["doubted"].rows == []
    cell = study.cell("a", "scalar", 20)
    assert cell is not None
    for group in (study.full("a"), cell.group):
        for seed, record in group.by_seed.items():
            record["quality"].update({"valid_full_ndcg@10": 0.1, "popularity_valid_full_ndcg@10": 0.05 * seed})
    rows = all_tables(study)["doubted"].rows
    assert [row[:2] for row in rows] == [["A", "2"], ["A", "3"]]
    assert rows[0][2].startswith("the model ranks no better than the most frequent items do (0.1000 and 0.1000")
    study.full("a").by_seed[1].update(epochs={"full": 9, "annealed": 2}, best_epoch={"full": 1})
    first, *_ = all_tables(study)["doubted"].rows
    assert first[1] == "1"
    assert first[2].startswith("validation was best after epoch 1 of 9")


def test_what_is_doubted_alike_is_said_once(study: StudyResults) -> None:
    for record in study.full("a").by_seed.values():
        record.update(epochs={"full": 9, "annealed": 2}, best_epoch={"full": 9})
    ((title, seeds, why),) = all_tables(study)["doubted"].rows
    assert (title, seeds, why.partition(":")[0]) == ("A", "1, 2, 3", "validation was best after the last epoch, 9")


def test_runs_of_another_processor_are_named(study: StudyResults) -> None:
    cell = study.cell("a", "scalar", 20)
    assert cell is not None
    assert all_tables(study)["processors"].rows == []
    cell.group.by_seed[1]["machine"] = cell.group.by_seed[3]["machine"] = {"processor": "another"}
    assert all_tables(study)["processors"].rows == [["A", "`scalar:bits=4`", "1, 3", "another", "one"]]


def test_the_whole_catalogue_leads_and_is_compared_in_per_cent(study: StudyResults) -> None:
    full, cell = study.full("a"), study.cell("a", "MGQE", 20)
    assert cell is not None
    for group, values in ((full, (0.10, 0.20, 0.40)), (cell.group, (0.09, 0.19, 0.40))):
        for record, value in zip(group.by_seed.values(), values, strict=True):
            record["quality"]["full_ndcg@10"] = value
    rows = against_full(study).rows
    assert [row[1] for row in rows] == ["NDCG@10, whole catalogue, %", "HR@10"]
    assert rows[0][2] == "0.2333"
    assert rows[0][3].startswith("-5.00 ± ")  # the mean of -10, -5 and 0 per cent
    table = pair_table(study, "a")
    at = table.header.index("bytes") + 1
    assert table.header[at : at + 2] == ["NDCG@10, whole catalogue", "% to full"]
    full_row, ours = table.rows[:2]
    assert full_row[at][:6] == "0.2333"
    assert full_row[at + 1] == ""
    assert ours[at][:6] == "0.2267"
    assert ours[at + 1] == rows[0][3]
    assert table.rows[-1][1] == "scalar"  # no popularity in these records
    full.by_seed[2]["quality"]["popularity_full_ndcg@10"] = 0.05  # in runs of a later version
    cell.group.by_seed[3]["quality"]["popularity_full_ndcg@10"] = 0.07
    cell.group.by_seed[3]["data_summary"] = full.by_seed[1]["data_summary"] = {"users": 1200, "judged_users": 1100}
    with_popularity = pair_table(study, "a")
    assert with_popularity.title == "A; 1,100 of 1,200 users judged"
    popular = with_popularity.rows[-1]
    assert (len(popular), popular[1], popular[at]) == (len(table.header), "popularity", "0.0600")
    assert not any(popular[2:at] + popular[at + 1 :])
    assert all_tables(study)["head-tail-a"].rows == []  # of which no run says anything
    full.by_seed[1]["quality"].update({"head_full_ndcg@10": 0.3, "tail_full_ndcg@10": 0.1})
    assert all_tables(study)["head-tail-a"].rows[0][:3] == ["full", "0.3000", "0.1000"]
    full.by_seed[1]["quality"]["full_ndcg@10"] = 0.0  # of which there is no share
    gap = cell.group.over(full, "full_ndcg@10")
    assert gap is not None
    assert gap.mean == pytest.approx(-2.5)


def test_a_narrow_terminal_folds_long_texts_and_cuts_nothing() -> None:
    rows = [["a name of three times ten letters", "4,000 of 4,000 users judged, " * 3], ["b", "178,800"]]
    console = Console(width=60, file=io.StringIO())
    console.print(TextTable("", ["figure", "value"], rows).terminal(60))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 60
    assert sorted(shown.split()) == sorted(" ".join(["figure value", *map(" ".join, rows)]).split())


def shown(table: TextTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table.terminal(width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_wide_table_is_shown_in_parts() -> None:
    header = ["budget", "method", "NDCG@10, whole catalogue", "% to full", "seeds"]
    rows = [
        ["", "full", "0.0539 ± 0.0029", "", "5"],
        ["5%", "quotient-remainder", "0.0541 ± 0.0018", "+11.15 ± 8.70", "3"],
        ["2%", "`a method`", "", "", "1"],
    ]
    table = TextTable("a title", header, rows, left=2, keys=2)
    assert table.parts(200) == [table]
    # Budgets are 6 wide, methods 18, NDCG 15 and gaps to full 13: the four are 52 and 3 gaps of 2, one more than 57.
    first, second = table.parts(57)
    assert (first.title, first.header, first.left) == ("a title", header[:3], 2)
    assert first.rows == [rows[0][:3], rows[1][:3]]  # the third has nothing there
    assert second == TextTable("", [*header[:2], *header[3:]], [[*row[:2], *row[3:]] for row in rows], left=2, keys=2)
    assert [part.header for part in table.parts(58)] == [header[:4], [*header[:2], header[4]]]
    assert shown(table.parts(58)[0], 58) == [
        "a title",
        "                             NDCG@10, whole",
        "budget  method                    catalogue      % to full",
        "        full                0.0539 ± 0.0029",
        "5%      quotient-remainder  0.0541 ± 0.0018  +11.15 ± 8.70",
    ]
    # However narrow, each figure is shown, after the keys.
    assert [part.header[2:] for part in table.parts(10)] == [[name] for name in header[2:]]


@pytest.mark.parametrize("width", [20, 45, 80])
def test_no_part_of_a_report_is_wider_than_the_terminal(study: StudyResults, width: int) -> None:
    for group in (study.full("a"), study.group("a", "mgqe:D=8,K=16/4")):
        assert group is not None
        for record in group.by_seed.values():
            record["quality"].update({"full_ndcg@10": 0.1 + record["seed"] / 100, "full_hr@10": 0.2})
    for part in (part for table in all_tables(study).values() if table.rows for part in table.parts(width)):
        printed = shown(part, width)
        assert max(map(len, printed)) <= width
        cells = "".join([part.title, *part.header, *(cell.replace("`", "") for row in part.rows for cell in row)])
        assert sorted("".join("".join(printed).split())) == sorted("".join(cells.split()))  # nothing is cut
        if width == 80:
            assert all(row[-1] in " ".join(printed) for row in part.rows)  # numbers are on one line


def test_fill(tmp_path: Path) -> None:
    table = TextTable("T", ["a", "b"], [["1", "2"]])
    assert table.markdown() == "**T**\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |"
    path = tmp_path / "page.md"
    path.write_text("x\n<!-- one -->\nold\n<!-- /one -->\ny\n<!-- two -->\n")
    assert fill(path, {"one": table.markdown(), "three": ""}) == ["three"]
    assert path.read_text().startswith("x\n<!-- one -->\n\n**T**")
    once = path.read_text()
    fill(path, {"one": table.markdown()})
    assert path.read_text() == once
    with pytest.raises(ValueError, match="two --> has no"):
        fill(path, {"one": "", "two": "z"})
    assert path.read_text() == once
    with pytest.raises(ValueError, match="cannot be read"):
        fill(tmp_path / "none.md", {})
