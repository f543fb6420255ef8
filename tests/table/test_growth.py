"""Ids after training: assign, append, update, fallback, against a table of plain lists and against numbers by hand."""

import copy
import pickle

import pytest
import torch
from growth_model import LAYOUTS, Model, quarters
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import ALL, instruction_set
from table_cases import CASES, EVEN, build

import mgqe.table.growth
from mgqe.codec.tiers import Tiers
from mgqe.ops import reference
from mgqe.table.compact import CompactTable
from mgqe.table.snapshot import Snapshot

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())

even_and_mixed = pytest.mark.parametrize("layout", ["two tiers, frequency order", "mixed, turned"])


def check(table, model):
    """Everything that can be asked of a table, against the model."""
    rows, n = model.rows(), len(model.tiers)
    ids = torch.arange(n)
    assert table.num_embeddings == table.config.num_embeddings == n
    assert torch.equal(table.lookup(ids), rows)
    assert torch.equal(reference.lookup(ids, table.snapshot.lookup.table), rows)
    tier_of = torch.tensor(model.tiers, dtype=torch.int64)
    tiers = Tiers.from_assignment(tier_of, table.num_tiers)
    assert table.tiers == tiers
    assert table.config.sizes == tiers.sizes
    tier, rank = table.locate(ids)
    assert tier.tolist() == model.tiers
    for g in range(table.num_tiers):
        assert rank[tier_of == g].tolist() == list(range(tiers.sizes[g]))
    for i, codes in enumerate(table.codes(ids).tolist()):
        assert [c for c in codes if c >= 0] == model.codes[i]
    whole = model.table()
    assert table.codebook_stats() == whole.codebook_stats()
    assert table.config == whole.config
    assert table.equal(whole)
    if n:
        assert torch.equal(table.bag(ids[None]), rows.sum(0, keepdim=True))  # multiples of 1/4: exact in any order
        assert torch.equal(table.bag(ids.flip(0)[:, None], mode="max"), rows.flip(0))
        queries, k = quarters(2, model.embedding_dim, n), min(n, 10)
        scores, order = torch.sort(queries @ rows.T, dim=1, descending=True, stable=True)
        found = table.topk(queries, k)
        assert torch.equal(found.scores, scores[:, :k])
        assert torch.equal(found.ids, order[:, :k])
        with pytest.raises(IndexError, match=f"id {n} "):
            table.lookup(torch.tensor([n]))


def small_table():
    """Centroids 0, 1, 2, 3 and 0, 10, 20, 30; tier 0 sees all four, tier 1 the first two."""
    book = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[0.0], [10.0], [20.0], [30.0]]])
    return CompactTable.from_codes(
        Tiers.from_sizes((1, 1)), [torch.tensor([[3, 3]]), torch.tensor([[1, 0]])], [book], (0, 0), (4, 2)
    )


def test_assign_by_hand():
    table = small_table()
    vectors = torch.tensor([[2.4, 26.0], [0.5, -7.0], [99.0, 15.0]])
    assert table.assign(vectors, tier=0).tolist() == [[2, 3], [0, 0], [3, 1]]  # 0.5 and 15 are ties: the lower code
    assert table.assign(vectors).tolist() == [[1, 1], [0, 0], [1, 1]]
    assert table.assign(vectors).dtype == torch.int32
    assert table.assign(vectors[:0]).shape == (0, 2)
    assert table.num_embeddings == 2


def test_append_and_update_by_hand():
    table = small_table()
    ids = table.append(torch.tensor([[0.9, 9.0], [3.0, 30.0]]))
    assert (ids.dtype, ids.tolist()) == (torch.int64, [2, 3])
    assert table.lookup(ids).tolist() == [[1, 10], [1, 10]]
    assert table.append(torch.tensor([[3.0, 30.0]]), tier=0).tolist() == [4]
    assert table.lookup(torch.arange(5)).tolist() == [[3, 30], [1, 0], [1, 10], [1, 10], [3, 30]]
    table.update(torch.tensor([4, 0, 1]), torch.tensor([[2.0, 0.0], [0.0, 20.0], [0.0, 8.0]]))
    assert table.lookup(torch.arange(5)).tolist() == [[0, 20], [0, 10], [1, 10], [1, 10], [2, 0]]
    assert table.config.sizes == (2, 3)
    assert table.tiers.tier_of.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("case", [c for c in EVEN if c.name != "wide codes"], ids=lambda case: case.name)
