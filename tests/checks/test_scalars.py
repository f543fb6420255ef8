"""Every integer argument accepts numbers of NumPy and torch, stores a plain int, and raises for other types."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

import mgqe
from mgqe import Tiers, baselines, ops
from mgqe.baselines.recjpq import interaction_codes
from mgqe.checks.scalars import as_float, as_int, as_ints
from mgqe.codec.kmeans import KMeans
from mgqe.nn import rows as storage

N, DIM = 40, 8
COUNTS = torch.arange(N, 0, -1)
IDS = torch.tensor([0, 3, 3, 7])

Call = Callable[[Any], Any]


def table() -> mgqe.CompactTable:
    torch.manual_seed(0)
    return mgqe.MGQEmbedding(N, DIM, tiers=(8, 16, 8, 8), num_subspaces=4, num_centroids=(8, 4, 4, 4)).freeze()


def dpq(**given: Any) -> mgqe.DPQEmbedding:
    torch.manual_seed(0)
    return mgqe.DPQEmbedding(**{"num_embeddings": N, "embedding_dim": DIM, **given})


def mgq(**given: Any) -> mgqe.MGQEmbedding:
    torch.manual_seed(0)
    return mgqe.MGQEmbedding(**{"num_embeddings": N, "embedding_dim": DIM, "tiers": (8, 32), **given})


def planned(**given: Any) -> mgqe.Plan:
    return mgqe.plan(**{"num_embeddings": 400, "embedding_dim": DIM, "budget": "40%", **given})


def compressed(config: mgqe.CompressConfig) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(200, DIM))
    mgqe.compress_(model, config)
    json.dumps({name: value for name, value in asdict(config).items() if name != "rules"})
    return model[0].eval()(IDS)


def appended(tier: Any) -> torch.Tensor:
    one = table()
    one.append(torch.ones(2, DIM), tier)
    return one.lookup(torch.tensor([N, N + 1]))


def saved_and_appended(tier: Any, path: Any) -> torch.Tensor:
    mgqe.save(table(), path)
    mgqe.append(path, torch.ones(2, DIM), tier)
    return mgqe.load(path).lookup(torch.tensor([N, N + 1]))


def id_map(tmp_path: Any, **given: Any) -> mgqe.IdMap:
    pytest.importorskip("polars")
    log = tmp_path / "log.csv"
    log.write_text("item\n" + "\n".join(str(i) for i in range(9) for _ in range(i)) + "\n")
    return mgqe.IdMap.from_log(str(log), "item", **given)


def exported(opset: Any) -> None:
    with pytest.raises(ValueError, match="opset_version must be at least 18"):
        mgqe.export_onnx(torch.nn.Sequential(mgqe.CompactEmbedding(table())), (IDS,), "never.onnx", opset_version=opset)


def parts(**given: Any) -> torch.Tensor:
    p = table().snapshot.lookup.table
    return ops.lookup(IDS, dataclasses.replace(p, **given))


# name -> a call with the number 3 (or 2, if the name says so) as an integer argument.
CALLS: dict[str, Call] = {
    "DPQEmbedding num_embeddings": lambda v: dpq(num_embeddings=v),
    "DPQEmbedding embedding_dim": lambda v: dpq(embedding_dim=v),
    "DPQEmbedding padding_idx": lambda v: dpq(padding_idx=v),
    "DPQEmbedding num_subspaces": lambda v: dpq(embedding_dim=9, num_subspaces=v),
    "DPQEmbedding num_centroids": lambda v: dpq(num_centroids=v),
    "DPQEmbedding warmup_steps": lambda v: dpq(warmup_steps=v),
    "MGQEmbedding num_embeddings": lambda v: mgq(num_embeddings=v, tiers=(1, 2)),
    "MGQEmbedding embedding_dim": lambda v: mgq(embedding_dim=v),
    "MGQEmbedding padding_idx": lambda v: mgq(padding_idx=v),
    "MGQEmbedding num_subspaces": lambda v: mgq(embedding_dim=9, num_subspaces=v),
    "MGQEmbedding num_subspaces per tier": lambda v: mgq(embedding_dim=9, num_subspaces=(9, v), capacity="subspaces"),
    "MGQEmbedding num_centroids": lambda v: mgq(num_centroids=v),
    "MGQEmbedding num_centroids per tier": lambda v: mgq(num_centroids=(8, v)),
    "MGQEmbedding warmup_steps": lambda v: mgq(warmup_steps=v),
    "MGQEmbedding tiers": lambda v: mgq(tiers=(v, N - 3)),
    "DPQEmbeddingBag sizes": lambda v: mgqe.DPQEmbeddingBag(v, v, padding_idx=None),
    "DPQEmbeddingBag padding_idx": lambda v: mgqe.DPQEmbeddingBag(N, DIM, padding_idx=v),
    "MGQEmbeddingBag padding_idx": lambda v: mgqe.MGQEmbeddingBag(N, DIM, padding_idx=v, counts=COUNTS),
    "from_pretrained padding_idx": lambda v: mgqe.DPQEmbedding.from_pretrained(torch.ones(N, DIM), padding_idx=v),
    "FullEmbedding num_embeddings": lambda v: baselines.FullEmbedding(v, DIM),
    "FullEmbedding embedding_dim": lambda v: baselines.FullEmbedding(N, v),
    "FullEmbedding padding_idx": lambda v: baselines.FullEmbedding(N, DIM, padding_idx=v),
    "HashEmbedding num_embeddings": lambda v: baselines.HashEmbedding(v, DIM),
    "HashEmbedding embedding_dim": lambda v: baselines.HashEmbedding(N, v),
    "HashEmbedding padding_idx": lambda v: baselines.HashEmbedding(N, DIM, padding_idx=v),
    "HashEmbedding num_buckets": lambda v: baselines.HashEmbedding(N, DIM, num_buckets=v),
    "HashEmbedding num_hashes": lambda v: baselines.HashEmbedding(N, DIM, num_hashes=v),
    "HashEmbedding seed": lambda v: baselines.HashEmbedding(N, DIM, seed=v),
    "LowRankEmbedding num_embeddings": lambda v: baselines.LowRankEmbedding(v, DIM),
    "LowRankEmbedding embedding_dim": lambda v: baselines.LowRankEmbedding(N, v),
    "LowRankEmbedding padding_idx": lambda v: baselines.LowRankEmbedding(N, DIM, padding_idx=v),
    "LowRankEmbedding rank": lambda v: baselines.LowRankEmbedding(N, DIM, rank=v),
    "CCEmbedding num_embeddings": lambda v: baselines.CCEmbedding(v, DIM),
    "CCEmbedding num_columns": lambda v: baselines.CCEmbedding(N, 9, num_columns=v),
    "CCEmbedding num_centroids": lambda v: baselines.CCEmbedding(N, DIM, num_centroids=v),
    "CCEmbedding clusterings": lambda v: baselines.CCEmbedding(N, DIM, clusterings=v),
    "CCEmbedding seed": lambda v: baselines.CCEmbedding(N, DIM, seed=v),
    "AdditiveEmbedding num_embeddings": lambda v: baselines.AdditiveEmbedding(v, DIM),
    "AdditiveEmbedding num_codebooks": lambda v: baselines.AdditiveEmbedding(N, DIM, num_codebooks=v),
    "AdditiveEmbedding num_centroids": lambda v: baselines.AdditiveEmbedding(N, DIM, num_centroids=v),
    "AdditiveEmbedding seed": lambda v: baselines.AdditiveEmbedding(N, DIM, seed=v),
    "QREmbedding num_embeddings": lambda v: baselines.QREmbedding(v, DIM),
    "QREmbedding embedding_dim": lambda v: baselines.QREmbedding(N, v),
    "QREmbedding padding_idx": lambda v: baselines.QREmbedding(N, DIM, padding_idx=v),
    "QREmbedding num_remainders": lambda v: baselines.QREmbedding(N, DIM, num_remainders=v),
    "PQEmbedding num_subspaces": lambda v: baselines.PQEmbedding(N, 9, num_subspaces=v),
    "PQEmbedding num_centroids": lambda v: baselines.PQEmbedding(N, DIM, num_centroids=v),
    "PQEmbedding seed": lambda v: baselines.PQEmbedding(N, DIM, seed=v),
    "RecJPQEmbedding num_embeddings": lambda v: baselines.RecJPQEmbedding(v, DIM),
    "RecJPQEmbedding embedding_dim": lambda v: baselines.RecJPQEmbedding(N, v),
    "RecJPQEmbedding num_subspaces": lambda v: baselines.RecJPQEmbedding(N, 9, num_subspaces=v),
    "RecJPQEmbedding num_centroids": lambda v: baselines.RecJPQEmbedding(N, DIM, num_centroids=v),
    "RecJPQEmbedding seed": lambda v: baselines.RecJPQEmbedding(N, DIM, seed=v),
    "interaction_codes": lambda v: interaction_codes(v, None, v, v, v),
    "ScalarQuantizedEmbedding bits": lambda v: baselines.ScalarQuantizedEmbedding(N, DIM, bits=v),
    "FullTable padding_idx": lambda v: baselines.FullTable(torch.ones(N, DIM), v),
    "HashTable": lambda v: baselines.HashTable(torch.ones(4, DIM), v, v, v, None),
    "HashTable padding_idx": lambda v: baselines.HashTable(torch.ones(4, DIM), N, 1, 0, v),
    "LowRankTable padding_idx": lambda v: baselines.LowRankTable(torch.ones(N, 2), torch.ones(2, DIM), v),
    "QRTable num_embeddings": lambda v: baselines.QRTable(torch.ones(2, 4), torch.ones(2, 4), v, "mult", None),
    "QRTable padding_idx": lambda v: baselines.QRTable(torch.ones(2, 4), torch.ones(2, 4), 4, "mult", v),
    "ScalarTable": lambda v: baselines.ScalarTable(
        torch.zeros(N, 2, dtype=torch.uint8), torch.ones(3), torch.ones(3), v, v, "dimension", v
    ),
    "CompactEmbedding padding_idx": lambda v: mgqe.CompactEmbedding(table(), v),
    "CompactEmbeddingBag padding_idx": lambda v: mgqe.CompactEmbeddingBag(table(), v),
    "CompactTable.from_codes padding_idx": lambda v: mgqe.CompactTable.from_codes(
        Tiers.from_sizes([4]), [torch.zeros(4, 2, dtype=torch.int64)], [torch.ones(2, 3, 1)], [0], [3], v
    ),
    "CompactTable.from_codes num_centroids": lambda v: mgqe.CompactTable.from_codes(
        Tiers.from_sizes([4]), [torch.zeros(4, 2, dtype=torch.int64)], [torch.ones(2, 3, 1)], [0], [v]
    ),
    "CompactTable.topk k": lambda v: table().topk(torch.ones(DIM), v).ids,
    "CompactTable.append tier": appended,
    "CompactTable.assign tier": lambda v: table().assign(torch.ones(1, DIM), v),
    "CompactTable.to_dense chunk": lambda v: table().to_dense(v),
    "FullTable.to_dense chunk": lambda v: baselines.FullTable(torch.ones(N, DIM)).to_dense(v),
    "Tiers sizes": lambda v: Tiers((v, v)),
    "Tiers.from_sizes": lambda v: Tiers.from_sizes([v, v]),
    "Tiers.from_fractions": lambda v: Tiers.from_fractions(v),
    "Tiers.from_counts num_embeddings": lambda v: Tiers.from_counts([3, 2, 1], num_embeddings=v),
    "Tiers.from_counts boundaries": lambda v: Tiers.from_counts(COUNTS, boundaries=[v]),
    "Tiers.from_assignment num_tiers": lambda v: Tiers.from_assignment([0, 2, 1], num_tiers=v),
    "Tiers.members": lambda v: Tiers((8, 16, 8, 8)).members(v),
    "Tiers.member_chunks tier": lambda v: list(Tiers((8, 16, 8, 8)).member_chunks(v, 3)),
    "Tiers.member_chunks size": lambda v: list(Tiers((8, 16, 8, 8)).member_chunks(0, v)),
    "KMeans iterations": lambda v: KMeans(iterations=v),
    "KMeans starts": lambda v: KMeans(starts=v),
    "CachedRows head_rows": lambda v: storage.CachedRows(head_rows=v),
    "CachedRows cache_rows": lambda v: storage.CachedRows(cache_rows=v),
    "NarrowRows key_dim": lambda v: storage.NarrowRows(key_dim=v),
    "SketchRows buckets": lambda v: storage.SketchRows(buckets=v),
    "SketchRows num_centroids": lambda v: storage.SketchRows(num_centroids=v),
    "SketchRows interval": lambda v: storage.SketchRows(interval=v),
    "SketchRows clusterings": lambda v: storage.SketchRows(clusterings=v),
    "CompressConfig num_centroids": lambda v: compressed(mgqe.CompressConfig(num_centroids=v, init="from_weight")),
    "CompressConfig num_centroids per tier": lambda v: mgqe.CompressConfig(num_centroids=[8, v]),
    "CompressConfig num_subspaces": lambda v: mgqe.CompressConfig(num_subspaces=v),
    "CompressConfig num_subspaces per tier": lambda v: mgqe.CompressConfig(num_subspaces=(8, v), capacity="both"),
    "CompressConfig warmup_steps": lambda v: compressed(mgqe.CompressConfig(warmup_steps=v)),
    "CompressConfig rule": lambda v: mgqe.CompressConfig(rules={"0": {"num_centroids": v}}),
    "RowwiseAdagrad seed": lambda v: mgqe.RowwiseAdagrad([torch.nn.Parameter(torch.ones(2, 2))], seed=v).state_dict(),
    "plan num_embeddings": lambda v: planned(num_embeddings=v, budget=0.99, embedding_dim=512),
    "plan embedding_dim": lambda v: planned(embedding_dim=v, budget=0.9),
    "plan padding_idx": lambda v: planned(padding_idx=v),
    "plan max_tiers": lambda v: planned(max_tiers=v, counts=torch.arange(400)),
    "plan max_centroids": lambda v: planned(max_centroids=v),
    "count_ids num_embeddings": lambda v: mgqe.count_ids(torch.tensor([0, 2]), v),
    "count_ids ignore": lambda v: mgqe.count_ids(torch.tensor([0, 3]), 4, ignore=v),
    "count_ids ignore several": lambda v: mgqe.count_ids(torch.tensor([0, 3]), 4, ignore=[0, v]),
    "ops.unique num_embeddings": lambda v: ops.unique(torch.tensor([0, 2]), v),
    "ops.unique_by_tier sizes": lambda v: ops.unique_by_tier(torch.tensor([0, 2]), [v, v]),
    "ops.scatter": lambda v: ops.scatter(torch.ones(2, 9), torch.zeros(2, 3, dtype=torch.int64), None, v, v, v),
    "ops.max_code num_subspaces": lambda v: ops.max_code(torch.ones(4, 3, dtype=torch.uint8), v, 8),
    "ops.max_code bits": lambda v: ops.max_code(torch.ones(4, 1, dtype=torch.uint8), 2, v),
    "ops.lookup padding_idx": lambda v: parts(padding_idx=v),
    "ops.lookup bits": lambda v: parts(bits=[v, 2, 2, 2]),
    "export_onnx opset_version": exported,
}
# Calls that need a file.
FILE_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "append tier": lambda v, tmp: saved_and_appended(v, tmp / "table.safetensors"),
    "IdMap min_count": lambda v, tmp: id_map(tmp, min_count=v).counts,
    "IdMap max_ids": lambda v, tmp: id_map(tmp, max_ids=v).counts,
    "IdMap ignore": lambda v, tmp: id_map(tmp, ignore=v).counts,
    "IdMap ignore several": lambda v, tmp: id_map(tmp, ignore=[v]).counts,
    "IdMap unknown": lambda v, tmp: id_map(tmp).rows([99], unknown=v),
    "IdMap share": lambda v, tmp: id_map(tmp).share(v),
    "IdMap rows": lambda v, tmp: id_map(tmp).rows(v),
    "IdMap ids": lambda v, tmp: int(id_map(tmp).ids(v)),
}
GOOD = [np.int64(3), np.array(3), torch.tensor(3)]
BAD = [True, 3.0, "3"]

each_good = pytest.mark.parametrize("value", GOOD, ids=lambda v: f"{type(v).__name__}-{v.dtype}")
each_bad = pytest.mark.parametrize("value", BAD, ids=lambda v: f"{type(v).__name__}-{v}")


def content(made: Any) -> Any:
    """The content of a result in comparable form with the type of each number, since NumPy numbers equal plain ones."""
    if isinstance(made, torch.Tensor):
        return made.dtype, made.tolist()
    if isinstance(made, torch.nn.Module):
        plain = {k: content(v) for k, v in vars(made).items() if isinstance(v, (int, float, np.generic, torch.Tensor))}
        return type(made), plain, {k: content(v) for k, v in made.state_dict().items()}
    if isinstance(made, mgqe.CompactTable) or hasattr(made, "to_tensors"):
        tensors, config = made.to_tensors()
        return json.dumps(config), {k: content(v) for k, v in tensors.items()}
    if isinstance(made, Tiers):
        return content(made.sizes), None if made.tier_of is None else made.tier_of.tolist()
    if isinstance(made, dict):
        return {k: content(v) for k, v in made.items()}
    if isinstance(made, (list, tuple)):
        return [content(v) for v in made]
    if hasattr(made, "__dataclass_fields__"):
        return {name: content(getattr(made, name)) for name in made.__dataclass_fields__}
    return type(made), made


@pytest.mark.parametrize("name", CALLS)
@each_good
def test_a_whole_number_of_numpy_or_torch_is_taken_as_pythons(name: str, value: Any) -> None:
    call = CALLS[name]
    torch.manual_seed(0)
    expected = content(call(3))
    torch.manual_seed(0)
    assert content(call(value)) == expected


@pytest.mark.parametrize("name", CALLS)
@each_bad
def test_what_is_no_whole_number_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match="whole number"):
        CALLS[name](value)


@pytest.mark.parametrize("name", FILE_CALLS)
@pytest.mark.parametrize("value", [np.int64(3), np.array(3), torch.tensor(3)], ids=["int64", "array", "tensor"])
def test_a_whole_number_is_taken_where_files_are_read(name: str, value: Any, tmp_path: Any) -> None:
    assert content(FILE_CALLS[name](value, tmp_path)) == content(FILE_CALLS[name](3, tmp_path))


@pytest.mark.parametrize("name", FILE_CALLS)
@pytest.mark.parametrize("value", [True, 3.5, "3"], ids=str)
def test_what_is_no_whole_number_is_refused_where_files_are_read(name: str, value: Any, tmp_path: Any) -> None:
    with pytest.raises(TypeError):
        FILE_CALLS[name](value, tmp_path)


@pytest.mark.parametrize(
    "value", [np.array([8, 4]), torch.tensor([8, 4]), [8, 4], (8, 4)], ids=lambda v: type(v).__name__
)
def test_numbers_per_tier_come_in_any_sequence(value: Any) -> None:
    assert mgq(num_centroids=value).capacity.num_centroids == (8, 4)
    assert mgq(tiers=[8, 4], num_embeddings=12, num_subspaces=value, capacity="subspaces").capacity.num_subspaces == (
        8,
        4,
    )
    assert Tiers.from_sizes(value).sizes == (8, 4)
    assert mgq(num_embeddings=12, tiers=value).tiers.sizes == (8, 4)
    assert mgqe.CompressConfig(num_centroids=value).num_centroids == (8, 4)
    assert Tiers.from_counts(COUNTS, boundaries=sorted(np.asarray(value))).sizes == (4, 4, 32)
    assert (
        mgqe.merge_counts(value, value).tolist() == [16, 8] if isinstance(value, (np.ndarray, torch.Tensor)) else True
    )


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_a_float_of_numpy_or_torch_is_kept_as_pythons(value: Any) -> None:
    layer = mgq(max_norm=value, norm_type=value, commitment=value)
    assert [type(v) for v in (layer.max_norm, layer.norm_type, layer.quantizer.commitment)] == [float] * 3
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=value, eps=value, weight_decay=value, codebook_lr=value)
    assert {type(optimizer.defaults[name]) for name in ("lr", "eps", "weight_decay", "codebook_lr")} == {float}
    assert type(storage.CachedRows(init_std=value).init_std) is float
    config = mgqe.CompressConfig(budget=value)
    assert json.dumps([config.budget, mgqe.CompressConfig(commitment=value).commitment]) == "[0.5, 0.5]"
    assert planned(budget=value, counts_power=value) == planned(budget=0.5, counts_power=0.5)
    assert Tiers.from_fractions(10, [value, value]) == Tiers.from_fractions(10, [0.5, 0.5])


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr)
@pytest.mark.parametrize("name", ["FullEmbedding", "PQEmbedding", "ScalarQuantizedEmbedding"])
def test_baselines_on_full_rows_keep_norms_as_pythons_floats(name: str, value: Any) -> None:
    by_name = getattr(baselines, name)(N, DIM, max_norm=value, norm_type=value)
    by_place = getattr(baselines, name)(N, DIM, None, value, value)
    for layer in (by_name, by_place):
        assert [type(layer.max_norm), type(layer.norm_type)] == [float, float]
        layer(IDS).sum().backward()
        pickle.loads(pickle.dumps(layer)).freeze()


@pytest.mark.parametrize("value", [np.int64(3), np.array(3), torch.tensor(3)], ids=["int64", "array", "tensor"])
def test_pq_takes_a_seed_of_numpy_or_torch(value: Any) -> None:
    assert type(baselines.PQEmbedding(N, DIM, seed=value).seed) is int
    with pytest.raises(ValueError, match=r"seed must be a whole number from 0 to .*, got -3"):
        baselines.PQEmbedding(N, DIM, seed=-value)


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5]], ids=repr)
def test_what_is_no_number_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="norm_type must be a number"):
        mgq(norm_type=value)
    with pytest.raises(TypeError, match="commitment must be a number"):
        mgq(commitment=value)
    with pytest.raises(TypeError, match=r"fractions\[0\] must be a number"):
        Tiers.from_fractions(10, [value, 0.5])
    with pytest.raises(TypeError, match="lr must be a number"):
        mgqe.RowwiseAdagrad([torch.nn.Parameter(torch.ones(1))], lr=value) if value is not None else as_float(
            "lr", None
        )


def test_a_layer_made_with_numpys_numbers_trains_freezes_saves_and_pickles(tmp_path: Any) -> None:
    layer = mgqe.DPQEmbedding(
        np.int64(N), np.int64(DIM), padding_idx=np.int64(-1), num_subspaces=np.int64(4), warmup_steps=np.int64(0)
    )
    (layer(IDS).sum() + mgqe.quantization_loss(layer)).backward()
    copy = pickle.loads(pickle.dumps(layer))
    frozen = copy.freeze()
    mgqe.save(frozen, tmp_path / "t.safetensors")
    assert type(frozen.padding_idx) is int
    assert frozen.padding_idx == N - 1
    assert torch.equal(mgqe.load(tmp_path / "t.safetensors").lookup(IDS), layer.eval()(IDS))


@pytest.mark.parametrize("value", [np.uint8(3), np.array(3, np.int16), torch.tensor(3, dtype=torch.int32)], ids=repr)
def test_every_integer_type_is_a_whole_number(value: Any) -> None:
    assert type(as_int("k", value)) is int
    assert as_int("k", value) == 3


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3.0, "3", b"3", 3 + 0j, np.bool_(True), np.float64(3), np.array(3.0), np.array(True), np.array([3]),
        torch.tensor(3.0), torch.tensor(True), torch.tensor([3]), torch.tensor(3, device="meta"), [3], [[3]],
    ],
    ids=repr,
)  # fmt: skip
def test_everything_else_is_none(value: Any) -> None:
    with pytest.raises(TypeError, match=r"k must be a whole number, got .*: give an int"):
        as_int("k", value)


def test_a_range_is_named_with_the_number_that_came() -> None:
    with pytest.raises(ValueError, match=r"k must be a whole number from 1 to 1,000, got 1001"):
        as_int("k", np.int64(1001), 1, 1000)
    with pytest.raises(ValueError, match=r"k must be a whole number of 0 or more, got -1"):
        as_int("k", -1, 0)
    with pytest.raises(ValueError, match=r"sizes\[1\] must be a whole number of 0 or more, got -2"):
        as_ints("sizes", torch.tensor([1, -2]), 0)
    with pytest.raises(TypeError, match=r"sizes must be a sequence of whole numbers, got 3 \(int\)"):
        as_ints("sizes", 3)
    with pytest.raises(TypeError, match=r"k must be a whole number, got 3\.0 \(float\): give an int"):
        as_int("k", 3.0)
