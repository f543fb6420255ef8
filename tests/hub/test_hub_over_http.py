"""push_to_hub and from_pretrained with the real huggingface_hub, which talks HTTP to a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import hub_server
import pytest

PUSH = """
import sys, torch, mgqe
rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
items = mgqe.Collection(mgqe.compress_table(rows, "40%"), [f"item-{i}" for i in range(500)])
print(mgqe.push_to_hub(items, "me/items", token="hf_secret", private=True, budget="40%"))
print(mgqe.push_to_hub(items, "me/items", token="hf_secret", commit_message="again"))
again = mgqe.from_pretrained("me/items", token="hf_secret")
assert torch.equal(again.lookup(["item-17", "item-3"]), items.lookup(["item-17", "item-3"]))
assert again.neighbours("item-17", 3).ids == items.neighbours("item-17", 3).ids
assert torch.equal(mgqe.from_pretrained("me/items", local_files_only=True).lookup("item-3"), items.lookup("item-3"))
"""
REFUSED = """
import sys, torch, mgqe
table = mgqe.compress_table(torch.randn(500, 16), "40%")
for call in (
    lambda: mgqe.from_pretrained("me/nothing"),
    lambda: mgqe.push_to_hub(table, "me/items", token="hf_wrong"),
    lambda: mgqe.from_pretrained("no/good/name"),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""


def client(source: str, address: str, home: object) -> list[str]:
    """What a program prints, whose hub is at an address and has a cache of its own."""
    env = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: requirements-third-party.txt")
    with hub_server.running() as made:
        yield made


def test_a_collection_goes_up_and_comes_down(hub, tmp_path):
    urls = client(PUSH, hub.address, tmp_path)
    assert [url.partition("/commit/")[0] for url in urls] == [f"{hub.address}/me/items"] * 2
    assert hub.messages == ["Upload Collection", "again"]
    assert hub.private == {"me/items": True}
    files = hub.repos["me/items"]
    kinds = sorted(name.split(".")[0] if name.endswith(".safetensors") else name for name in files)
    assert kinds == ["README.md", "ids", "mgqe-collection.json", "table"]  # the files of the first upload are gone
    assert b'from_pretrained("me/items")' in files["README.md"]


def test_what_the_hub_refuses_is_said(hub, tmp_path):
    missing, wrong, no_name = client(REFUSED, hub.address, tmp_path)
    assert missing.startswith("FileNotFoundError")
    assert "the hub has no such repository" in missing
    assert wrong.startswith("OSError me/items: the hub refused: ")
    assert "401" in wrong
    assert "it is no name of the hub" in no_name
    assert hub.repos == {}


def test_a_hub_that_is_not_there(tmp_path):
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: requirements-third-party.txt")
    with hub_server.running() as gone:
        address = gone.address
    missing, push, _ = client(REFUSED, address, tmp_path)
    assert missing.startswith("ConnectionError me/nothing: the hub cannot be reached")
    assert "hf download me/nothing --local-dir FOLDER" in missing
    assert push.startswith("ConnectionError me/items: the hub cannot be reached")
