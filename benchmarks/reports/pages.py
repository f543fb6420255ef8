"""Results of the benchmarks -> the tables in docs, between <!-- NAME --> and <!-- /NAME -->, and the pictures.

The study's tables are written by `mgqe report`.

python -m benchmarks.reports.pages
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks._common import QUALITY, ROOT, SPEED
from mgqe.recsys.study.text_table import TextTable, fill

TITLES = {"ml-1m": "MovieLens-1M", "amazon-apps": "Amazon Apps"}


def read(name: str) -> Any:
    """A results file, None if it is not there."""
    paths = [folder / f"{name}.json" for folder in (SPEED, QUALITY)]
    return next((json.loads(path.read_text()) for path in paths if path.is_file()), None)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; every column but the first is aligned to the right."""
    return TextTable("", header, rows).markdown()


def recipes(data: str) -> str:
    """One change at a time."""
    results = read(f"recipes-{data}")
    if results is None:
        return ""
    base = {row["seed"]: row["quality"] for row in results if row["variant"] == "default"}
    rows = []
    for name in dict.fromkeys(row["variant"] for row in results):
        mine = [row for row in results if row["variant"] == name]
        shown = [100 * statistics.fmean(row["bytes"] / row["full_bytes"] for row in mine)]
        figures = [statistics.fmean(row["quality"][key] for row in mine) for key in ("valid_hr@10", "hr@10", "ndcg@10")]
        gap = statistics.fmean(100 * (row["quality"]["valid_hr@10"] - base[row["seed"]]["valid_hr@10"]) for row in mine)
        start = statistics.fmean(row["start"]["hr@10"] for row in mine)
        rows.append([name, f"{shown[0]:.1f}%", f"{start:.4f}", *(f"{x:.4f}" for x in figures), f"{gap:+.2f}"])
    header = ["variant", "bytes", "valid HR@10 at the start", "valid HR@10", "test HR@10", "test NDCG@10"]
    return f"**{TITLES[data]}**\n\n" + markdown([*header, "points to default (valid)"], rows)


def plan_prediction() -> str:
    """The loss that plans predict, and what their tables lose."""
    results = read("plan-prediction")
    cells: dict[tuple[str, str, int], list[str]] = {}
    budgets = []
    for row in results["results"] if results else ():
        losses = " / ".join(f"{100 * row[kind]:.3g}%" for kind in ("predicted", "measured"))
        cells.setdefault((row["rows"], f"counts^{row['power']:g}", row["tiers"]), []).append(losses)
        if (budget := f"{100 * row['budget']:g}%") not in budgets:
            budgets.append(budget)
    rows = [[f"{name}, {power}", str(tiers), *losses] for (name, power, tiers), losses in cells.items()]
    return markdown(["loss: predicted / measured", "tiers", *budgets], rows)


TRAINED = {  # results of benchmarks/quality/additive.py -> whose rows they are
    "amazon-games": "SASRec, Amazon Games",
    "amazon-apps": "W&D, Amazon Apps",
    "beauty-split": "SASRec, Beauty",
}


def plan_trained() -> str:
    """The loss that plans of trained rows predict, and what their tables lose: means over seeds of the fit."""
    cells: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for data, title in TRAINED.items():
        results = read(f"additive-{data}")
        for row in results["records"] if results else ():
            if row["kind"] == "mixed":
                recipe = row["recipe"].removeprefix("gradients, ")
                for path, table in row["tables"].items():
                    key = f"{title}, {path.removeprefix('fields.')}s", recipe
                    found = cells.setdefault(key, {}).setdefault(f"{100 * row['share']:g}%", [])
                    found.append((table["expected"], table["lost"]))
    budgets = list(dict.fromkeys(budget for of in cells.values() for budget in of))
    rows = [
        [f"{name}, {recipe}", *(" / ".join(_mean_per_cent(of.get(budget, []))) for budget in budgets)]
        for (name, recipe), of in cells.items()
    ]
    return markdown(["loss: predicted / measured", *budgets], rows) if rows else ""


def _mean_per_cent(pairs: list[tuple[float, float]]) -> list[str]:
    return [f"{100 * statistics.fmean(of):.3g}%" for of in zip(*pairs, strict=True)]


