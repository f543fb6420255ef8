"""Rows that are not a full float32 table: 16 bits, codes with a cache, fixed codes, a sketch."""

from __future__ import annotations

import copy
import errno
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mgqe
from mgqe import DPQEmbedding, MGQEmbedding, MGQEmbeddingBag, RowwiseAdagrad, Tiers
from mgqe.nn.rows import CachedRows, CodeRows, NarrowRows, SketchRows
from mgqe.nn.rows.cache import CacheStore
from mgqe.nn.rows.narrow import NarrowStore
from mgqe.nn.rows.sketch import SketchStore

N, D = 600, 8
GOAL = torch.randn(N, D, generator=torch.Generator().manual_seed(99))
SIGNS = (GOAL[:, ::2] > 0) * 2 + (GOAL[:, 1::2] > 0).long()  # codes (N, 4) in 0 .. 3 that fit the goal
KINDS: dict[str, Any] = {
    "bfloat16": "bfloat16",
    "cached": CachedRows(head_rows=20, cache_rows=200),
    "cached, given codes": CachedRows(head_rows=20, cache_rows=200, codes=SIGNS),
    "fixed": CodeRows(SIGNS, init_std=0.5),
    "sketch": SketchRows(buckets=64, num_centroids=16, interval=4, clusterings=3),
    "narrow": NarrowRows(key_dim=1),
}
ORDERED = Tiers.from_sizes([100, N - 100])
ANY_ORDER = Tiers.from_assignment((torch.arange(N) * 7 % N >= 100).long())


def layer_of(rows: Any, tiers: Tiers = ORDERED, **more: Any) -> MGQEmbedding:
    torch.manual_seed(0)
    arguments = {"num_subspaces": 4, "num_centroids": (16, 4), "warmup_steps": 6, "sparse": True} | more
    if isinstance(rows, NarrowRows):
        arguments = {"quantizer": "sx"} | arguments
    return MGQEmbedding(N, D, tiers=tiers, rows=rows, **arguments)


def train(layer: nn.Module, steps: int, seed: int = 1, optimizer: Any = None) -> list[float]:
    optimizer = optimizer or RowwiseAdagrad(layer.parameters(), lr=0.1, codebook_lr=0.02)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        ids = torch.randint(N, (64,), generator=generator).square() // N
        loss = (layer(ids) - GOAL[ids]).square().mean()
        optimizer.zero_grad()
        (loss + mgqe.quantization_loss(layer)).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tiers", [ORDERED, ANY_ORDER], ids=["ordered", "any order"])
@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_freezes_to_what_it_looks_up(kind: str, tiers: Tiers, tmp_path: Path) -> None:
    layer = layer_of(KINDS[kind], tiers)
    losses = train(layer, 60)
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    layer.eval()
    ids = torch.arange(N)
    with torch.no_grad():
        vectors = layer(ids)
    assert vectors.dtype == torch.float32
    table = layer.freeze()
    assert torch.equal(table.lookup(ids), vectors)
    mgqe.save(table, tmp_path / "saved")
    assert mgqe.freeze_to(layer, tmp_path / "streamed") == (tmp_path / "saved").stat().st_size
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_as_the_original(kind: str) -> None:
    layer = layer_of(KINDS[kind])
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
    train(layer, 20, 1, optimizer)
    other = layer_of(KINDS[kind])
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    copied = RowwiseAdagrad(other.parameters(), lr=0.1)
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(5)
    expected = train(layer, 20, 2, optimizer)
    torch.manual_seed(5)
    assert train(other, 20, 2, copied) == expected
    assert torch.equal(layer.freeze().to_dense(), other.freeze().to_dense())


