"""Wrong manifests: type and range of each entry, and its agreement with the model, are checked before any change."""

from __future__ import annotations

import json

import pytest
import torch
from convert_models import LanguageModel, N, Ranker, batch, ranker
from manifest_tools import copy_changed
from torch import nn

import mgqe
from mgqe import ArtifactError


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def refused(model: nn.Module, folder, match: str | None, error: type[Exception] = ValueError) -> None:
    """Loading raises, and the model's modules, weights and mode are as they were."""
    before, modules, training = state(model), list(model.modules()), model.training
    with pytest.raises(error, match=match):
        mgqe.load_model(model, folder)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [id(module) for module in model.modules()] == [id(module) for module in modules]
    assert model.training is training


@pytest.fixture(scope="module")
def ranker_folder(tmp_path_factory):
    model = ranker(init="from_weight")
    mgqe.freeze_(model)
    folder = tmp_path_factory.mktemp("ranker")
    mgqe.save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory):
    model = LanguageModel()
    mgqe.compress_(model, init="from_weight")
    mgqe.freeze_(model)
    folder = tmp_path_factory.mktemp("tied")
    mgqe.save_model(model, folder)
    return folder


STRANGE = [None, True, -1, 1.5, "x", [], {}, [None], {"x": 1}, "../x.safetensors", 10**30, "a" * 10_000, "\ud800"]
TOP = ["format", "version", "class", "tables", "ties", "dense", "checksum"]
TABLE = ["paths", "file", "nbytes", "padding_idx", "dtype", "mode", "include_last_offset", "checksum"]
WITHIN = [
    *((name,) for name in TOP),
    *(("tables", 0, name) for name in TABLE),
    *(("tables", 2, name) for name in TABLE),
    *(("tables", 0, "paths", n) for n in (0,)),
    *(("dense", name) for name in ("file", "nbytes", "aliases", "checksum")),
]
# Values that happen to be right.
FITS = {
    ("tables", 0, "padding_idx"): [None],
    ("tables", 0, "mode"): [None],
    ("ties",): [[]],
    ("dense", "aliases"): [{}],
}
FITS[("tables", 2, "padding_idx")] = [None]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize("where", WITHIN, ids=lambda where: ".".join(map(str, where)))
def test_an_entry_of_any_type(ranker_folder, tmp_path, where, value):
    if any(value == fits and type(value) is type(fits) for fits in FITS.get(where, [])):
        pytest.skip("the manifest has this value already")

    def lie(manifest):
        *above, last = where
        for key in above:
            manifest = manifest[key]
        manifest[last] = value

    folder = copy_changed(ranker_folder, tmp_path, lie, sealed=where != ("checksum",))
    refused(Ranker(), folder, None, (ValueError, TypeError))


@pytest.mark.parametrize("where", [(), ("tables", 0), ("dense",)], ids=str)
@pytest.mark.parametrize("change", ["more", "less"])
def test_extra_and_missing_entries(ranker_folder, tmp_path, where, change):
    def lie(manifest):
        for key in where:
            manifest = manifest[key]
        if change == "more":
            manifest["trust_me"] = 1
        else:
            manifest.pop(next(name for name in ("class", "nbytes") if name in manifest))

    refused(Ranker(), copy_changed(ranker_folder, tmp_path, lie), "trust_me|class|nbytes", ArtifactError)


def table(number, **change):
    return lambda manifest: manifest["tables"][number].update(change)


