"""`mgqe topk`: items that users have seen, by a log, and the folder of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app

pl = pytest.importorskip("polars")
ROWS = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
TABLE = mgqe.compress_table(ROWS, "50%")
LOG = pl.DataFrame({"user": ["u1", "u2", "u1", "u1"], "item": ["i3", "i4", "i9", "gone"]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the collections of a run."""
    mgqe.Collection(TABLE, [f"i{n}" for n in range(100)]).save(tmp_path / "run" / "item")
    mgqe.Collection(TABLE, [f"u{n}" for n in range(100)]).save(tmp_path / "run" / "user")
    return tmp_path / "run"


def topk(*arguments: object) -> list[list[str]]:
    result = CliRunner().invoke(app, ["topk", *map(str, arguments), "-k", "5", "--json"])
    assert result.exit_code == 0, result.output
    return [found["ids"] for found in json.loads(result.stdout)]


def expected(user: int, seen: list[str]) -> list[str]:
    items = mgqe.Collection(TABLE, [f"i{n}" for n in range(100)])
    return items.topk(TABLE.lookup([user])[0], 5, exclude=seen).ids


@pytest.mark.parametrize("layout", ["csv", "parquet", "named", "lines", "folder"])
def test_what_users_have_seen_is_left_out(run: Path, tmp_path: Path, layout: str) -> None:
    log, options = tmp_path / "log.csv", []
    if layout == "csv":
        LOG.write_csv(log)
    elif layout == "parquet":
        log = tmp_path / "log.parquet"
        LOG.write_parquet(log)
    elif layout == "named":
        LOG.write_csv(log, separator="|", include_header=False)
        options = ["--separator", "|", "--no-header", "--user-column", "1", "--item-column", "2"]
    elif layout == "lines":
        log.write_text("u1 i3 i9 gone\nu2 i4\n")
        options = ["--format", "lines"]
    else:
        log = tmp_path / "log"
        log.mkdir()
        LOG.head(2).write_parquet(log / "a.parquet")
        LOG.tail(2).write_parquet(log / "b.parquet")
    found = topk(run, "--query-id", "u1", "--query-id", "u2", "--exclude", "i0", "--exclude-seen", log, *options)
    assert found == [expected(1, ["i0", "i3", "i9"]), expected(2, ["i0", "i4"])]


def test_collections_and_users_may_be_named(run: Path, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    users = ["--users", run / "user", "--query-id", "u1"]
    assert topk(run / "item", *users, "--exclude-seen", tmp_path / "log.csv") == [expected(1, ["i3", "i9"])]
    assert topk(run, "--query-id", "u1") == [expected(1, [])]


def test_numbers_in_the_log_are_ids_of_either_kind(tmp_path: Path) -> None:
    pl.DataFrame({"user": [7, 7], "item": [3, 9]}).write_csv(tmp_path / "log.csv")
    for ids in (list(range(100)), [str(n) for n in range(100)]):
        items = mgqe.Collection(TABLE, ids)
        items.save(tmp_path / "items")
        best = items.topk(TABLE.lookup([7])[0], 5, exclude=[ids[3], ids[9]]).ids
        assert topk(tmp_path / "items", "--query-id", "7", "--exclude-seen", tmp_path / "log.csv") == [best]


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["topk", *map(str, arguments)])
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    return result.output


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    ask = [run, "--query-id", "u1", "--exclude-seen"]
    assert "none.csv" in refused(*ask, tmp_path / "none.csv")
    (tmp_path / "queries.csv").write_text("a,b\n1,2\n")
    assert "goes with --query-id" in refused(
        run, "--queries", tmp_path / "queries.csv", "--exclude-seen", tmp_path / "log.csv"
    )
    turned = LOG.rename({"user": "item", "item": "user"}).with_columns(item=pl.lit("u1"), user=pl.lit("u1"))
    turned.write_csv(tmp_path / "turned.csv")
    assert "none of the items of these users is in the collection, such as 'u1'" in refused(
        *ask, tmp_path / "turned.csv"
    )


def test_a_user_without_rows_is_said(run: Path, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    log = tmp_path / "log.csv"
    result = CliRunner().invoke(app, ["topk", str(run), "--query-id", "u5", "--exclude-seen", str(log), "--json"])
    assert "has no row of u5" in result.stderr.replace("\n", " ")
    assert json.loads(result.stdout)[0]["ids"][:5] == expected(5, [])
