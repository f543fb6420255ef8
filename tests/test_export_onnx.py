"""ONNX files of frozen models: ONNX Runtime's outputs, sizes, what is in the file, and bad input."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from table_cases import CASES, build
from test_export import bags, batch, two_towers
from torch import nn

import mgqe
from mgqe import CompactEmbedding, CompactEmbeddingBag

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs mgqe[onnx]"
)


def run(path, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = [given.name for given in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, (i.numpy() for i in inputs), strict=True)))[0])


@needs_onnx
@pytest.mark.parametrize("case", [c for c in CASES if sum(c.sizes)], ids=lambda c: c.name)
def test_look_ups_are_the_same_bits(case, tmp_path):
    table = build(case).table
    written = mgqe.export_onnx(CompactEmbedding(table), torch.tensor([0, 1, 2]), tmp_path / "table.onnx")
    assert written == (tmp_path / "table.onnx").stat().st_size
    assert written < table.nbytes + 25_000 * len(case.sizes)  # the graph
    ids = torch.arange(table.num_embeddings)
    assert torch.equal(run(tmp_path / "table.onnx", ids), table.to_dense())


@needs_onnx
@pytest.mark.parametrize(("mode", "padding"), bags())
def test_bags_agree_to_rounding(mode, padding, tmp_path):
    bag = CompactEmbeddingBag(build(replace(CASES[0], padding_idx=padding)).table, mode=mode)
    ids, offsets = torch.tensor([3, 3, 5, 7, 46, 0, 1]), torch.tensor([0, 2, 2, 5])
    mgqe.export_onnx(bag, (ids[:5], torch.tensor([0, 1, 3])), tmp_path / "bag.onnx")
    torch.testing.assert_close(run(tmp_path / "bag.onnx", ids, offsets), bag(ids, offsets), rtol=1e-6, atol=1e-6)


@needs_onnx
@pytest.mark.parametrize("centroid_dtype", ["float32", "int8"])
def test_a_whole_ranking_model_and_the_size_of_its_file(centroid_dtype, tmp_path):
    import onnx

    model = two_towers(20_000, centroid_dtype=centroid_dtype)
    path = tmp_path / "model.onnx"
    written = mgqe.export_onnx(model, batch(5), path)
    for size in (2, 9):
        torch.testing.assert_close(run(path, *batch(size, size)), model(*batch(size, size)), rtol=1e-5, atol=1e-5)
    tables = sum(t.nbytes for t in (model.user.table, model.item.table, model.tags.table))
    dense = sum(p.nbytes for p in model.parameters())
    print(centroid_dtype, written, tables, dense, written / (tables + dense))
    assert written <= 1.1 * (tables + dense)
    stored = onnx.load(path).graph.initializer
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in stored if np.prod(t.dims) > 5000}
    assert kinds == ({"UINT8", "FLOAT"} if centroid_dtype == "float32" else {"UINT8"})


@needs_onnx
def test_ids_outside_the_table(tmp_path):
    table = build(CASES[0]).table
    path = tmp_path / "table.onnx"
    mgqe.export_onnx(CompactEmbedding(table), torch.tensor([0, 1]), path)
    for unknown in (-1, table.num_embeddings):
        with pytest.raises(Exception, match="out of data bounds"):
            run(path, torch.tensor([0, unknown]))
    table = table.with_fallback(torch.ones(8))
    mgqe.export_onnx(CompactEmbedding(table), torch.tensor([0, 1]), path)
    assert torch.equal(run(path, torch.tensor([-1, 99])), torch.ones(2, 8))


@needs_onnx
def test_bad_input(tmp_path):
    compact = CompactEmbedding(build(CASES[0]).table)
    with pytest.raises(ValueError, match="no compact table"):
        mgqe.export_onnx(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="an example batch of 2 or more"):
        mgqe.export_onnx(compact, torch.tensor([1]), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="at least 18"):
        mgqe.export_onnx(compact, torch.tensor([1, 2]), tmp_path / "x.onnx", opset_version=17)
    assert not list(tmp_path.iterdir())


def test_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs onnx: pip install 'mgqe\[onnx\]'"):
        mgqe.export_onnx(CompactEmbedding(build(CASES[0]).table), torch.tensor([1, 2]), tmp_path / "x.onnx")
