"""table.to_faiss: the ids and scores of table.topk for every layout, and what the indexes can and cannot do."""

import gc
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import EVEN, MIXED, Case, build

from mgqe import CompactTable, Tiers

# One IndexPQ for all: one tier, or tiers of one codebook and as many subspaces.
ONE_INDEX = {
    "two tiers",
    "frequency order",
    "one tier, one byte",
    "one codebook for all subspaces",
    "float16",
    "an empty tier",
    "wide codes",
    "one bit",
    "no rows",
}


@pytest.fixture(scope="module")
def faiss():
    found = pytest.importorskip("faiss")
    threads = found.omp_get_max_threads()
    found.omp_set_num_threads(1)  # tables this small only wait for each other
    yield found
    found.omp_set_num_threads(threads)


def queries_of(table, count=4, seed=1):
    return torch.randn(count, table.embedding_dim, generator=torch.Generator().manual_seed(seed))


def one_tier(n=50, subspaces=4, centroids=256, width=2, padding_idx=None):
    made = torch.Generator().manual_seed(3)
    codes = torch.randint(centroids, (n, subspaces), generator=made)
    book = torch.randn(subspaces, centroids, width, generator=made)
    return CompactTable.from_codes(Tiers.from_sizes([n]), [codes], [book], [0], [centroids], padding_idx)


def check_same(table, index, queries, k):
    """Scores as table.topk's, and ids whose rows have these scores: the same ids up to ties."""
    expected = table.topk(queries, k).scores
    scores, ids = (torch.from_numpy(a) for a in index.search(queries.numpy(), k))
    slack = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=slack)
    own = torch.einsum("bd,bkd->bk", queries, table.lookup(ids))
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=slack)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("case", EVEN, ids=lambda c: c.name)
def test_every_layout_finds_what_topk_finds(case, faiss):
    table = build(case).table
    index = table.to_faiss()
    assert (index.d, index.ntotal) == (table.embedding_dim, table.num_embeddings)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert isinstance(index, faiss.IndexPQ) == (case.name in ONE_INDEX)
    queries = queries_of(table)
    for k in {1, 10, table.num_embeddings} if table.num_embeddings else ():
        check_same(table, index, queries, min(k, table.num_embeddings))


@pytest.mark.parametrize("case", MIXED, ids=lambda c: c.name)
def test_mixed_tables_are_refused_with_the_remedy(case, faiss):
    with pytest.raises(
        ValueError, match=r"faiss has one width.*table\.topk, or add table\.to_dense\(\) to.*IndexFlatIP"
    ):
        build(case).table.to_faiss()


