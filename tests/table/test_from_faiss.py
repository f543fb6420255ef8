"""CompactTable.from_faiss: the vectors that faiss reconstructs, and files in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mgqe
from mgqe import CompactTable
from mgqe.convert.faiss_files import is_faiss_file, read_faiss_file, write_faiss_file

faiss = pytest.importorskip("faiss")
ROWS = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)


def trained(index):
    index.train(ROWS)
    index.add(ROWS)
    return index


def pq(bits=4, subspaces=4):
    return faiss.IndexPQ(8, subspaces, bits, faiss.METRIC_INNER_PRODUCT)


@pytest.mark.parametrize(("subspaces", "bits"), [(4, 4), (4, 3), (8, 5), (2, 8), (1, 8)])
def test_vectors_are_those_that_faiss_reconstructs(subspaces, bits):
    index = trained(pq(bits, subspaces))
    table = CompactTable.from_faiss(index)
    assert np.array_equal(table.to_dense().numpy(), index.reconstruct_n())
    assert table.config.tiers[0].bits == bits


def test_a_rotation_becomes_the_tables_matrix():
    index = trained(faiss.IndexPreTransform(faiss.OPQMatrix(8, 4), pq()))
    table = CompactTable.from_faiss(index)
    torch.testing.assert_close(table.to_dense(), torch.from_numpy(index.reconstruct_n()), rtol=1e-5, atol=1e-6)
    queries = torch.from_numpy(ROWS[:5])
    scores, _ = index.search(ROWS[:5], 3)
    torch.testing.assert_close(table.topk(queries, 3).scores, torch.from_numpy(scores), rtol=1e-4, atol=1e-5)


def test_there_and_back_is_the_same_table():
    table = mgqe.DPQEmbedding(300, 8, num_subspaces=4, num_centroids=16).freeze()
    assert torch.equal(CompactTable.from_faiss(table.to_faiss()).to_dense(), table.to_dense())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: faiss.IndexFlatIP(8), "got IndexFlatIP: compress its vectors: `mgqe compress vectors.npy`"),
        (lambda: faiss.IndexPreTransform(faiss.PCAMatrix(8, 4, -0.5), faiss.IndexPQ(4, 2, 4)), "got PCAMatrix"),
        (lambda: faiss.IndexIVFPQ(faiss.IndexFlatL2(8), 8, 4, 2, 4), "got IndexIVFPQ"),
    ],
)
def test_other_indexes_are_refused_with_the_remedy(make, message):
    with pytest.raises(TypeError, match=message):
        CompactTable.from_faiss(trained(make()))


def test_what_is_no_index_or_empty():
    with pytest.raises(TypeError, match="expected a faiss index, got str"):
        CompactTable.from_faiss("items.faiss")
    with pytest.raises(ValueError, match="the index is empty"):
        CompactTable.from_faiss(pq())


def test_files_keep_whole_numbers_as_ids(tmp_path):
    index = faiss.IndexIDMap(pq())
    index.train(ROWS)
    index.add_with_ids(ROWS, np.arange(400)[::-1] * 10)
    faiss.write_index(index, str(tmp_path / "their.faiss"))
    assert is_faiss_file(tmp_path / "their.faiss")
    items = read_faiss_file(tmp_path / "their.faiss")
    assert items.rows([3990, 0]).tolist() == [0, 399]
    write_faiss_file(items, tmp_path / "ours.faiss")
    ours = faiss.read_index(str(tmp_path / "ours.faiss"))
    expected = index.search(ROWS[:3], 4)
    found = ours.search(ROWS[:3], 4)
    assert np.array_equal(found[1], expected[1])
    assert np.array_equal(found[0], expected[0])


def test_files_of_other_ids_have_rows_numbers(tmp_path):
    table = mgqe.DPQEmbedding(50, 8, num_subspaces=4, num_centroids=16).freeze()
    write_faiss_file(mgqe.Collection(table, [f"i{n}" for n in range(50)]), tmp_path / "x.faiss")
    assert read_faiss_file(tmp_path / "x.faiss").ids is None


def test_tables_that_faiss_cannot_express_or_write(tmp_path):
    mixed = mgqe.compress_table(torch.from_numpy(ROWS), "40%")
    with pytest.raises(ValueError, match=r"this table is mixed: search it with table.topk, or add table.to_dense"):
        write_faiss_file(mgqe.Collection(mixed), tmp_path / "x.faiss")
    full = mgqe.baselines.FullTable(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"a FullTable has no codes: add table.to_dense\(\) to a faiss.IndexFlatIP"):
        write_faiss_file(mgqe.Collection(full), tmp_path / "x.faiss")
    counts = torch.arange(300, 0, -1)
    shards = mgqe.MGQEmbedding(
        300, 8, counts=counts, capacity="subspaces", num_subspaces=(4, 2), num_centroids=16
    ).freeze()
    with pytest.raises(ValueError, match="IndexShards and cannot write: use table"):
        write_faiss_file(mgqe.Collection(shards), tmp_path / "x.faiss")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file(tmp_path):
    faiss.write_index(trained(pq()), str(tmp_path / "whole.faiss"))
    (tmp_path / "cut.faiss").write_bytes((tmp_path / "whole.faiss").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut\.faiss: faiss cannot read it"):
        read_faiss_file(tmp_path / "cut.faiss")
