"""Whole models with a budget, whose tables are mixed: folders, verification, export."""

from __future__ import annotations

import pytest
import torch
from convert_models import COUNTS, DIM, N, Ranker, batch
from torch import nn

import mgqe


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = Ranker()
    made.user = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, budget="10%")
    made.encoder["item"] = mgqe.DPQEmbedding(N, DIM, padding_idx=0, budget="10%")
    made.tags = mgqe.MGQEmbeddingBag(N, DIM, mode="sum", counts=COUNTS.flip(0), budget="10%")
    tables = mgqe.freeze_(made)
    assert all(table.config.matrix_dtype == "int8" for table in tables.values())
    return made


def test_a_folder_round_trip(model, tmp_path):
    nbytes = mgqe.save_model(model, tmp_path / "model")
    assert nbytes == sum(file.stat().st_size for file in (tmp_path / "model").iterdir())
    loaded = mgqe.load_model(Ranker(), tmp_path / "model")
    assert torch.equal(loaded(*batch()), model(*batch()))
    assert not mgqe.verify(tmp_path / "model").damage


def test_verification_finds_a_damaged_matrix(model, tmp_path):
    mgqe.save_model(model, tmp_path / "model")
    (path,) = (tmp_path / "model").glob("user*.safetensors")
    matrix = model.user.table.to_tensors()[0]["matrix"].numpy().tobytes()
    content = path.read_bytes()
    at = content.index(matrix)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(mgqe.ArtifactError, match="'matrix'"):
        mgqe.load_model(Ranker(), tmp_path / "model")
    with pytest.raises(mgqe.ArtifactError, match="'matrix', block 0 of 1"):
        mgqe.verify(tmp_path / "model")


def test_portable_copies_and_exported_programs_agree(model):
    portable = mgqe.portable(model)
    expected = model(*batch())
    torch.testing.assert_close(portable(*batch()), expected, rtol=1e-5, atol=1e-5)
    program = torch.export.export(portable, batch())
    assert not any("mgqe" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*batch()), expected, rtol=1e-5, atol=1e-5)


def test_frozen_models_compile_and_export_with_the_operators(model):
    expected = model(*batch())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*batch()), expected)
    program = torch.export.export(model, batch())
    assert any("mixed" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*batch()), expected)
