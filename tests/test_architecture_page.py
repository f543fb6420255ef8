"""docs/architecture.md shows the floors of test_architecture.py, and names files and functions that exist."""

from __future__ import annotations

import re
import runpy

import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = re.findall(r"^\d+\. `([\w./]+)`: `([\w.]+)`", PAGE, re.MULTILINE)


def test_the_page_and_its_picture_show_the_floors():
    floors = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))["FLOORS"]
    drawing = runpy.run_path(str(ROOT / "docs" / "site" / "architecture.py"))
    building = drawing["floors"](PAGE)
    shown = [sorted("" if name == "mgqe" else name for name, _ in packages) for packages in building]
    assert shown == [sorted(packages) for packages in floors]
    remedy = "the picture is another one: python docs/site/architecture.py draws it"
    assert drawing["PICTURE"].read_text(encoding="utf-8") == drawing["draw"](building), remedy


@pytest.mark.parametrize(("file", "name"), WALKS)
def test_the_page_names_functions_that_exist(file, name):
    text = (ROOT / "src" / "mgqe" / file).read_text(encoding="utf-8")
    for part in name.split("."):
        assert re.search(rf"\b(def|class|int32_t|Tile) {part}\b", text), f"{file} has no {part}"
