"""Folders with cards, and a hub that is a folder: huggingface_hub's functions are replaced, no network is needed."""

from __future__ import annotations

import os
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import mgqe

N, D = 500, 16
ROWS = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
NAMES = [f"item-{i}" for i in range(N)]


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(2000, D)
        self.out = nn.Linear(D, 2000, bias=False)
        self.out.weight = self.item.weight

    def forward(self, ids):
        return self.out(self.item(ids))


@pytest.fixture(scope="module")
def table():
    return mgqe.compress_table(ROWS, "40%")


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Ranker()
    mgqe.compress_(made, init="from_weight")
    mgqe.freeze_(made)
    return made


class HFValidationError(ValueError):
    pass


class HfHubHTTPError(OSError):
    pass


class RepositoryNotFoundError(HfHubHTTPError):
    pass


class LocalEntryNotFoundError(HfHubHTTPError):
    """As in huggingface_hub 0.36; in 2.4 a FileNotFoundError of no HTTP."""


class TransportError(Exception):
    """As the HTTP library's."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder. ``fails`` is an error that it raises instead; ``calls`` are those that changed it."""
    root = tmp_path / "hub"
    state = SimpleNamespace(root=root, fails=None, calls=[])

    def answer():
        if state.fails is not None:
            raise state.fails

    class HfApi:
        def __init__(self, token=None):
            state.calls.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            answer()
            assert exist_ok
            state.calls.append(("create", repo_id, private))
            (root / repo_id).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, delete_patterns, revision, commit_message, create_pr):
            answer()
            for old in (root / repo_id).glob(delete_patterns):
                old.unlink()
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            state.calls.append(("upload", commit_message, revision, create_pr))
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(name, *, revision, token, cache_dir, local_files_only):
        answer()
        cache = tmp_path / "cache" / name / str(revision)
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        for file in (root / name).iterdir():  # the hub's cache has links
            (cache / file.name).symlink_to(file)
        return str(cache)

    package, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    package.HfApi, package.snapshot_download, package.errors = HfApi, snapshot_download, errors
    for error in (HFValidationError, HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError):
        setattr(errors, error.__name__, error)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return state


def file_bytes(folder) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def test_a_table_comes_back(table, tmp_path):
    assert mgqe.save_pretrained(table, tmp_path / "items") == file_bytes(tmp_path / "items")
    assert mgqe.from_pretrained(tmp_path / "items").equal(table)
    mgqe.save_pretrained(mgqe.CompactEmbedding(table), tmp_path / "items")  # over it
    assert mgqe.from_pretrained(str(tmp_path / "items")).equal(table)


def test_a_collection_comes_back(table, tmp_path):
    items = mgqe.Collection(table, NAMES)
    assert mgqe.save_pretrained(items, tmp_path / "items") == file_bytes(tmp_path / "items")
    mgqe.save_pretrained(items, tmp_path / "items")
    again = mgqe.from_pretrained(tmp_path / "items")
    assert torch.equal(again.lookup(["item-17"]), items.lookup(["item-17"]))
    assert mgqe.verify(tmp_path / "items").damage == ()


def test_a_model_comes_back(model, tmp_path):
    assert mgqe.save_pretrained(model, tmp_path / "ranker") == file_bytes(tmp_path / "ranker")
    again = mgqe.from_pretrained(tmp_path / "ranker", model=Ranker())
    assert torch.equal(again(torch.arange(9)), model(torch.arange(9)))
    with pytest.raises(ValueError, match=r"holds a model of class Ranker: give an instance.*model=Ranker\(\.\.\.\)"):
        mgqe.from_pretrained(tmp_path / "ranker")


def test_the_card_says_what_is_known(table, tmp_path):
    mgqe.save_pretrained(
        mgqe.Collection(table, NAMES),
        tmp_path / "shoes",
        description="Shoes | boots.",
        budget="40%",
        metric="inner products with users",
        figures={"recall@10": 0.93, "a|b": "n/a"},
        license="apache-2.0",
        tags=["retail"],
    )
    card = (tmp_path / "shoes" / "README.md").read_text(encoding="utf-8")
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    tags = ["tags:", "- mgqe", "- embeddings", "- quantization", "- retail"]
    assert head.splitlines() == ["library_name: mgqe", "license: apache-2.0", *tags]
    assert body.startswith("\n# shoes\n\nShoes | boots.\n")
    assert f"in {table.nbytes:,} bytes. As float32 they would take 32,000" in body
    assert f"| vectors | 500 x 16 | 32,000 | {table.nbytes:,} |" in body
    assert "The budget was 40%, spent by inner products with users." in body
    assert "| recall@10 | 0.93 |\n| a\\|b | n/a |" in body
    assert 'items.lookup(["item-0", "item-1"])' in body


