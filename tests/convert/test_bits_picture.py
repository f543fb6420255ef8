"""plot_bits: what is drawn of a planned table, of even ones, and of what has no bits."""

from __future__ import annotations

import sys

import pytest
import torch

import mgqe
from mgqe.codec.capacity import TierShape
from mgqe.codec.planning.fits import fit_table
from mgqe.codec.planning.problem import Candidate, TableProblem
from mgqe.convert.pictures.bits import Cell, cells_of

pytest.importorskip("matplotlib")
COUNTS = (10_000 / torch.arange(1, 2001)).long()


def planned():
    layer = mgqe.MGQEmbedding(2000, 32, counts=COUNTS, budget="4%")
    scales = torch.arange(1, 33) ** -1.5
    layer.raw_weight.data.copy_(torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)) * scales)
    problem, candidate = TableProblem(layer.raw_weight.detach(), COUNTS), Candidate(0.5, (0.1, 0.9), "identity")
    layer.adopt_plan(fit_table(problem, candidate, layer.planner.nbytes, torch.Generator().manual_seed(0)))
    layer.start_quantizing()
    return layer


def texts(figure):
    axes = figure.axes[0]
    return [text.get_text() for text in axes.texts], [label.get_text() for label in axes.get_yticklabels()]


def test_cells_of_unequal_and_of_even_subspaces():
    mixed = TierShape.mixed(10, (5, 0, 3))
    assert cells_of(mixed, (1, 2, 4), 8) == [Cell(0, 1, 5), Cell(1, 2, 0), Cell(3, 4, 3)]
    assert cells_of(TierShape(10, 2, 64), (), 8) == [Cell(0, 4, 6), Cell(4, 4, 6)]


def test_a_planned_table():
    layer = planned()
    table = layer.freeze()
    figure = mgqe.plot_bits(table)
    drawn, labels = texts(figure)
    widths = table.config.widths
    assert len(figure.axes[0].patches) == 2 * len(widths) + 1  # a cell of each tier, and what has no codes
    assert all(str(tier.code_bits[-1]) in drawn for tier in table.config.tiers)
    assert labels[0].startswith("tier 0: 200 ids\n")
    assert labels[1].endswith(f"{table.config.tiers[1].row_bytes} bytes per row")
    assert f"{sum(widths)} of 32 coordinates have codes" in figure.axes[0].get_title("left")
    assert texts(mgqe.plot_bits(layer)) == (drawn, labels)
    assert texts(mgqe.plot_bits(mgqe.CompactEmbedding(table))) == (drawn, labels)


def test_even_tables():
    layer = mgqe.MGQEmbedding(500, 8, counts=COUNTS[:500], num_centroids=(32, 16))
    drawn, labels = texts(mgqe.plot_bits(layer))
    assert drawn == ["5"] * 4 + ["4"] * 4
    assert labels == ["tier 0: 50 ids\n20 bits, 3 bytes per row", "tier 1: 450 ids\n16 bits, 2 bytes per row"]


def test_it_can_be_written(tmp_path):
    mgqe.plot_bits(mgqe.DPQEmbedding(9, 1, num_centroids=4)).savefig(tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_no_bits():
    with pytest.raises(TypeError, match="expected a CompactTable or a layer with codes, got Embedding"):
        mgqe.plot_bits(torch.nn.Embedding(3, 4))
    full = mgqe.baselines.FullTable(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="got FullTable"):
        mgqe.plot_bits(mgqe.CompactEmbedding(full))
    with pytest.raises(RuntimeError, match="start_quantizing"):
        mgqe.plot_bits(mgqe.MGQEmbedding(2000, 32, counts=COUNTS, budget="4%"))


def test_without_matplotlib(monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'mgqe\[recsys\]'"):
        mgqe.plot_bits(mgqe.DPQEmbedding(9, 1, num_centroids=4))
