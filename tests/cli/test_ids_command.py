"""mgqe ids."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from mgqe import IdMap

pl = pytest.importorskip("polars")


@pytest.fixture
def run(monkeypatch, tmp_path):
    from mgqe.cli.app import app
    from mgqe.cli.ids import ids

    assert ids  # registered
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["ids", *map(str, arguments)])


def test_counts_and_shows(run, tmp_path):
    for day in range(2):
        pl.DataFrame({"item": [*range(100), *[7] * 100]}).write_parquet(f"day-{day}.parquet")
    result = run("day-*.parquet", "--column", "item", "--out", "ids.safetensors")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    for part in (
        "item: int64 ids",
        "interactions 400",
        "different ids 100",
        "rows 100 with 100.0% of the interactions",
        "the most frequent 1% 50.5% of",
        "the most frequent 10% 55.0% of",
        f"{(tmp_path / 'ids.safetensors').stat().st_size:,} = ",
    ):
        assert part in shown, shown
    found = IdMap.load("ids.safetensors")
    assert found.ids(range(3)).tolist() == [7, 0, 1]
    result = run("day-0.parquet", "day-1.parquet", "--column", "item", "--max-ids", 1, "--out", "one", "--ignore", 7)
    assert result.exit_code == 0, result.output
    assert IdMap.load("one").ids([0]).tolist() == [0]
    (tmp_path / "ratings.dat").write_text("1::1193::5\n1::661::3\n2::1193::4\n")
    result = run("ratings.dat", "--separator", "::", "--no-header", "--column", 2, "--out", "films")
    assert result.exit_code == 0, result.output
    assert IdMap.load("films").ids(range(2)).tolist() == [1193, 661]
    (tmp_path / "q.csv").write_text("item,x\n'a,b',1\n\"c,2\n")
    for options, ids in ((["--quote", "'"], ['"c', "a,b"]), (["--no-quote"], None), (["--quote", ""], None)):
        result = run("q.csv", "--column", "item", *options, "--out", "quoted")
        if ids is None:  # the comma inside the single quotes separates
            assert "q.csv: line 2 has 3 fields" in result.stderr
        else:
            assert IdMap.load("quoted").ids(range(2)) == ids
    (tmp_path / "a.csv").write_text("item;x\n0;y\n1;y\n1;y\n")
    result = run("a.csv", "--column", "item", "--kind", "string", "--separator", ";", "--ignore", "0", "--out", "words")
    assert result.exit_code == 0, result.output
    assert IdMap.load("words").ids([0]) == ["1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "items"], "mgqe: no column 'items': the file has item, real"),
        (["--column", "real"], "expected integers, strings or binaries, got Float64"),
        (["--column", "item", "--ignore", "x"], "ignore= must name ids of kind int64, got 'x'"),
        (["--column", "item", "--min-count", "9"], "lower min_count"),
        (["--column", "item", "--quote", "ab"], "quote must be one character"),
        (["--column", "item", "--memory", "0"], "--memory: expected a whole number of MiB"),
        (["--column", "item", "--out", "none/ids"], "--out: there is no folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, options, message):
    pl.DataFrame({"item": [1], "real": [1.0]}).write_parquet("a.parquet")
    result = run("a.parquet", *options, *([] if "--out" in options else ["--out", "ids.safetensors"]))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("u1 5 7 9\nu2 7\n", ["--format", "lines"]),
        ("u1 5\nu1 7\nu1 9\nu2 7\n", []),
        ("user_id:token\titem_id:token\nu1\t5\nu1\t7\nu1\t9\nu2\t7\n", []),
        ("visitorid,itemid\nu1,5\nu1,7\nu1,9\nu2,7\n", []),
        ("session_id;item\nu1;5\nu1;7\nu1;9\nu2;7\n", ["--separator", ";"]),
    ],
)
def test_every_layout_that_train_reads(run, tmp_path, text, options):
    (tmp_path / "log.txt").write_text(text)
    result = run("log.txt", "--field", "item", *options, "--out", "items")
    assert result.exit_code == 0, result.output
    assert IdMap.load("items").ids(range(3)).tolist() == [7, 5, 9]
    assert run("log.txt", "--field", "user", *options, "--out", "users").exit_code == 0
    assert IdMap.load("users").ids(range(2)) == ["u1", "u2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which ids? Give --column NAME, or --field item"),
        (["--column", "item", "--field", "item"], "which ids?"),
        (["--field", "shop"], "--field must be item or user, got 'shop'"),
        (["--column", "item", "--format", "lines"], "--format lines goes with --field"),
    ],
)
def test_which_ids(run, tmp_path, options, message):
    (tmp_path / "log.txt").write_text("1 2\n1 3\n")
    result = run("log.txt", *options, "--out", "items")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "items").exists()
