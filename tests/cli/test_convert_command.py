"""`mgqe convert` and `mgqe export`: old formats, faiss in both directions, and ONNX files of tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import GOLDEN
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app
from mgqe.files.container import open_stored

OLD = GOLDEN / "version-1"


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "name", ["compact-three-tiers-int8", "hash", "scalar-row", "appended/compact-small", "sharded"]
)
def test_old_tables_become_present_ones(name: str, tmp_path: Path) -> None:
    old = OLD / name if (OLD / name).is_dir() else OLD / f"{name}.safetensors"
    code, text = invoke("convert", old, "--out", tmp_path / "new")
    assert (code, "in the present version" in text) == (0, True), text
    assert open_stored(tmp_path / "new").metadata["version"] == "2"
    assert mgqe.verify(tmp_path / "new").without_checksums == ()
    assert torch.equal(mgqe.load(tmp_path / "new").to_dense(), mgqe.load(old).to_dense())


def test_old_id_maps_become_present_ones(tmp_path: Path) -> None:
    assert invoke("convert", OLD / "idmap" / "string.safetensors", "--out", tmp_path / "new")[0] == 0
    assert mgqe.verify(tmp_path / "new").without_checksums == ()
    old, new = (mgqe.IdMap.load(path) for path in (OLD / "idmap" / "string.safetensors", tmp_path / "new"))
    assert new.ids(range(len(new))) == old.ids(range(len(old)))


def test_a_table_may_be_converted_in_place(tmp_path: Path) -> None:
    shutil.copy(OLD / "hash.safetensors", tmp_path / "table")
    before = mgqe.load(tmp_path / "table").to_dense()
    assert invoke("convert", tmp_path / "table", "--out", tmp_path / "table")[0] == 0
    assert torch.equal(mgqe.load(tmp_path / "table").to_dense(), before)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = mgqe.DPQEmbedding(60, 8, num_centroids=16)
        self.same = self.item
        self.head = torch.nn.Linear(8, 2)
        self.also = self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.also(self.same(ids))


def test_a_model_is_written_anew_with_its_aliases(tmp_path: Path) -> None:
    model = Tied()
    mgqe.freeze_(model)
    mgqe.save_model(model, tmp_path / "model")
    assert invoke("convert", tmp_path / "model", "--out", tmp_path / "copy")[0] == 0
    mgqe.verify(tmp_path / "copy")
    loaded = mgqe.load_model(Tied(), tmp_path / "copy")
    ids = torch.arange(60)
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.item is loaded.same
    assert loaded.head is loaded.also


def test_faiss_in_both_directions(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    table = mgqe.DPQEmbedding(50, 8, num_subspaces=4, num_centroids=16).freeze()
    mgqe.Collection(table, np.arange(50) * 3).save(tmp_path / "items")
    code, text = invoke("convert", tmp_path / "items", "--out", tmp_path / "items.faiss")
    assert (code, "a faiss index" in text) == (0, True), text
    code, text = invoke("convert", tmp_path / "items.faiss", "--out", tmp_path / "back")
    assert (code, "a collection of a faiss index" in text) == (0, True), text
    back = mgqe.Collection.load(tmp_path / "back")
    assert torch.equal(back.lookup([3, 147]), table.lookup([1, 49]))
    assert "row numbers" not in text
    mgqe.Collection(table, [f"item-{i}" for i in range(50)]).save(tmp_path / "named")
    code, text = invoke("convert", tmp_path / "named", "--out", tmp_path / "named.faiss")
    assert (code, "faiss holds ids of int64 alone" in text, "row numbers" in text) == (0, True, True), text


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(GOLDEN / "hash.safetensors", run / "item.mgqe.safetensors")
    (tmp_path / "text").write_text("dear reader")
    (tmp_path / "rows.npy").write_bytes(b"\x93NUMPY")
    messages = {"run": "whose files belong together", "text": "no file of mgqe", "rows.npy": "`mgqe compress` makes a"}
    for source, message in messages.items():
        code, text = invoke("convert", tmp_path / source, "--out", tmp_path / "out")
        assert (code, len(text.splitlines()), message in text) == (2, 1, True), text


def test_export_writes_a_table_as_onnx(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    mgqe.Collection(mgqe.compress_table(rows, "40%"), [f"i{n}" for n in range(100)]).save(tmp_path / "items")
    items = mgqe.Collection.load(tmp_path / "items")
    code, text = invoke("export", tmp_path / "items", "--onnx", tmp_path / "bags.onnx", "--bag", "sum")
    assert code == 0, text
    assert "ids (B, L) to 8 numbers each" in text.replace("\n", " ")
    ids = np.array([[3, 5, 99]])
    (vectors,) = onnxruntime.InferenceSession(tmp_path / "bags.onnx").run(None, {"ids": ids})
    expected = items.table.lookup(torch.from_numpy(ids)).sum(1)
    torch.testing.assert_close(torch.from_numpy(vectors), expected, rtol=1e-5, atol=1e-5)


def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    mgqe.save(mgqe.baselines.FullTable(torch.zeros(3, 4)), tmp_path / "full")
    code, text = invoke("export", tmp_path / "full", "--onnx", tmp_path / "x.onnx")
    assert (code, "only a CompactTable can be exported" in text) == (2, True), text
    code, text = invoke("export", tmp_path / "full", "--onnx", tmp_path / "none" / "x.onnx")
    assert (code, "--onnx: there is no folder" in text) == (2, True), text
