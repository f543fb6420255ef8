"""Clustered compositional embeddings: values and clusterings worked out by hand, bytes, and what is refused."""

import pytest
import torch

from mgqe.baselines import CCEmbedding
from mgqe.baselines.cce import helper_codes
from mgqe.codec.hashing import bucket_of


def filled(layer: CCEmbedding, codes: list[list[int]], clusters: list[list[float]]) -> CCEmbedding:
    """The layer with these pointers and rows, and helpers of zero."""
    with torch.no_grad():
        layer.codes.copy_(torch.tensor(codes))
        layer.clusters.copy_(torch.tensor(clusters))
        layer.helpers.zero_()
    return layer


def test_rows_by_hand():
    layer = CCEmbedding(3, 2, num_columns=2, num_centroids=2, seed=5)
    filled(layer, [[0, 1], [1, 1], [1, 0]], [[1.0], [2.0], [30.0], [40.0]])  # column 0's two rows, then column 1's
    assert layer(torch.arange(3)).tolist() == [[1.0, 40.0], [2.0, 40.0], [2.0, 30.0]]
    with torch.no_grad():
        layer.helpers.copy_(torch.tensor([[0.1], [0.2], [0.3], [0.4]]))
    ids = torch.arange(3)
    helpers = torch.stack([layer.helpers[2 * j + bucket_of(ids, 2, 5, j), 0] for j in range(2)], 1)
    expected = torch.tensor([[1.0, 40.0], [2.0, 40.0], [2.0, 30.0]]) + helpers
    assert torch.equal(layer(ids), expected)
    assert torch.equal(layer.freeze().lookup(ids), expected)


def test_clustering_finds_what_rows_share():
    """Eight ids of two different values per column, under four rows per column: K = 2 is enough for them afterwards."""
    layer = CCEmbedding(8, 2, num_columns=2, num_centroids=4)
    codes = [[i % 4, i // 2] for i in range(8)]
    filled(layer, codes, [[1.0], [1.0], [5.0], [5.0], [-2.0], [-2.0], [7.0], [7.0]])
    ids = torch.arange(8)
    before = layer(ids).detach()
    layer.cluster()
    assert torch.equal(layer(ids), before)
    assert not layer.helpers.any()
    for column in range(2):  # ids of one value share a pointer, ids of two values do not
        assert len({(float(v), int(c)) for v, c in zip(before[:, column], layer.codes[:, column])}) == 2
    assert int(layer.clustered) == 1


def test_helpers_get_other_hashes_and_the_table_says_which():
    layer = CCEmbedding(500, 4, num_columns=2, num_centroids=16, seed=3)
    ids = torch.arange(500)
    before = helper_codes(ids, 2, 16, 3, 0)
    layer.cluster()
    after = helper_codes(ids, 2, 16, 3, 1)
    assert 0.03 < float((before == after).float().mean()) < 0.1  # 1 / 16 by chance
    with torch.no_grad():
        layer.helpers.normal_()
    table = layer.freeze()
    assert table.clustered == 1
    assert torch.equal(table.lookup(ids), layer(ids).detach())
    row = (
        table.clusters.view(2, 16, 2)[torch.arange(2), layer.codes[7].long()]
        + table.helpers.view(2, 16, 2)[torch.arange(2), after[7]]
    )
    assert torch.equal(layer(torch.tensor(7)), row.flatten())


def test_the_first_pointers_are_other_hashes_than_the_helpers():
    layer = CCEmbedding(2000, 4, num_columns=1, num_centroids=64)
    same = layer.codes.long() == helper_codes(torch.arange(2000), 1, 64, 0, 0)
    assert float(same.float().mean()) < 0.05
    assert torch.bincount(layer.codes[:, 0].long(), minlength=64).min() > 0


def test_it_clusters_after_the_first_epochs():
    layer = CCEmbedding(100, 4, num_centroids=8, clusterings=3)
    rounds = []
    for epoch in range(1, 7):
        layer.start_epoch(epoch)
        rounds.append(int(layer.clustered))
    assert rounds == [0, 1, 2, 3, 3, 3]


def test_the_padding_row_is_not_clustered():
    """The padding id's composed row is far from the others, and must not take one of two centroids."""
    layer = CCEmbedding(5, 1, padding_idx=0, num_columns=1, num_centroids=3)
    filled(layer, [[2], [0], [0], [1], [1]], [[1.0], [3.0], [1e6]])
    layer.cluster()
    assert layer(torch.arange(5)).flatten().tolist() == [0.0, 1.0, 1.0, 3.0, 3.0]


def test_bytes():
    """Two codes of 4 bits per row, and two tables of 2 x 16 rows of 4 floats."""
    assert CCEmbedding(100, 8, num_columns=2, num_centroids=16).freeze().nbytes_by_part() == {
        "codes": 100,
        "clusters": 512,
        "helpers": 512,
    }


def test_clustering_needs_finite_tables():
    layer = CCEmbedding(10, 4, num_centroids=4)
    with torch.no_grad():
        layer.helpers[1, 0] = float("inf")
    with pytest.raises(ValueError, match=r"helpers\[1\] of the CCEmbedding of 10 x 4 holds NaN or infinity"):
        layer.cluster()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_columns": 3}, "embedding_dim=8 is not divisible by num_columns=3"),
        ({"num_columns": 0}, "num_columns must be a whole number of 1 or more"),
        ({"num_centroids": 51}, "num_centroids must be a whole number from 1 to 50, got 51"),
        ({"clusterings": -1}, "clusterings must be a whole number from 0"),
        ({"seed": -1}, "seed must be a whole number from 0"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        CCEmbedding(50, 8, **options)


def test_default_sizes():
    assert [CCEmbedding(50, d).num_columns for d in (64, 24, 6, 7)] == [16, 8, 2, 1]
    assert [CCEmbedding(n, 4).num_centroids for n in (50, 5000)] == [50, 256]