def test_assign_finds_the_nearest_decoded_centroids(case):
    """Whatever the layout and centroid type: no other code of the tier decodes closer."""
    built = build(case)
    table, d = built.table, built.dense.shape[1]
    vectors = torch.randn(40, d, generator=torch.Generator().manual_seed(3))
    for g, (subspaces, k) in enumerate(zip(case.num_subspaces, case.num_centroids, strict=True)):
        codes = table.assign(vectors, g)
        assert codes.shape == (40, subspaces)
        assert codes.min() >= 0
        assert codes.max() < k
        # One appended id a code decodes every centroid of the tier.
        every = CompactTable.from_tensors(*table.to_tensors())
        widest = torch.arange(k)[:, None].expand(k, subspaces)
        first = every.append_packed(mgqe.codec.packing.pack(widest, table.config.bits[g]), g)
        decoded = every.lookup(first).view(k, subspaces, -1)
        distances = (vectors.view(40, 1, subspaces, -1) - decoded).square().sum(3)  # (40, K, D)
        chosen = distances.gather(1, codes.long()[:, None]).squeeze(1)
        assert torch.all(chosen <= distances.amin(1) * (1 + 1e-5) + 1e-6)


@each_layout
def test_a_growing_table_equals_one_made_whole(layout):
    model = Model(**layout)
    table = model.table()
    m, d = table.num_tiers, model.embedding_dim
    check(table, model)
    for step, tier in enumerate([m - 1, m - 1, 0, m - 1, 0, 0]):
        vectors = quarters(step + 1, d, step)
        assert table.append(vectors, tier).tolist() == model.append(vectors, tier)
        check(table, model)
    n = len(model.tiers)
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(1))[: n // 2]
    ids = ids[ids != (-1 if model.padding_idx is None else model.padding_idx)]
    table.update(ids, quarters(len(ids), d, 9))
    model.update(ids.tolist(), quarters(len(ids), d, 9))
    check(table, model)


@each_layout
def test_copies_of_a_grown_table(layout):
    model = Model(**layout)
    table = model.table()
    for tier in (0, table.num_tiers - 1, 0):
        model.append(quarters(3, model.embedding_dim, tier), tier)
        table.append(quarters(3, model.embedding_dim, tier), tier)
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table)), table.to("cpu")):
        check(other, model)
        other.append(quarters(1, model.embedding_dim, 5))
        assert other.num_embeddings == table.num_embeddings + 1
    check(table, model)


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "update", "copy"]), st.integers(0, 9), st.integers(0, 2)), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(list(LAYOUTS)), seed=st.integers(0, 1000), steps=STEPS)
def test_any_interleaving(layout, seed, steps):
    model = Model(**LAYOUTS[layout], seed=seed)
    table = model.table()
    d = model.embedding_dim
    for number, (what, count, tier) in enumerate(steps):
        vectors = quarters(count, d, seed + number)
        if what == "append":
            tier %= table.num_tiers
            assert table.append(vectors, tier).tolist() == model.append(vectors, tier)
        elif what == "update":
            ids = torch.randperm(len(model.tiers))[:count]
            ids = ids[ids != (-1 if model.padding_idx is None else model.padding_idx)]
            table.update(ids, vectors[: len(ids)])
            model.update(ids.tolist(), vectors[: len(ids)])
        else:
            table = CompactTable.from_tensors(*table.to_tensors())
    check(table, model)