LIES = {
    "one path twice": (table(0, paths=["user", "user"]), "table path 'user' is there twice"),
    "one path of two tables": (table(0, paths=["encoder.item"]), "table path 'encoder.item' is there twice"),
    "a table in a table": (table(0, paths=["tags.user"]), "'tags.user' is inside 'tags'"),
    "no path": (table(0, paths=[]), "'paths' must be a list"),
    "the model itself": (table(0, paths=[""]), "'paths' must be a list"),
    "an empty name": (table(0, paths=["encoder..item"]), "'paths' must be a list"),
    "no table": (lambda m: m.update(tables=[]), "'tables' must not be empty"),
    "a table left out": (lambda m: m["tables"].pop(0), "user.weight: in the model, but not saved"),
    "a path of no module": (table(0, paths=["users"]), "users: the model has no such module"),
    "a path of another module": (table(0, paths=["head"]), "head: the model has a Linear here"),
    "a path in a parameter": (table(0, paths=["user.weight"]), "user.weight: the model has no such module"),
    "padding_idx of no row": (table(0, padding_idx=N), f"'padding_idx' must be less than {N}"),
    "another padding_idx": (table(1, padding_idx=3), "padding_idx 0 in the model, 3 saved"),
    "a padding_idx": (table(0, padding_idx=3), "padding_idx None in the model, 3 saved"),
    "a bag's mode on an embedding": (table(0, mode="sum"), "user: an embedding of vectors in the model, of bags saved"),
    "no mode on a bag": (table(2, mode=None), "tags: an embedding of bags in the model, of vectors saved"),
    "another mode": (table(2, mode="max"), "tags: mode 'sum' in the model, 'max' saved"),
    "another offset": (table(2, include_last_offset=True), "include_last_offset False in the model, True saved"),
    "an offset of no bag": (table(0, include_last_offset=True), "false with no mode"),
    "an integer dtype": (table(0, dtype="int8"), "'dtype' must be one of"),
    "another torch name": (table(0, dtype="nn"), "'dtype' must be one of"),
    "a table of another size": (lambda m: _swap_files(m, 0, "dense"), "is missing|bytes|kind|size|not the file"),
    "an absolute file": (table(0, file="/etc/passwd"), "no file name that save_model gives"),
    "a file above": (table(0, file="../user.safetensors"), "no file name that save_model gives"),
    "a file in a folder": (table(0, file="a/user.safetensors"), "no file name that save_model gives"),
    "a file of a drive": (table(0, file="C:user.safetensors"), "no file name that save_model gives"),
    "another file": (table(0, file="other.safetensors"), "other.safetensors is missing"),
    "one file twice": (lambda m: m["tables"][0].update(m["tables"][1], paths=["user"]), "is there twice"),
    "an alias of nothing": (lambda m: m["dense"].update(aliases={"head.more": "nothing"}), "another name of 'nothing'"),
    "an alias of itself": (lambda m: m["dense"].update(aliases={"head.bias": "head.bias"}), "itself another name"),
    "an alias over a weight": (lambda m: m["dense"].update(aliases={"head.bias": "head.weight"}), "'head.bias' cannot"),
    "an alias of no weight": (lambda m: m["dense"].update(aliases={"more": "head.weight"}), "more: saved, but not in"),
    "a tie of a module": (
        lambda m: m.update(ties=[{"path": "head", "name": "forward", "table": "user"}]),
        r"head\.forward: was tied to user, but the model has no such parameter",
    ),
    "a tie of the model's forward": (
        lambda m: m.update(ties=[{"path": "", "name": "forward", "table": "user"}]),
        "forward: was tied to user, but the model has no such parameter",
    ),
    "a tie to no table": (
        lambda m: m.update(ties=[{"path": "head", "name": "weight", "table": "nobody"}]),
        "tied to 'nobody', which is no table's first path",
    ),
    "a tie of another shape": (
        lambda m: m.update(ties=[{"path": "head", "name": "weight", "table": "user"}]),
        r"head\.weight: shape \(1, 16\) in the model, and tied to user",
    ),
    "a tie of a table": (
        lambda m: m.update(ties=[{"path": "user", "name": "weight", "table": "user"}]),
        "'user' is a table or inside one",
    ),
    "a tie nowhere": (
        lambda m: m.update(ties=[{"path": "tail", "name": "weight", "table": "user"}]),
        "tail: no such module, whose weight was tied",
    ),
    "a tie with a path for a name": (
        lambda m: m.update(ties=[{"path": "", "name": "head.weight", "table": "user"}]),
        "no name of a parameter",
    ),
}


