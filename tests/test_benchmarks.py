"""benchmarks/README.md lists every script and every result, and the pages quote what it says they do."""

from __future__ import annotations

import re

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
