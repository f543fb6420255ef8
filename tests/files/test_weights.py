"""Files of weights: every type and shape is restored, and damage is an error."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgqe.baselines import FullTable
from mgqe.files.container import ArtifactError
from mgqe.files.weights import load_weights, save_weights
from mgqe.table.io import save

TENSORS = {
    "scalar": torch.tensor(3),
    "none": torch.empty(0, 4, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
    "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "double": torch.tensor([1e-300], dtype=torch.float64),
    "eighth": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
    "short": torch.tensor([-(2**15)], dtype=torch.int16),
    "unsigned": torch.tensor([2**32 - 1]).to(torch.uint32),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def test_every_type_and_shape_comes_back(tmp_path):
    assert save_weights(TENSORS, tmp_path / "w") == (tmp_path / "w").stat().st_size
    found = load_weights(tmp_path / "w")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tolist() == tensor.tolist()
    assert load_file(tmp_path / "w").keys() == {*TENSORS, "checksums"}


def test_a_flipped_bit_is_refused(tmp_path):
    save_weights(TENSORS, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    for at in range(0, len(content), 5):
        (tmp_path / "w").write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        with pytest.raises(ArtifactError, match="/w: "):
            load_weights(tmp_path / "w")


def test_files_without_checksums_are_read_and_other_kinds_are_not(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "plain")
    assert load_weights(tmp_path / "plain")["a"].tolist() == [1.0, 1.0]
    save(FullTable(torch.ones(2, 2)), tmp_path / "table")
    with pytest.raises(ArtifactError, match=r"table: metadata 'kind' must be 'weights', got 'full'"):
        load_weights(tmp_path / "table")
    with pytest.raises(TypeError, match=r"tensor 'z' has type torch\.complex64"):
        save_weights({"z": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "z")
    assert not (tmp_path / "z").exists()
