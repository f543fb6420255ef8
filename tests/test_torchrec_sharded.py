"""mgqe.torchrec: collections over torchrec's rows, on one process and on several. docs/torchrec.md installs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import mgqe

WORKER = Path(__file__).with_name("torchrec_worker.py")

torchrec = pytest.importorskip("torchrec", reason="needs torchrec and fbgemm-gpu: see docs/torchrec.md")
sharded = pytest.importorskip("mgqe.torchrec")

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType  # noqa: E402

N, DIM, K = 600, 8, (16, 8)
COUNTS = torch.arange(N) * 7 % 199 + 1
CONFIG = mgqe.CompressConfig(num_centroids=K, warmup_steps=0)


def bag_config(**other) -> EmbeddingBagConfig:
    same = {"name": "item", "num_embeddings": N, "embedding_dim": DIM, "feature_names": ["seen", "bought"]}
    return EmbeddingBagConfig(**{**same, "weight_init_min": -1.0, "weight_init_max": 1.0, **other})


def batch(size: int = 20, dtype: torch.dtype = torch.int64) -> KeyedJaggedTensor:
    lengths = torch.randint(5, (2 * size,))
    values = torch.randint(N, (int(lengths.sum()),)).to(dtype)
    return KeyedJaggedTensor(["seen", "bought"], values, lengths=lengths, weights=torch.rand(len(values)))


def twin(collection, mode: str) -> mgqe.MGQEmbeddingBag:
    """The same table as a layer of the library."""
    table = collection.tables["item"]
    (_, rows), *_ = table.source.parts()
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
    table._set_progress(table._revive_every - 1, True)
    collection(batch())
    assert table.quantizer.codebooks[0].abs().max() < 10


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
    manifest.write_text((tmp_path / "b" / "collection.json").read_text())
    with pytest.raises(mgqe.ArtifactError, match=r"of another freeze than collection\.json"):
        sharded.load(tmp_path / "a")
    for wrong in ("{", "[]", text.replace('"bags"', '"bag"'), text.replace('"item"', '"../item"')):
        manifest.write_text(wrong)
        with pytest.raises(mgqe.ArtifactError, match="not a frozen collection"):
            sharded.load(tmp_path / "a")


def test_merging_counts_alone():
    assert torch.equal(sharded.merge_counts(COUNTS), COUNTS)
    with pytest.raises(TypeError, match="must be an integer tensor"):
        sharded.merge_counts(COUNTS.float())


# ---- several processes ---------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(mgqe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


def torchrun(ranks: int, out: Path, *arguments: str, fails: bool = False) -> str:
    """Run the worker on so many ranks; what it printed."""
    out.mkdir(parents=True, exist_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *launch, str(WORKER), str(out), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stderr


def result(out: Path, rank: int = 0) -> dict:
    return json.loads((out / f"result-{rank}.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 60 steps on one, two and four ranks; two saves a checkpoint after 30."""
    folder = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2, 4):
        torchrun(ranks, folder / str(ranks), "train", *(["save=30"] if ranks == 2 else []))
    return folder


