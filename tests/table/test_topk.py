"""table.topk: hand-worked scores, brute force on decoded vectors, every form of its arguments, refused input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import CASES, build

from mgqe import CompactTable, Tiers


def small():
    """Five ids of two dimensions: (1, 2), (3, 2), (1, 0), (3, 0), (1, 2)."""
    codes = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])
    books = torch.tensor([[[1.0], [3.0]], [[0.0], [2.0]]])
    return CompactTable.from_codes(Tiers.from_sizes([5]), [codes], [books], [0], [2])


def table_of(n=3000, seed=0, padding_idx=None):
    made = torch.Generator().manual_seed(seed)
    tiers = Tiers.from_assignment((torch.rand(n, generator=made) < 0.8).int(), num_tiers=2)
    codes = [torch.randint(k, (size, 4), generator=made) for k, size in zip((256, 16), tiers.sizes, strict=True)]
    return CompactTable.from_codes(
        tiers, codes, [torch.randn(4, 256, 2, generator=made)], [0, 0], [256, 16], padding_idx
    )


def queries_of(table, count=3, seed=1):
    return torch.randn(count, table.embedding_dim, generator=torch.Generator().manual_seed(seed))


def test_scores_worked_out_by_hand():
    scores, ids = small().topk(torch.tensor([1.0, 10.0]), 4)
    assert scores.tolist() == [23.0, 21.0, 21.0, 3.0]  # 3 + 20; 1 + 20 twice, the lower id first; 3 + 0
    assert ids.tolist() == [1, 0, 4, 3]


def test_cosines_worked_out_by_hand():
    scores, ids = small().topk(torch.tensor([[2.0, 0.0]]), 2, score="cosine")
    assert scores.tolist() == [[1.0, 1.0]]  # (1, 0) and (3, 0) point where the query does
    assert ids.tolist() == [[2, 3]]


def test_biases_worked_out_by_hand():
    found = small().topk(torch.tensor([1.0, 10.0]), 2, bias=torch.tensor([0.0, 0.0, 0.0, 30.0, 0.0]))
    assert found.scores.tolist() == [33.0, 23.0]
    assert found.ids.tolist() == [3, 1]


@pytest.mark.parametrize("case", [c for c in CASES if sum(c.sizes)], ids=lambda c: c.name)
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_recall_of_brute_force_on_decoded_vectors_is_one(case, score):
    made = build(case)
    queries = queries_of(made.table, 4)
    k = min(10, made.table.num_embeddings)
    scores, ids = made.table.topk(queries, k, score=score)
    brute = queries.double() @ made.dense.double().T
    if score == "cosine":
        brute = torch.nn.functional.cosine_similarity(queries.double()[:, None], made.dense.double()[None], dim=2)
    best = brute.topk(k).values.float()
    torch.testing.assert_close(scores, best, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(brute.gather(1, ids).float(), scores, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == k for row in ids.tolist())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 50), count=st.integers(0, 40))
def test_a_batch_gives_what_single_queries_give(seed, k, count):
    table = table_of(600, seed)
    queries = queries_of(table, count, seed)
    scores, ids = table.topk(queries, k)
    assert scores.shape == ids.shape == (count, k)
    for q in range(count):
        one = table.topk(queries[q], k)
        assert torch.equal(one.scores, scores[q])
        assert torch.equal(one.ids, ids[q])


def test_k_may_be_all_rows():
    table = table_of(500)
    scores, ids = table.topk(queries_of(table, 1)[0], 500)
    assert sorted(ids.tolist()) == list(range(500))
    assert bool((scores[1:] <= scores[:-1]).all())


def test_forms_of_exclude_agree():
    table = table_of()
    queries = queries_of(table)
    best = table.topk(queries, 5).ids
    expected = [
        [i for i in table.topk(q, 30).ids.tolist() if i not in best[n].tolist()][:8] for n, q in enumerate(queries)
    ]
    mask = torch.zeros(3, 3000, dtype=torch.bool).scatter_(1, best, True)
    padded = torch.cat([best, torch.full((3, 2), -1)], dim=1)
    for exclude in (best, padded, [row.int() for row in best], mask):
        assert table.topk(queries, 8, exclude=exclude).ids.tolist() == expected
    one = table.topk(queries[0], 8, exclude=best[0]).ids.tolist()
    assert one == expected[0]
    everywhere = table.topk(queries, 8, exclude=best.reshape(-1)).ids
    assert not torch.isin(everywhere, best).any()


def test_forms_of_candidates_agree():
    table = table_of()
    queries = queries_of(table)
    for count in (20, 1500):  # fetched one by one, and filtered out of a search
        some = torch.randperm(3000, generator=torch.Generator().manual_seed(2))[:count]
        mask = torch.zeros(3000, dtype=torch.bool)
        mask[some] = True
        expected = table.topk(queries, 10, exclude=~mask)
        for candidates in (some, some.repeat(2), some.expand(3, -1), [some] * 3, mask, mask.expand(3, -1)):
            found = table.topk(queries, 10, candidates=candidates)
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.scores, expected.scores)


def test_fewer_than_k_leave_places_empty():
    table = table_of()
    scores, ids = table.topk(queries_of(table, 1)[0], 4, candidates=torch.tensor([7, 9, 7]), exclude=torch.tensor([9]))
    assert ids.tolist() == [7, -1, -1, -1]
    assert scores[1:].tolist() == [-torch.inf] * 3
    none = table.topk(queries_of(table), 2, candidates=torch.empty(0, dtype=torch.int64))
    assert none.ids.tolist() == [[-1, -1]] * 3


def test_the_padding_row_scores_zero_and_can_be_excluded():
    table = table_of(padding_idx=5)
    query = -10 * table.lookup(torch.arange(3000)).mean(0)
    scores, ids = table.topk(query, 3000)
    assert scores[ids.tolist().index(5)] == 0
    assert table.topk(query, 1, candidates=torch.tensor([5])).scores.tolist() == [0.0]
    assert 5 not in table.topk(query, 2999, exclude=torch.tensor([5])).ids.tolist()


def test_a_bias_sorted_once_gives_the_same():
    table = table_of()
    queries, bias = queries_of(table), torch.randn(3000, generator=torch.Generator().manual_seed(4))
    once = table.item_bias(bias)
    assert torch.equal(once.bias, bias)
    given, ready = table.topk(queries, 20, bias=bias), table.topk(queries, 20, bias=once)
    assert torch.equal(given.ids, ready.ids)
    brute = queries @ table.to_dense().T + bias
    torch.testing.assert_close(given.scores, brute.topk(20).values)
    table.update(torch.tensor([3]), torch.ones(1, 8))
    table.topk(queries, 20, bias=once)  # no id has moved
    table.append(torch.ones(1, 8))
    with pytest.raises(ValueError, match="make it again"):
        table.topk(queries, 20, bias=once)


def test_appended_ids_are_found():
    table = table_of()
    vector = table.lookup(torch.tensor([11]))[0] * 1.0
    query = vector / vector.norm()
    new = torch.cat([table.append(vector[None], tier=int(table.locate(torch.tensor([11]))[0])) for _ in range(3)])
    assert set(new.tolist()) <= set(table.topk(query, 50, score="cosine").ids.tolist())


def test_half_precision_queries_convert():
    table = table_of()
    queries = queries_of(table).to(torch.bfloat16)
    assert torch.equal(table.topk(queries, 5).ids, table.topk(queries.float(), 5).ids)


def test_strided_queries_are_read_as_they_are():
    table = table_of()
    wide = torch.randn(3, 16)
    assert torch.equal(table.topk(wide[:, ::2], 5).ids, table.topk(wide[:, ::2].contiguous(), 5).ids)


BAD = {
    "a list of text": (lambda t: t.topk(["a"] * 8, 3), TypeError, "queries must be floats"),
    "float64": (lambda t: t.topk(torch.ones(8).double(), 3), TypeError, "float64"),
    "integers": (lambda t: t.topk(torch.ones(8, dtype=torch.int64), 3), TypeError, "int64"),
    "dimensions": (lambda t: t.topk(torch.ones(2, 7), 3), ValueError, r"\(B, 8\), got \(2, 7\)"),
    "three axes": (lambda t: t.topk(torch.ones(1, 2, 8), 3), ValueError, r"got \(1, 2, 8\)"),
    "NaN": (lambda t: t.topk(torch.tensor([[1.0] * 8, [torch.nan] * 8]), 3), ValueError, "query 1 holds NaN"),
    "infinity": (lambda t: t.topk(torch.full((8,), torch.inf), 3), ValueError, "query 0 holds NaN or infinity"),
    "a cosine of NaN": (
        lambda t: t.topk(torch.tensor([[1.0] * 8, [torch.nan] + [1.0] * 7]), 3, score="cosine"),
        ValueError,
        "query 1 holds NaN",
    ),
    "k of 0": (lambda t: t.topk(torch.ones(8), 0), ValueError, r"1 \.\. 3000, the rows of the table, got 0"),
    "k beyond N": (lambda t: t.topk(torch.ones(8), 3001), ValueError, "got 3001"),
    "k that is no integer": (lambda t: t.topk(torch.ones(8), 2.0), TypeError, "k must be a whole number, got 2.0"),
    "score": (lambda t: t.topk(torch.ones(8), 3, score="l2"), ValueError, "score must be one of"),
    "bias and cosine": (lambda t: t.topk(torch.ones(8), 3, score="cosine", bias=torch.ones(3000)), ValueError, "dot"),
    "bias of another length": (lambda t: t.topk(torch.ones(8), 3, bias=torch.ones(5)), ValueError, r"shape \(3000,\)"),
    "bias that is no float": (lambda t: t.topk(torch.ones(8), 3, bias=torch.ones(3000).int()), TypeError, "int32"),
    "infinite bias": (lambda t: t.item_bias(torch.full((3000,), -torch.inf)), ValueError, "with exclude"),
    "excluded id": (lambda t: t.topk(torch.ones(8), 3, exclude=torch.tensor([3000])), IndexError, "id 3000"),
    "negative id": (lambda t: t.topk(torch.ones(8), 3, exclude=torch.tensor([-1])), IndexError, "id -1"),
    "candidate": (lambda t: t.topk(torch.ones(8), 3, candidates=torch.tensor([1, 3000])), IndexError, "id 3000"),
    "many candidates": (lambda t: t.topk(torch.ones(8), 3, candidates=torch.arange(1, 3001)), IndexError, "id 3000"),
    "float ids": (lambda t: t.topk(torch.ones(8), 3, exclude=torch.ones(2)), TypeError, "integer dtype"),
    "ids in a list": (lambda t: t.topk(torch.ones(8), 3, exclude=[1, 2]), (TypeError, ValueError), "tensor"),
    "a number": (lambda t: t.topk(torch.ones(8), 3, exclude=7), TypeError, "exclude must be a tensor of ids"),
    "lists for other queries": (
        lambda t: t.topk(torch.ones(3, 8), 3, exclude=[torch.tensor([1])]),
        ValueError,
        "one such tensor per query, 3, got 1",
    ),
    "rows for other queries": (
        lambda t: t.topk(torch.ones(3, 8), 3, exclude=torch.ones(2, 4, dtype=torch.int64)),
        ValueError,
        r"\(3, n\), got \(2, 4\)",
    ),
    "mask": (
        lambda t: t.topk(torch.ones(3, 8), 3, exclude=torch.ones(5, dtype=torch.bool)),
        ValueError,
        r"mask for exclude must have shape \(3000,\) or \(3, 3000\), got \(5,\)",
    ),
    "another device": (lambda t: t.topk(torch.ones(8, device="meta"), 3), ValueError, "on meta, the table on cpu"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(table_of())


def test_an_empty_table_has_nothing_to_find():
    table = CompactTable.from_codes(Tiers.from_sizes([0]), [torch.empty(0, 2).long()], [torch.ones(2, 2, 1)], [0], [2])
    with pytest.raises(ValueError, match="has no rows"):
        table.topk(torch.ones(2), 1)


def spread_table(n=20_000):
    """Two tiers in no order, so that an id has to be worked out from a row."""
    made = torch.Generator().manual_seed(7)
    tiers = Tiers.from_assignment((torch.rand(n, generator=made) < 0.5).int(), num_tiers=2)
    codes = [torch.randint(256, (size, 4), generator=made) for size in tiers.sizes]
    return CompactTable.from_codes(tiers, codes, [torch.randn(4, 256, 2, generator=made)], [0, 0], [256, 256])


def test_ties_across_tiers_come_back_by_id():
    table = spread_table()
    table.append(torch.randn(30, 8), tier=0)
    assert table.topk(torch.zeros(8), 300).ids.tolist() == list(range(300))
    assert table.topk(torch.zeros(2, 8), 300, score="cosine").ids.tolist() == [list(range(300))] * 2


def test_masks_that_leave_few_rows():
    table = spread_table()
    keep = torch.randperm(20_000, generator=torch.Generator().manual_seed(8))
    for count in (0, 30, 3000):
        mask = torch.zeros(20_000, dtype=torch.bool)
        mask[keep[:count]] = True
        queries = queries_of(table, 2)
        for form in (mask, mask.expand(2, -1)):
            found = table.topk(queries, 50, candidates=form)
            listed = table.topk(queries, 50, candidates=keep[:count].expand(2, -1))
            assert torch.equal(found.ids, listed.ids)
            assert torch.equal(found.scores, listed.scores)


def test_long_lists_of_candidates_with_repeats():
    table = spread_table()
    some = torch.randint(20_000, (9000,), generator=torch.Generator().manual_seed(9))
    found = table.topk(queries_of(table, 1), 4000, candidates=[some])
    mask = torch.zeros(20_000, dtype=torch.bool)
    mask[some] = True
    expected = table.topk(queries_of(table, 1), 4000, candidates=mask)
    assert torch.equal(found.ids, expected.ids)