def test_the_base_is_never_copied_and_never_written():
    model = Model(**LAYOUTS["three tiers, any order"])
    table = model.table()
    base = [rows.data_ptr() for rows in table.snapshot.codes]
    before = [rows.clone() for rows in table.snapshot.codes]
    held = table.snapshot.codes
    for step in range(20):
        table.append(quarters(3, 8, step), step % 3)
    assert [rows.data_ptr() for rows in table.snapshot.codes] == base
    tier = int(table.locate(torch.tensor([0]))[0])
    table.update(torch.tensor([0]), quarters(1, 8, 99))
    moved = [rows.data_ptr() != at for rows, at in zip(table.snapshot.codes, base, strict=True)]
    assert moved == [g == tier for g in range(3)]
    assert all(torch.equal(now, then) for now, then in zip(held, before, strict=True))


def test_small_appends_are_one_extent_and_few_copies(monkeypatch):
    made = []
    plain = mgqe.table.growth.GrowthBuffer.__init__
    monkeypatch.setattr(
        mgqe.table.growth.GrowthBuffer,
        "__init__",
        lambda self, rows, room: (made.append(room), plain(self, rows, room))[1],
    )
    model = Model(**LAYOUTS["one tier"])
    table = model.table()
    for step in range(200):
        model.append(quarters(1, 3, step), 0)
        table.append(quarters(1, 3, step))
    assert len(table.snapshot.extents) == 1
    assert made == [2, 4, 8, 16, 32, 64, 128, 256]
    check(table, model)
    # 200 rows of 2 bytes in room for 256, and all of it is counted.
    assert table.nbytes_by_part()["codes"] == 6 * 2 + 256 * 2
    assert table.nbytes == sum(table.nbytes_by_part().values())


@even_and_mixed
def test_snapshots_stay_what_they_were(layout):
    model = Model(**LAYOUTS[layout])
    table, d = model.table(), model.embedding_dim
    kept = []
    for step in range(12):
        kept.append((table.snapshot, model.rows()))
        vectors = quarters(1 + step % 3, d, step)
        if step % 4 == 3:
            ids = torch.tensor([0, len(model.tiers) - 1, 9])
            vectors = quarters(3, d, step)
            table.update(ids, vectors)
            model.update(ids.tolist(), vectors)
        else:
            table.append(vectors)
            model.append(vectors, 1)
    for state, rows in kept:
        assert torch.equal(state.lookup(torch.arange(len(rows))), rows)


def test_tables_that_share_memory_grow_apart():
    model = Model(**LAYOUTS["one tier"])
    table = model.table()
    table.append(quarters(3, 3, 0))
    table.append(quarters(1, 3, 1))  # now with spare room behind
    other = table.with_fallback(torch.zeros(3))
    mine, theirs = quarters(1, 3, 2), -quarters(1, 3, 2)
    (a,), (b,) = table.append(mine).tolist(), other.append(theirs).tolist()
    assert a == b
    assert torch.equal(table.codes(torch.tensor([a])), table.assign(mine))
    assert torch.equal(other.codes(torch.tensor([b])), table.assign(theirs))


@even_and_mixed
def test_more_extents_than_the_kernels_take(layout):
    model = Model(**LAYOUTS[layout])
    table = model.table()
    most = 0
    for step in range(600):
        vectors = quarters(1, model.embedding_dim, step)
        table.append(vectors, step % 2)
        model.append(vectors, step % 2)
        most = max(most, len(table.snapshot.arrays))
    assert most == 256
    check(table, model)


def test_a_table_of_256_tiers_has_no_room():
    sizes = (1,) * 256
    codes = [torch.zeros(1, 1, dtype=torch.int64)] * 256
    table = CompactTable.from_codes(Tiers.from_sizes(sizes), codes, [torch.zeros(1, 2, 1)], (0,) * 256, (2,) * 256)
    with pytest.raises(ValueError, match="no room for appended ids"):
        table.append(torch.zeros(1, 1))
    assert table.num_embeddings == 256


def test_float_types_and_strides():
    table = small_table()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert table.assign(torch.tensor([[3.0, 20.0]]).to(dtype), 0).tolist() == [[3, 2]]
    strided = torch.tensor([[3.0, 1.0], [20.0, 0.0]]).t()
    assert table.assign(strided, 0).tolist() == [[3, 2], [1, 0]]
    assert table.assign(torch.tensor([[3.0, 20.0]], requires_grad=True), 0).tolist() == [[3, 2]]


