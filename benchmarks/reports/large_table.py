"""Results of quality/large_table.py, quality/row_storage.py and speed/row_storage.py -> docs/large_tables.md.

python -m benchmarks.reports.large_table
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import matplotlib

from benchmarks._common import QUALITY, ROOT
from benchmarks.reports.pages import markdown, read
from mgqe.recsys.study.text_table import fill

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GIB = 2**30


def records(ids: int) -> list[dict[str, Any]]:
    """What large_table.py left for a vocabulary of so many ids."""
    found = read(f"large-table-{ids}")
    return [] if found is None else found["records"]


def quality_table(ids: int) -> str:
    """Every method at one size."""
    rows = []
    for r in records(ids):
        quality = r["quality"]
        rows.append(
            [
                r["method"].replace("hash=", "hashed full table, training bytes of "),
                f"{r['training_bytes_a_row']:.0f}",
                f"{quality['auc']:.4f}",
                f"{quality['auc_seen_100_times']:.4f}",
                f"{quality['auc_seen_1_to_9_times']:.4f}",
                f"{r['peak_rss_bytes'] / GIB:.1f}",
                f"{r['file_bytes'] / 1e6:,.0f}" if "file_bytes" in r else "",
                f"{r['interactions_a_second'] / 1e3:.0f}k",
            ]
        )
    header = [
        "rows", "training bytes per row", "AUC", "of ids seen 100 times", "of ids seen 1 to 9 times",
        "peak resident GiB", "frozen MB", "interactions per second",
    ]  # fmt: skip
    return markdown(header, rows)


def serving_table(ids: int) -> str:
    """Opening and asking the frozen tables."""
    rows = [
        [r["method"], f"{r['open_ms']:.0f}", f"{r['top100_s'] * 1e3:.0f}", f"{100 * r['share_of_reading']:.0f}%"]
        for r in records(ids)
        if "open_ms" in r
    ]
    header = ["rows", "opens in ms", "top-100 in ms", "share of the bandwidth of reading the codes once"]
    return markdown(header, rows)


def real_table(data: str) -> str:
    """Every storage for the users of a real data set."""
    found = read(f"row-storage-{data}")
    rows = [
        [
            r["storage"],
            f"{r['training_bytes_a_user']:.0f}",
            f"{r['valid']['hr@10']:.4f}",
            f"{r['test']['hr@10']:.4f}",
            f"{r['test']['ndcg@10']:.4f}",
        ]
        for r in (found["records"] if found else [])
    ]
    return markdown(["users' rows", "training bytes per user", "valid HR@10", "HR@10", "NDCG@10"], rows)


def speed_table() -> str:
    """A step of each storage."""
    found = read("row-storage")
    rows = [
        [r["name"], str(r["threads"]), f"{r['ratio']:.2f}", "" if r["target"] is None else f"{r['target']:.1f}"]
        for r in (found["results"] if found else [])
    ]
    return markdown(["rows", "threads", "time", "target"], rows)


def draw_memory(ids: int) -> None:
    """Resident memory over time, one panel per method, its phases in colours."""
    shown = [r for r in records(ids) if r["method"] != "full"]
    if not shown:
        return
    figure, panels = plt.subplots(len(shown), 1, figsize=(9, 2.4 * len(shown)), sharey=True, squeeze=False)
    for panel, record in zip(panels[:, 0], shown, strict=True):
        for number, (phase, group) in enumerate(groupby(record["memory_kib"], key=lambda sample: sample[1])):
            samples = list(group)
            times = [s[0] / 60 for s in samples]
            panel.fill_between(times, [s[2] / 2**20 for s in samples], color=f"C{number % 10}", alpha=0.3, lw=0)
            panel.plot(times, [s[3] / 2**20 for s in samples], color=f"C{number % 10}", lw=1)
            if times[-1] - times[0] > 0.02 * record["memory_kib"][-1][0] / 60:
                panel.text((times[0] + times[-1]) / 2, 0.3, phase, ha="center", fontsize=7)
        panel.axhline(16, color="0.5", lw=0.8, ls="--")
        if len(shown) and ids * 256 < 40 * GIB:
            panel.axhline(ids * 256 / GIB, color="0.5", lw=0.8, ls=":")
        panel.set_title(record["method"], fontsize=9, loc="left")
        panel.set_ylabel("GiB")
    panels[-1, 0].set_xlabel(
        "minutes; resident set filled, anonymous part a line; dashed: 16 GiB, dotted: the raw table"
    )
    figure.tight_layout()
    target = ROOT / "docs" / "pictures" / "large-table-memory.png"
    figure.savefig(target, dpi=110)
    print(target)


def main() -> None:
    blocks = {
        "large-100m": quality_table(100_000_000),
        "large-1m": quality_table(1_000_000),
        "large-serving": serving_table(100_000_000),
        "storage-apps": real_table("amazon-apps"),
        "storage-speed": speed_table(),
    }
    missing = fill(ROOT / "docs" / "large_tables.md", blocks)
    draw_memory(100_000_000)
    print(json.dumps({"results": str(QUALITY), "marks not found": missing}))


if __name__ == "__main__":
    main()
