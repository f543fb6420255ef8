"""Tables over torchrec's rows that spend a budget when their warm-up ends, on one process."""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import torch
from torch import nn

import mgqe
from mgqe.codec.metric import Metric
from mgqe.codec.planning.mixed import least_nbytes

torchrec = pytest.importorskip("torchrec", reason="needs torchrec and fbgemm-gpu: see docs/torchrec.md")
sharded = pytest.importorskip("mgqe.torchrec")

from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType  # noqa: E402
from torchrec.distributed import DistributedModelParallel  # noqa: E402

N, DIM = 2000, 8
FULL = N * DIM * 4
COUNTS = (1e5 / torch.arange(1, N + 1)).long()[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
CONFIG = mgqe.CompressConfig(budget="25%", warmup_steps=3)


def table_of(name: str = "item", features: tuple[str, ...] = ("seen",), kind=EmbeddingConfig, **other):
    same = {"name": name, "num_embeddings": N, "embedding_dim": DIM, "feature_names": list(features)}
    return kind(**{**same, "weight_init_min": -1.0, "weight_init_max": 1.0, **other})


def make(config=CONFIG, tables=None, counts=None, seed: int = 0, queries=None):
    """A collection of vectors whose rows have unequal spread in each dimension."""
    torch.manual_seed(seed)
    collection = sharded.QuantizedEmbeddingCollection(
        [table_of()] if tables is None else tables,
        config,
        counts={"item": COUNTS} if counts is None else counts,
        queries=queries,
    )
    for name, table in collection.tables.items():
        rows = torch.randn(table.tiers.num_embeddings, DIM) * torch.linspace(2.0, 0.1, DIM) @ torch.randn(DIM, DIM)
        collection.rows[str(DIM)].embeddings[name].weight.data.copy_(rows)
    return collection


def ids_of(features: dict[str, torch.Tensor]) -> KeyedJaggedTensor:
    lengths = torch.ones(sum(map(len, features.values())), dtype=torch.int64)
    return KeyedJaggedTensor(list(features), torch.cat(list(features.values())), lengths=lengths)


def rows_of(collection, name: str = "item") -> torch.Tensor:
    return collection.rows[str(DIM)].embeddings[name].weight


def train(collection, loss_of, steps: int = 6) -> None:
    """Steps of Adam on random ids of every feature; ``loss_of`` gets each feature's vectors."""
    made = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(collection.parameters(), lr=1e-3)
    features = [feature for table in collection.tables.values() for feature in table.source.config.feature_names]
    for _ in range(steps):
        batch = ids_of({feature: torch.randint(0, N, (200,), generator=made) for feature in features})
        vectors = {feature: part.values() for feature, part in collection(batch).items()}
        loss = loss_of(vectors) + mgqe.quantization_loss(collection)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def squares(vectors) -> torch.Tensor:
    return sum(part.square().mean() for part in vectors.values())


def test_what_is_preferred_is_planned_by_and_agreed_on():
    config = mgqe.CompressConfig(budget="25%", warmup_steps=3, prefer="size")
    (table,) = make(config).planned_tables.values()
    assert table.evidence.planner.prefer == "size"
    assert table.settings()["item: prefer"] == "size"
    with pytest.raises(ValueError, match="prefer must be one of"):
        make(mgqe.CompressConfig(rules={"item": {"prefer": "fast"}}))


@pytest.mark.parametrize("counts", [{"item": COUNTS}, {}], ids=["counts", "no counts"])
def test_look_ups_are_those_of_evaluation_within_the_budget(tmp_path, counts):
    collection = make(counts=counts)
    table = collection.tables["item"]
    train(collection, squares)
    assert table.quantizer.is_planned
    assert table.tiers.num_tiers == (2 if counts else 1)
    nbytes = sharded.freeze(collection, tmp_path / "frozen")
    ids = torch.arange(N)
    vectors = collection.eval()(ids_of({"seen": ids}))["seen"].values()
    assert torch.equal(vectors, mgqe.load(tmp_path / "frozen" / "item").lookup(ids))
    assert torch.equal(vectors, sharded.load(tmp_path / "frozen")(ids_of({"seen": ids}))["seen"].values())
    assert 0.9 * FULL / 4 < nbytes["item"] <= table.nbytes == FULL // 4


@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
def test_bags(tmp_path, pooling):
    torch.manual_seed(0)
    collection = sharded.QuantizedEmbeddingBagCollection(
        [table_of(kind=EmbeddingBagConfig, pooling=pooling)], CONFIG, counts={"item": COUNTS}
    )
    batch = KeyedJaggedTensor(["seen"], torch.randint(0, N, (300,)), lengths=torch.full((60,), 5))
    optimizer = torch.optim.Adam(collection.parameters(), lr=1e-3)
    for _ in range(6):
        collection(batch).values().square().mean().add(mgqe.quantization_loss(collection)).backward()
        optimizer.step()
    assert collection.tables["item"].metric().source == "gradients"
    sharded.freeze(nn.Sequential(collection), tmp_path)
    frozen = sharded.load(tmp_path)
    torch.testing.assert_close(frozen(batch).values(), collection.eval()(batch).values(), rtol=1e-4, atol=1e-5)
    single = ids_of({"seen": torch.arange(N)})
    assert torch.equal(collection(single).values(), mgqe.load(tmp_path / "item").lookup(torch.arange(N)))


@pytest.mark.parametrize("counts", [COUNTS, None], ids=["counts", "no counts"])
def test_the_plan_is_that_of_a_layer_with_this_budget(counts):
    collection = make(counts={} if counts is None else {"item": counts})
    kind, known = (mgqe.DPQEmbedding, {}) if counts is None else (mgqe.MGQEmbedding, {"counts": counts})
    layer = kind(N, DIM, _weight=rows_of(collection).detach().clone(), budget=FULL // 4 - 512, **known)  # for a shard
    before = rows_of(collection).detach().clone()
    pull = torch.randn(200, DIM) * torch.linspace(0.1, 2.0, DIM)
    for model, look_up in (
        (collection, lambda ids: collection(ids_of({"seen": ids}))["seen"].values()),
        (layer, layer),
    ):
        made, optimizer = torch.Generator().manual_seed(1), torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            (look_up(torch.randint(0, N, (200,), generator=made)) * pull).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        mgqe.start_quantizing(model)
    table = collection.tables["item"]
    assert not torch.equal(rows_of(collection), before)
    assert table.metric().source == layer.metric().source == "gradients"
    assert table.capacity == layer.capacity
    assert table.tiers == layer.tiers
    for part in ("mean", "encoder"):
        torch.testing.assert_close(getattr(table.quantizer, part), getattr(layer.quantizer, part), rtol=1e-3, atol=1e-4)


def test_the_pass_that_plans_is_quantised_by_the_plan():
    """Its ids were put in order by the tiers from before."""
    collection = make(mgqe.CompressConfig(budget="25%", warmup_steps=0))
    ids = torch.randperm(N)
    vectors = collection(ids_of({"seen": ids}))["seen"].values()
    assert collection.tables["item"].tiers.num_tiers == 2
    expected = collection.eval()(ids_of({"seen": ids}))["seen"].values()
    torch.testing.assert_close(vectors, expected)
    assert not torch.allclose(vectors, rows_of(collection)[ids], atol=1e-3)


def test_bits_go_where_gradients_are():
    """The loss sees the two dimensions of least spread alone."""
    lost = {}
    for name, dimensions in (("all", slice(0, DIM)), ("last", slice(DIM - 2, DIM))):
        collection = make()
        rows_of(collection).data.normal_().mul_(torch.linspace(2.0, 0.5, DIM))
        train(collection, lambda vectors, seen=dimensions: vectors["seen"][:, seen].square().mean(), steps=4)
        vectors = collection.eval()(ids_of({"seen": torch.arange(N)}))["seen"].values()
        lost[name] = (vectors - rows_of(collection)).square().mean(0).detach()
    assert (lost["last"][-2:] < 0.5 * lost["all"][-2:]).all()
    assert (lost["last"][:-2] > lost["all"][:-2]).all()


def test_queries_say_what_errors_cost():
    made = torch.Generator().manual_seed(0)
    queries = torch.randn(300, DIM, generator=made)
    queries[:, 2:] = 0.0
    lost = {}
    for name, given in (("gradients", None), ("queries", {"item": queries})):
        collection = make(queries=given)
        train(collection, squares, steps=4)
        table = collection.tables["item"]
        assert table.gathers_metric == (given is None)
        vectors = collection.eval()(ids_of({"seen": torch.arange(N)}))["seen"].values()
        lost[name] = ((vectors - rows_of(collection)) @ queries.T).square().mean().item()
    assert lost["queries"] < 0.75 * lost["gradients"]


def test_queries_have_the_plan_of_a_layer_with_them():
    queries = torch.randn(300, DIM, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2.0, DIM)
    collection, rows = make(queries={"item": queries}), rows_of(make()).detach().clone()
    mgqe.start_quantizing(collection)
    options = {"counts": COUNTS, "budget": FULL // 4 - 512}  # for a shard
    layer = mgqe.MGQEmbedding.from_pretrained(rows, queries=queries, **options)
    layer.freeze()
    assert collection.tables["item"].capacity == layer.capacity
    set_later = make()
    set_later.planned_tables["item"].set_metric(Metric.of_queries(queries))
    mgqe.start_quantizing(set_later)
    assert set_later.tables["item"].capacity == layer.capacity


@pytest.mark.parametrize(
    ("config", "queries", "message"),
    [
        (CONFIG, {"items": torch.ones(3, DIM)}, "queries for ['items'], but the tables are ['item']"),
        (
            CONFIG,
            {"item": torch.ones(3, 4)},
            "table 'item': queries must have shape (n, 8), as many dimensions as rows, got (n, 4)",
        ),
        (mgqe.CompressConfig(num_centroids=16), {"item": torch.ones(3, DIM)}, "table 'item': queries say how a budget"),
    ],
)
def test_queries_that_do_not_fit_are_refused(config, queries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(config, queries=queries)


def test_dead_centroids_come_back():
    collection = make(mgqe.CompressConfig(budget="25%", warmup_steps=0))
    mgqe.start_quantizing(collection)
    table = collection.tables["item"]
    with torch.no_grad():
        table.quantizer.codebooks[0].view(-1)[5] = 1e6
    table.schedule.set(table.schedule.revive_every - 1, True)
    collection(ids_of({"seen": torch.arange(50)}))
    assert table.quantizer.codebooks[0].abs().max() < 1e3


def test_empty_batches_at_the_start_and_after():
    collection = make(mgqe.CompressConfig(budget="25%", warmup_steps=0))
    none = KeyedJaggedTensor(["seen"], torch.empty(0, dtype=torch.int64), lengths=torch.zeros(3, dtype=torch.int64))
    for _ in range(2):
        vectors = collection(none)["seen"].values()
        assert vectors.shape == (0, DIM)
        (vectors.sum() + mgqe.quantization_loss(collection)).backward()
    assert collection.tables["item"].quantizing


def test_without_a_capacity_a_table_spends_the_bytes_of_the_even_shape(tmp_path):
    config = mgqe.CompressConfig(warmup_steps=0)
    collection = make(config)
    even = make(mgqe.CompressConfig(num_centroids=(256, 64), warmup_steps=0))
    layer = mgqe.MGQEmbedding(N, DIM, counts=COUNTS)
    assert collection.tables["item"].nbytes == layer.planner.nbytes
    planned, even = (sharded.freeze(model, tmp_path / "frozen")["item"] for model in (collection, even))
    assert planned <= layer.planner.nbytes < even
    given = make(config, counts={"item": mgqe.Tiers.from_counts(COUNTS)})  # tiers say the shape, as in layers
    assert given.tables["item"].capacity.num_centroids == (128, 64)
    with pytest.raises(RuntimeError, match="Make the layer with num_subspaces= and num_centroids="):
        collection.load_state_dict(given.state_dict(), strict=False)


# ---- one budget for several tables ---------------------------------------------------------------------------


TWO = (("item", ("seen",)), ("user", ("user",)))


def two_tables(**other):
    return [table_of(name, features, **other) for name, features in TWO]


def test_one_budget_is_divided_by_what_errors_cost(tmp_path):
    shares = {}
    for dear in ("seen", "user"):
        collection = make(tables=two_tables())
        assert [table.nbytes for table in collection.tables.values()] == [None, None]

        def loss(vectors, dear=dear):
            return sum((100.0 if name == dear else 1.0) * part.square().mean() for name, part in vectors.items())

        train(collection, loss)
        nbytes = sharded.freeze(collection, tmp_path / dear)
        shares[dear] = {name: table.nbytes for name, table in collection.tables.items()}
        assert sum(shares[dear].values()) <= 2 * FULL // 4
        assert all(nbytes[name] <= share for name, share in shares[dear].items())
    assert shares["seen"]["item"] > 1.2 * shares["user"]["item"]
    assert shares["seen"]["user"] < 0.8 * shares["user"]["user"]


def test_rules_give_tables_budgets_of_their_own():
    config = mgqe.CompressConfig(budget="25%", rules={"user": {"budget": "50%"}, "day": {"num_centroids": 16}})
    collection = make(config, tables=[*two_tables(), table_of("day", ("day",))])
    assert {name: table.nbytes for name, table in collection.planned_tables.items()} == {
        "item": FULL // 4,
        "user": FULL // 2,
    }
    assert collection.tables["day"].capacity.num_centroids == (16,)
    mgqe.start_quantizing(collection)
    assert [table.quantizer.transform is None for table in collection.tables.values()] == [False, False, True]


def test_tables_of_one_budget_may_start_at_different_passes():
    config = mgqe.CompressConfig(budget="25%", warmup_steps=2, rules={"user": {"warmup_steps": 4}})
    collection = make(config, tables=two_tables())
    train(collection, squares, steps=3)
    shares = [table.nbytes for table in collection.tables.values()]
    assert [table.quantizing for table in collection.tables.values()] == [True, False]
    assert 0 < sum(shares) <= 2 * FULL // 4
    other = make(config, tables=two_tables(), seed=1)
    other.load_state_dict(collection.state_dict())
    train(other, squares, steps=2)
    assert [table.nbytes for table in other.tables.values()] == shares
    assert other.tables["user"].quantizing


def test_a_collection_is_freed_as_soon_as_nothing_holds_it():
    """Else its rows would stay in memory until Python looks for circles."""
    collection = make(tables=two_tables())
    alive = [weakref.ref(module) for module in (collection, collection.rows, *collection.tables.values())]
    gc.disable()
    try:
        del collection
        assert not any(reference() for reference in alive)
    finally:
        gc.enable()


# ---- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [None, two_tables()], ids=["one table", "two"])
@pytest.mark.parametrize("start", [0, 6], ids=["into a new one", "into another plan"])
def test_a_plan_comes_with_the_checkpoint(start, tables):
    collection, other = make(tables=tables), make(tables=tables, seed=1)
    train(collection, squares)
    train(other, lambda vectors: vectors["seen"][:, :2].square().mean(), steps=start)
    other.load_state_dict(collection.state_dict())
    for name, table in collection.tables.items():
        assert other.tables[name].capacity == table.capacity
        assert other.tables[name].tiers == table.tiers
        assert other.tables[name].nbytes == table.nbytes
    batch = ids_of({f: torch.arange(N) for t in collection.tables.values() for f in t.source.config.feature_names})
    expected, got = collection.eval()(batch), other.eval()(batch)
    assert all(torch.equal(got[feature].values(), part.values()) for feature, part in expected.items())


def test_a_checkpoint_of_the_warm_up_takes_a_plan_away():
    fresh, planned = make(), make(seed=1)
    train(planned, squares)
    planned.load_state_dict(fresh.state_dict())
    table = planned.tables["item"]
    assert not table.quantizing
    assert not table.quantizer.is_planned
    assert table.tiers.sizes == (N,)
    for collection in (fresh, planned):
        mgqe.start_quantizing(collection)
    assert table.capacity == fresh.tables["item"].capacity


def test_tensors_have_the_same_shapes_before_and_after_the_plan():
    """torch.distributed.checkpoint loads into the tensors that there are."""
    fresh, planned = make(tables=two_tables()), make(tables=two_tables())
    train(planned, squares)
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.state_dict().items()
    }


def test_checkpoints_that_do_not_fit_are_refused():
    planned = make()
    train(planned, squares)
    with pytest.raises(RuntimeError, match="planned from counts: make the collection with counts="):
        make(counts={}).load_state_dict(planned.state_dict(), strict=False)
    even = make(mgqe.CompressConfig(num_centroids=(16, 8)))
    with pytest.raises(RuntimeError, match="Make the layer with num_subspaces= and num_centroids="):
        planned.load_state_dict(even.state_dict(), strict=False)
    smaller = make(tables=[table_of(num_embeddings=N // 2)], counts={})
    with pytest.raises(RuntimeError, match=r"quantizers\.item: the checkpoint has 1000 ids, this table 2000"):
        planned.load_state_dict(smaller.state_dict(), strict=False)


def test_distributed_model_parallel_loads_plans(one_rank):
    planned, other = make(), make(seed=1)
    train(planned, squares)
    parallel = DistributedModelParallel(nn.Sequential(other), device=torch.device("cpu"))
    quantizers = {f"0.{name}": tensor for name, tensor in planned.state_dict().items() if "rows." not in name}
    parallel.load_state_dict({**parallel.state_dict(), **quantizers})
    assert other.tables["item"].capacity == planned.tables["item"].capacity
    assert other.tables["item"].tiers == planned.tables["item"].tiers
    assert other.tables["item"].quantizing


# ---- what is refused -----------------------------------------------------------------------------------------


LEAST = least_nbytes(N, DIM, None)


@pytest.mark.parametrize(
    ("config", "tables", "counts", "message"),
    [
        ({"budget": LEAST - 1}, None, {}, f"table 'item': a budget of {LEAST - 1:,} bytes is too small"),
        ({"budget": 2 * LEAST - 1}, two_tables(), {}, f"too few for 2 tables of 128,000: the least is {2 * LEAST:,}"),
        ({"budget": 10**6}, two_tables(), {}, "uncompressed it takes 128,000: give less"),
        ({"budget": "25%"}, None, {"item": mgqe.Tiers.from_counts(COUNTS)}, "table 'item': a budget chooses the tiers"),
        ({"budget": "25%"}, None, {"item": COUNTS[1:]}, "table 'item': counts has 1999 entries"),
        ({"budget": "25%", "quantizer": "sx"}, None, {}, "table 'item': quantizer='sx' does not work"),
        ({"budget": "25%", "rules": {"item": None}}, None, {}, "table 'item': a rule leaves it alone"),
    ],
)
def test_what_cannot_be_is_refused_at_once(config, tables, counts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(mgqe.CompressConfig(**config), tables=tables, counts=counts)


def test_the_least_budget_can_be_spent():
    for tables, budget in ((None, LEAST), (two_tables(), 2 * LEAST)):
        collection = make(mgqe.CompressConfig(budget=budget), tables=tables)
        mgqe.start_quantizing(collection)
        assert [table.nbytes for table in collection.tables.values()] == [LEAST] * len(collection.tables)


def test_rows_that_are_not_finite_are_named_by_their_table():
    collection = make(tables=two_tables())
    rows_of(collection, "user").data[17, 2] = float("nan")
    with pytest.raises(ValueError, match="row 17 of table 'user' holds NaN"):
        collection.tables["item"].start_quantizing()
    assert not collection.tables["item"].quantizing