def _swap_files(manifest, number, other):
    for name in ("file", "nbytes", "checksum"):
        entries = manifest["tables"][number], manifest[other]
        entries[0][name], entries[1][name] = entries[1][name], entries[0][name]


@pytest.mark.parametrize("name", LIES)
def test_wrong_entries(ranker_folder, tmp_path, name):
    lie, message = LIES[name]
    refused(Ranker(), copy_changed(ranker_folder, tmp_path, lie), message)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda m: m["ties"][0].update(name="forward"), r"lm_head\.forward: was tied to embed"),
        (lambda m: m["ties"][0].update(name="__class__"), r"lm_head\.__class__: was tied to embed"),
        (lambda m: m["ties"][0].update(table="lm_head"), "'lm_head', which is no table's first path"),
        (lambda m: m["ties"].append(m["ties"][0]), "tied parameter 'lm_head.weight' is there twice"),
        (lambda m: m["ties"][0].update(path="embed"), "'embed' is a table or inside one"),
        (lambda m: m["ties"].clear(), r"lm_head\.weight: in the model, but not saved"),
        (lambda m: m["ties"][0].update(more=1), "unexpected config entries"),
        (lambda m: m["ties"][0].pop("table"), "no entry 'table'"),
        (lambda m: m.update(ties=[3]), "an entry of 'ties' must be an object"),
    ],
)
def test_wrong_ties(tied_folder, tmp_path, lie, message):
    refused(LanguageModel(), copy_changed(tied_folder, tmp_path, lie), message)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format":"mgqe-model","format":"mgqe-model"}', b"[" * 100_000, b"NaN"],
)
def test_files_that_are_not_manifests(ranker_folder, tmp_path, text):
    folder = copy_changed(ranker_folder, tmp_path, lambda manifest: None)
    (folder / "manifest.json").write_bytes(text)
    refused(Ranker(), folder, "manifest.json", ArtifactError)


def test_every_flipped_bit_of_a_manifest_is_seen(ranker_folder, tmp_path):
    folder = copy_changed(ranker_folder, tmp_path, lambda manifest: None)
    path = folder / "manifest.json"
    content, model = path.read_bytes(), Ranker()
    mgqe.load_model(Ranker(), folder)
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]
        )
        with pytest.raises((ArtifactError, TypeError)):
            mgqe.load_model(model, folder)


def test_an_edited_manifest_says_so(ranker_folder, tmp_path):
    folder = copy_changed(ranker_folder, tmp_path, lambda m: m.update({"class": "Other"}), sealed=False)
    refused(Ranker(), folder, "damaged or was edited: its checksum does not match", ArtifactError)


def test_a_wrong_entry_in_a_manifest_of_version_1_is_refused(tmp_path, old_folder):
    manifest = json.loads((old_folder / "manifest.json").read_text())
    manifest["tables"][0]["mode"] = "sum"
    (old_folder / "manifest.json").write_text(json.dumps(manifest))
    refused(Ranker(), old_folder, "user: an embedding of vectors in the model, of bags saved")


@pytest.fixture
def old_folder(ranker_folder, tmp_path):
    """The folder as version 1 wrote it: without checksums in the manifest."""

    def older(manifest):
        manifest["version"] = 1
        for entry in (*manifest["tables"], manifest["dense"], manifest):
            entry.pop("checksum", None)

    return copy_changed(ranker_folder, tmp_path / "old", older, sealed=False)


def test_folders_of_version_1_are_read(old_folder, ranker_folder):
    loaded = mgqe.load_model(Ranker(), old_folder)
    assert torch.equal(loaded(*batch()), mgqe.load_model(Ranker(), ranker_folder)(*batch()))
