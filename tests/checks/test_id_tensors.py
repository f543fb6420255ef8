"""Every function that takes ids raises a TypeError for tensors other than dense ones of integers with values."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mgqe
from mgqe import baselines, ops
from mgqe.ids import IdMap

N, DIM = 40, 8

NESTED = [torch.tensor([1, 2]), torch.tensor([3])]
IDS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse coo": (
        lambda: torch.tensor([1, 2, 3]).to_sparse(),
        r"dense tensor, got layout torch\.sparse_coo: .*to_dense",
    ),
    "sparse csr": (
        lambda: torch.eye(3, dtype=torch.int64).to_sparse_csr(),
        r"dense tensor, got layout torch\.sparse_csr",
    ),
    "nested": (lambda: torch.nested.nested_tensor(NESTED), "dense tensor, got a nested one"),
    "jagged": (lambda: torch.nested.nested_tensor(NESTED, layout=torch.jagged), "dense tensor, got a nested one"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.quint8), "integer"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), r"integer.*, got torch\.complex64|integer.*complex64"),
    "meta": (lambda: torch.ones(3, dtype=torch.int64, device="meta"), "on the meta device, which holds no values"),
}


@functools.cache  # no call succeeds, so that none changes it
def table() -> mgqe.CompactTable:
    torch.manual_seed(0)
    return mgqe.MGQEmbedding(N, DIM, counts=torch.randperm(N) + 1).freeze()


@functools.cache
def layer(kind: Any = mgqe.MGQEmbedding, **given: Any) -> Any:
    return kind(N, DIM, counts=torch.randperm(N) + 1, **given)


@functools.cache
def quantised(kind: Any = mgqe.MGQEmbedding) -> Any:
    made = kind(N, DIM, counts=torch.randperm(N) + 1)
    mgqe.start_quantizing(made)
    return made


def starts(offsets: Any, bag: Callable[..., Any]) -> Any:
    return bag(torch.tensor([1, 2, 3]), offsets)


def two(ids: torch.Tensor) -> Any:
    """The ids with two axes, which bags need, if the kind of tensor can have another axis."""
    return ids.unsqueeze(0) if not ids.is_nested and ids.layout is torch.strided else ids


TAKERS: dict[str, Callable[[Any], Any]] = {
    "lookup": lambda ids: table().lookup(ids),
    "codes": lambda ids: table().codes(ids),
    "locate": lambda ids: table().locate(ids),
    "bag": lambda ids: table().bag(two(ids)),
    "bag offsets": lambda ids: starts(ids, table().bag),
    "update": lambda ids: table().update(ids, torch.ones(3, DIM)),
    "topk exclude": lambda ids: table().topk(torch.ones(DIM), 3, exclude=ids),
    "topk candidates": lambda ids: table().topk(torch.ones(DIM), 3, candidates=ids),
    "topk candidates in a list": lambda ids: table().topk(torch.ones(DIM), 3, candidates=[ids]),
    "FullTable.lookup": lambda ids: baselines.FullTable(torch.ones(N, DIM)).lookup(ids),
    "FullTable.bag": lambda ids: baselines.FullTable(torch.ones(N, DIM)).bag(two(ids)),
    "Tiers.of": lambda ids: table().tiers.of(ids),
    "layer in its warm-up": lambda ids: layer()(ids),
    "layer of a cache": lambda ids: layer(rows="cached")(ids),
    "quantising layer": lambda ids: quantised()(ids),
    "quantising layer in eval": lambda ids: copy.deepcopy(quantised()).eval()(ids),
    "bag layer": lambda ids: layer(mgqe.MGQEmbeddingBag)(two(ids)),
    "bag layer's offsets": lambda ids: starts(ids, layer(mgqe.MGQEmbeddingBag)),
    "quantising bag layer": lambda ids: quantised(mgqe.MGQEmbeddingBag)(two(ids)),
    "CompactEmbedding": lambda ids: mgqe.CompactEmbedding(table())(ids),
    "CompactEmbeddingBag": lambda ids: mgqe.CompactEmbeddingBag(table())(two(ids)),
    "portable": lambda ids: mgqe.portable(mgqe.CompactEmbedding(table()))(ids),
    "ops.unique": lambda ids: ops.unique(ids, N),
    "ops.unique_by_tier": lambda ids: ops.unique_by_tier(ids, [N]),
    "count_ids": lambda ids: mgqe.count_ids(ids, N),
    "merge_counts": lambda ids: mgqe.merge_counts(ids, ids),
    "interactions": lambda ids: baselines.RecJPQEmbedding(N, DIM, pairs=(ids, ids)),
    **{
        name: lambda ids, name=name: getattr(baselines, name)(N, DIM)(ids)
        for name in baselines.__all__
        if name.endswith("Embedding")
    },
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of prototypes
def test_what_is_no_dense_tensor_of_integers_is_refused(name: str, kind: str) -> None:
    make, message = IDS[kind]
    with pytest.raises(TypeError, match=f"(?i){message}"):
        TAKERS[name](make())


@pytest.mark.parametrize("kind", ["sparse coo", "meta"])
def test_an_id_map_refuses_them_too(kind: str, tmp_path: Any) -> None:
    pytest.importorskip("polars")
    (tmp_path / "log.csv").write_text("item\n7\n7\n9\n")
    known = IdMap.from_log(str(tmp_path / "log.csv"), "item")
    make, message = IDS[kind]
    for ask in (known.rows, known.ids):
        with pytest.raises(TypeError, match=message):
            ask(make())


def test_ids_on_the_meta_device_suit_a_layer_that_is_there_too() -> None:
    made = mgqe.DPQEmbedding(N, DIM, device="meta")
    assert made(torch.ones(3, 2, dtype=torch.int64, device="meta")).shape == (3, 2, DIM)


def test_a_cast_is_proposed_only_where_there_is_one() -> None:
    with pytest.raises(TypeError, match=r"got torch\.float32: cast with ids\.long\(\)$"):
        table().lookup(torch.ones(1))
    with pytest.raises(TypeError, match=r"got torch\.complex64$"):
        table().lookup(torch.ones(1, dtype=torch.complex64))


@pytest.mark.parametrize("name", ["queries", "bias", "vectors", "the fallback"])
def test_sparse_vectors_are_a_type_error_that_says_what_to_do(name: str) -> None:
    table = mgqe.DPQEmbedding(6, 4, num_subspaces=2).freeze()
    calls = {
        "queries": lambda: table.topk(torch.ones(2, 4).to_sparse(), 3),
        "bias": lambda: table.topk(torch.ones(2, 4), 3, bias=torch.ones(6).to_sparse()),
        "vectors": lambda: table.append(torch.ones(2, 4).to_sparse()),
        "the fallback": lambda: table.with_fallback(torch.ones(4).to_sparse()),
    }
    with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, got layout .*: convert it with \.to_dense"):
        calls[name]()
