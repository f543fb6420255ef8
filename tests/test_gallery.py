"""The notebooks of docs/gallery run from the first cell to the last, and are stored without outputs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "gallery").glob("*.ipynb"))
PICTURES = {"train": 3, "compress": 4, "serve": 1}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert all(len("".join(cell["source"]).splitlines()) <= 25 for cell in code), "cells are short"
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (path.parent / target).is_file(), target
    assert f"gallery/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    for package in ("ipykernel", "matplotlib", "rich", "polars"):
        pytest.importorskip(package)
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # for %%sh
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.resources = {"metadata": {"path": str(tmp_path)}}
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[path.stem]
    told = "".join(output.text for output in outputs if output.get("name") == "stderr")
    # Work that takes more than five seconds here says how far it is.
    assert not [line for line in told.splitlines() if not re.fullmatch(r"mgqe: \w+, .* (of|done).*, \d+ s", line)], told
