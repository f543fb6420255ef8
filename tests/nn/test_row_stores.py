"""Row stores alone, by what a layer asks of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mgqe
from mgqe.codec.capacity import Capacity, resolve_capacity
from mgqe.nn.context.hints import OptimizerHints, hints_of, leave_hints
from mgqe.nn.quantizers.base import Quantizer
from mgqe.nn.quantizers.build import make_quantizer
from mgqe.nn.rows import CachedRows, CodeRows, NarrowRows, RowStore, SketchRows
from mgqe.nn.rows.build import key_dim_of, make_rows, make_store
from mgqe.nn.rows.checks import first_bad_row
from mgqe.nn.rows.store import StateEntry

N, D = 40, 8
TIERS = mgqe.Tiers.from_sizes([10, 30])
KINDS = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "cached": CachedRows(head_rows=5, cache_rows=20),
    "fixed": CodeRows(torch.arange(N * 4).view(N, 4) % 4),
    "sketch": SketchRows(buckets=16, num_centroids=8, interval=2, clusterings=1),
    "narrow": NarrowRows(key_dim=1),
}


def capacity() -> Capacity:
    return resolve_capacity(
        D,
        TIERS.sizes,
        num_subspaces=4,
        num_centroids=(8, 4),
        capacity="centroids",
        share_codebook=True,
        share_subspaces=False,
    )


def make(kind: str) -> tuple[RowStore, nn.Parameter, Quantizer]:
    torch.manual_seed(0)
    rows, shape = KINDS[kind], capacity()
    weight, dtype = make_rows(rows, TIERS, shape, None, None, None, None)
    name = "sx" if kind == "narrow" else "vq"
    like = weight.new_empty(0, dtype=dtype)
    quantizer = make_quantizer(name, shape, like, "float32", 0.25, False, key_dim_of(rows, shape))
    return make_store(rows, TIERS, shape, quantizer, weight), nn.Parameter(weight), quantizer


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_train_are_the_rows_that_are_read(kind: str, sparse: bool) -> None:
    store, weight, quantizer = make(kind)
    ids = torch.tensor([3, 31, 7])
    rows = store.train_rows(weight, ids, sparse)
    assert rows.requires_grad
    assert torch.equal(rows.float(), store.read(weight, ids))
    assert store.vectors(rows).shape == (3, D)
    rows.sum().backward()
    gradients = [p.grad for p in (weight, *quantizer.parameters()) if p.grad is not None]
    assert any(gradient.to_dense().any() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_a_store_gathers_are_the_parameters(kind: str) -> None:
    store, weight, _ = make(kind)
    assert store.gathers(weight) == (kind in ("float32", "bfloat16", "cached"))
    if store.is_full:
        assert torch.equal(store.read(weight, torch.arange(N)), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_drawn_from_their_tier(kind: str) -> None:
    store, weight, _ = make(kind)
    store.train_rows(weight, torch.arange(15), False)
    for tier in range(2):
        ids = store.draw_ids(TIERS, tier, 8, torch.Generator().manual_seed(0))
        assert len(ids.unique()) == len(ids) == (5 if kind == "cached" and tier == 1 else 8)  # ids 10 to 14 have rows
        assert (TIERS.of(ids) == tier).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_ids_without_rows_have_final_codes(kind: str) -> None:
    store, _weight, _ = make(kind)
    ids = torch.tensor([1, 2])
    assert store.has_codes == (kind == "fixed")
    assert (store.codes(ids, 0) is not None) == (kind == "fixed")
    store.codebooks_started()
    assert store.has_codes == (kind in ("fixed", "cached"))
    if kind == "cached":
        mask = store.final_codes_mask(torch.tensor([0, 30]))  # id 0 has a row all the time
        assert mask is not None
        assert mask.tolist() == [False, True]


def test_a_sketch_is_clustered_as_often_as_it_may() -> None:
    store, weight, _ = make("sketch")
    for passes in range(1, 9):
        store.after_step(weight, passes)
    assert store.clusterings == 1  # type: ignore[attr-defined]
    assert store.clustered_at == 2  # type: ignore[attr-defined]


def test_a_state_entry_is_an_entry_of_the_stored_vector() -> None:
    class Store:
        first, second = StateEntry(0), StateEntry(1)

        def __init__(self) -> None:
            self.state = torch.zeros(2, dtype=torch.int64)

    store = Store()
    store.second += 3
    assert store.state.tolist() == [0, 3]
    assert (store.first, store.second) == (0, 3)


def test_hints_go_with_their_parameter() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    leave_hints(one, OptimizerHints(follows_rows=True))
    assert hints_of(one).follows_rows
    assert not hints_of(other).follows_rows
    store, weight, _ = make("cached")
    store.codebooks_started()
    store.flush(weight)
    assert hints_of(weight) == store.optimizer_hints() == OptimizerHints(renewals=1, first_renewed=5)


@pytest.mark.parametrize(
    ("rows", "arguments", "expected"),
    [
        ([[0.0], [1.0]], {}, None),
        ([[0.0], [float("nan")], [float("inf")]], {}, 1),
        ([[0.0], [float("nan")], [float("inf")]], {"ignored": 1}, 2),
        ([[0.0], [-3.0]], {"largest": 2.0}, 1),
    ],
)
def test_the_first_bad_row(rows: list[list[float]], arguments: dict, expected: int | None) -> None:
    values: Tensor = torch.tensor(rows)
    assert first_bad_row(values, **arguments) == expected
