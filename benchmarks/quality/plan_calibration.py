"""How much k-means loses on Gaussian rows: the numbers behind mgqe.plan's prediction.

The prediction is src/mgqe/codec/planning/rate.py.

Rows are drawn from N(0, 1), several independent subspaces of s dimensions at once, and coded by the library's own
k-means (as compress_ runs it on trained rows). For each s and K: the share of the squares that is lost with so many
rows a centroid that more would change little (`limits`), and, for fewer, the same over that limit (`few_rows`).

    python -m benchmarks.quality.plan_calibration
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks._common import QUALITY, environment
from mgqe.codec.equations import nearest_codes, tier_codebook
from mgqe.codec.kmeans import THOROUGH, kmeans

WIDTHS = (1, 2, 4, 8, 16, 32)
CENTROIDS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MANY_ROWS = 64_000
FEW = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)  # rows a centroid


def lost(width: int, centroids: int, rows: int, repeats: int, seed: int) -> float:
    """Share of the squares of `repeats` x `rows` Gaussian pieces of `width` dimensions that k-means loses."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(rows, repeats * width, generator=generator)
    held = torch.empty(repeats, 0, width)
    book = kmeans([(data, repeats)], held, centroids, generator, THOROUGH)
    codes = nearest_codes(data, book, repeats, centroids)
    pieces = tier_codebook(book, repeats, centroids)
    decoded = pieces[torch.arange(repeats), codes.long()].reshape(rows, -1)
    return float((data - decoded).square().sum() / data.square().sum())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    limits: dict[str, list[float]] = {}
    few: list[dict[str, float]] = []
    for width in WIDTHS:
        limits[str(width)] = []
        for number, centroids in enumerate(CENTROIDS):
            rows = min(MANY_ROWS, max(8_000, 200 * centroids))
            value = lost(width, centroids, rows, 2 if centroids > 64 else 4, number)
            limits[str(width)].append(value)
            print(f"s = {width:2} K = {centroids:4}: {value:.6f}", flush=True)
    for width in (1, 2, 4, 8, 16):
        for centroids in (16, 64, 256):
            limit = limits[str(width)][CENTROIDS.index(centroids)]
            for share in FEW:
                rows = int(share * centroids)
                value = lost(width, centroids, rows, 16, 1)
                few.append({"s": width, "K": centroids, "rows": rows, "of_limit": value / limit})
                print(f"s = {width:2} K = {centroids:4} rows = {rows:6}: {value / limit:.4f} of the limit", flush=True)
    content = {"environment": environment(), "centroids": CENTROIDS, "limits": limits, "few_rows": few}
    out = QUALITY / "plan-calibration.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