def speed() -> str:
    """Ratios to the peer of each benchmark."""
    rows = []
    names = {"decode": "look-up of 65,536 ids, D=8, K=256", "assign": "nearest centroids of 4,096 rows, d=64"}
    for name, title in names.items():
        results = read(name)
        for row in results["results"] if results else ():
            if row["target"] is not None:
                where = ", ".join(str(row[key]) for key in ("rows", "ids") if key in row)
                if name == "decode":
                    where = f"{row['rows']} rows, {row['ids']} ids"
                    if "peer" in row:
                        where += ", tail of 6 bits"
                else:
                    where = f"D={row['subspaces']}, K={row['centroids']}"
                peer = row.get("peer", "nn.Embedding") if name == "decode" else "torch matmul + argmin"
                rows.append(
                    [f"{title}: {where}", peer, str(row["threads"]), f"{row['ratio']:.3f}", f"{row['target']:.3f}"]
                )
    rows += bag_targets() + single_targets() + topk_targets()
    for name in ("train-step", "epoch"):
        results = read(name)
        for row in results["results"] if results else ():
            if row.get("target") is not None:
                rows.append(
                    [f"{name.replace('-', ' ')}: {row['name']}", "nn.Embedding", str(row["threads"]),
                     f"{row['ratio']:.3f}", f"{row['target']:.3f}"]
                )  # fmt: skip
    return markdown(["what", "against", "threads", "share of its time", "target"], rows)


BUDGETS, DEFAULT = ("20%", "10%", "5%", "2%"), "no budget"
RECALL = "recall@100 of the full rows"


def budgets(name: str = "budgets", with_targets_alone: bool = False) -> str:
    """Shares of the full table's time, of the tables that budgets make; with the most that was aimed at."""
    results = read(name)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    listed = results["results"] if results else []
    aimed = {(row["what"], row["rows"], row["dim"], row.get("ids")) for row in listed if row["target"]}
    for row in listed:
        has_targets = (row["what"], row["rows"], row["dim"], row.get("ids")) in aimed
        if row["threads"] > 1 and (row["rows"], row["dim"]) != ("1,000,000", 64):
            continue  # they are in the file
        if with_targets_alone and (row["threads"] > 1 or not has_targets):
            continue
        size = f"{int(row['rows'].replace(',', '')) // 1000:,}k x {row['dim']}"
        what = row["what"] + (f", {row['ids']} ids" if "ids" in row else "")
        target = "" if row["target"] is None else f" ({row['target']:.2f})"
        short = row["name"].removeprefix("torch ").removesuffix(" row-wise")
        cells.setdefault((size, str(row["threads"]), what), {})[short] = f"{row['ratio']:.2f}{target}"
    others = [DEFAULT, "int8", "int4", "fbgemm int8", "fbgemm int4"]
    columns = [*BUDGETS, *(other for other in others if any(other in of for of in cells.values()))]
    rows = [
        [f"{what}: {size}", threads, *(of.get(column, "") for column in columns)]
        for (size, threads, what), of in cells.items()
    ]
    return markdown(["share of the full table's time (target)", "threads", *columns], rows)


def budget_tables() -> str:
    """The tables of :func:`budgets`: shapes, and the time to freeze and to load them."""
    results = read("budgets")
    tables: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in results["results"] if results else ():
        if "freeze_s" in row:
            key = row["rows"], row["dim"], row["name"]
            tables[key] = {**row, **tables.get(key, {})}  # recall is in some rows alone
    rows = []
    for (n, d, budget), about in tables.items():
        bits = " / ".join(map(str, about["bits"]))
        shape = f"{about['subspaces']} codes, {bits} bits, {about['coordinates']} coordinates"
        target = f" ({about['freeze_target_s']:.0f})" if "freeze_target_s" in about else ""
        rows.append(
            [f"{n} x {d}, {budget}", f"{100 * about['share']:.1f}%", shape, f"{about['freeze_s']:.1f} s{target}",
             f"{1e3 * about['load_s']:.0f} ms", f"{about.get(RECALL, '')}"]
        )  # fmt: skip
    header = ["table", "bytes", "shape (bits of a row by tier)", "freezing (at most)", "loading", RECALL]
    return markdown(header, rows)


PQ_TARGETS = {"D=8 K=256": 0.1, "D=16 K=256": 0.1, "D=32 K=256/64": 0.2}  # shares of IndexPQ's time, one query
PQ_BUDGET, PQ_PEER = "5%", "faiss IndexPQ, 16 bytes"  # whose rows have about as many bytes