@pytest.mark.parametrize("case", [c for c in EVEN if c.name in ONE_INDEX], ids=lambda c: c.name)
def test_one_index_reconstructs_the_rows_and_goes_through_a_file(case, faiss, tmp_path):
    table = build(case).table
    path = str(tmp_path / "items.faiss")
    faiss.write_index(table.to_faiss(), path)
    index = faiss.read_index(path)
    n = table.num_embeddings
    assert index.ntotal == n
    if n:
        assert np.array_equal(index.reconstruct_n(0, n), table.to_dense().numpy())
        check_same(table, index, queries_of(table), min(n, 7))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_random_layouts_find_what_topk_finds(data, seed, faiss):
    subspaces = data.draw(st.sampled_from([1, 2, 4, 6]), "subspaces of the codebook")
    shared = data.draw(st.booleans(), "one codebook for all subspaces")
    tiers = data.draw(st.integers(1, 3), "tiers")
    each = [1] if shared else [r for r in (1, 2, 3) if subspaces % r == 0]
    divide = data.draw(st.lists(st.sampled_from(each), min_size=tiers, max_size=tiers))
    counts = data.draw(st.lists(st.sampled_from([1, 2, 3, 16, 37, 256, 300]), min_size=tiers, max_size=tiers))
    own = data.draw(st.booleans(), "a codebook a tier")
    width = data.draw(st.integers(1, 3), "dimensions of a piece")
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=tiers, max_size=tiers).filter(any))
    case = Case(
        "random",
        tuple(sizes),
        tuple(subspaces // r for r in divide),
        tuple(counts),
        ((1 if shared else subspaces, max(counts), width),) * (tiers if own else 1),
        tuple(range(tiers)) if own else (0,) * tiers,
        shuffled=data.draw(st.booleans(), "shuffled"),
        centroid_dtype=data.draw(st.sampled_from(["float32", "float16", "int8"])),
        padding_idx=data.draw(st.none() | st.integers(0, sum(sizes) - 1)),
    )
    table = build(case, seed).table
    for tier in data.draw(st.lists(st.integers(0, tiers - 1), max_size=3), "appended to"):
        table.append(queries_of(table, 3, seed + tier), tier)
    n = table.num_embeddings
    check_same(table, table.to_faiss(), queries_of(table, 3, seed), data.draw(st.integers(1, n), "k"))


@pytest.mark.parametrize("centroids", [5, 6, 8, 256, 1000])
@pytest.mark.parametrize("padding_idx", [0, 20, 49])
def test_the_padding_row_is_zeros_at_the_cost_of_a_bit_at_most(centroids, padding_idx, faiss):
    table = one_tier(centroids=centroids, padding_idx=padding_idx)
    index = table.to_faiss()
    assert index.pq.nbits == centroids.bit_length()
    assert not index.reconstruct(padding_idx).any()
    assert np.array_equal(index.reconstruct_n(0, 50), table.to_dense().numpy())
    check_same(table, index, queries_of(table), 50)


def test_no_spare_code_for_the_padding_row_is_refused(faiss):
    table = one_tier(n=3, subspaces=1, centroids=65_536, width=1, padding_idx=1)
    with pytest.raises(ValueError, match=r"padding_idx=1 .* num_centroids=65536: expected at most 65535"):
        table.to_faiss()
    check_same(one := one_tier(n=3, subspaces=1, centroids=65_536, width=1), one.to_faiss(), torch.ones(1, 1), 3)


def test_codes_are_kept_as_they_are_packed(faiss):
    for centroids in (1, 2, 4, 7, 16, 100, 256, 513, 5000, 65_536):
        table = one_tier(subspaces=3, centroids=centroids, width=1)
        packed = table.to_tensors()[0]["codes.0"]
        assert np.array_equal(faiss.vector_to_array(table.to_faiss().codes), packed.numpy().reshape(-1))


@pytest.mark.parametrize("centroids", [1, 2, 3, 4, 5])
def test_few_centroids_of_two_dimensions_get_the_bits_that_faiss_demands(centroids, faiss):
    table = one_tier(centroids=centroids, padding_idx=7)
    index = table.to_faiss()
    assert index.pq.nbits == 3
    check_same(table, index, queries_of(table), 50)


def test_the_index_is_a_copy(faiss):
    table = one_tier()
    index = table.to_faiss()
    before = index.search(queries_of(table).numpy(), 5)
    table.update(torch.arange(50), torch.zeros(50, 8))
    table.append(torch.ones(1, 8))
    after = index.search(queries_of(table).numpy(), 5)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert index.ntotal == 50
    check_same(table, table.to_faiss(), queries_of(table), 51)


@pytest.mark.parametrize("name", ["fewer subspaces", "int8"])
def test_torch_defaults_do_not_matter(name, faiss):
    table = build(next(case for case in EVEN if case.name == name)).table
    queries = queries_of(table)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        index = table.to_faiss()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    check_same(table, index, queries, 10)


def test_vectors_added_to_one_index_get_the_codes_that_the_table_gives(faiss):
    table = one_tier(centroids=37)  # 27 codes name no centroid of the table
    index = table.to_faiss()
    vectors = queries_of(table, 20)
    index.add(vectors.numpy())
    table.append(vectors)
    check_same(table, index, queries_of(table, 3, 9), 70)


@pytest.mark.parametrize("shuffled", [True, False])
def test_several_indexes_lose_what_the_page_says(shuffled, faiss, tmp_path):
    case = Case("shards", (9, 21), (4, 2), (8, 8), ((4, 8, 2),), (0, 0), shuffled=shuffled)
    table = build(case).table
    index = table.to_faiss()
    gc.collect()
    assert isinstance(index, faiss.IndexShards)
    assert index.successive_ids != shuffled
    kinds = {type(faiss.downcast_index(index.at(i))) for i in range(index.count())}
    assert kinds == {faiss.IndexIDMap if shuffled else faiss.IndexPQ}
    check_same(table, index, queries_of(table), 30)
    found = index.search(queries_of(table, 1).numpy(), 35)[1][0]
    assert sorted(found[:30]) == list(range(30))
    assert set(found[30:]) == {-1}
    with pytest.raises(RuntimeError, match="serialize"):
        faiss.write_index(index, str(tmp_path / "items.faiss"))
    with pytest.raises(RuntimeError, match="reconstruct not implemented"):
        index.reconstruct(0)
    if not shuffled:
        with pytest.raises(RuntimeError):
            index.add(queries_of(table).numpy())


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'mgqe\[faiss\]'"):
        one_tier().to_faiss()
