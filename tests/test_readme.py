"""The README's code runs as printed, and its commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
from typing import Any

import pytest
from paths import ROOT

import mgqe
from mgqe import ops

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert "bytes of 25,600,000" in capsys.readouterr().out


def test_the_start_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
    exec(compile(block, "docs/index.md", "exec"), {})
    assert "bytes of 25,600,000" in capsys.readouterr().out
    assert (tmp_path / "items.safetensors").is_file()


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: mgqe\.(\w+)$", page, re.MULTILINE)) == sorted(mgqe.__all__)
    baselines = re.findall(r"^::: mgqe\.baselines\.(\w+)$", page, re.MULTILINE)
    assert sorted(baselines) == sorted(mgqe.baselines.__all__)


def test_the_page_on_new_ids_runs(tmp_path, monkeypatch):
    """Its blocks continue each other."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "new_ids.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/new_ids.md", "exec"), names)
    assert names["ids"].tolist() == [1000, 1001, 1002, 1003, 1004]
    assert names["table"].num_embeddings == 1105
    assert [file.name for file in tmp_path.iterdir()] == ["items.safetensors"]
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def run_page(name: str, *optional: str) -> tuple[str, dict[str, Any]]:
    """A page of docs and the names that its Python blocks leave, which continue each other.

    optional: packages; blocks that import one are left out where it is not installed.
    """
    page = (ROOT / "docs" / name).read_text()
    names: dict[str, Any] = {}
    left_out = [package for package in optional if not importlib.util.find_spec(package)]
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if not any(f"import {package}" in block for package in left_out):
            exec(compile(block, f"docs/{name}", "exec"), names)
    return page, names


def test_the_page_on_serving_runs(tmp_path, monkeypatch):
    """Its blocks continue each other."""
    monkeypatch.chdir(tmp_path)
    if not ops.native_available():
        pytest.skip("the page forces an instruction set of the kernels")
    page, names = run_page("serving.md", "faiss")
    assert names["ids"].shape == (2, 10)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_logs_of_clicks_runs(capsys):
    pytest.importorskip("polars")
    page, _ = run_page("click_logs.md")
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}" in page
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_hubs_runs(tmp_path, monkeypatch):
    """Its blocks continue each other. What loggers keep of it is read back, where they are installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a data base needs more packages
    monkeypatch.setenv("WANDB_SILENT", "true")
    _, names = run_page("integrations.md", "lightning", "mlflow", "wandb")
    assert "item-17" not in names["hits"].ids
    assert "| recall@10 against the full matrix | 0." in (tmp_path / "items" / "README.md").read_text()
    if "mlflow" in names:
        (kept,) = (tmp_path / "mlruns").glob("*/*/metrics/mgqe/item/quantizing")
        assert [line.split()[1:] for line in kept.read_text().splitlines()] == [
            [str(float(step >= 20)), str(step)] for step in (0, 10, 20, 30, 40)
        ]
        assert list((tmp_path / "mlruns").glob("*/*/artifacts/items/README.md"))
    if "wandb" in names:
        (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
        assert b"mgqe/item/quantization_loss" in kept.read_bytes()


def test_the_page_on_reading_without_torch_runs(tmp_path, monkeypatch):
    """Its blocks continue each other."""
    monkeypatch.chdir(tmp_path)
    if not ops.native_available():
        pytest.skip("the reader is in the compiled library")
    page, names = run_page("reader.md")
    assert names["rows"].shape == (2, 32)
    assert len(names["hits"].ids[1]) == 10
    assert names["ids"].shape == (2, 3)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_matrices_runs(tmp_path, monkeypatch, capsys):
    """Its blocks continue each other."""
    monkeypatch.chdir(tmp_path)
    _, names = run_page("compress.md")
    assert "shoe-17" not in [one for ids in names["hits"].ids for one in ids]
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_page_on_conversion_runs(tmp_path, monkeypatch, capsys):
    """Its blocks continue each other."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "convert.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"^ *```python\n(.*?)```", page, re.DOTALL | re.MULTILINE):
        if "import polars" not in block or importlib.util.find_spec("polars"):
            exec(compile(textwrap.dedent(block), "docs/convert.md", "exec"), names)
    shown = re.search(r"^```text\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert shown is not None
    assert capsys.readouterr().out == shown[1]
    assert int(names["total"].sum()) == 10_000
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_export_runs(tmp_path, monkeypatch):
    """Its blocks continue each other."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "export.md").read_text()
    names: dict[str, Any] = {}
    onnx = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "onnx" not in block or onnx:
            exec(compile(block, "docs/export.md", "exec"), names)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_large_tables_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "large_tables.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/large_tables.md", "exec"), names)
    assert names["mgqe"].load("items.safetensors").num_embeddings == names["N"]
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_budgets_runs(capsys):
    """Its blocks continue each other."""
    page = (ROOT / "docs" / "plan.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/plan.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "mgqe.MGQEmbedding(5000, 32, tiers=" in shown
    assert "1 of 2 compressed" in shown
    assert names["plan"].nbytes <= 32_000
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", re.sub(r"```.*?```", "", page, flags=re.DOTALL)):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_page_on_own_methods_runs(monkeypatch, capsys):
    """Its class is that of the example, which is within the 40 lines that the page promises."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    run_page("add_a_method.md")
    assert capsys.readouterr().out == "5.2% of the bytes\n{'num_subspaces': 32}\n"
    assert len((ROOT / "examples" / "own_method.py").read_text().splitlines()) <= 40


def test_the_page_on_gpus_runs():
    run_page("gpu.md")


def test_the_page_on_large_logs_runs(tmp_path, monkeypatch, capsys):
    """Its blocks continue each other; what it shows of an error is what is printed."""
    pytest.importorskip("polars")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "large_logs.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/large_logs.md", "exec"), names)
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert capsys.readouterr().out.endswith(shown[1])
    assert len(names["names"]) == 5
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).is_file(), target


