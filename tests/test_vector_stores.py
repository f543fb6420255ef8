"""docs/vector_stores.md: its blocks run where their package is installed, and its figures are those of the script."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "vector_stores.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
PACKAGES = {"faiss": ("faiss",), "usearch": ("usearch",), "LanceDB": ("lancedb",), "DuckDB": ("duckdb", "pyarrow")}


def run(title, names):
    (section,) = [section for section in SECTIONS if section.startswith(f"{title}\n")]
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(block, f"docs/vector_stores.md, {title}", "exec"), names)


@pytest.mark.parametrize("title", PACKAGES)
def test_a_section_runs(title, tmp_path, monkeypatch):
    for package in PACKAGES[title]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install {package}")
    monkeypatch.chdir(tmp_path)
    names = {}
    run("A table", names)
    run(title, names)
    if title in ("LanceDB", "DuckDB"):
        assert all(row % 100 < 20 for row in names["hits"].ids.tolist())


def test_all_sections_of_stores_are_run():
    with_code = {section.partition("\n")[0] for section in SECTIONS if "```python" in section}
    assert with_code == {"A table", *PACKAGES}


def test_the_figures_are_those_of_the_script():
    path = ROOT / "benchmarks" / "quality" / "results" / "vector-stores.json"
    for record in json.loads(path.read_text())["records"]:
        row = [record["store"], record["what"], f"{record['bytes']:,}"]
        row += [f"{100 * record['share']:.1f}%", f"{record['recall@10']:.3f}"]
        assert f"| {' | '.join(row)} |" in PAGE