def budget_misses() -> str:
    """Whatever took longer than was aimed at, of what budgets make, and of searches as large as faiss's IndexPQ."""
    results, rows = read("budgets"), []
    freezing: dict[str, tuple[float, float]] = {}
    searches: dict[tuple[str, str], float] = {}
    for row in results["results"] if results else ():
        size = f"{int(row['rows'].replace(',', '')) // 1000:,}k x {row['dim']}"
        if row["target_met"] is False:
            what = row["what"] + (f", {row['ids']} ids" if "ids" in row else "")
            rows.append([f"{what}: {size}", row["name"], f"{row['ratio']:.3f}", f"{row['target']:g}"])
        if row.get("freeze_s", 0) > row.get("freeze_target_s", float("inf")):
            freezing[row["name"]] = row["freeze_s"], row["freeze_target_s"]
        if (row["rows"], row["dim"], row["threads"]) == ("1,000,000", 64, 1) and row["what"].startswith("top-100"):
            searches[row["what"], row["name"]] = row["median_s"]
    rows += [
        ["freezing 1,000k x 64, seconds", budget, f"{seconds:.1f}", f"{target:g}"]
        for budget, (seconds, target) in freezing.items()
    ]
    shares = [
        (what, PQ_BUDGET, searches[what, PQ_BUDGET] / searches[what, PQ_PEER], PQ_TARGETS["D=16 K=256"])
        for what in ("top-100, 1 query", "top-100, 32 queries")
        if (what, PQ_PEER) in searches
    ]
    topk = read("topk")
    for row in topk["results"] if topk else ():
        key = row["name"], row["against"], row["rows"], row["queries"], row["k"], row["threads"]
        if key == ("mgqe", "faiss IndexPQ", "1,000,000", 1, 100, 1) and row["codes"] in PQ_TARGETS:
            shares.append(("top-100, 1 query", row["codes"], row["ratio"], PQ_TARGETS[row["codes"]]))
    rows += [
        [f"{what}: 1,000k x 64, of the time of faiss IndexPQ", table, f"{share:.3f}", f"{most:g}"]
        for what, table, share, most in shares
        if share > most
    ]
    return markdown(["what missed its target", "table", "measured", "target"], rows) if rows else ""


def budget_lookups() -> str:
    """Expected and measured shares of nn.Embedding's time."""
    results = read("budgets")
    cells: dict[str, dict[str, str]] = {}
    for row in results["results"] if results else ():
        if "expected" in row:
            size = f"{int(row['rows'].replace(',', '')) // 1000:,}k x {row['dim']}, {row['ids']} ids"
            cells.setdefault(size, {})[row["name"]] = f"{row['expected']:.2f} / {row['ratio']:.2f}"
    rows = [[size, *(of.get(budget, "") for budget in BUDGETS)] for size, of in cells.items()]
    return markdown(["look-up: expected / measured", *BUDGETS], rows) if rows else ""


def budget_searches() -> str:
    """Top-100 of 1,000,000 rows of 64 numbers, one thread: shares of float32's time, and recall."""
    results = read("budgets")
    cells: dict[str, dict[str, Any]] = {}
    for row in results["results"] if results else ():
        if (row["rows"], row["dim"], row["threads"]) == ("1,000,000", 64, 1) and row["what"].startswith("top-100"):
            cells.setdefault(row["name"], {RECALL: row.get(RECALL, "")})[row["what"]] = f"{row['ratio']:.3f}"
    columns = ["top-100, 1 query", "top-100, 32 queries", RECALL]
    rows = [[name, *(str(of.get(column, "")) for column in columns)] for name, of in cells.items()]
    return markdown(["share of float32's time", *columns], rows) if rows else ""


def lookup_model() -> str:
    """Expected and measured shares of nn.Embedding's time, of random codes in rows of 64 numbers."""
    results = read("lookup-model")
    cells: dict[str, dict[str, str]] = {}
    for row in results["results"] if results else ():
        if row["dim"] == 64 and row["name"] != "nn.Embedding":
            size = f"{row['rows'] // 1000:,}k, {row['ids']}"
            cells.setdefault(row["name"], {})[size] = f"{row['expected']:.2f} / {row['ratio']:.2f}"
    sizes = list(dict.fromkeys(size for of in cells.values() for size in of))
    rows = [[name, *(of.get(size, "") for size in sizes)] for name, of in cells.items()]
    return markdown(["look-up: expected / measured", *sizes], rows) if rows else ""


