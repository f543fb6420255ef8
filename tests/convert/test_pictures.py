"""plot_usage, plot_errors and plot_sizes: the data on their axes, and what they refuse."""

from __future__ import annotations

import sys

import pytest
import torch

import mgqe
from mgqe.convert.pictures.errors import lost_shares, rank_edges

pytest.importorskip("matplotlib")


def table_of_known_codes():
    """Two tiers of 4 ids each, two subspaces of 2 dimensions. Tier 0 uses all of 4 centroids, tier 1 one of 2."""
    centroids = torch.arange(16.0).reshape(2, 4, 2)
    codes = [torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]]), torch.tensor([[0, 1]] * 4)]
    return mgqe.CompactTable.from_codes(mgqe.Tiers((4, 4)), codes, [centroids], [0, 0], [4, 2])


def heights(axes):
    """Of the light bars, and of the dark ones."""
    return [[bar.get_height() for bar in bars] for bars in axes.containers]


def test_usage_of_known_codes():
    frequent, rare = mgqe.plot_usage(table_of_known_codes()).axes
    assert heights(frequent) == [[100.0, 50.0], pytest.approx([100.0, 50.0])]
    assert heights(rare) == [[50.0, 50.0], [50.0, 50.0]]
    assert [(bar.get_x(), bar.get_width()) for bar in frequent.containers[0]] == [(0, 2), (2, 2)]
    assert rare.get_title("left") == "tier 1: 4 ids"
    assert rare.get_xlabel() == "dimension"


def test_usage_leaves_subspaces_without_bits_out():
    """Of coordinates 0 and 1, joined, with 2 bits in the first tier; coordinate 2 has a code only there."""
    codes = [torch.tensor([[0, 0], [1, 1], [2, 0], [3, 1]]), torch.tensor([[0, 0], [1, 0]])]
    bits, book, matrix = [[2, 1], [1, 0]], torch.arange(10.0), torch.eye(3, 4)
    table = mgqe.CompactTable.from_mixed_codes(
        mgqe.Tiers((4, 2)), codes, [book], [0, 0], [2, 1], bits, mean=torch.zeros(4), matrix=matrix
    )
    frequent, rare = mgqe.plot_usage(mgqe.CompactEmbedding(table)).axes
    assert heights(frequent) == [[100.0, 100.0], pytest.approx([100.0, 100.0])]
    assert heights(rare) == [[100.0], pytest.approx([100.0])]
    assert [(bar.get_x(), bar.get_width()) for bar in frequent.containers[0]] == [(0, 2), (2, 1)]
    assert rare.get_xlabel() == "coordinate, by falling variance"


def test_usage_of_layers():
    layer = mgqe.DPQEmbedding(40, 4, num_centroids=4, warmup_steps=1)
    with pytest.raises(RuntimeError, match="start_quantizing"):
        mgqe.plot_usage(layer)
    mgqe.start_quantizing(layer)
    assert heights(mgqe.plot_usage(layer).axes[0]) == heights(mgqe.plot_usage(layer.freeze()).axes[0])
    with pytest.raises(TypeError, match="expected a CompactTable or a layer with codes, got Embedding"):
        mgqe.plot_usage(torch.nn.Embedding(3, 4))


def test_edges_grow_by_a_factor_and_parts_have_ids():
    assert rank_edges(1000, 3) == [0, 10, 100, 1000]
    assert rank_edges(25, 40) == [0, 10, 20, 25]
    assert rank_edges(3, 40) == [0, 3]


def test_lost_shares_by_hand():
    """The table holds zeros for ids 1 and 3: all of their squares are lost, and nothing of the others."""
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    table = mgqe.baselines.FullTable(torch.tensor([[1.0], [0.0], [3.0], [0.0]]))
    by_frequency = torch.tensor([3, 2, 1, 0])
    lost = lost_shares(rows, table, by_frequency, [0, 1, 2, 4])
    assert lost.tolist() == [1.0, 0.0, pytest.approx(4 / 5)]


def test_errors_of_two_tables():
    weight = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(500)  # the last id is the most frequent
    table = mgqe.compress_table(weight, budget="10%", counts=counts)
    figure = mgqe.plot_errors(weight.numpy(), {"full": mgqe.baselines.FullTable(weight), "10%": table}, counts, parts=9)
    full, small = [patch.get_data() for patch in figure.axes[0].patches]
    assert not full.values.any()
    assert full.edges.tolist() == [1, *rank_edges(500, 9)[1:]]
    order = counts.flip(0)
    assert small.values.tolist() == (100 * lost_shares(weight, table, order, rank_edges(500, 9))).tolist()
    ends = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert ends == list(table.tiers.starts[1:-1])


def test_errors_of_what_does_not_fit():
    weight = torch.zeros(5, 2)
    table = mgqe.baselines.FullTable(weight)
    with pytest.raises(ValueError, match=r"expected counts of shape \(5,\), one per row, got \(4,\)"):
        mgqe.plot_errors(weight, table, torch.ones(4))
    with pytest.raises(ValueError, match="the table is 5 x 2, the matrix 5 x 3"):
        mgqe.plot_errors(torch.zeros(5, 3), table, torch.ones(5))
    with pytest.raises(TypeError, match="expected tables, got Tensor as 'mine'"):
        mgqe.plot_errors(weight, {"mine": weight}, torch.ones(5))


def test_sizes_as_bytes_and_as_shares():
    lines = {"codes": [(200, 0.9), (50, 0.5)], "halves": [(500, 0.8)]}
    axes = mgqe.plot_sizes(lines).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[50, 0.5], [200, 0.9]], [[500, 0.8]]]
    axes = mgqe.plot_sizes(lines, quality="recall@10", full=(1000, 1.0)).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[5, 0.5], [20, 0.9]]
    assert axes.lines[2].get_ydata() == [1.0, 1.0]
    assert axes.get_ylabel() == "recall@10"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["codes", "halves", "full table"]


def test_sizes_of_nothing():
    with pytest.raises(ValueError, match="at least one line"):
        mgqe.plot_sizes({})
    with pytest.raises(ValueError, match="at least one line"):
        mgqe.plot_sizes({"codes": []})
    with pytest.raises(ValueError, match="expected bytes above 0, got 0"):
        mgqe.plot_sizes({"codes": [(0, 1.0)]})


def test_without_matplotlib(monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    calls = {
        "plot_usage": lambda: mgqe.plot_usage(table_of_known_codes()),
        "plot_errors": lambda: mgqe.plot_errors(torch.ones(2, 1), mgqe.baselines.FullTable(torch.ones(2, 1)), [1, 1]),
        "plot_sizes": lambda: mgqe.plot_sizes({"codes": [(1, 1.0)]}),
    }
    for name, call in calls.items():
        with pytest.raises(ImportError, match=rf"{name} needs matplotlib: run pip install 'mgqe\[recsys\]'"):
            call()