@pytest.mark.parametrize("kind", KINDS)
def test_reset_begins_anew(kind: str) -> None:
    layer = layer_of(KINDS[kind], padding_idx=N - 1)
    started = layer.quantizing
    train(layer, 20)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert layer.quantizing == started
    losses = train(layer, 60)
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind: str) -> None:
    layer = layer_of(KINDS[kind])
    train(layer, 20)
    expected = layer.freeze().to_dense()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.freeze().to_dense(), expected)
        train(other, 20)  # trains its own codebooks, not the original's
        assert torch.equal(layer.freeze().to_dense(), expected)
        assert not torch.equal(other.freeze().to_dense(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_bags_pool_what_look_ups_give(kind: str) -> None:
    torch.manual_seed(0)
    bag = MGQEmbeddingBag(
        N,
        D,
        mode="sum",
        tiers=ORDERED,
        rows=KINDS[kind],
        num_subspaces=4,
        num_centroids=(16, 4),
        warmup_steps=4,
        quantizer="sx" if kind == "narrow" else "vq",
    )
    optimizer = RowwiseAdagrad(bag.parameters(), lr=0.1)
    for step in range(10):
        ids = torch.randint(N, (5, 7), generator=torch.Generator().manual_seed(step))
        pooled = bag(ids)
        assert pooled.dtype == torch.float32
        optimizer.zero_grad()
        (pooled.square().mean() + mgqe.quantization_loss(bag)).backward()
        optimizer.step()
    bag.eval()
    rows = bag.freeze().lookup(ids)
    with torch.no_grad():
        torch.testing.assert_close(bag(ids), rows.sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_looks_up_as_zeros_and_stays(kind: str) -> None:
    layer = layer_of(KINDS[kind], padding_idx=3)
    train(layer, 30)
    assert layer(torch.tensor([3])).abs().max() == 0
    assert layer.freeze().lookup(torch.tensor([3])).abs().max() == 0


def test_bytes_a_row_in_training() -> None:
    n = 20_000
    tiers = Tiers.from_sizes([n])
    made = {
        name: DPQEmbedding(n, 64, num_subspaces=16, num_centroids=256, sparse=True, rows=rows)
        for name, rows in {
            "float32": "float32",
            "bfloat16": "bfloat16",
            "cached": CachedRows(head_rows=0, cache_rows=1000),
            "sketch": SketchRows(buckets=500),
        }.items()
    }
    books = 256 * 64 * 4

    def held(layer: nn.Module) -> int:
        small = ("tier_sizes", "steps", "started", "state")
        tensors = [*layer.named_parameters(), *layer.named_buffers()]
        return sum(t.nbytes for name, t in tensors if name.rpartition(".")[2] not in small) - books

    assert held(made["float32"]) == n * 256
    assert held(made["bfloat16"]) == n * 128
    assert held(made["cached"]) == n * (16 + 4) + 1000 * (256 + 8)
    assert held(made["sketch"]) == n * 16 + 500 * 256 + books  # its own centroids
    assert tiers.num_embeddings == n


# ---- the cache -----------------------------------------------------------------------------------------------


def cache_of(layer: MGQEmbedding) -> CacheStore:
    assert isinstance(layer.store, CacheStore)
    return layer.store


def test_ids_take_places_in_turn_and_give_them_up() -> None:
    layer = layer_of(CachedRows(head_rows=2, cache_rows=8), num_centroids=2, warmup_steps=100)
    store = cache_of(layer)
    layer.train()
    layer(torch.tensor([0, 5, 9, 5]))
    assert store.place_of[[0, 1, 5, 9]].tolist() == [0, 1, 2, 3]  # ids 0 and 1 have rows of their own
    layer(torch.tensor([9, 300, 301, 302, 303, 304]))
    assert store.owner[:7].tolist() == [5, 9, 300, 301, 302, 303, 304]
    rows = layer.raw_weight.detach()[2:9].clone()
    with torch.no_grad():
        layer.raw_weight.add_(0.0)  # as an optimiser's step
    layer(torch.tensor([400]))  # more than three quarters were taken: encoded and emptied first
    assert store.emptied == 1
    assert store.place_of[[5, 304, 400]].tolist() == [-1, -1, 2]
    with torch.no_grad():
        layer.eval()
        codes = [layer.quantizer.codes(row[None], g) for row, g in zip(rows, [0, 0, 1, 1, 1, 1, 1])]
    held = store.codes_held[[5, 9, 300, 301, 302, 303, 304]].int()
    assert torch.equal(held, torch.cat(codes))


def test_an_id_that_comes_back_starts_from_its_codes() -> None:
    layer = layer_of(CachedRows(head_rows=0, cache_rows=120), warmup_steps=0)
    train(layer, 10)
    store = cache_of(layer)
    store.flush(layer.raw_weight)
    layer.eval()
    before = layer(torch.tensor([7]))
    layer.train()
    store.places(layer.raw_weight, torch.tensor([7]))
    assert torch.equal(layer.raw_weight[store.place_of[7]].detach(), before[0])


def test_ids_that_never_train_are_near_zero() -> None:
    layer = layer_of(CachedRows(head_rows=0, cache_rows=300), num_centroids=64)
    train(layer, 40)
    table = layer.freeze()
    seen = cache_of(layer).place_of >= 0
    never = N - 1  # ids are drawn as u^2 / N: the last ones seldom
    assert not bool(seen[never])
    assert table.lookup(torch.tensor([never])).norm() < 0.6 * table.to_dense()[seen].norm(dim=1).mean()


def test_no_emptying_between_two_passes_of_one_step() -> None:
    layer = layer_of(CachedRows(head_rows=0, cache_rows=100), warmup_steps=0)
    layer.train()
    first = layer(torch.arange(90))
    second = layer(torch.arange(85, 95))  # beyond three quarters, but the first pass still waits for its backward
    assert cache_of(layer).emptied == 0
    (first.sum() + second.sum()).backward()
    assert layer.raw_weight.grad is not None
    gradient = layer.raw_weight.grad.to_dense()
    places = cache_of(layer).place_of[:95].long()
    assert torch.equal(gradient[places].sum(1) / D, torch.tensor([1.0] * 85 + [2.0] * 5 + [1.0] * 5))


def test_a_cache_that_is_too_small_says_what_it_needs() -> None:
    layer = layer_of(CachedRows(head_rows=0, cache_rows=50))
    layer.train()
    with pytest.raises(RuntimeError, match=r"cache of 50 rows is full: 64 ids .*cache_rows=256"):
        layer(torch.arange(64))


def test_accumulators_of_renewed_places_are_the_mean_of_what_was_there() -> None:
    layer = layer_of(CachedRows(head_rows=20, cache_rows=200), warmup_steps=0)
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
    train(layer, 3, 1, optimizer)
    sums = optimizer.state[layer.raw_weight]["sum"]
    heads, used = sums[:20].clone(), sums[20:][sums[20:] > 0].mean()
    cache_of(layer).flush(layer.raw_weight)
    layer.raw_weight.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.zeros(1, D), layer.raw_weight.shape)
    optimizer.step()
    assert torch.equal(sums[:20], heads)
    torch.testing.assert_close(sums[20:], used.expand(200))


def test_a_cache_with_a_place_for_every_id_is_never_emptied() -> None:
    layer = layer_of("cached")
    train(layer, 60)
    assert cache_of(layer).emptied == 0


def test_row_gradients_that_wait_for_their_step_keep_their_places() -> None:
    """Codebooks step every pass, rows every fourth."""
    layer = layer_of(CachedRows(head_rows=0, cache_rows=200), warmup_steps=0)
    layer.train()
    books = RowwiseAdagrad(layer.quantizer.parameters())
    for step in range(5):
        ids = torch.arange(step * 35, step * 35 + 35)
        (layer(ids).sum() + mgqe.quantization_loss(layer)).backward()
        books.step()
        layer.quantizer.zero_grad()
    assert cache_of(layer).emptied == 0
    gradient = layer.raw_weight.grad
    assert gradient is not None
    assert gradient.coalesce().indices().numel() == 175
    assert bool((cache_of(layer).place_of[:175] >= 0).all())


def test_rows_that_do_not_train_take_no_places() -> None:
    layer = layer_of(CachedRows(head_rows=0, cache_rows=400), warmup_steps=0)
    train(layer, 1, optimizer=RowwiseAdagrad(layer.parameters()))
    layer.raw_weight.requires_grad_(False)
    taken = cache_of(layer).taken
    for start in range(0, N, 100):
        layer(torch.arange(start, start + 100))
    assert cache_of(layer).taken == taken


def test_frozen_look_ups_are_eval_modes_whatever_the_centroids_have_become() -> None:
    layer = layer_of(CachedRows(head_rows=0, cache_rows=200))
    train(layer, 30)
    with torch.no_grad():
        layer.quantizer.codebooks[0].mul_(0.02).add_(5.0)  # decoded rows are no longer nearest to their own centroids
    layer.eval()
    ids = torch.arange(N)
    assert torch.equal(layer.freeze().lookup(ids), layer(ids).detach())


def test_weight_of_a_cache_says_why_it_cannot_train() -> None:
    layer = layer_of("cached")
    with pytest.raises(RuntimeError, match="would train all 600 ids at once"):
        _ = layer.weight
    assert layer.eval().weight.shape == (N, D)


# ---- narrow rows ---------------------------------------------------------------------------------------------


def test_narrow_rows_by_hand() -> None:
    layer = layer_of(NarrowRows(key_dim=1))
    assert tuple(layer.raw_weight.shape) == (N, 4)
    store = layer.store
    assert isinstance(store, NarrowStore)
    rows, maps = layer.raw_weight.detach(), store.maps.detach()
    expected = torch.cat([rows[5, j] * maps[j] for j in range(4)])
    torch.testing.assert_close(layer(torch.tensor([5]))[0], expected)
    layer.start_quantizing()
    keys, values = layer.quantizer.keys[0].detach(), layer.quantizer.values_[0].detach()
    assert tuple(keys.shape) == (4, 16, 1)
    assert tuple(values.shape) == (4, 16, 2)
    torch.testing.assert_close(values[2, 7], keys[2, 7, 0] * maps[2])


# ---- the sketch ----------------------------------------------------------------------------------------------


def test_a_sketch_by_hand() -> None:
    layer = DPQEmbedding(3, 4, num_subspaces=2, num_centroids=2, rows=SketchRows(buckets=2, num_centroids=2))
    store = layer.store
    assert isinstance(store, SketchStore)
    with torch.no_grad():
        store.centroids.copy_(torch.arange(8.0).view(4, 2))
        layer.raw_weight.copy_(torch.arange(8.0).view(4, 2) * 100)
        store.pointers.copy_(torch.tensor([[0, 1], [1, 0], [1, 1]]))
    entries = store._entries(torch.arange(3))
    assert bool((entries[:, 0] < 2).all() and (entries[:, 1] >= 2).all() and (entries < 4).all())
    for i in range(3):
        pieces = [
            store.centroids[2 * j + store.pointers[i, j].long()] + layer.raw_weight[entries[i, j]] for j in range(2)
        ]
        assert torch.equal(layer(torch.tensor([i]))[0], torch.cat(pieces))


def test_clustering_moves_what_was_learnt_into_the_pointers() -> None:
    layer = layer_of(SketchRows(buckets=256, num_centroids=64, interval=0), warmup_steps=1000)
    train(layer, 60)
    store = layer.store
    assert isinstance(store, SketchStore)
    ids = torch.arange(N)
    before = store.read(layer.raw_weight, ids)
    store.cluster(layer.raw_weight, torch.Generator().manual_seed(0))
    after = store.read(layer.raw_weight, ids)
    assert layer.raw_weight.abs().max() == 0
    assert (before - after).square().mean() < 0.3 * before.var()


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": "int3"}, ValueError, "rows must be one of"),
        ({"rows": "cached", "max_norm": 1.0}, ValueError, "max_norm"),
        ({"rows": "cached", "quantizer": "sx"}, ValueError, 'quantizer="vq"'),
        ({"rows": "sketch", "_weight": torch.ones(N, D)}, ValueError, "does not start from full rows"),
        ({"rows": "narrow", "quantizer": "vq"}, ValueError, 'goes with quantizer="sx" alone'),
        ({"rows": NarrowRows(3)}, ValueError, "key_dim must be from 1 to d / D = 2, got 3"),
        ({"rows": NarrowRows(), "capacity": "both", "num_subspaces": (4, 2)}, ValueError, "same num_subspaces"),
        ({"rows": CachedRows(head_rows=N + 1)}, ValueError, "head_rows=601 is more than"),
        ({"rows": CodeRows(torch.zeros(N, 3, dtype=torch.int64))}, ValueError, r"codes must have shape \(600, 4\)"),
        ({"rows": CodeRows(torch.full((N, 4), 9))}, ValueError, r"codes of tier 1 must be in 0 .. 3, got 9 .. 9"),
        ({"rows": CodeRows(torch.zeros(N, 4))}, TypeError, "codes must be integers"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer_of(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CachedRows(cache_rows=-1), "cache_rows must be"),
        (lambda: SketchRows(num_centroids=1), "num_centroids must be a whole number of 2"),
        (lambda: SketchRows(buckets=0), "buckets must be"),
        (lambda: NarrowRows(0), "key_dim must be"),
    ],
)
def test_configurations_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_out_of_range(kind: str) -> None:
    layer = layer_of(KINDS[kind])
    for bad in (N, -1):
        for mode in (True, False):
            layer.train(mode)
            with pytest.raises(IndexError, match=str(bad)):
                layer(torch.tensor([0, bad]))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_rows_are_not_frozen(kind: str) -> None:
    layer = layer_of(KINDS[kind])
    train(layer, 10)
    with torch.no_grad():
        target: Tensor = layer.raw_weight if len(layer.raw_weight) else layer.quantizer.codebooks[0]
        target[0].fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        layer.freeze()


def test_a_disk_that_fills_up_while_a_layer_is_frozen_into_its_file(tmp_path: Path, monkeypatch: Any) -> None:
    layer = layer_of("bfloat16")
    train(layer, 10)
    path = tmp_path / "table"
    mgqe.freeze_to(layer, path)
    before = path.read_bytes()
    train(layer, 5)
    codes_of, calls = MGQEmbedding.codes_of, []

    def full(self: MGQEmbedding, ids: Tensor, tier: int) -> Tensor:
        calls.append(tier)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return codes_of(self, ids, tier)

    monkeypatch.setattr(MGQEmbedding, "codes_of", full)
    with pytest.raises(OSError, match=r"could not write .* nothing at the path has changed"):
        mgqe.freeze_to(layer, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["table"]


def test_what_cannot_be_frozen_into_a_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got CompactTable: frozen tables, .* are written by"):
        mgqe.freeze_to(layer_of("bfloat16").freeze(), tmp_path / "table")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_store_does_not_train_under_data_parallel(monkeypatch: Any) -> None:
    layer = layer_of("cached")
    monkeypatch.setattr("mgqe.nn.quantized.data_parallel", lambda: layer)
    with pytest.raises(RuntimeError, match="does not go with DistributedDataParallel"):
        layer(torch.tensor([1]))


@pytest.mark.parametrize("kind", ["bfloat16", "cached", "narrow", "sketch"])
def test_a_layer_made_on_the_meta_device(kind: str) -> None:
    with torch.device("meta"):
        layer = layer_of(KINDS[kind])
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    losses = train(layer, 60)
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_given_codes_are_copied() -> None:
    codes = SIGNS.to(torch.uint8)
    layer = layer_of(CodeRows(codes))
    assert layer.store is not None
    layer.store.codes_held.zero_()  # type: ignore[operator,union-attr]
    assert torch.equal(codes, SIGNS.to(torch.uint8))
    with pytest.raises(ValueError, match="meta device"):
        layer_of(CodeRows(codes), device="meta")


def test_repeats_of_an_id_add_up_in_float32() -> None:
    layer = layer_of("bfloat16", sparse=False, warmup_steps=100)
    layer(torch.zeros(4096, dtype=torch.int64)).sum().backward()
    assert layer.raw_weight.grad is not None
    assert layer.raw_weight.grad[0].tolist() == [4096.0] * D


@pytest.mark.parametrize("kind", ["bfloat16", "fixed", "narrow", "sketch"])
def test_eval_mode_has_gradients(kind: str) -> None:
    layer = layer_of(KINDS[kind])
    train(layer, 20)
    layer.eval()
    layer(torch.tensor([1, 2])).sum().backward()
    assert any(p.grad is not None and p.grad.to_dense().abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("kind", ["bfloat16", "cached", "sketch"])
def test_compiled_layers_train_as_eager_ones(kind: str) -> None:
    losses = []
    for compiled in (False, True):
        layer = layer_of(KINDS[kind])
        torch.manual_seed(2)
        called = torch.compile(layer, backend="aot_eager") if compiled else layer
        optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
        generator, found = torch.Generator().manual_seed(1), []
        for _ in range(12):
            ids = torch.randint(N, (64,), generator=generator)
            loss = (called(ids) - GOAL[ids]).square().mean()
            optimizer.zero_grad()
            (loss + mgqe.quantization_loss(layer)).backward()
            optimizer.step()
            found.append(loss.item())
        assert layer.quantizing
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_empty_batch() -> None:
    for rows in KINDS.values():
        layer = layer_of(rows, warmup_steps=1)
        for _ in range(3):
            assert layer(torch.empty(0, 2, dtype=torch.int64)).shape == (0, 2, D)
