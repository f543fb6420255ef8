"""mgqe compress, topk and neighbours, from files to ids."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app
from mgqe.cli.terminal import make_progress

N, D = 800, 16
ROWS = torch.randn(N, D, generator=torch.Generator().manual_seed(0)).numpy()
NAMES = [f"item-{i}" for i in range(N)]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    np.save("items.npy", ROWS)
    np.save("users.npy", ROWS[:9] ** 3)
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    return CliRunner()


def run(runner: CliRunner, *arguments: str, fails: bool = False) -> str:
    done = runner.invoke(app, list(arguments))
    assert (done.exit_code != 0) == fails, done.output
    return done.output


def test_help_teaches(runner):
    text = " ".join(run(runner, "compress", "--help").split())
    for part in ("mgqe compress items.npy --budget 5%", "--ids names.txt", ".parquet", "word vectors", "--queries"):
        assert part in text


def test_a_matrix_becomes_a_collection_and_is_asked(runner):
    text = run(runner, "compress", "items.npy", "--ids", "names.txt", "--budget", "30%")
    items = mgqe.Collection.load("items")
    assert items.table.equal(mgqe.compress_table(ROWS, "30%"))
    assert items.ids.ids([0, N - 1]) == ["item-0", f"item-{N - 1}"]
    for part in (f"{items.table.nbytes:,}", "recall@10", "squares lost", "items.neighbours('item-0', 10)"):
        assert part in text
    assert re.search(r"look-up \d\.\d of nn\.Embedding's time, estimated", text)
    assert max(map(len, text.splitlines())) <= 120  # sentences are not cut; tables fit 80 columns
    found = json.loads(run(runner, "neighbours", "items", "item-5", "item-7", "-k", "3", "--json"))
    assert [entry["query"] for entry in found] == ["item-5", "item-7"]
    assert found[0]["ids"] == items.neighbours("item-5", 3).ids
    found = json.loads(run(runner, "topk", "items", "--queries", "users.npy", "-k", "2", "--json"))
    assert [entry["ids"] for entry in found] == items.topk(np.load("users.npy"), 2).ids
    best = found[0]["ids"][0]
    shown = run(runner, "topk", "items", "--queries", "users.npy", "-k", "2", "--exclude", best, "--exclude", "none")
    assert best not in shown.split("rank")[1]
    asked = json.loads(run(runner, "topk", "items", "--query-id", "item-3", "--users", "items", "-k", "1", "--json"))
    assert asked[0]["ids"] == items.topk(items.lookup("item-3"), 1).ids
    assert "a collection, CompactTable, 800 ids x 16 dimensions, ids of kind string" in run(runner, "inspect", "items")
    assert "nothing is damaged" in run(runner, "verify", "items")
    next(Path("items").glob("ids.*")).unlink()
    assert "is missing, which mgqe-collection.json names" in " ".join(
        run(runner, "verify", "items", fails=True).split()
    )


def test_json_holds_the_figures(runner):
    figures = json.loads(run(runner, "compress", "items.npy", "--budget", "5000", "--queries", "users.npy", "--json"))
    assert figures["nbytes"] == sum(path.stat().st_size for path in Path("items").iterdir() if path.suffix != ".lock")
    assert figures["matrix_nbytes"] == ROWS.nbytes
    assert figures["asked"] == "queries"
    assert 0 < figures["lookup_share"] < 10
    assert figures["queries"] == 9
    dense = mgqe.Collection.load("items").table.to_dense()
    lost = float((dense - torch.from_numpy(ROWS)).square().sum() / torch.from_numpy(ROWS).square().sum())
    assert figures["squares_lost"] == pytest.approx(lost, rel=1e-4)
    exact = (torch.from_numpy(np.load("users.npy")) @ torch.from_numpy(ROWS).T).topk(10).indices
    found = mgqe.Collection.load("items").topk(np.load("users.npy"), 10).ids
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(exact.tolist(), found, strict=True)]
    assert figures["recall@10"] == pytest.approx(sum(shared) / 9)


def test_counts_come_from_a_log_or_an_array(runner):
    pytest.importorskip("polars")
    log = [f"item-{i}" for i in range(N) for _ in range(1 + (i < 80) * 9)] + ["unknown"]
    Path("clicks.csv").write_text("item\n" + "\n".join(log) + "\n")
    counts = np.where(np.arange(N) < 80, 10, 1)
    np.save("counts.npy", counts)
    options = ("compress", "items.npy", "--ids", "names.txt", "--budget", "30%", "--no-check", "--out")
    run(runner, *options, "a", "--counts", "clicks.csv", "--count-column", "item")
    run(runner, *options, "b", "--counts", "counts.npy")
    Path("clicks.dat").write_text("".join(f"u::{one}\n" for one in log))
    run(runner, *options, "c", "--counts", "clicks.dat", "--separator", "::", "--no-header", "--count-column", "2")
    tables = [mgqe.Collection.load(folder).table for folder in "abc"]
    assert all(table.equal(tables[0]) for table in tables)
    assert tables[0].equal(mgqe.compress_table(ROWS, "30%", counts=counts.tolist()))


def test_ids_are_shown_as_they_are(runner):
    Path("marked.txt").write_text("\n".join(f"[red]{name}" for name in NAMES))
    run(runner, "compress", "items.npy", "--ids", "marked.txt", "--budget", "30%", "--no-check")
    shown = run(runner, "neighbours", "items", "[red]item-3", "-k", "2")
    assert shown.count("[red]item-") == 3


def test_the_matrix_that_was_taken_is_named(runner):
    torch.save({"item.weight": torch.from_numpy(ROWS), "out.weight": torch.ones(2, ROWS.shape[1])}, "model.pt")
    shown = run(runner, "compress", "model.pt", "--no-check")
    assert f"matrix item.weight {N} x {ROWS.shape[1]}" in shown
    assert json.loads(run(runner, "compress", "model.pt", "--no-check", "--json"))["matrix"] == "item.weight"


def test_ids_that_are_not_there_are_named(runner):
    run(runner, "compress", "items.npy", "--ids", "names.txt", "--budget", "30%", "--no-check")
    assert "no id 'hat', 'cap' in the collection" in run(
        runner, "neighbours", "items", "hat", NAMES[0], "cap", fails=True
    )
    run(runner, "compress", "items.npy", "--out", "rows", "--budget", "30%", "--no-check")
    shown = run(runner, "topk", "rows", "--query-id", str(N), fails=True)
    assert f"no id {N} in the collection: ids are the rows' numbers, 0 to {N - 1}" in shown


def test_ids_of_a_column(runner):
    pl = pytest.importorskip("polars")
    pl.DataFrame({"sku": [i * 3 for i in range(N)], "name": NAMES, "v": ROWS.tolist()}).write_parquet("t.parquet")
    run(runner, "compress", "t.parquet", "--ids", "sku", "--budget", "30%", "--no-check")
    assert mgqe.Collection.load("t").neighbours(9, 1).ids[0] % 3 == 0
    again = ("compress", "t.parquet", "--ids", "names.txt", "--out", "named", "--budget", "30%", "--no-check")
    assert "t.parquet: left out: sku, name (the vectors are v)" in " ".join(run(runner, *again).split())
    assert mgqe.Collection.load("named").ids.ids([0]) == ["item-0"]
    assert "whole numbers, got 'x'" in run(runner, "neighbours", "t", "x", fails=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compress", "none.npy"], "no such file"),
        (["compress", "items.npy", "--ids", "none.txt"], "no file none.txt"),
        (["compress", "items.npy", "--ids", "short.txt"], "2 ids, but items.npy has 800 rows"),
        (["compress", "items.npy", "--ids", "twice.txt"], "more than once: 'a' (rows 0 and 2)"),
        (["compress", "items.npy", "--counts", "users.npy"], "expected 800 numbers, one per row"),
        (["compress", "items.npy", "--counts", "names.txt"], "which column holds the ids"),
        (["compress", "items.npy", "--budget", "100%"], "more than nothing and less than all"),
        (["compress", "items.npy", "--budget", "50"], "items.npy: a budget of 50 bytes is too small for 800 ids x 16"),
        (["compress", "other", "--out", "items"], "other: this folder holds no model: expected .npy"),
        (["compress", "nan.npy"], "nan.npy: row 7 of weight holds NaN"),
        (["compress", "whole.npy"], "whole.npy must hold floats, got an array of int64: make them with .astype"),
        (["compress", "items.npy", "--queries", "whole.npy"], "whole.npy must hold floats"),
        (["compress", "google/bert"], "no such file; if it is the name of a model on a hub, download it first"),
        (["compress", "bert-base-uncased"], "if it is the name of a model on a hub, download it first"),
        (["neighbours", "other", "a"], "other holds no collection"),
        (["neighbours", "nan.npy", "a"], "nan.npy: expected a collection or a table; `mgqe compress` makes a"),
        (["neighbours", "names.txt", "a"], "names.txt: no file of mgqe"),
        (["compress", "items.npy", "--prefer", "fast"], "prefer must be one of ('speed', 'size'), got 'fast'"),
        (["compress", "items.npy", "--out", "names.txt"], "is no folder"),
        (["compress", "items.npy", "--queries", "narrow.npy"], "items.npy: queries must have shape (n, 16)"),
        (["compress", "items.npy", "--out", "."], "other files"),
        (["topk", "items"], "either --queries"),
        (["neighbours", "nothing", "a"], "no such folder"),
    ],
)
def test_mistakes_are_one_line(runner, arguments, text):
    Path("short.txt").write_text("a\nb\n")
    Path("twice.txt").write_text("\n".join(["a", "b", "a", *NAMES[3:]]))
    np.save("nan.npy", np.where(np.arange(N)[:, None] == 7, np.nan, ROWS).astype(np.float32))
    Path("other").mkdir()
    Path("other/settings.xml").touch()
    np.save("whole.npy", np.ones((N, 3), np.int64))
    np.save("narrow.npy", np.ones((4, 3), np.float32))
    shown = run(runner, *arguments, fails=True)
    assert text in " ".join(shown.split())
    assert not Path("items").exists()


def test_bars_are_for_terminals_alone(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks set it: colours, but no bars
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert make_progress().disable