def test_make_targets_and_files_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/workflows/*.yml")]
    commands = {name for page in pages for name in re.findall(r"(?:^|`|run: )make ([a-z-]+)", page.read_text(), re.M)}
    matrix = re.findall(r"target: ([a-z-]+)", (ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert {"demo", "test-lowest", "docs", "fuzz"} <= commands | set(matrix) <= targets
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (ROOT / target).is_file(), f"{page.name}: {target}"


def test_the_method_of_the_page_gets_on_the_leaderboard(monkeypatch, tmp_path):
    """Its block at the end of the declaration, and its class beside the example: its runs alone are pending."""
    pytest.importorskip("polars")
    from mgqe.recsys.study.declaration import read_declaration
    from mgqe.recsys.study.runs import pending_runs

    page = (ROOT / "docs" / "add_a_method.md").read_text()
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(tmp_path))
    budgeted = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Budgeted" in block)
    (tmp_path / "budgeted.py").write_text(f"from own_method import RandomCodes\n{budgeted}")
    block = textwrap.dedent(re.search(r"(?:^    .*\n)*^    \[\[methods\]\]\n(?:^    .*\n)*", page, re.MULTILINE)[0])
    folder = ROOT / "studies" / "budget"
    (tmp_path / "study.toml").write_text((folder / "study.toml").read_text() + block)
    study = read_declaration(tmp_path / "study.toml")
    runs = pending_runs(study, folder, methods=[study.method_names[-1]])
    pending = sorted((pair.name, run.config.seed, run.config.name) for pair, run in runs.pending)
    pairs = ("gmf-ml-1m", "sasrec-ml-1m", "wide-deep-frappe")
    methods = ("budgeted.Budgeted:budget=10%", "budgeted.Budgeted:budget=5%", "own_method.RandomCodes:num_subspaces=8")
    assert [run for run in pending if run[2] != "full"] == [(pair, 1, name) for pair in pairs for name in methods]


def test_commands_are_understood():
    """Those of all pages and examples have known options, and those that they need."""
    pytest.importorskip("typer")
    from typer.main import get_command

    from mgqe.cli.app import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    number = 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")]:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ *(?:cd [\w/.]+ && )?mgqe ([a-z]+ .+)$", text, re.MULTILINE):
            name, *arguments = shlex.split(line, comments=True)
            number += 1
            try:
                known[name].make_context(name, arguments)
            except Exception as error:
                raise AssertionError(f"{page.name}: mgqe {line}: {error}") from error
    assert number > 60