def lookup_model_errors() -> str:
    """By how much expected shares are off."""
    results = read("lookup-model")
    rows = [row for row in (results["results"] if results else ()) if row["name"] != "nn.Embedding"]
    off = sorted(max(row["expected"] / row["ratio"], row["ratio"] / row["expected"]) for row in rows)
    if not off:
        return ""
    median, most = statistics.median(off), statistics.quantiles(off, n=10, method="inclusive")[-1]
    return (
        f"Half of the estimates of all its shapes and sizes are within a factor of {median:.2f} of what was\n"
        f"measured, and nine of ten within {most:.2f}."
    )


def zipf() -> str:
    """Nanoseconds per id, of Zipf ids and of uniform ones."""
    results = read("zipf")
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for row in results["results"] if results else ():
        cells.setdefault(row["what"], {}).setdefault(row["table"], {})[row["name"]] = row["median_s"]
    if not cells:
        return ""
    tables, each = list(next(iter(cells.values()))), 1e9 / results["options"]["ids"]
    rows = [
        [what, *(f"{each * of[table]['Zipf']:.0f} / {each * of[table]['uniform']:.0f}" for table in tables)]
        for what, of in cells.items()
    ]
    return markdown(["ns per id: Zipf / uniform", *tables], rows)


def bounds() -> str:
    """Nanoseconds per id of tables and of parts of their work; a table per kind of call."""
    results = read("bounds")
    kinds: dict[tuple[str, int], list[list[str]]] = {}
    for row in results["results"] if results else ():
        cells = [row["name"], f"{1e9 * row['median_s'] / row['ids']:.3g}", f"{row['ratio']:.3f}"]
        kinds.setdefault((row["what"], row["threads"]), []).append(cells)
    tables = []
    for (what, threads), rows in kinds.items():
        of_threads = "" if threads == 1 else f", {threads} threads"
        tables.append(markdown([f"{what}{of_threads}", "ns each", f"share of {rows[0][0]}"], rows))
    return "\n\n".join(tables)


def bound_targets() -> str:
    """What has a target: measured, and its bound, as shares of the peer's time.

    The bound is the longest part, or all parts where they come one after another. Parts that took longer than the whole
    bound nothing.
    """
    results = read("bounds")
    rows = []
    for row in results["results"] if results else ():
        if row["target"] is None or "parts" not in row:
            continue
        of_call = {each["name"]: each["ratio"] for each in results["results"] if same_call(each, row)}
        parts = [of_call[part] for part in row["parts"]]
        bound = max(parts) if row["overlap"] else sum(parts)
        bounds = bound <= row["ratio"]
        verdict = "met" if row["target_met"] else "out of reach" if bounds and bound > row["target"] else "missed"
        figures = [f"{row['ratio']:.3f}", f"{bound:.3f}" if bounds else ""]
        rows.append([row["what"], row["name"], f"{row['target']:.3g}", *figures, verdict])
    return markdown(["what", "of", "target", "measured", "bound", ""], rows) if rows else ""


