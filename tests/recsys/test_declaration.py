"""A study's declaration: what it says is run, and what is wrong in it is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

from mgqe.recsys.study.declaration import read_declaration

GOOD = """
title = "two pairs"
seeds = [1, 2]
[settings]
dim = 16
[pairs.gmf]
model = "gmf"
data = "planted"
[pairs.seq]
title = "SASRec, planted"
model = "sasrec"
data = "planted"
seeds = [1, 2, 3]
settings = { max_length = 20 }
[[methods]]
name = "MGQE"
budgets = { 10 = ["mgqe:D=8,K=16/8", "mgqe:D=4,K=16/8@quantised_epochs=2"], "5.5" = ["mgqe:D=4,K=16/8"] }
[[methods]]
name = "MGQE"
pairs = ["seq"]
seeds = 1
budgets = { 10 = ["mgqe:D=16,K=4/2"] }
[[methods]]
name = "small d"
pairs = ["gmf"]
budgets = { 20 = ["full:d=3"] }
[[ablations]]
name = "centroids"
pairs = ["gmf"]
seeds = 1
embeddings = { 8 = "mgqe:K=16/8,D=8", 4 = "mgqe:D=8,K=16/4" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_declaration_becomes_runs(tmp_path: Path) -> None:
    declaration = read_declaration(write(tmp_path, GOOD), data_dir="somewhere")
    assert declaration.method_names == ["MGQE", "small d"]
    config = declaration.pairs["seq"].config
    assert (config.task, config.max_length, config.dim, config.eval_negatives) == ("sequential", 20, 16, 100)
    assert config.data_dir == "somewhere"
    assert declaration.candidates("seq", "MGQE")[10.0] == (
        "mgqe:D=8,K=16/8",
        "mgqe:D=4,K=16/8@quantised_epochs=2",
        "mgqe:D=16,K=4/2",
    )
    assert set(declaration.candidates("gmf", "MGQE")) == {10.0, 5.5}
    runs = [(pair.name, run.config.seed, run.config.label or run.config.embedding) for pair, run in declaration.runs()]
    assert len(set(runs)) == len(runs)
    assert runs[:2] == [("gmf", 1, "full"), ("seq", 1, "full")]  # what makes the warm-ups first
    # The ablation's K=16/8 is the method's, written the other way round: one run.
    assert sorted(name for pair, seed, name in runs if (pair, seed) == ("gmf", 1)) == sorted(
        ["full", "mgqe:D=8,K=16/8", "mgqe:D=4,K=16/8@quantised_epochs=2", "mgqe:D=4,K=16/8", "full:d=3",
         "mgqe:D=8,K=16/4"]
    )  # fmt: skip
    # seeds = 1: with the first seed alone; seeds in order, so that an early end leaves whole ones.
    assert [seed for pair, seed, name in runs if name == "mgqe:D=16,K=4/2"] == [1]
    assert [seed for _, seed, _ in runs] == sorted(seed for _, seed, _ in runs)
    assert {seed for pair, seed, _ in runs if pair == "seq"} == {1, 2, 3}
    assert all(run.folder.startswith(f"runs/{pair.name}/") for pair, run in declaration.runs())
    assert len({run.folder for _, run in declaration.runs()}) == len(runs)
    chosen = declaration.runs(pairs=["seq"], seeds=[3])
    assert {(pair.name, run.config.seed) for pair, run in chosen} == {("seq", 3)}


BAD = {
    "unknown entry": (GOOD.replace("axis", "x").replace("title =", "titel =", 1), "no entry 'titel' (did you mean"),
    "unknown model": (GOOD.replace('"gmf"', '"gmff"', 1), "no model 'gmff' (did you mean 'gmf'?)"),
    "unknown setting": (GOOD.replace("max_length", "max_lenght"), "pairs.seq: expected NAME=VALUE with NAME one of"),
    "unknown embedding": (GOOD.replace("mgqe:D=16", "mgq:D=16"), "no embedding 'mgq' (did you mean 'mgqe'?)"),
    "unknown option": (GOOD.replace("D=8,K=16/4", "D=8,Kk=16/4"), "no option 'Kk'"),
    "unknown pair": (GOOD.replace('pairs = ["seq"]', 'pairs = ["sec"]'), "no pair 'sec' (did you mean 'seq'?)"),
    "a budget in words": (GOOD.replace('"5.5" =', "small ="), "a budget is a per cent such as 10, got 'small'"),
    "a budget of nothing": (GOOD.replace('"5.5" =', "0 ="), "a budget is a per cent such as 10, got '0'"),
    "a budget of more than all": (GOOD.replace('"5.5" =', "200 ="), "a budget is a per cent such as 10, got '200'"),
    "a budget that is no number": (GOOD.replace('"5.5" =', "nan ="), "a budget is a per cent such as 10, got 'nan'"),
    "an embedding's budget in words": (
        GOOD.replace("mgqe:D=16,K=4/2", "mgqe:budget=lots"),
        "embedding mgqe:budget=lots: budget=lots: a budget is",
    ),
    "a baseline's budget in words": (
        GOOD.replace("full:d=3", "lowrank:budget=lots"),
        "embedding lowrank:budget=lots: budget=lots: a budget is",
    ),
    "no candidates": (GOOD.replace('["full:d=3"]', "[]"), "must have a list of embeddings"),
    "the same seed twice": (GOOD.replace("[1, 2, 3]", "[1, 1]"), "expected each seed once"),
    "seeds in words": (GOOD.replace("[1, 2, 3]", '["one"]'), "seeds must be a list of whole numbers"),
    "no model": (GOOD.replace('model = "sasrec"', ""), "pairs.seq: model is missing"),
    "not TOML": ("title = ", "not a TOML file"),
    "no pairs": ("title = 'x'", "pairs is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        read_declaration(write(tmp_path, text))
    assert message in str(caught.value)
    assert "study.toml" in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.toml: cannot be read"):
        read_declaration(tmp_path / "none.toml")


def test_the_committed_study_is_sound() -> None:
    declaration = read_declaration(ROOT / "studies/paper/study.toml")
    assert len(declaration.pairs) >= 6
    assert {20.0, 10.0, 5.0, 2.0} <= set(declaration.candidates("sasrec-games", "MGQE"))


def test_the_study_of_one_budget_chooses_nothing_by_hand() -> None:
    declaration = read_declaration(ROOT / "studies/budget/study.toml")
    assert len(declaration.method_names) == 16
    for name in declaration.method_names:
        for budget, listed in declaration.candidates("gmf-ml-1m", name).items():
            more = ",factors=64" if name == "RecJPQ, 64 factors" else ""  # which is what that method is
            options = {text.partition("@")[0].partition(":")[2].removesuffix(",stored=float16") for text in listed}
            assert options == {f"budget={budget:g}%{more}"}
    assert {20.0, 10.0, 5.0, 2.0} == set(declaration.candidates("lightgcn-beauty", "SVD"))
    assert not declaration.candidates("lightgcn-beauty", "hashing")  # which has no rows for LightGCN to keep


def test_the_study_of_one_budget_has_the_models_that_papers_begin_with() -> None:
    declaration = read_declaration(ROOT / "studies/budget/study.toml")
    models = {pair.config.model for pair in declaration.pairs.values()}
    assert {"gmf", "mf", "lightgcn", "sasrec", "wide_deep", "deepfm", "dcn_v2"} <= models
    for name, data in {"bpr-mf-ml-1m-split": "ml-1m-split", "dcn-v2-frappe": "frappe"}.items():
        assert declaration.pairs[name].config.data == data
        listed = {method: set(declaration.candidates(name, method)) for method in declaration.method_names}
        assert {method: budgets for method, budgets in listed.items() if budgets} == {
            "MGQE": {20.0, 10.0, 5.0, 2.0}, "DPQ": {5.0, 2.0}, "PQ": {5.0, 2.0},
        }  # fmt: skip
        assert len(declaration.runs([name], [1])) == 9  # with the full tables
    config = declaration.pairs["bpr-mf-ml-1m-split"].config
    assert (config.loss, config.negatives) == ("bpr", 1)
    dcn, deepfm = (declaration.pairs[name].config for name in ("dcn-v2-frappe", "deepfm-frappe"))
    assert replace(dcn, model="deepfm") == deepfm  # the settings tuned for DeepFM, as docs/reference_points.md has them


def test_methods_that_train_from_the_beginning_are_tuned_alike() -> None:
    declaration = read_declaration(ROOT / "studies/budget/study.toml")
    for name in ("small d", "RecJPQ", "CCE", "low rank", "hashing", "quotient-remainder"):
        for pair in ("gmf-ml-1m", "wide-deep-frappe"):
            for listed in declaration.candidates(pair, name).values():
                assert {text.partition("@")[2] for text in listed} == {"", "learning_rate=1e-2,patience=15"}
    for name in ("SVD", "small d", "low rank"):
        for pair in declaration.pairs:
            for listed in declaration.candidates(pair, name).values():
                assert any("stored=float16" in text for text in listed)
