"""benchmarks/README.md lists every script and every result, and the pages quote what it says they do."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

from mgqe.codec.packing import pack

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


@pytest.mark.parametrize("page", ["convert", "method", "speed", "speed_bounds", "serving"])
def test_the_tables_of_the_pages_are_those_of_the_results(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    pages = pytest.importorskip("benchmarks.reports.pages")
    assert page in pages.PAGES
    written = (ROOT / "docs" / f"{page}.md").read_text()
    (tmp_path / page).write_text(written)
    pages.fill_page(tmp_path / page, pages.parts())
    assert (tmp_path / page).read_text() == written, "python -m benchmarks.reports.pages writes them"


def test_what_misses_its_target_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    pages = pytest.importorskip("benchmarks.reports.pages")
    where = {"rows": "1,000,000", "dim": 64, "threads": 1}
    lookup, limit = {**where, "what": "look-up", "ids": "Zipf"}, {"freeze_target_s": 3.0}
    search = {**where, "what": "top-100, 1 query", "target": None, "target_met": None, "ratio": 1.0}
    index = {"against": "faiss IndexPQ", "rows": "1,000,000", "queries": 1, "k": 100, "threads": 1, "name": "mgqe"}
    results = {
        "budgets": [
            {**lookup, "name": "20%", "ratio": 0.6, "target": 0.5, "target_met": False},
            {**lookup, "name": "5%", "ratio": 0.4, "target": 0.5, "target_met": True, "freeze_s": 3.2, **limit},
            {**search, "name": "5%", "median_s": 0.2},
            {**search, "name": "faiss IndexPQ, 16 bytes", "median_s": 1.0},
        ],
        "topk": [{**index, "codes": "D=8 K=256", "ratio": 0.09}, {**index, "codes": "D=16 K=256", "ratio": 0.11}],
    }
    monkeypatch.setattr(pages, "read", lambda name: {"results": results[name]})
    assert [line.split(" | ")[:3] for line in pages.budget_misses().splitlines()[2:]] == [
        ["| look-up, Zipf ids: 1,000k x 64", "20%", "0.600"],
        ["| freezing 1,000k x 64, seconds", "5%", "3.2"],
        ["| top-100, 1 query: 1,000k x 64, of the time of faiss IndexPQ", "5%", "0.200"],
        ["| top-100, 1 query: 1,000k x 64, of the time of faiss IndexPQ", "D=16 K=256", "0.110"],
    ]


def test_help_keeps_the_lines_of_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    common = pytest.importorskip("benchmarks._common")
    shown = common.argument_parser("What it does.\n\n    one    a part\n    two    another\n", "name").format_help()
    assert "\n\n    one    a part\n    two    another\n" in shown
    assert "(default: 6)" in shown


def test_bounds_say_what_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    pages = pytest.importorskip("benchmarks.reports.pages")

    def row(name: str, ratio: float, what: str = "bags", **more: object) -> dict[str, object]:
        return {"what": what, "threads": 1, "name": name, "ratio": ratio, "target": None, **more}

    def whole(name: str, target: float, overlap: bool, what: str = "bags") -> dict[str, object]:
        found = {"target": target, "target_met": target >= 0.9, "parts": ["read", "found"], "overlap": overlap}
        return row(name, 0.9, what, **found)

    parts = [row("read", 0.3), row("found", 0.4), row("read", 0.1, "steps"), row("found", 0.2, "steps")]
    wholes = [
        whole("met", 0.9, overlap=True),
        whole("missed", 0.75, overlap=True),
        whole("too long", 0.35, overlap=True),
        whole("in a row", 0.5, overlap=False),
        whole("of its own call", 0.35, overlap=False, what="steps"),
        whole("faster than its parts", 0.5, overlap=False, what="look-ups"),
    ]
    parts += [row("read", 0.3, "look-ups"), row("found", 0.7, "look-ups")]
    monkeypatch.setattr(pages, "read", lambda name: {"results": [*wholes, *parts]})
    lines = [line.strip("| ").split(" | ") for line in pages.bound_targets().splitlines()[2:]]
    assert [(line[1], line[4], line[5]) for line in lines] == [
        ("met", "0.400", "met"),
        ("missed", "0.400", "missed"),
        ("too long", "0.400", "out of reach"),
        ("in a row", "0.700", "out of reach"),
        ("of its own call", "0.300", "missed"),
        ("faster than its parts", "", "missed"),
    ]


def test_predictions_for_trained_rows_are_means_over_the_seeds_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    pages = pytest.importorskip("benchmarks.reports.pages")

    def record(share: float, seed: int, lost: float, kind: str = "mixed") -> dict[str, object]:
        tables = {"fields.item": {"expected": 0.03, "lost": lost}}
        return {"share": share, "kind": kind, "recipe": "gradients, one tier", "fit_seed": seed, "tables": tables}

    records = [record(0.02, 1, 0.02), record(0.02, 2, 0.04), record(0.02, 1, 0.5, "additive"), record(0.05, 1, 0.01)]
    monkeypatch.setattr(pages, "read", lambda name: {"records": records} if name == "additive-amazon-apps" else None)
    assert pages.plan_trained().splitlines() == [
        "| loss: predicted / measured | 2% | 5% |",
        "| --- | ---: | ---: |",
        "| W&D, Amazon Apps, items, one tier | 3% / 3% | 3% / 1% |",
    ]
    monkeypatch.setattr(pages, "read", lambda name: None)
    assert pages.plan_trained() == ""


def test_levels_are_compared_pair_by_pair_with_the_figures_that_a_pair_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    pages = pytest.importorskip("benchmarks.reports.pages")

    def record(pair: str, seed: int, budget: str, arm: str, nbytes: int, **figures: float) -> dict[str, object]:
        return {"pair": pair, "seed": seed, "budget": budget, "arm": arm, "nbytes": nbytes, "figures": figures}

    records = [
        *(record("wide-deep-frappe", seed, "100%", "full", 1000, auc=0.97, valid_auc=0.98) for seed in (1, 2)),
        record("wide-deep-frappe", 1, "20%", "centroids", 200, auc=0.95, valid_auc=0.96),
        record("wide-deep-frappe", 2, "20%", "centroids", 200, auc=0.93, valid_auc=0.94),
        record("wide-deep-frappe", 1, "20%", "levels", 190, auc=0.9, valid_auc=0.91),
        record("wide-deep-frappe", 1, "10%", "levels", 90, auc=0.9, valid_auc=0.91),  # centroids are to come
        record("gmf-ml-1m", 1, "100%", "full", 1000, **{"hr@10": 0.7}),
    ]
    monkeypatch.setattr(pages, "read", lambda name: {"records": records})
    assert pages.levels().splitlines() == [
        "**W&D, Frappe**",
        "",
        "| centroids / levels | seeds | bytes | valid AUC | test AUC |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 20% | 1 | 20.0% / 19.0% | 0.9600 / 0.9100 | 0.9500 / 0.9000 |",
        "| full table | 2 | 100% | 0.9800 | 0.9700 |",
    ]


def loops(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not (platform.machine() in ("x86_64", "AMD64") and shutil.which("g++")):
        pytest.skip("the loops are for x86-64, and compiled here")
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.speed._limits")


def test_the_loops_of_bounds_read_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = loops(monkeypatch)
    codes = torch.arange(1280, dtype=torch.int64).remainder(251).to(torch.uint8)
    assert limits.run("read", codes, 1280) == int(codes.view(torch.int64).sum())
    ids = torch.tensor([5, 0, 99] * 50)
    first_and_last = codes[:1200].view(100, 12)[ids][:, [0, -1]]
    assert limits.run("rows", codes, 12, ids, len(ids)) == int(first_and_last.long().sum())


@pytest.mark.parametrize("bits", [[8] * 5, [8] * 16, [8, 6, 8, 7, 6, 7, 7, 6, 7, 6, 6, 6, 6, 6, 4]])
def test_the_loops_of_searches_count_rows_that_reach_a_sum(monkeypatch: pytest.MonkeyPatch, bits: list[int]) -> None:
    limits = loops(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(1 << b, (128,), generator=generator) for b in bits], 1)
    tables = torch.randint(255 // len(bits), (len(bits), 256), generator=generator, dtype=torch.uint8)
    packed = torch.cat([pack(codes, bits), torch.zeros(64, len(pack(codes[:1], bits)[0]), dtype=torch.uint8)])
    sums = sum(tables[j].long()[codes[:, j]] for j in range(len(bits)))
    needed = int(sums.median())
    given = (packed, 128, packed.shape[1], torch.tensor(bits, dtype=torch.int32), len(bits), tables, needed)
    reached = int((sums >= needed).sum())
    assert limits.run("scan_bytes_avx2", *given) == reached
    if limits.has_vbmi():
        assert limits.run("scan_bytes", *given) == reached
    if len(bits) == 5:
        assert limits.run("scan_five", packed, 128, tables, needed) == reached


@pytest.mark.parametrize("bits", [[2, 3, 4, 6] * 8 + [2, 3, 3, 3] * 8, [6, 7] * 32])
def test_the_loops_of_searches_multiply_levels(monkeypatch: pytest.MonkeyPatch, bits: list[int]) -> None:
    limits = loops(monkeypatch)
    fused = pytest.importorskip("benchmarks.speed._fused")
    if not limits.has_vbmi():
        pytest.skip("for AVX-512 VBMI and VNNI")
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(1 << b, (64,), generator=generator) for b in bits], 1)
    query = torch.randint(-128, 128, (64,), generator=generator, dtype=torch.int8)
    packed, layout = pack(codes, bits), fused._eights(bits)
    row_bytes, rest = packed.shape[1], 0
    behind = torch.cat([packed.flatten(), torch.zeros(64, dtype=torch.uint8)])
    if row_bytes <= 32:
        layout, rest = fused._pairs(bits, row_bytes), fused._kinds(bits[32:])
        layout[768:] = layout[256:512]  # the same levels for both halves
    levels = layout[256:512].long()[codes + torch.tensor([1 << b for b in bits])]
    sums = levels @ query.long()
    needed = int(sums.median())
    given = (behind, 64, row_bytes, layout, fused._kinds(bits), rest, query, needed)
    assert limits.run("scan_levels", *given) == int((sums >= needed).sum())


def test_the_loops_of_bags_add_up_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = loops(monkeypatch)
    fused = pytest.importorskip("benchmarks.speed._fused")
    if not limits.has_vbmi():
        pytest.skip("for AVX-512 VBMI and VNNI")
    bits, generator = [2, 5, 6, 7] * 16, torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(1 << b, (50,), generator=generator) for b in bits], 1)
    packed, layout = pack(codes, bits), fused._eights(bits)
    rows = layout[256:].long()[codes + torch.tensor([1 << b for b in bits])]
    ids, numbers, out = torch.arange(40), torch.stack([torch.zeros(64), torch.ones(64)]), torch.empty(2, 64)
    behind = torch.zeros(64, dtype=torch.uint8)
    codes = torch.cat([packed.flatten(), behind])
    limits.run("sum_levels", codes, packed.shape[1], ids, 40, 20, layout, fused._kinds(bits), 0, numbers, out)
    assert torch.equal(out, rows[:40].view(2, 20, 64).sum(1).float())


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


@pytest.mark.parametrize("family", ["centroids", "levels"])
def test_the_families_that_are_compared_are_the_only_ones_planned(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    pytest.importorskip("polars")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.quality.levels import shapes_of

    from mgqe.codec.planning.fits import best_plans
    from mgqe.codec.planning.problem import SHAPES, TableProblem

    tried: list[str] = []
    rows = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    problem = TableProblem(rows, torch.arange(2000, 0, -1))
    with shapes_of(family):
        best = best_plans(
            [problem], 13_000, lambda fitted: 0.0, lambda candidate, figure: tried.append(candidate.source)
        )
    assert tried == ["gradients"] * len(SHAPES)
    assert best.fitted[0].plan.capacity.has_levels == (family == "levels")


@pytest.mark.parametrize(
    ("name", "options"),
    [("hash", {"num_buckets": 5, "num_hashes": 2}), ("qr", {"num_remainders": 4, "operation": "add"})],
)
def test_sums_of_shared_rows_that_are_there_are_found(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, object]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.quality.shared_rows import memberships, nearest

    with torch.no_grad():
        named = memberships(name, 11, options)
        assert named.sum(1).tolist() == [2.0] * 11  # two shared rows per id
        if name == "qr":  # three quotients, then four remainders
            assert named[6].tolist() == [0, 1, 0, 0, 0, 1, 0]
        rows = named @ torch.randn(named.shape[1], 3, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(nearest(name, rows, options), rows, atol=1e-5)
        other = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
        left = other - nearest(name, other, options)
        assert torch.allclose(named.T @ left, torch.zeros(named.shape[1], 3), atol=1e-4)  # normal equations


def test_all_choices_of_centroids_are_planned_and_fitted_within_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    script = pytest.importorskip("benchmarks.quality.centroid_choice")
    monkeypatch.setattr(script, "BUDGETS", (0.1,))
    found = script.measure(script.rows_of(2_000, 0.2), script.counts_of(2_000), 0.5, (0.1, 0.9))
    assert [(each["shared"], each["centroids"]) for each in found] == list(script.CHOICES)
    for each in found:
        assert each["bytes"] <= 0.1 * 2_000 * script.DIM * 4
        assert each["measured"] == pytest.approx(each["predicted"], rel=0.25)