def same_call(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of one run in turns."""
    return (one["what"], one["threads"]) == (other["what"], other["threads"])


def bound_seconds() -> str:
    """What is to take seconds at most."""
    results = read("bounds")
    rows = [
        [row["what"], row["name"], f"{row['seconds_at_most']:g}", f"{row['median_s']:.1f}",
         "met" if row["median_s"] <= row["seconds_at_most"] else "missed"]
        for row in (results["results"] if results else ())
        if row.get("seconds_at_most")
    ]  # fmt: skip
    return markdown(["what", "of", "seconds at most", "measured", ""], rows) if rows else ""


def instruction_sets() -> str:
    """Shares of the full table's time by instruction set."""
    results = read("instruction-sets")
    rows_of = results["results"] if results else []
    cells: dict[str, dict[str, list[str]]] = {}
    for row in rows_of:
        if row["name"] != "full":
            cells.setdefault(row["what"], {}).setdefault(row["budget"], []).append(f"{row['ratio']:.2f}")
    names = list(dict.fromkeys(row["name"] for row in rows_of if row["name"] != "full"))
    rows = [[what, *(" / ".join(of[budget]) for budget in BUDGETS)] for what, of in cells.items()]
    return markdown([f"share of the full table's time: {' / '.join(names)}", *BUDGETS], rows) if rows else ""


def fold() -> str:
    """Shares of the full table's time, with the matrix and without."""
    results = read("fold")
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in results["results"] if results else ():
        if row["name"] != "nn.Embedding":
            cells.setdefault(f"{row['what']}, {row['ids']} ids", {})[row["budget"], row["name"]] = f"{row['ratio']:.2f}"
    budgets = list(dict.fromkeys(budget for of in cells.values() for budget, _ in of))
    rows = [
        [what, *(f"{of[budget, 'table']} / {of[budget, 'matrix folded']}" for budget in budgets)]
        for what, of in cells.items()
    ]
    return markdown(["share of the full table's time: as it is / matrix folded", *budgets], rows) if rows else ""


def bag_targets() -> list[list[str]]:
    """The speed table's rows of the pooled look-ups; packed tails against whole bytes, the rest against torch."""
    results = read("bag")
    return [
        [f"sum of 20 in 8,192 bags, {row['name']}: {row['rows']} rows, {row['ids']} ids",
         row.get("peer", "nn.EmbeddingBag"), str(row["threads"]), f"{row['ratio']:.3f}", f"{row['target']:.3f}"]
        for row in (results["results"] if results else ())
        if row["target"] is not None
    ]  # fmt: skip


def single_targets() -> list[list[str]]:
    """The speed table's rows of look-ups of a few ids."""
    results = read("single")
    return [
        [f"look-up of {row['ids']} id{'s' if row['ids'] > 1 else ''}, {row['name']}: {row['rows']} rows",
         "nn.Embedding", str(row["threads"]), f"{row['ratio']:.3f}", f"{row['target']:.3f}"]
        for row in (results["results"] if results else ())
        if row["target"] is not None
    ]  # fmt: skip


def topk_targets() -> list[list[str]]:
    """The speed table's rows of the top-K benchmark."""
    results = read("topk")
    return [
        [f"{topk_setting(row)}: {row['name']}", row["against"], str(row["threads"]), f"{row['ratio']:.3f}",
         f"{row['target']:.3f}"]
        for row in (results["results"] if results else ())
        if row["target"] is not None
    ]  # fmt: skip


def topk_setting(row: dict[str, Any]) -> str:
    """What was searched for, in words."""
    queries = "1 query" if row["queries"] == 1 else f"{row['queries']} queries"
    score = f", {row['score']}" if "score" in row else ""
    return f"top-{row['k']} of {row['rows']} rows, {row['codes']}, {queries}{score}"


def topk() -> str:
    """Times of ``table.topk`` and their shares of the two peers' times."""
    results = read("topk")
    times: dict[tuple[str, int], dict[str, float]] = {}
    for row in results["results"] if results else ():
        times.setdefault((topk_setting(row), row["threads"]), {})[row["name"]] = row["median_s"]
    rows = []
    for (setting, threads), by_name in times.items():
        if {"mgqe", "fp32 matmul + topk"} <= set(by_name) and "trained" not in setting:
            mine = by_name["mgqe"]
            peers = [by_name["fp32 matmul + topk"], by_name.get("faiss IndexPQ")]
            shares = [f"{mine / peer:.3f}" if peer else "" for peer in peers]
            rows.append([setting, str(threads), f"{1e3 * mine:.2f} ms", *shares])
    return markdown(["what", "threads", "time", "of float32", "of IndexPQ"], rows)


def serve() -> str:
    """`mgqe serve` under load."""
    results = read("serve")
    rows = [
        [row["request"], str(row["clients"]), f"{row['requests_per_s']:,.0f}", f"{row['p50_ms']:.1f} ms",
         f"{row['p99_ms']:.1f} ms", f"{row['health_p99_ms']:.1f} ms"]
        for row in (results["results"] if results else ())
    ]  # fmt: skip
    return markdown(["request", "clients", "requests/s", "p50", "p99", "/health meanwhile, p99"], rows)


def fill_page(path: Path, parts: dict[str, str]) -> None:
    """Replace what stands between the marks of each part; a mark that no part has is a mistake."""
    marked = set(re.findall(r"<!-- ([a-z0-9-]+) -->", path.read_text()))
    if unknown := marked - set(parts):
        raise SystemExit(f"{path}: no part is called {', '.join(sorted(unknown))}")
    fill(path, parts)


ABLATED = {"gmf-ml-1m": "GMF, ml-1m", "sasrec-games": "SASRec, Amazon Games", "wide-deep-frappe": "W&D, Frappe"}
ARMS = {  # as benchmarks/quality/ablation.py calls them -> as the page does
    "even": "equal bits, own coordinates (PQ)",
    "metric": "the same, in units of what errors cost",
    "tiers, even": "equal bits within tiers (variable centroids)",
    "even, trained": "equal bits, trained through the codes (DPQ)",
    "bits": "unequal bits, own coordinates",
    "rotation": "equal bits, rotated (OPQ)",
    "rotation, bits": "unequal bits, rotated",
    "gradients": "+ metric of the gradients",
    "queries": "+ metric of the queries instead",
    "tiers": "+ gradients, and tiers by prediction",
    "additive": "gradients, additive codes",
    "ideal": "gradients, ideal codes (bound)",
    "ideal, equal": "the same, users of equal length",
    "budget": "all chosen by validation",
    "trained": "+ trained through the codes",
}


BOUNDED = {
    ("gmf-ml-1m", "10%"): "GMF, ml-1m",
    ("sasrec-ml-1m", "2%"): "SASRec, ml-1m",
    ("sasrec-ml-1m-softmax", "5%"): "SASRec with softmax, ml-1m",
    ("sasrec-ml-1m-softmax", "2%"): "SASRec with softmax, ml-1m",
    ("sasrec-ml-1m-ce", "5%"): "SASRec with cross-entropy, ml-1m",
    ("sasrec-ml-1m-ce", "2%"): "SASRec with cross-entropy, ml-1m",
    ("sasrec-games-1024", "2%"): "SASRec with 1,024 negatives, Amazon Games",
    ("deepfm-frappe", "2%"): "DeepFM, Frappe",
    ("lightgcn-beauty", "5%"): "LightGCN, Beauty",
    ("lightgcn-beauty", "2%"): "LightGCN, Beauty",
}
BOUND_ARMS = {
    "even": "equal bits",
    "gradients": "unequal bits, gradients",
    "ideal": "ideal codes",
    "ideal, equal": "the same, users of equal length",
}
Figures = dict[int, dict[str, float]]  # by seed


def _ablated() -> dict[tuple[str, str, str], Figures]:
    """(pair, budget, arm) -> figures."""
    figures: dict[tuple[str, str, str], Figures] = {}
    results = read("ablation")
    for r in results["records"] if results else ():
        figures.setdefault((r["pair"], r["budget"], r["arm"]), {})[r["seed"]] = r["figures"]
    return figures


def _less_full(of_arm: Figures, full: Figures) -> str:
    """Means over seeds, less the full table with the same seed: sampled HR@10 in points / NDCG@10 in per cent; AUC."""
    seeds = sorted(set(of_arm) & set(full))
    if not seeds:
        return ""

    def mean(name: str, relative: bool) -> float:
        lost = [of_arm[s][name] - full[s][name] for s in seeds]
        return statistics.mean(100 * e / (full[s][name] if relative else 1) for e, s in zip(lost, seeds, strict=True))

    if "auc" in of_arm[seeds[0]]:
        return f"{mean('auc', False):+.2f}"
    return f"{mean('hr@10', False):+.2f} / {mean('full_ndcg@10', True):+.1f}%"


def ablation(budget: str) -> str:
    """Every arm on every pair."""
    figures = _ablated()
    if not figures:
        return ""
    rows = [
        [title, *(_less_full(figures.get((pair, budget, arm), {}), figures[pair, "100%", "full"]) for pair in ABLATED)]
        for arm, title in ARMS.items()
    ]
    return markdown([f"{budget} of the bytes, less full", *ABLATED.values()], rows)


def code_bounds() -> str:
    """What ideal codes lose where the study misses its aims."""
    figures, rows = _ablated(), []
    for (pair, budget), title in BOUNDED.items():
        arms = [figures.get((pair, budget, arm), {}) for arm in BOUND_ARMS]
        if arms[-2]:
            seeds = "/".join(str(len(each)) for each in arms)
            cells = [_less_full(each, figures[pair, "100%", "full"]) for each in arms]
            rows.append([f"{title}, {budget}", *cells, seeds])
    return markdown(["less full", *BOUND_ARMS.values(), "seeds"], rows)


def levels() -> str:
    """Tables of centroids / of levels, within the same bytes: means over the seeds that have both; a table per pair."""
    results = read("levels")
    records = results["records"] if results else []
    parts = {
        pair: levels_of([r for r in records if r["pair"] == pair]) for pair in dict.fromkeys(r["pair"] for r in records)
    }
    return "\n\n".join(f"**{ABLATED.get(pair, pair)}**\n\n{table}" for pair, table in parts.items() if table)


def levels_of(records: list[dict[str, Any]]) -> str:
    """One pair's."""
    figures: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for r in records:
        figures.setdefault((r["budget"], r["arm"]), {})[r["seed"]] = {**r["figures"], "share": r["nbytes"]}
    full = figures.get(("100%", "full"), {})
    shown = {name: title for name, title in FIGURES.items() if all(name in each for each in full.values())}
    rows = []
    for budget in dict.fromkeys(budget for budget, arm in figures if arm == "levels"):
        pair = [figures.get((budget, arm), {}) for arm in ("centroids", "levels")]
        seeds = sorted(set(pair[0]) & set(pair[1]) & set(full))
        if not seeds:
            continue

        def mean(of_arm: dict[int, dict[str, float]], name: str, digits: int, seeds: list[int] = seeds) -> str:
            return f"{statistics.fmean(of_arm[seed][name] for seed in seeds):.{digits}f}"

        cells = [" / ".join(mean(of_arm, name, 4) for of_arm in pair) for name in shown]
        nbytes = " / ".join(
            f"{100 * statistics.fmean(of_arm[s]['share'] / full[s]['share'] for s in seeds):.1f}%" for of_arm in pair
        )
        rows.append([budget, str(len(seeds)), nbytes, *cells])
    if not rows:
        return ""
    of_full = [f"{statistics.fmean(each[name] for each in full.values()):.4f}" for name in shown]
    rows.append(["full table", str(len(full)), "100%", *of_full])
    return markdown(["centroids / levels", "seeds", "bytes", *shown.values()], rows)


FIGURES = {
    "valid_hr@10": "valid HR@10",
    "valid_full_ndcg@10": "valid NDCG@10, whole catalogue",
    "hr@10": "test HR@10",
    "full_hr@10": "test HR@10, whole catalogue",
    "full_ndcg@10": "test NDCG@10, whole catalogue",
    "valid_auc": "valid AUC",
    "auc": "test AUC",
}


PAGES = ("convert", "method", "speed", "speed_bounds", "serving", "reference_points")


def reference_points() -> str:
    """Models of other libraries, and runs, on the published splits; the columns are those of the test part."""
    splits = {data: read(f"reference-points-{data}") for data in ("ml-1m-split", "beauty-split")}
    found = {data: {each["name"]: each for each in result["runs"]} for data, result in splits.items() if result}
    header = ["whole catalogue, test", *(f"{data}: {name}" for data in found for name in ("recall@20", "NDCG@20"))]
    rows = []
    for model in dict.fromkeys(name for runs in found.values() for name in runs):
        figures = [runs.get(model, {}).get(name) for runs in found.values() for name in ("recall@20", "ndcg@20")]
        rows.append([model, *("" if figure is None else f"{figure:.4f}" for figure in figures)])
    return markdown(header, rows)


def parts() -> dict[str, str]:
    """Name -> table, of all that these pages have."""
    return {f"recipes-{data}": recipes(data) for data in TITLES} | {
        "plan-prediction": plan_prediction(),
        "plan-trained": plan_trained(),
        "ablation-5": ablation("5%"),
        "code-bounds": code_bounds(),
        "ablation-2": ablation("2%"),
        "budgets": budgets(),
        "budgets-epyc": budgets("budgets-epyc", with_targets_alone=True),
        "budget-tables": budget_tables(),
        "budget-lookups": budget_lookups(),
        "budget-searches": budget_searches(),
        "budget-misses": budget_misses(),
        "fold": fold(),
        "levels": levels(),
        "zipf": zipf(),
        "bounds": bounds(),
        "bound-targets": bound_targets(),
        "bound-seconds": bound_seconds(),
        "instruction-sets": instruction_sets(),
        "lookup-model": lookup_model(),
        "lookup-model-errors": lookup_model_errors(),
        "speed": speed(),
        "topk": topk(),
        "serve": serve(),
        "reference-points": reference_points(),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in PAGES:
        fill_page(ROOT / "docs" / f"{page}.md", parts())


if __name__ == "__main__":
    main()