def test_nothing_to_do():
    model = Model(**LAYOUTS["no ids"])
    table = model.table()
    state = table.snapshot
    assert table.append(torch.zeros(0, 4)).tolist() == []
    table.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert table.snapshot is state
    check(table, model)


def test_in_inference_mode_and_out_of_it():
    model = Model(**LAYOUTS["one tier"])
    table = model.table()
    for step in range(6):
        with torch.inference_mode(step % 2 == 0):
            model.append(quarters(1, 3, step), 0)
            table.append(quarters(1, 3, step))
    check(table, model)


VECTORS = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("vectors", "tier", "error", "match"),
    [
        ([["a", "b"]], None, TypeError, "must be floats: a tensor, an array, a list or a column of a frame, got list"),
        (VECTORS.double(), None, TypeError, r"float32, float16 or bfloat16, got torch.float64: convert"),
        (VECTORS.long(), None, TypeError, "got torch.int64"),
        (VECTORS[0], None, ValueError, r"shape \(n, embedding_dim=2\), got \(2,\)"),
        (torch.zeros(2, 3), None, ValueError, r"shape \(n, embedding_dim=2\), got \(2, 3\)"),
        (torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), None, ValueError, r"vectors\[1\] holds NaN or infinity"),
        (torch.tensor([[float("-inf"), 1.0]]), None, ValueError, r"vectors\[0\] holds NaN"),
        (torch.zeros(2, 2, device="meta"), None, ValueError, "on meta, the table on cpu"),
        (VECTORS, 2, ValueError, r"tier must be in 0 .. 1 \(0 the most frequent\), got 2"),
        (VECTORS, -1, ValueError, "tier must be in"),
        (VECTORS, 1.0, TypeError, "tier must be a whole number, got 1.0"),
        (VECTORS, True, TypeError, "tier must be a whole number"),
    ],
)
def test_refused_vectors(vectors, tier, error, match):
    table = small_table()
    for method in (table.assign, table.append):
        with pytest.raises(error, match=match):
            method(vectors, tier)
    if tier is None:
        with pytest.raises(error, match=match):
            table.update(torch.tensor([0, 1]), vectors)
    assert table.equal(small_table())


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        ([0.5, 1.0], TypeError, "ids must be integers"),
        (torch.tensor([0.0, 1.0]), TypeError, "integer dtype"),
        (torch.tensor([[0, 1]]), ValueError, r"shape \(n,\), got \(1, 2\)"),
        (torch.tensor([0, 5]), IndexError, "id 5 is out of range: the table has num_embeddings=5; append"),
        (torch.tensor([-1, 0]), IndexError, "id -1"),
        (torch.tensor([3, 3]), ValueError, "holds 3 more than once"),
        (torch.tensor([2, 0]), ValueError, "padding_idx=2, which always looks up as zeros"),
        (torch.tensor([0, 1, 3]), ValueError, "as many, got 3 and 2"),
    ],
)
def test_refused_ids(ids, error, match):
    built = CompactTable.from_codes(
        Tiers.from_sizes((5,)), [torch.zeros(5, 2, dtype=torch.int64)], [torch.randn(2, 4, 1)], (0,), (4,), 2
    )
    state = built.snapshot
    with pytest.raises(error, match=match):
        built.update(ids, VECTORS)
    assert built.snapshot is state


def test_padding_stays_zero():
    model = Model(**LAYOUTS["two tiers, frequency order"])
    table = model.table()
    table.append(quarters(2, 8, 0))
    assert table.lookup(torch.tensor([3])).tolist() == [[0.0] * 8]
    assert table.padding_idx == 3


