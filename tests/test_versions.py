"""constraints-lowest.txt, on which `make test-lowest` runs, says what pyproject.toml does."""

from __future__ import annotations

import re
import sys

import pytest
from paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def lower_bounds() -> dict[str, str]:
    """Name and lower bound of everything that users of mgqe or of its extras install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = sum((extras[name] for name in ("cli", "recsys", "faiss", "onnx", "serve")), project["dependencies"])
    return dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines if line != "mgqe[cli]")


def test_the_lowest_releases_are_those_of_pyproject():
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE)
    pinned = {name: re.sub(r"(\.0)+$", "", version) for name, version in pins}
    assert {name: pinned.get(name) for name in lower_bounds()} == {
        name: re.sub(r"(\.0)+$", "", version) for name, version in lower_bounds().items()
    }


def test_the_reader_has_the_version_of_mgqe():
    mgqe, reader = (
        tomllib.loads((ROOT / name).read_text())["project"] for name in ("pyproject.toml", "reader/pyproject.toml")
    )
    assert reader["version"] == mgqe["version"]
    assert reader["requires-python"] == mgqe["requires-python"]
    assert set(reader["dependencies"]) < set(mgqe["dependencies"])
