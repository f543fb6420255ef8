"""`mgqe inspect` and `mgqe verify` take every artefact, say which it is, and refuse anything else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import GOLDEN, ROOT
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app

STUDY = ROOT / "studies" / "budget"


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each artefact that needs no training."""
    folder = tmp_path_factory.mktemp("made")
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    table = mgqe.compress_table(rows, "30%")
    mgqe.save(table, folder / "table")
    mgqe.Collection(table, [f"shoe-{n}" for n in range(300)]).save(folder / "items")
    model = nn.Sequential(mgqe.DPQEmbedding(300, 8, num_centroids=16), nn.Linear(8, 1))
    mgqe.freeze_(model)
    mgqe.save_model(model, folder / "model")
    np.save(folder / "counts.npy", np.arange(300))
    run = folder / "run"
    run.mkdir()
    mgqe.save(table, run / "item.mgqe.safetensors")
    mgqe.Collection(table).save(run / "item")
    (run / "config.json").write_text(json.dumps({"data": "clicks.csv", "model": "gmf", "seed": 3}))
    (run / "metrics.json").write_text(json.dumps({"quality": {"hr@10": 0.5}}))
    return folder


KINDS = {
    "table": "a table, CompactTable, 300 ids x 8 dimensions",
    "items": "a collection, CompactTable, 300 ids x 8 dimensions, ids of kind string in ",
    "model": "the folder of a model, Sequential, written by mgqe.save_model",
    "counts.npy": "counts, of 300 ids",
    "run": "the folder of a run, data clicks.csv, model gmf, seed 3, finished",
}


@pytest.mark.parametrize("name", KINDS)
def test_the_first_line_says_what_it_is(made: Path, name: str) -> None:
    code, text = invoke("inspect", made / name)
    assert (code, text.startswith(f"{made / name}: {KINDS[name]}")) == (0, True), text
    assert all(len(line) <= 80 for line in text.splitlines() if str(made) not in line)
    code, text = invoke("inspect", made / name, "--json")
    assert code == 0
    facts = json.loads(text)
    what = KINDS[name].split(",")[0]
    assert what.endswith(facts["artefact"])
    code, text = invoke("verify", made / name)
    assert (code, text.startswith(f"{made / name}: {what}; ")) == (0, True), text
    code, text = invoke("verify", made / name, "--json")
    assert (code, json.loads(text)["artefact"], json.loads(text)["damage"]) == (0, what, [])


def test_figures_of_each(made: Path) -> None:
    table = json.loads(invoke("inspect", made / "table", "--json")[1])
    assert (table["num_embeddings"], table["embedding_dim"]) == (300, 8)
    assert table["nbytes"]["file"] == (made / "table").stat().st_size
    assert sum(tier["ids"] for tier in table["tiers"]) == 300
    counts = json.loads(invoke("inspect", made / "counts.npy", "--json")[1])
    assert (counts["sum"], counts["never"]) == (44850.0, 1)
    assert counts["share_of_most_frequent"]["1%"] == pytest.approx((299 + 298 + 297) / 44850)
    run = json.loads(invoke("inspect", made / "run", "--json")[1])
    assert run["quality"] == {"hr@10": 0.5}
    assert run["collections"] == [str(made / "run" / "item")]
    assert [table["name"] for table in run["tables"]] == ["item.mgqe.safetensors"]
    model = json.loads(invoke("inspect", made / "model", "--json")[1])
    assert (model["class"], model["tables"][0]["num_embeddings"]) == ("Sequential", 300)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        (GOLDEN / "idmap" / "string.safetensors", "an id map, 76 ids of kind string"),
        (GOLDEN / "version-1" / "hash.safetensors", "a table in format version 1, HashTable"),
        (GOLDEN / "sharded", "a table in a folder of shards, CompactTable, 300 ids x 4"),
        (GOLDEN / "sharded" / "table.safetensors", "a table in a folder of shards, CompactTable, 300 ids x 4"),
        (STUDY, f"the folder of a study, {len((STUDY / 'results.jsonl').read_text().splitlines())} runs recorded"),
    ],
)
def test_files_of_the_repository(path: Path, what: str) -> None:
    code, text = invoke("inspect", path)
    assert (code, text.startswith(f"{path}: {what}")) == (0, True), text


def test_anything_else_is_refused_with_what_is_taken(made: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text").write_text("dear reader")
    appended = next((GOLDEN / "appended").glob("*000001"))
    shard = next((GOLDEN / "sharded").glob("shard-*"))
    refused = {
        tmp_path / "text": "no file of mgqe: expected a table's file",
        tmp_path / "foreign.safetensors": "tensors of another program, of which `mgqe compress` makes a collection",
        tmp_path / "none": "there is no such file or folder",
        tmp_path: "this folder is none of mgqe: expected a table's file",
        appended: f"name the whole, {GOLDEN / 'appended' / 'compact-small.safetensors'}",
        shard: f"some of a table's codes: name the whole, {GOLDEN / 'sharded'}",
        next((made / "model").glob("dense.*")): f"name the whole, {made / 'model'}",
    }
    for path, message in refused.items():
        for command in ("inspect", "verify"):
            code, text = invoke(command, path)
            assert (code, len(text.splitlines()), message in text) == (2, 1, True), text
    np.save(tmp_path / "matrix.npy", np.ones((3, 2)))
    for command in ("inspect", "verify"):
        code, text = invoke(command, tmp_path / "matrix.npy")
        assert (code, "`mgqe compress` makes a table of a matrix" in text) == (2, True), text


def test_a_folder_of_several_artefacts(made: Path) -> None:
    code, text = invoke("inspect", made)
    assert (code, f"but holds {made / 'items'}, {made / 'model'}" in text) == (2, True), text
    code, text = invoke("verify", made)
    assert (code, text.startswith(f"{made}: a folder of several artefacts; ")) == (0, True), text


def test_damage_is_damage_and_no_other_program(made: Path, tmp_path: Path) -> None:
    content = (made / "table").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-10])
    code, text = invoke("verify", tmp_path / "cut")
    assert (code, text.startswith(f"{tmp_path / 'cut'}: a damaged file; ")) == (1, True), text
    code, text = invoke("inspect", tmp_path / "cut")
    assert (code, "not a whole safetensors file" in text) == (2, True)


def test_plots_are_of_tables(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert invoke("inspect", made / "items", "--plot", tmp_path / "bits.png", "--json")[0] == 0
    assert (tmp_path / "bits.png").is_file()
    code, text = invoke("inspect", made / "run", "--plot", tmp_path / "no.png")
    assert (code, "--plot goes with a table" in text) == (2, True)
