"""save_model and load_model: one folder, no pickle, the user's own class."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from convert_models import COUNTS, DIM, LanguageModel, N, Ranker, batch, ranker
from paths import SUPPORT
from torch import nn

import mgqe
from mgqe import ArtifactError, CompactEmbedding


@pytest.fixture
def saved(tmp_path):
    model = ranker(init="from_weight", counts={"user": COUNTS})
    mgqe.freeze_(model)
    nbytes = mgqe.save_model(model, tmp_path / "model")
    assert nbytes == sum(file.stat().st_size for file in (tmp_path / "model").iterdir())
    return model, tmp_path / "model"


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("prepare", ["fresh", "compressed", "frozen"])
def test_round_trip(saved, prepare):
    model, folder = saved
    torch.manual_seed(5)
    other = Ranker()
    if prepare != "fresh":
        mgqe.compress_(other)
    if prepare == "frozen":
        mgqe.freeze_(other)
    loaded = mgqe.load_model(other, folder)
    assert loaded is other
    assert not loaded.training
    assert torch.equal(loaded(*batch()), model(*batch()))
    assert same(state(loaded), state(model))
    assert loaded.encoder["item"].padding_idx == 0
    assert loaded.user.path == "user"
    assert loaded.tags.mode == "sum"


def test_the_folder(saved):
    _, folder = saved
    names = sorted(file.name.split(".")[0] for file in folder.iterdir())
    assert names == ["dense", "encoder", "manifest", "tags", "user"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["class"] == "Ranker"
    assert [entry["paths"] for entry in manifest["tables"]] == [["user"], ["encoder.item"], ["tags"]]
    for file in folder.glob("*.safetensors"):
        assert b"PK\x03\x04" not in file.read_bytes()[:8]


def test_saving_again_replaces_the_whole_folder_or_nothing(saved, monkeypatch):
    model, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with torch.no_grad():
        model.head.weight.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            mgqe.save_model(model, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    mapped = mgqe.load_model(Ranker(), folder)
    mgqe.save_model(model, folder)
    assert len(list(folder.iterdir())) == len(before)
    assert torch.equal(mgqe.load_model(Ranker(), folder)(*batch()), model(*batch()))
    mapped(*batch())  # the loaded model keeps working
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis"):
        mgqe.save_model(model, folder.parent / "other")


def test_tied_and_shared(tmp_path):
    model = LanguageModel()
    mgqe.compress_(model, init="from_weight")
    mgqe.freeze_(model)
    mgqe.save_model(model, tmp_path)
    loaded = mgqe.load_model(LanguageModel(), tmp_path)
    ids = torch.arange(8).view(2, 4)
    assert all(torch.equal(a, b) for a, b in zip(loaded(ids), model(ids), strict=True))
    assert list(loaded.parameters()) == []

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Embedding(N, DIM)
            self.second = self.first
            self.out = nn.Linear(DIM, DIM)
            self.again = self.out
            self.register_buffer("mask", torch.tensor([True, False]))
            self.wide = nn.Parameter(torch.randn(2, dtype=torch.float64))

    shared = Shared()
    mgqe.compress_(shared)
    mgqe.freeze_(shared)
    mgqe.save_model(shared, tmp_path / "shared")
    loaded = mgqe.load_model(Shared(), tmp_path / "shared")
    assert loaded.first is loaded.second
    assert same(state(loaded), state(shared))


def test_wrong_class(saved):
    _, folder = saved
    with pytest.raises(TypeError, match="holds a model of class Ranker, not LanguageModel"):
        mgqe.load_model(LanguageModel(), folder)
    with pytest.raises(TypeError, match=r"pass an instance, load_model\(Ranker\(...\), folder\)"):
        mgqe.load_model(Ranker, folder)


def test_missing_and_extra_keys(saved):
    _, folder = saved
    model = Ranker()
    model.head = nn.Linear(DIM, 2)
    model.extra = nn.Linear(2, 2, bias=False)
    del model.weekday
    model.user = nn.Embedding(N, 2 * DIM)
    model.tags = nn.Linear(3, 3)
    del model.encoder["item"]
    before = state(model)
    with pytest.raises(ValueError, match="does not fit this Ranker") as error:
        mgqe.load_model(model, folder)
    assert str(error.value).splitlines()[1:] == [
        "  user: 2000 x 32 in the model, 2000 x 16 saved",
        "  encoder.item: the model has no such module",
        "  tags: the model has a Linear here, expected an embedding",
        "  weekday.weight: saved, but not in the model",
        "  extra.weight: in the model, but not saved",
        "  head.weight: shape (2, 16) in the model, (1, 16) saved",
        "  head.bias: shape (2,) in the model, (1,) saved",
    ]
    assert same(state(model), before)


@pytest.mark.parametrize("name", ["user", "dense", "manifest"])
@pytest.mark.parametrize("damage", ["cut short", "missing", "scrambled"])
def test_damaged_files(saved, name, damage):
    _, folder = saved
    (file,) = folder.glob(f"{name}.*")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-7] if damage == "cut short" else b"\xff" * 12 + content[12:])
    model = Ranker()
    before = state(model)
    with pytest.raises((ArtifactError, FileNotFoundError), match=name):
        mgqe.load_model(model, folder)
    assert same(state(model), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "'format' must be 'mgqe-model'"),
        ({"version": 3}, "'version' must be 1 or 2, got 3"),
        ({"tables": [{"file": "../../etc/passwd", "nbytes": 1}]}, "no file name that save_model gives"),
        ({"tables": 3}, "manifest.json"),
        ({"dense": None}, "manifest.json"),
    ],
)
def test_wrong_manifests(saved, change, message):
    _, folder = saved
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ArtifactError, match=message):
        mgqe.load_model(Ranker(), folder)


def test_models_that_cannot_be_saved(tmp_path):
    model = ranker()
    with pytest.raises(ValueError, match=r"user, encoder\.item, tags: not frozen yet"):
        mgqe.save_model(model, tmp_path / "a")
    with pytest.raises(ValueError, match="Linear has no frozen table"):
        mgqe.save_model(nn.Linear(2, 2), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    mgqe.freeze_(model)
    with pytest.raises(ValueError, match="no frozen table in it"):
        mgqe.save_model(model.user, tmp_path / "a")
    with pytest.raises(ValueError, match=r"user: its vectors are torch\.float8_e4m3fn, expected one of float32"):
        mgqe.save_model(copy.deepcopy(model).to(torch.float8_e4m3fn), tmp_path / "a")
    model.get_extra_state = lambda: {"a": 1}
    Stateful = type("Stateful", (Ranker,), {"get_extra_state": lambda self: {"a": 1}})
    model.__class__ = Stateful
    with pytest.raises(ValueError, match="_extra_state: state of dict"):
        mgqe.save_model(model, tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no manifest"):
        mgqe.load_model(Ranker(), tmp_path / "nowhere")


@pytest.mark.slow
def test_another_process_loads_it(saved, tmp_path):
    model, folder = saved
    torch.save(model(*batch()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, mgqe; from convert_models import Ranker, batch\n"
        f"got = mgqe.load_model(Ranker(), {str(folder)!r})(*batch())\n"
        f"assert torch.equal(got, torch.load({str(tmp_path / 'expected.pt')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SUPPORT)


def test_a_table_of_another_kind_serves_too():
    from mgqe.baselines import FullEmbedding

    full = FullEmbedding(10, 4)
    assert torch.equal(CompactEmbedding(full.freeze())(torch.arange(10)), full.weight)