def same_run(first: Path, second: Path) -> None:
    """Losses within 1e-5, centroids within 1e-5, codes but for one in a thousand: ties that rounding decides."""
    one, other = result(first)["losses"], result(second)["losses"]
    last = min(len(one), len(other))
    assert other[-last:] == pytest.approx(one[-last:], rel=1e-5)
    for name in ("user", "item"):
        a, b = mgqe.load(first / "frozen" / name), mgqe.load(second / "frozen" / name)
        ids = torch.arange(a.num_embeddings)
        assert (a.codes(ids) == b.codes(ids)).float().mean() > 0.999
        for ours, theirs in zip(a.to_tensors()[0].values(), b.to_tensors()[0].values(), strict=True):
            if ours.is_floating_point():
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert torch.equal(a.locate(ids)[0], b.locate(ids)[0])
    assert result(second)["scores"] == pytest.approx(result(first)["scores"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_train_as_one(runs, ranks):
    same_run(runs / "1", runs / str(ranks))
    assert result(runs / str(ranks))["losses"] == result(runs / str(ranks), ranks - 1)["losses"]
    assert result(runs / "1")["losses"][-1] < 0.8 * result(runs / "1")["losses"][0]
    assert max(result(runs / str(n))["gap"] for n in (1, 2, 4)) < 1e-6  # frozen against trained
    files = {path.name for path in (runs / str(ranks) / "frozen" / "item").iterdir()}
    assert len(files) == ranks + 1


@pytest.mark.slow
def test_tables_on_one_rank_each(runs, tmp_path):
    torchrun(2, tmp_path, "train", "sharding=table_wise")
    same_run(runs / "1", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_checkpoint_resumes_on_another_number_of_ranks(runs, tmp_path, ranks):
    torchrun(ranks, tmp_path, "resume", "first=30", f"checkpoint={runs / '2' / 'checkpoint'}")
    same_run(runs / "2", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("other=rows", "counts: rank 1 has num_embeddings = 4,002, but rank 0 has 4,001"),
        ("other=config", "rank 1 has user: capacity = D = (8, 8), K = (32, 8)"),
        ("other=counts", "rank 1 has user: tiers = (150, 1350)"),
        ("sharding=column_wise", "table 'user' is sharded by columns, 4 of 16 on this rank"),
        ("sharding=data_parallel", "table 'user' is sharded as 'data_parallel'"),
    ],
)
def test_ranks_that_do_not_fit_together_say_so(tmp_path, option, message):
    printed = torchrun(2, tmp_path, "train", option, fails=True)
    for rank in range(2):
        assert re.search(rf"\[rank{rank}\]: ValueError: .*{re.escape(message)}", printed), printed[-4000:]


@pytest.mark.slow
def test_an_unknown_id_on_one_rank_is_refused_on_all_and_breaks_nothing(tmp_path):
    torchrun(2, tmp_path, "bad id")
    for rank in range(2):
        assert result(tmp_path, rank)["error"].startswith("rank 1: feature 'bought' has id 4006, but table 'item'")
        assert len(result(tmp_path, rank)["losses"]) == 5


@pytest.mark.slow
def test_torchrun_ends_all_ranks_when_one_is_killed(tmp_path):
    printed = torchrun(2, tmp_path, "kill", fails=True)
    assert re.search(r"Root Cause.*rank +: 1 .*Signal 9 \(SIGKILL\)", printed, re.DOTALL), printed[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "freeze kill"])
def test_a_rank_whose_fellow_was_killed_says_so(tmp_path, mode):
    """Without torchrun, which would end it first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), mode, "timeout=30"],
            env={
                **environment(),
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"},
                "LOCAL_RANK": str(rank),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert started[1].wait(timeout=300) == -9
        since = time.monotonic()
        printed = started[0].communicate(timeout=120)[1]
        assert time.monotonic() - since < 60
    finally:
        for process in started:
            process.kill()
    assert started[0].returncode == 1
    assert "RankLostError: rank 0 of 2: another rank ended or did not answer" in printed
    if mode == "freeze kill":
        sharded.load(tmp_path / "frozen")  # what was frozen before
        for name in ("user", "item"):
            assert len([p for p in (tmp_path / "frozen" / name).iterdir() if p.name.startswith("shard")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "file"), [(1, "item/"), (0, "table.safetensors"), (0, "collection.json")])
def test_a_full_disk_while_freezing(tmp_path, rank, file):
    torchrun(2, tmp_path, "disk full", f"full={rank}", f"file={file}")
    for here in range(2):
        error = result(tmp_path, here)["error"]
        assert error.startswith(f"rank {rank}: [Errno 28]")
        assert "No space left on device" in error
    frozen = sharded.load(tmp_path / "frozen")  # what was frozen before
    assert frozen.tables["item"].num_embeddings == 4001
    for name in ("user", "item"):
        assert len(list((tmp_path / "frozen" / name).iterdir())) == 3


@pytest.mark.slow
def test_the_example(tmp_path):
    path = Path(__file__).parents[1] / "examples" / "torchrec_dlrm.py"
    spec = importlib.util.find_spec("torchrec")
    assert spec is not None
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(path), str(tmp_path / "model"), "--steps", "120"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"AUC trained 0\.[6-9]", done.stdout), done.stdout
