"""benchmarks/README.md lists every script and every result, and the pages quote what it says they do."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from paths import ROOT

FOLDER = ROOT / "benchmarks"
ROWS = [line.split("|")[1:-1] for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| [")]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


def test_the_table_lists_every_script_and_every_result() -> None:
    scripts = {link for row in ROWS for link in links(row[0])}
    results = {link for row in ROWS for link in links(row[2])}
    assert scripts == {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/[a-z]*.py")}
    assert results == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.json")}


def test_what_the_page_names_exists() -> None:
    for link in links((FOLDER / "README.md").read_text()):
        assert (FOLDER / link).is_file(), link


def test_results_are_beside_their_script_and_have_its_name() -> None:
    for row in ROWS:
        folder, script = links(row[0])[0].split("/")
        for result in links(row[2]):
            assert result.startswith(f"{folder}/results/{script.removesuffix('.py').replace('_', '-')}"), result


def test_the_pages_name_the_scripts_that_their_figures_come_from() -> None:
    for row in ROWS:
        script = links(row[0])[0]
        if script.startswith("reports/"):
            continue
        module = script.removesuffix(".py").replace("/", ".")
        for page in links(row[3]):
            text = (FOLDER / page).read_text()
            assert f"benchmarks/{script}" in text or f"benchmarks.{module}" in text, f"{page}: {script}"


def test_measurements_are_read_as_they_were_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks._common import Measurement, read_saved, save

    path, options = tmp_path / "results.json", argparse.Namespace(rounds=3, rows=[7], out=None)
    assert read_saved(path, ("rounds",), options) == []
    setting = {"what": "look-up", "rows": "7", "threads": 1}
    saved = [Measurement(setting, "5%", 0.25, 0.125, 0.5, 0.75, {"expected": 0.4}), Measurement(setting, "x", 1, 1, 2)]
    save(path, "budgets", options, saved)
    assert read_saved(path, ("rounds",), argparse.Namespace(rounds=3, rows=[8])) == saved
    with pytest.raises(SystemExit, match="rounds 3, now 4"):
        read_saved(path, ("rounds",), argparse.Namespace(rounds=4))
    content = json.loads(path.read_text())
    content["environment"]["commit"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="commit 'another', now"):
        read_saved(path, ("rounds",), options)


def test_fitted_costs_are_written_where_the_planner_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.speed.lookup_model import with_costs

    from mgqe.codec.planning import speed

    source = Path(speed.__file__).read_text()
    names: dict[str, type[speed.Costs]] = {"__name__": speed.__name__}  # type: ignore[dict-item]
    exec(compile(with_costs(source, speed.Costs(row=1.25, product=0.004)), "speed.py", "exec"), names)
    written = names["Costs"]()
    assert (written.row, written.product, written.line) == (1.2, 0.004, speed.Costs().line)