@pytest.mark.parametrize("ids", ["none", "rows", NAMES, list(range(7, N + 7))], ids=["table", "rows", "text", "ints"])
def test_the_code_on_the_card_runs(table, ids, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = table if ids == "none" else mgqe.Collection(table, None if ids == "rows" else ids)
    mgqe.save_pretrained(thing, "items")
    card = (tmp_path / "items" / "README.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["vectors"].shape[1] == D
    assert "budget" not in card
    assert "Figures" not in card


def test_push_and_pull(table, model, hub):
    url = mgqe.push_to_hub(mgqe.Collection(table, NAMES), "me/items", private=True, token="secret", budget="40%")
    assert url == "https://hub/me/items/commit/1"
    assert hub.calls == [("token", "secret"), ("create", "me/items", True), ("upload", "Upload Collection", None, None)]
    mgqe.push_to_hub(mgqe.Collection(table, NAMES), "me/items", commit_message="again")
    assert len(list((hub.root / "me/items").glob("*.safetensors"))) == 2  # the files of the first are gone
    card = (hub.root / "me/items/README.md").read_text(encoding="utf-8")
    assert "# items\n" in card
    assert 'from_pretrained("me/items")' in card
    assert mgqe.from_pretrained("me/items").neighbours("item-3", 2).ids
    mgqe.push_to_hub(model, "me/ranker", revision="v2", create_pr=True)
    assert hub.calls[-1] == ("upload", "Upload Ranker", "v2", True)
    loaded = mgqe.from_pretrained("me/ranker", model=Ranker(), revision="v2")
    assert torch.equal(loaded(torch.arange(9)), model(torch.arange(9)))


@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        (LocalEntryNotFoundError("no route\nmore"), ConnectionError, r"cannot be reached \(no route\): .*hf download"),
        (TransportError("no name"), ConnectionError, r"cannot be reached \(no name\)"),
        (ConnectionError("refused"), ConnectionError, r"cannot be reached \(refused\)"),
        (RepositoryNotFoundError("404"), FileNotFoundError, "has no such repository.*hf auth login"),
        (HfHubHTTPError("500 busy"), OSError, "me/items: the hub refused: 500 busy"),
        (HFValidationError("bad"), FileNotFoundError, "no name of the hub"),
        (KeyError("a fault of another kind"), KeyError, "another kind"),
    ],
)
def test_a_hub_that_cannot_answer(hub, fails, kind, message):
    hub.fails = fails
    with pytest.raises(kind, match=message):
        mgqe.from_pretrained("me/items")


def test_an_upload_that_fails_says_what_to_do(hub, table):
    hub.fails = TransportError("no name")
    with pytest.raises(ConnectionError, match=r"me/items: the hub cannot be reached.*save_pretrained.*hf upload"):
        mgqe.push_to_hub(table, "me/items")


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "~/items", "a\\b"])
def test_a_path_that_is_not_there_is_never_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="no such folder, and it is no name of the hub"):
        mgqe.from_pretrained(name)


def test_without_huggingface_hub(monkeypatch, table):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"'me/items' is no folder here, and the hub needs .*install 'mgqe\[hub\]'"):
        mgqe.from_pretrained("me/items")
    with pytest.raises(ImportError, match=r"push_to_hub needs .*install 'mgqe\[hub\]'"):
        mgqe.push_to_hub(table, "me/items")


@pytest.mark.parametrize(
    ("thing", "kind", "message"),
    [
        (lambda: mgqe.DPQEmbedding(N, D), ValueError, "a DPQEmbedding trains: give what its freeze"),
        (lambda: nn.Sequential(mgqe.DPQEmbedding(N, D)), ValueError, "0: not frozen yet, call mgqe.freeze_"),
        (Ranker, ValueError, "Ranker has no frozen table in it"),
        (lambda: ROWS, TypeError, "expected a frozen table, a Collection or a model, got Tensor"),
    ],
)
def test_other_things_are_refused(thing, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        mgqe.save_pretrained(thing(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_other_folders_are_refused(table, model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other files \(notes\.txt\)"):
        mgqe.save_pretrained(table, tmp_path)
    with pytest.raises(mgqe.ArtifactError, match=r"holds nothing that mgqe\.save_pretrained writes"):
        mgqe.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(mgqe.ArtifactError, match="not the configuration of a transformers model"):
        mgqe.from_pretrained(tmp_path)
    mgqe.save_pretrained(table, tmp_path / "table")
    with pytest.raises(ValueError, match="leave model= out"):
        mgqe.from_pretrained(tmp_path / "table", model=model)
    with pytest.raises(TypeError, match="a card has no entry 'budgt'"):
        mgqe.save_pretrained(table, tmp_path / "table", budgt="5%")


def test_converted_transformers_models(tmp_path):
    transformers = pytest.importorskip("transformers", "5.0", reason="needs transformers: requirements-third-party.txt")
    config = transformers.GPT2Config(vocab_size=2000, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    mgqe.compress_(model, init="from_weight")
    with pytest.raises(ValueError, match="not frozen yet"):
        mgqe.save_pretrained(model, tmp_path / "gpt2")
    mgqe.freeze_(model)
    mgqe.save_pretrained(model, tmp_path / "gpt2")
    again = mgqe.from_pretrained(tmp_path / "gpt2")
    assert torch.equal(again(torch.arange(5)[None]).logits, model(torch.arange(5)[None]).logits)
    assert "A GPT2LMHeadModel with frozen embeddings" in (tmp_path / "gpt2" / "README.md").read_text(encoding="utf-8")


def test_the_card_names_a_folder_as_it_is(tmp_path, model):
    folder = tmp_path / "clothing (1)"
    mgqe.save_pretrained(mgqe.DPQEmbedding(40, 8).freeze(), folder)
    text = (folder / "README.md").read_text()
    assert f"table = mgqe.from_pretrained({str(folder)!r})".replace("'", '"') in text
    mgqe.save_pretrained(model, tmp_path / "some thing (2)")
    text = (tmp_path / "some thing (2)" / "README.md").read_text()
    assert f'model = mgqe.from_pretrained("{tmp_path / "some thing (2)"}", model=Ranker(...))  #' in text