@each_layout
def test_fallback(layout):
    model = Model(**layout)
    plain = model.table()
    d, vector = model.embedding_dim, torch.arange(model.embedding_dim) + 0.5
    table = plain.with_fallback(vector)
    for step in range(3):
        n = table.num_embeddings
        known = table.lookup(torch.arange(n))
        ids = torch.tensor([[-1, n], [2**62, -(2**63)], [n + 1, 0 if n else -5]])
        expected = vector.expand(3, 2, d).clone()
        if n:
            expected[2, 1] = known[0]
        assert torch.equal(table.lookup(ids), expected)
        assert torch.equal(table.lookup(torch.tensor(n)), vector)
        with pytest.raises(IndexError):
            table.codes(torch.tensor([n]))
        table.append(quarters(2, d, step), step % table.num_tiers)
    assert torch.equal(table.fallback, vector)
    assert table.nbytes_by_part()["fallback"] == 4 * d
    assert plain.fallback is None
    for again in (copy.deepcopy(table), CompactTable.from_tensors(*table.to_tensors())):
        assert again.equal(table)
        assert torch.equal(again.lookup(torch.tensor([-7])), vector[None])
    without = table.with_fallback(None)
    with pytest.raises(IndexError):
        without.lookup(torch.tensor([-1]))
    assert not without.equal(table)


def test_fallback_in_a_compiled_graph():
    table = build(CASES[0]).table.with_fallback(torch.ones(8))
    ids = torch.tensor([0, 46, -3, 47])
    compiled = torch.compile(table.lookup, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids), table.lookup(ids))
    table.append(torch.zeros(1, 8))
    assert torch.equal(compiled(ids), table.lookup(ids))  # 47 is known now
    empty = build(CASES[-1]).table.with_fallback(torch.ones(4))
    assert torch.compile(empty.lookup, fullgraph=True, backend="eager")(ids).tolist() == [[1.0] * 4] * 4


@pytest.mark.parametrize(
    ("vector", "error", "match"),
    [
        (torch.zeros(3), ValueError, "embedding_dim=2"),
        (torch.zeros(1, 2), ValueError, r"fallback must have shape \(2,\), got \(1, 2\)"),
        (torch.tensor([0.0, float("nan")]), ValueError, "NaN"),
        (torch.zeros(2, dtype=torch.int64), TypeError, "float32"),
        (["a", "b"], TypeError, "the fallback must be floats"),
    ],
)
def test_refused_fallbacks(vector, error, match):
    with pytest.raises(error, match=match):
        small_table().with_fallback(vector)


def test_compiled_look_up_sees_appended_ids():
    model = Model(**LAYOUTS["two tiers, frequency order"])
    table = model.table()
    compiled = torch.compile(table.lookup, fullgraph=True, backend="eager")
    for step in range(3):
        ids = table.append(quarters(2, 8, step), step % 2)
        assert torch.equal(compiled(ids), table.lookup(ids))


@pytest.mark.parametrize("isa", ALL)
def test_instruction_sets_read_extents_alike(isa):
    with instruction_set(isa):
        for layout in LAYOUTS.values():
            model = Model(**layout)
            table = model.table()
            for tier in (0, table.num_tiers - 1, 0):
                table.append(quarters(70, model.embedding_dim, tier), tier)
            ids = torch.randint(0, table.num_embeddings, (3000,))
            assert torch.equal(table.lookup(ids), reference.lookup(ids, table.snapshot.lookup.table))


def test_without_the_native_library(monkeypatch):
    """The torch twin on its own: the library is looked for once a process, so it is hidden here."""
    monkeypatch.setattr("mgqe.ops._lookup.library", lambda: None)
    for module in ("_lookup", "_assign"):
        monkeypatch.setattr(f"mgqe.ops.{module}.library_on", lambda device: None)
    for layout in LAYOUTS.values():
        test_a_growing_table_equals_one_made_whole(layout)
        test_fallback(layout)


def test_one_assignment_publishes(monkeypatch):
    """A change that fails half-way changes nothing."""
    model = Model(**LAYOUTS["two tiers, frequency order"])
    table = model.table()

    def broken(*_):
        raise MemoryError

    for method in ("appended", "updated"):
        monkeypatch.setattr(Snapshot, method, broken)
    with pytest.raises(MemoryError):
        table.append(quarters(1, 8, 0))
    with pytest.raises(MemoryError):
        table.update(torch.tensor([0]), quarters(1, 8, 0))
    monkeypatch.undo()
    check(table, model)
    table.append(quarters(1, 8, 0))  # the lock is free again
