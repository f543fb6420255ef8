"""compress_table: a matrix of rows, from memory or from a file, becomes a frozen table within its budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mgqe


def matrix(n: int = 3000, d: int = 16, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((n, d)) / np.sqrt(np.arange(1, d + 1))
    return made.astype(np.float32)


def counts(n: int = 3000) -> torch.Tensor:
    return torch.arange(n, 0, -1)


@pytest.mark.parametrize("queries", [None, matrix(500, seed=1)])
def test_it_is_the_table_of_a_layer_with_this_budget(queries):
    rows = matrix()
    torch.manual_seed(0)
    ours = mgqe.compress_table(rows, "20%", counts=counts(), queries=queries, padding_idx=7)
    layer = mgqe.MGQEmbedding.from_pretrained(
        torch.from_numpy(rows), counts=counts(), budget="20%", queries=queries, padding_idx=7
    )
    theirs = layer.freeze()
    assert ours.config == theirs.config
    assert not ours.lookup(torch.tensor([7])).any()
    losses = [float((table.to_dense() - torch.from_numpy(rows)).square().sum()) for table in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # their samples of rows are others


def test_it_is_told_what_to_prefer():
    rows = matrix(20_000) @ matrix(16, 16, seed=1)
    for prefer in ("speed", "size"):
        table = mgqe.compress_table(rows, "12%", prefer=prefer)
        plan = mgqe.plan(20_000, 16, "12%", weight=torch.from_numpy(rows), prefer=prefer)
        assert table.config.tiers == plan.capacity.tiers
        assert table.config.matrix_dtype == plan.capacity.matrix_dtype
    with pytest.raises(ValueError, match=r"prefer must be one of \('speed', 'size'\), got None"):
        mgqe.compress_table(rows, "12%", prefer=None)


def test_the_file_takes_no_more_than_the_budget(tmp_path):
    rows = matrix()
    for budget in ("30%", 0.1, 20_000):
        nbytes = mgqe.save(mgqe.compress_table(rows, budget), tmp_path / "table.safetensors")
        limit = {"30%": 0.3 * rows.nbytes, 0.1: 0.1 * rows.nbytes}.get(budget, budget)
        assert 0.85 * limit < nbytes <= limit


def test_matrices_in_files_and_of_other_types_are_read_as_they_are(tmp_path, recwarn):
    rows = matrix()
    expected = mgqe.compress_table(rows, 20_000)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    kept = rows.view()
    kept.flags.writeable = False
    for same in (mapped, kept, rows.astype(">f4"), np.asfortranarray(rows), rows[::-1][::-1], torch.from_numpy(rows)):
        assert mgqe.compress_table(same, 20_000).equal(expected)
    assert mgqe.compress_table(mapped[100:], 20_000).equal(mgqe.compress_table(rows[100:], 20_000))
    assert mgqe.compress_table(torch.from_numpy(rows).double(), 20_000).equal(expected)
    assert mgqe.compress_table(rows.astype(np.float16), 20_000).num_embeddings == 3000
    assert not recwarn.list


def test_progress_ends_at_all_rows():
    seen = []
    mgqe.compress_table(matrix(), "20%", counts=counts(), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 3000)
    assert seen[-1] == (3000, 3000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def bad_row(value: float) -> np.ndarray:
    rows = matrix()
    rows[17, 3] = value
    return rows


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"weight": bad_row(np.nan)}, ValueError, "row 17 of weight holds NaN"),
        ({"weight": bad_row(np.inf)}, ValueError, "row 17"),
        ({"weight": bad_row(0).astype(np.float64) * 1e300}, ValueError, "beyond float32"),
        ({"weight": matrix().astype(int)}, TypeError, "must hold floats, got an array of int64"),
        ({"weight": torch.ones(3, 4, dtype=torch.int64)}, TypeError, "must hold floats, got torch.int64"),
        ({"weight": [[1.0]]}, TypeError, "a tensor or a NumPy array"),
        ({"weight": np.zeros(5, np.float32)}, ValueError, r"shape \(N, d\).*got \(5,\)"),
        ({"weight": np.zeros((0, 4), np.float32)}, ValueError, "at least 1"),
        ({"weight": np.ones((1, 4), np.float32)}, ValueError, "1 rows"),
        ({"weight": torch.empty(5, 4, device="meta")}, TypeError, "meta"),
        ({"budget": 10}, ValueError, "the least is"),
        ({"budget": "100%"}, ValueError, "more than nothing and less than all"),
        ({"counts": torch.ones(5)}, ValueError, "counts"),
        ({"queries": matrix(5, 3)}, ValueError, r"shape \(n, 16\), as many dimensions as rows, got \(n, 3\)"),
        ({"padding_idx": 3000}, ValueError, "outside the 3000 rows"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, text):
    with pytest.raises(error, match=text):
        mgqe.compress_table(**{"weight": matrix(), "budget": "20%", **arguments})


def test_a_padding_row_may_hold_anything():
    table = mgqe.compress_table(bad_row(np.nan), "20%", padding_idx=17)
    assert bool(table.to_dense().isfinite().all())


def test_queries_of_another_width_are_not_compared():
    table = mgqe.compress_table(matrix(), "20%")
    with pytest.raises(ValueError, match=r"queries must have shape \(n, 16\), .* got \(n, 3\): give a sample"):
        mgqe.check_table(matrix(), table, queries=matrix(5, 3))


def test_a_row_that_is_not_compared_keeps_its_numbers() -> None:
    rows = torch.randn(300, 8)
    before = rows.clone()
    mgqe.check_table(rows, mgqe.compress_table(rows, budget="50%", progress=False), padding_idx=3, progress=False)
    assert torch.equal(rows, before)
