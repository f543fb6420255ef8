"""mgqe.torchrec: collections over torchrec's rows, on one process. docs/torchrec.md installs it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import mgqe

torchrec = pytest.importorskip("torchrec", reason="needs torchrec and fbgemm-gpu: see docs/torchrec.md")
sharded = pytest.importorskip("mgqe.torchrec")

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402

from mgqe.nn.rows.store import draw_members  # noqa: E402

N, DIM, K = 600, 8, (16, 8)
COUNTS = torch.arange(N) * 7 % 199 + 1
CONFIG = mgqe.CompressConfig(num_centroids=K, warmup_steps=0)


def bag_config(**other) -> EmbeddingBagConfig:
    same = {"name": "item", "num_embeddings": N, "embedding_dim": DIM, "feature_names": ["seen", "bought"]}
    return EmbeddingBagConfig(**{**same, "weight_init_min": -1.0, "weight_init_max": 1.0, **other})


def vector_config(**other) -> EmbeddingConfig:
    same = {"name": "item", "num_embeddings": N, "embedding_dim": DIM, "feature_names": ["seen", "bought"]}
    return EmbeddingConfig(**{**same, "weight_init_min": -1.0, "weight_init_max": 1.0, **other})


def batch(size: int = 20, dtype: torch.dtype = torch.int64) -> KeyedJaggedTensor:
    lengths = torch.randint(5, (2 * size,))
    values = torch.randint(N, (int(lengths.sum()),)).to(dtype)
    return KeyedJaggedTensor(["seen", "bought"], values, lengths=lengths, weights=torch.rand(len(values)))


def twin(collection, mode: str) -> mgqe.MGQEmbeddingBag:
    """The same table as a layer of the library."""
    table = collection.tables["item"]
    (_, rows), *_ = table.source.ranges()
    layer = mgqe.MGQEmbeddingBag(
        N,
        DIM,
        mode=mode,
        include_last_offset=True,
        _weight=rows.clone(),
        counts=COUNTS,
        num_centroids=K,
        warmup_steps=0,
    )
    layer.start_quantizing()
    for own, other in zip(layer.quantizer.codebooks, table.quantizer.codebooks, strict=True):
        own.data.copy_(other)
    return layer


@pytest.mark.parametrize(("pooling", "mode"), [(PoolingType.SUM, "sum"), (PoolingType.MEAN, "mean")])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_bags_and_gradients_are_those_of_a_layer(pooling, mode, dtype):
    torch.manual_seed(0)
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config(pooling=pooling)], CONFIG, counts={"item": COUNTS})
    assert mgqe.start_quantizing(collection) == 1
    layer, features = twin(collection, mode), batch(dtype=dtype)
    got = collection(features)
    assert got.keys() == ["seen", "bought"]
    parts = [features[key] for key in got.keys()]  # noqa: SIM118  (not a dict)
    ids = torch.cat([part.values() for part in parts])
    lengths = torch.cat([part.lengths() for part in parts])
    want = layer(ids, torch.cat([torch.zeros(1), lengths.cumsum(0)]).long())
    torch.testing.assert_close(got.values(), torch.cat([want[:20], want[20:]], dim=1))
    weight = torch.randn_like(want)
    (got.values() * torch.cat([weight[:20], weight[20:]], dim=1)).sum().add(
        mgqe.quantization_loss(collection)
    ).backward()
    (want * weight).sum().add(mgqe.quantization_loss(layer)).backward()
    own = collection.tables["item"]
    torch.testing.assert_close(own.quantizer.codebooks[0].grad, layer.quantizer.codebooks[0].grad)
    torch.testing.assert_close(collection.rows["8"].embeddings["item"].weight.grad, layer.raw_weight.grad)


def test_weighted_bags():
    collection = sharded.QuantizedEmbeddingBagCollection(
        [bag_config()], CONFIG, counts={"item": COUNTS}, is_weighted=True
    )
    mgqe.start_quantizing(collection)
    layer, features = twin(collection, "sum"), batch()
    part = features["bought"]
    want = layer(part.values(), torch.cat([torch.zeros(1), part.lengths().cumsum(0)]).long(), part.weights())
    torch.testing.assert_close(collection(features)["bought"], want)
    with pytest.raises(ValueError, match=r"is_weighted=True needs pooling=PoolingType\.SUM"):
        sharded.QuantizedEmbeddingBagCollection([bag_config(pooling=PoolingType.MEAN)], is_weighted=True)


@pytest.mark.parametrize("times", [1, 4])
def test_a_folder_that_is_frozen_into_while_it_is_loaded(tmp_path, monkeypatch, times):
    """Before each of the first reads of a table the folder gets another collection: the last one is loaded, whole."""
    from mgqe.torchrec import serving

    tables = [bag_config(), bag_config(name="user", feature_names=["user"], num_embeddings=50)]
    collection = sharded.QuantizedEmbeddingBagCollection(tables, CONFIG, counts={"item": COUNTS})
    real, calls = serving.load_table, []

    def freeze_all(value: float) -> None:
        with torch.no_grad():
            for rows in collection.rows.parameters():
                rows.fill_(value)
        mgqe.start_quantizing(collection)
        for table in collection.tables.values():
            for book in table.quantizer.codebooks:
                book.data.fill_(value)
        sharded.freeze(nn.Sequential(collection), tmp_path)

    def load_table(path, **options):
        calls.append(path)
        if len(calls) <= times:
            freeze_all(1.0 + len(calls))
        return real(path, **options)

    freeze_all(1.0)
    monkeypatch.setattr(serving, "load_table", load_table)
    loaded = sharded.load(tmp_path)
    assert {float(table.to_dense().unique()) for table in loaded.tables.values()} == {1.0 + times}


def test_weights_keep_their_gradient_in_a_frozen_collection(tmp_path):
    collection = sharded.QuantizedEmbeddingBagCollection(
        [bag_config()], CONFIG, counts={"item": COUNTS}, is_weighted=True
    )
    mgqe.start_quantizing(collection)
    sharded.freeze(nn.Sequential(collection), tmp_path)
    made, gradients = batch(), []
    for module in (collection.eval(), sharded.load(tmp_path)):
        weights = made.weights().clone().requires_grad_()
        features = KeyedJaggedTensor(made.keys(), made.values(), lengths=made.lengths(), weights=weights)
        module(features).values().square().sum().backward()
        gradients.append(weights.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_frozen_collection_gives_what_the_trained_one_gave(tmp_path, is_weighted):
    tables = [bag_config(), bag_config(name="user", feature_names=["user"], embedding_dim=4, num_embeddings=50)]
    collection = sharded.QuantizedEmbeddingBagCollection(
        tables, CONFIG, counts={"item": COUNTS}, is_weighted=is_weighted
    )
    made = batch()
    users = KeyedJaggedTensor(["user"], torch.arange(20), lengths=torch.ones(20).long(), weights=torch.rand(20))
    features = KeyedJaggedTensor.concat([made, users])
    collection(features)
    nbytes = sharded.freeze(nn.Sequential(collection), tmp_path)
    assert nbytes == {n: sum(f.stat().st_size for f in (tmp_path / n).iterdir()) for n in ("item", "user")}
    frozen = sharded.load(tmp_path)
    collection.eval()
    assert frozen(features).keys() == collection(features).keys()
    torch.testing.assert_close(frozen(features).values(), collection(features).values())
    assert isinstance(mgqe.load(tmp_path / "item"), mgqe.CompactTable)


def test_vectors_of_every_id(tmp_path):
    table = EmbeddingConfig(name="item", num_embeddings=N, embedding_dim=DIM, feature_names=["seen", "bought"])
    collection = sharded.QuantizedEmbeddingCollection([table], CONFIG, counts={"item": COUNTS})
    features = batch()
    got = collection(features)
    assert torch.equal(got["seen"].lengths(), features["seen"].lengths())
    loss = got["bought"].values().sum() + mgqe.quantization_loss(collection)
    loss.backward()
    assert collection.tables["item"].quantizer.codebooks[0].grad.any()
    sharded.freeze(collection, tmp_path)
    frozen, whole = sharded.load(tmp_path), mgqe.load(tmp_path / "item")
    collection.eval()
    for key, part in collection(features).items():
        assert torch.equal(part.values(), whole.lookup(features[key].values()))
        assert torch.equal(frozen(features)[key].values(), part.values())


def test_warm_up_and_losses():
    config = mgqe.CompressConfig(num_centroids=K, warmup_steps=2)
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], config, counts={"item": COUNTS})
    rows = collection.rows["8"].embeddings["item"].weight
    for step in range(4):
        features = batch()
        pooled = collection(features)["seen"]
        part = features["seen"]
        ends = torch.cat([torch.zeros(1), part.lengths().cumsum(0)]).long()
        raw = nn.functional.embedding_bag(part.values(), rows, ends, mode="sum", include_last_offset=True)
        assert collection.tables["item"].quantizing == (step >= 2)
        assert torch.allclose(pooled, raw, atol=1e-6) == (step < 2)
        assert bool(mgqe.quantization_loss(collection) > 0) == (step >= 2)
    collection.eval()
    collection(batch())
    assert collection.tables["item"].passes == 4


def test_autocast_changes_neither_vectors_nor_codes():
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    features = batch()
    collection(features)
    expected = collection.eval()(features).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(collection(features).values(), expected)


def test_dead_centroids_come_back():
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    table = collection.tables["item"]
    collection(batch())
    with torch.no_grad():
        table.quantizer.codebooks[0][:, 4:] = 100.0
    table.schedule.set(table.schedule.revive_every - 1, True)
    collection(batch())
    assert table.quantizer.codebooks[0].abs().max() < 10


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("limit", [5, 40, 1000])
def test_members_are_drawn_from_their_tier(ordered, limit):
    tiers = mgqe.Tiers.from_fractions(N) if ordered else mgqe.Tiers.from_counts(COUNTS)
    for g, size in enumerate(tiers.sizes):
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        first, again = (draw_members(tiers, g, limit, generator, 4 * limit) for generator in generators)
        assert torch.equal(first, again)
        assert len(first) == min(limit, size)
        assert (tiers.of(first) == g).all()


@pytest.mark.parametrize("ordered", [False, True])
def test_freezing_goes_over_the_rows_in_pieces(tmp_path, monkeypatch, ordered):
    tiers = mgqe.Tiers.from_fractions(N) if ordered else mgqe.Tiers.from_counts(COUNTS)
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": tiers})
    sharded.freeze(collection, tmp_path / "a")
    monkeypatch.setattr("mgqe.torchrec.freezing.SWEEP_ROWS", 7)
    sharded.freeze(collection, tmp_path / "b")
    assert mgqe.load(tmp_path / "a" / "item").equal(mgqe.load(tmp_path / "b" / "item"))
    assert sharded.load(tmp_path / "b").tables["item"].tiers == tiers


def test_empty_batches():
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    none = KeyedJaggedTensor(["seen", "bought"], torch.empty(0, dtype=torch.int64), lengths=torch.zeros(6).long())
    for _ in range(2):
        pooled = collection(none)
        assert pooled.values().shape == (3, 16)
        (pooled.values().sum() + mgqe.quantization_loss(collection)).backward()
    assert not pooled.values().any()


def test_rows_do_not_depend_on_how_they_are_held():
    first, second = (
        sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS}) for _ in range(2)
    )
    rows = first.rows["8"].embeddings["item"].weight
    before = torch.random.get_rng_state()
    first.reset_rows(5)
    second.reset_rows(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(rows, second.rows["8"].embeddings["item"].weight)
    assert -1 <= rows.min() < -0.9
    second.reset_rows(6)
    assert not torch.equal(rows, second.rows["8"].embeddings["item"].weight)


def test_a_state_dict_with_other_tiers_is_refused():
    first = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    first(batch())
    second = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    second.load_state_dict(first.state_dict())
    assert second.tables["item"].quantizing
    features = batch()
    assert torch.equal(second.eval()(features).values(), first.eval()(features).values())
    other = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS.flip(0)})
    with pytest.raises(RuntimeError, match="other ids in its tiers"):
        other.load_state_dict(first.state_dict())


def test_distributed_model_parallel_refuses_other_tiers(one_rank):
    """It loads module by module, and drops the error messages of those that do not load themselves."""
    first = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    other = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS.flip(0)})
    parallel = DistributedModelParallel(nn.Sequential(other), device=torch.device("cpu"))
    quantizers = {f"0.{name}": tensor for name, tensor in first.state_dict().items() if "rows." not in name}
    with pytest.raises(RuntimeError, match="other ids in its tiers"):
        parallel.load_state_dict({**parallel.state_dict(), **quantizers})


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "tables must have names"),
        ([bag_config(), bag_config()], {}, ValueError, "names of their own"),
        ([bag_config(), bag_config(name="b")], {}, ValueError, "a feature may belong to one table only"),
        ([nn.Embedding(3, 4)], {}, TypeError, "torchrec's EmbeddingBagConfig"),
        ([bag_config()], {"counts": {"itm": COUNTS}}, ValueError, "counts for ['itm'], but the tables are ['item']"),
        ([bag_config()], {"counts": {"item": COUNTS[1:]}}, ValueError, "table 'item': counts has 599 entries"),
        ([bag_config()], {"config": mgqe.CompressConfig(quantizer="sx")}, ValueError, "table 'item': quantizer='sx'"),
        ([bag_config()], {"config": mgqe.CompressConfig(rules={"item": None})}, ValueError, "leaves it alone"),
    ],
)
def test_arguments_that_do_not_fit(tables, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        sharded.QuantizedEmbeddingBagCollection(tables, **arguments)


def test_batches_that_do_not_fit():
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    features = batch()
    features.values()[3] = N
    with pytest.raises(IndexError, match="has id 600, but table 'item' was planned for ids 0 to 599: map new ids"):
        collection(features)
    with pytest.raises(KeyError, match="the batch has no feature 'bought'"):
        collection(KeyedJaggedTensor(["seen"], torch.arange(3), lengths=torch.ones(3).long()))


def test_rows_that_are_not_finite():
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    collection.rows["8"].embeddings["item"].weight.data[17, 2] = float("nan")
    with pytest.raises(ValueError, match="row 17 of table 'item' holds NaN"):
        collection(batch())


def test_a_model_without_one_collection(tmp_path):
    with pytest.raises(ValueError, match="expected one quantised collection in the model, got 0"):
        sharded.freeze(nn.Linear(2, 2), tmp_path)


def test_folders_that_hold_no_collection(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no collection\.json, which is written last"):
        sharded.load(tmp_path)
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    sharded.freeze(collection, tmp_path / "a")
    sharded.freeze(collection, tmp_path / "b")
    manifest = tmp_path / "a" / "collection.json"
    text = manifest.read_text()
    content = manifest.read_bytes()
    changes = [json.loads(text) for _ in range(2)]
    changes[0]["tables"][0]["features"] = ["other"]
    changes[1]["is_weighted"] = not changes[1]["is_weighted"]
    for changed in changes:
        manifest.write_text(json.dumps(changed))
        for read in (sharded.load, mgqe.verify):
            with pytest.raises(mgqe.ArtifactError, match=r"collection\.json.*its checksum is another one"):
                read(tmp_path / "a")
    manifest.write_text(json.dumps({**json.loads(text), "version": "1"}))  # had no checksum
    sharded.load(tmp_path / "a", verify=True)
    manifest.write_bytes(content)
    manifest.write_text((tmp_path / "b" / "collection.json").read_text())
    with pytest.raises(mgqe.ArtifactError, match=r"of another freeze than collection\.json"):
        sharded.load(tmp_path / "a")
    for wrong in ("{", "[]", text.replace('"bags"', '"bag"'), text.replace('"item"', '"../item"')):
        manifest.write_text(wrong)
        with pytest.raises(mgqe.ArtifactError, match="not a frozen collection"):
            sharded.load(tmp_path / "a")


@pytest.mark.parametrize("wrong", [None, 3, [[]], {}, {"a": 1}], ids=repr)
def test_a_manifest_with_entries_of_other_types_is_refused(wrong, tmp_path):
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    sharded.freeze(collection, tmp_path)
    manifest = tmp_path / "collection.json"
    about = json.loads(manifest.read_text())
    (table,) = about["tables"]
    changed = [wrong, *({**about, name: wrong} for name in about)]
    changed += [{**about, "tables": [{**table, name: wrong}]} for name in table]
    changed += [{**about, "tables": [wrong]}, {**about, "tables": [table, table]}, {**about, "tables": []}]
    changed += [{**about, "tables": [{**table, "features": "seen"}]}]
    for content in changed:
        manifest.write_text(json.dumps(content))
        with pytest.raises(mgqe.ArtifactError, match=r"collection\.json: not a frozen collection"):
            sharded.load(tmp_path)


def test_a_damaged_index_of_a_collection_is_named(tmp_path):
    collection = sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, counts={"item": COUNTS})
    sharded.freeze(collection, tmp_path)
    index = tmp_path / "item" / "table.safetensors"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(mgqe.ArtifactError, match=r"item/table\.safetensors: not a whole safetensors file"):
        sharded.load(tmp_path)


def test_a_frozen_collection_names_the_feature_and_table_of_an_unknown_id(tmp_path):
    for kind, make in (
        (sharded.QuantizedEmbeddingBagCollection, bag_config),
        (sharded.QuantizedEmbeddingCollection, vector_config),
    ):
        sharded.freeze(kind([make()], CONFIG, counts={"item": COUNTS}), tmp_path)
        served = sharded.load(tmp_path)
        features = batch()
        features.values()[-1] = N
        with pytest.raises(IndexError, match="feature 'bought' of table 'item': id 600 is out of range"):
            served(features)
        with pytest.raises(KeyError, match="the batch has no feature 'bought': it has"):
            served(KeyedJaggedTensor(["seen"], torch.arange(3), lengths=torch.ones(3).long()))


def test_numbers_of_numpy_and_collections_made_in_inference_mode(tmp_path):
    with torch.inference_mode():
        collection = sharded.QuantizedEmbeddingBagCollection(
            [bag_config(num_embeddings=np.int64(N), embedding_dim=np.int64(DIM))],
            CONFIG,
            counts={"item": COUNTS},
            seed=np.int64(3),
        )
        collection.reset_rows(np.int64(5))
    assert not [name for name, tensor in collection.state_dict().items() if tensor.is_inference()]
    collection(batch()).values().sum().add(mgqe.quantization_loss(collection)).backward()
    assert collection.tables["item"].quantizer.codebooks[0].grad is not None
    with torch.inference_mode():
        sharded.freeze(collection, tmp_path)
        served = sharded.load(tmp_path)
    assert not [t for table in served.tables.values() for t in table.to_tensors()[0].values() if t.is_inference()]
    with pytest.raises(TypeError, match="seed must be a whole number"):
        sharded.QuantizedEmbeddingBagCollection([bag_config()], CONFIG, seed=1.0)


def test_merging_counts_alone():
    assert torch.equal(sharded.merge_counts(COUNTS), COUNTS)
    with pytest.raises(TypeError, match="must be an integer tensor"):
        sharded.merge_counts(COUNTS.float())
