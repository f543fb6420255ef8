"""Embeddings of classes that are not the library's: named by module and class, trained and counted like the others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgqe.recsys.models.embeddings import Spec, build, cut_to_tiers
from mgqe.recsys.models.methods import import_methods, own_modules

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--set", "max_epochs=2", "--set", "dim=8", "--set", "anneal_epochs=0", "--threads", "1")


@pytest.fixture(autouse=True)
def in_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_method", raising=False)


def test_a_class_is_named_by_its_module() -> None:
    text = "own_method.RandomCodes:num_subspaces=2,num_centroids=4"
    assert own_modules([text, "mgqe:budget=5.5%", "own_method.RandomCodes@dropout=0.5"]) == ("own_method",)
    import_methods([text])
    spec = Spec.parse(text)
    assert spec.method.kind == "trained"
    layer = build(spec, "item", 20, 8, torch.arange(20), 0.1, seed=3)
    ids = torch.arange(20).view(4, 5)
    assert float(layer(ids).detach().std()) == pytest.approx(0.1, abs=1e-6)
    assert torch.equal(layer.freeze().lookup(ids), layer(ids).detach())
    assert layer.codes.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("own_method.RandomCodes", ""),  # whose own default is 64, however few ids there are
        ("own_method.RandomCodes:num_centroids=64", "item table: K=64 is cut to 32, since its tiers have 40 ids"),
    ],
)
def test_its_own_default_of_centroids_is_not_cut(text: str, note: str) -> None:
    import_methods([text])
    assert cut_to_tiers(Spec.parse(text), "item", 40, 8, torch.arange(40))[1] == note


def test_what_is_no_such_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no module .nowhere.*expected nowhere\.py in the working folder"):
        import_methods(["nowhere.Layer"])
    with pytest.raises(ValueError, match="own_method is not imported: write `import own_method`"):
        Spec.parse("own_method.RandomCodes")
    assert "own_method" not in sys.modules  # a description alone imports nothing
    import_methods(["own_method.RandomCodes"])
    with pytest.raises(ValueError, match=r"expected a subclass of nn.Module with a freeze\(\), got None"):
        Spec.parse("own_method.Other")
    with pytest.raises(ValueError, match="no option 'K': expected d, num_centroids, num_subspaces, seed"):
        Spec.parse("own_method.RandomCodes:K=4")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_it_is_compared_with_the_others(tmp_path: Path, jobs: str) -> None:
    command = [sys.executable, "-m", "mgqe.cli", "compare", "--seeds", "1", "--jobs", jobs]
    listed = ("--embedding", "full", "--embedding", "own_method.RandomCodes:num_subspaces=2")
    command += ["--out", str(tmp_path / "out"), *SMALL, *listed]
    subprocess.run(command, check=True, cwd=EXAMPLES, capture_output=True, text=True)
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    records = {record["embedding"]: record for record in map(json.loads, lines)}
    full, own = records["full"], records["own_method.RandomCodes:num_subspaces=2"]
    assert own["embedding_bytes"] < 0.5 * full["embedding_bytes"]
