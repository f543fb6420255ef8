"""Tables and pictures of results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mgqe.recsys.study.summary import Interval, picture, summarise, terminal_table


def run(embedding: str, seed: int, size: int, hit_rate: float) -> dict[str, Any]:
    quality = {"hr@10": hit_rate, "ndcg@10": hit_rate / 2, "full_hr@10": hit_rate / 4}
    return {
        "embedding": embedding,
        "seed": seed,
        "embedding_bytes": size,
        "full_embedding_bytes": 1000,
        "quality": quality,
    }


RUNS = [
    *(run("full", seed, 1000, value) for seed, value in ((1, 0.60), (2, 0.64), (3, 0.62))),
    *(run("mgqe:D=4", seed, 100, value) for seed, value in ((1, 0.59), (2, 0.64), (3, 0.60))),
    run("full:d=4", 1, 250, 0.5),
]


def test_interval_by_hand() -> None:
    # Student's t with two degrees of freedom: 4.303; standard deviation .02.
    interval = Interval.of([0.60, 0.64, 0.62])
    assert interval.mean == pytest.approx(0.62)
    assert interval.half_width == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert interval.text() == ".6200 ±.0497"
    assert math.isnan(Interval.of([0.5]).half_width)
    assert Interval.of([0.5]).text(signed=True) == "+.5000"
    assert Interval.of([0.0] * 49 + [1.0]).half_width == pytest.approx(1.96 * math.sqrt(0.02 / 50))


def test_summary() -> None:
    rows = summarise(RUNS)
    assert [row.embedding for row in rows] == ["full", "full:d=4", "mgqe:D=4"]
    full, small, mgqe = rows
    assert (full.share, small.share, mgqe.share) == (1.0, 0.25, pytest.approx(0.1))
    assert full.difference is None
    assert small.difference is not None
    assert small.difference.mean == pytest.approx(-0.1)  # against the full run of the same seed only
    assert mgqe.difference is not None
    assert mgqe.difference.mean == pytest.approx(-0.01)
    assert mgqe.difference.half_width == pytest.approx(4.303 * 0.01 / math.sqrt(3))
    assert summarise(RUNS[3:])[1].difference is None


def test_table_and_picture(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(terminal_table(summarise(RUNS), "title"))
    text = console.export_text()
    for part in ("title", "mgqe:D=4", "10.0%", ".6200 ±.0497", "-.0100 ±.0248"):
        assert part in text
    path = picture(summarise(RUNS), tmp_path / "deep" / "picture.png", "title")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 10_000
