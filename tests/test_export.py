"""Portable copies of frozen models, torch.export, torch.compile(fullgraph=True) and AOTInductor."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from table_cases import CASES, build
from torch import nn

import mgqe
from mgqe import CompactEmbedding, CompactEmbeddingBag, MGQEmbedding
from mgqe.baselines import FullTable
from mgqe.export import PortableEmbedding, PortableEmbeddingBag

N, DIM = 2000, 16
COUNTS = torch.arange(N) * 7 % 1999 + 1  # in no order


class TwoTowers(nn.Module):
    """Users, items with padding, and bags of tags, each side through an MLP."""

    def __init__(self, n: int = N) -> None:
        super().__init__()
        self.user = nn.Embedding(n, DIM)
        self.item = nn.Embedding(n, DIM, padding_idx=0)
        self.tags = nn.EmbeddingBag(n, DIM, mode="mean")
        self.left = nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))
        self.right = nn.Sequential(nn.Linear(2 * DIM, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, users, items, tags, offsets):
        other = torch.cat([self.item(items), self.tags(tags, offsets)], dim=1)
        return (self.left(self.user(users)) * self.right(other)).sum(-1)


def two_towers(n: int = N, **settings) -> TwoTowers:
    torch.manual_seed(0)
    model = TwoTowers(n)
    counts = torch.arange(n) * 7 % (n - 1) + 1
    config = mgqe.CompressConfig(**settings)
    mgqe.compress_(model, config, counts={"user": counts, "item": counts}, init="from_weight")
    mgqe.freeze_(model)
    return model


def batch(size: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.randint(N, (2, size), generator=generator)
    return users, items, torch.randint(N, (3 * size + 1,), generator=generator), torch.arange(size) * 3


def free_batch() -> tuple[dict[int, object], ...]:
    return tuple({0: torch.export.Dim.DYNAMIC} for _ in range(4))


def bags() -> list[tuple[str, int | None]]:
    return [(mode, padding) for mode in ("sum", "mean", "max") for padding in (None, 3)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("case", [c for c in CASES if sum(c.sizes)], ids=lambda c: c.name)
def test_portable_rows_are_the_same_bits(case):
    table = build(case).table
    made = mgqe.portable(CompactEmbedding(table))
    assert isinstance(made, PortableEmbedding)
    ids = torch.arange(table.num_embeddings)
    assert torch.equal(made(ids), table.lookup(ids))
    assert torch.equal(made.weight, table.to_dense())
    assert made(ids[:4].reshape(2, 2).int()).shape == (2, 2, table.embedding_dim)
    assert sum(b.nbytes for b in made.buffers()) == table.nbytes
    with pytest.raises(IndexError, match=f"id {table.num_embeddings} is out of range"):
        made(torch.tensor([0, table.num_embeddings]))


@pytest.mark.parametrize(("mode", "padding"), bags())
def test_portable_bags(mode, padding):
    case = CASES[0]
    table = build(type(case)(**{**vars(case), "padding_idx": padding})).table
    bag = CompactEmbeddingBag(table, mode=mode)
    made = mgqe.portable(bag)
    assert isinstance(made, PortableEmbeddingBag)
    ids = torch.randint(table.num_embeddings, (12,), generator=torch.Generator().manual_seed(0))
    ids[3:6] = 3  # a bag of padding alone
    for given in ((ids.reshape(4, 3),), (ids, torch.tensor([0, 3, 6, 6, 12]))):
        torch.testing.assert_close(made(*given), bag(*given), rtol=1e-6, atol=1e-6)
    bag.include_last_offset = True
    offsets = torch.tensor([0, 5, 12])
    torch.testing.assert_close(mgqe.portable(bag)(ids, offsets), bag(ids, offsets), rtol=1e-6, atol=1e-6)
    weights = torch.rand(12)
    if mode == "sum":
        bag.include_last_offset = False
        torch.testing.assert_close(made(ids, offsets, weights), bag(ids, offsets, weights))
    else:
        with pytest.raises(ValueError, match='mode="sum" only'):
            made(ids, offsets, weights)
    with pytest.raises(ValueError, match=r"expected ids of shape \(B, L\).*without offsets"):
        made(ids)


def test_a_fallback_stands_for_unknown_ids():
    built = build(CASES[0])
    table = built.table.with_fallback(torch.arange(8.0))
    ids = torch.tensor([-1, 0, 46, 47, 1 << 60])
    assert torch.equal(mgqe.portable(CompactEmbedding(table))(ids), table.lookup(ids))


def test_appended_ids_are_exported():
    table = build(CASES[0]).table
    table.append(torch.randn(5, 8), tier=0)
    table.append(torch.randn(5, 8))
    assert torch.equal(mgqe.portable(CompactEmbedding(table)).weight, table.to_dense())


def test_the_copy_shares_memory_and_the_model_stays():
    model = two_towers()
    made = mgqe.portable(model)
    assert type(model.user) is CompactEmbedding
    assert type(made.user) is PortableEmbedding
    assert made.left[0].weight is model.left[0].weight
    assert made.user.codes_0.data_ptr() == model.user.table.to_tensors()[0]["codes.0"].data_ptr()
    assert not made.training
    torch.testing.assert_close(made(*batch(5)), model(*batch(5)))
    again = copy.deepcopy(made).bfloat16()
    assert again.user.centroids_0.dtype == torch.float32
    assert again(*batch(5)).dtype == torch.bfloat16


def test_shared_and_tied_tables():
    torch.manual_seed(0)
    model = nn.Module()
    model.embed = nn.Embedding(N, DIM)
    model.again = model.embed
    model.head = nn.Linear(DIM, N, bias=False)
    model.head.weight = model.embed.weight
    mgqe.compress_(model, init="from_weight")
    mgqe.freeze_(model)
    made = mgqe.portable(model)
    assert made.again is made.embed
    hidden = torch.randn(3, DIM)
    torch.testing.assert_close(made.head(hidden), model.head(hidden))


@pytest.mark.parametrize("ready", [lambda model: model, mgqe.portable], ids=["frozen", "portable"])
def test_export_and_compile_give_what_eager_gives(ready):
    model = two_towers(centroid_dtype="int8")
    exported = torch.export.export(ready(model), batch(5), dynamic_shapes=free_batch())
    compiled = torch.compile(ready(model), fullgraph=True, dynamic=True, backend="aot_eager")
    custom = {str(node.target) for node in exported.graph.nodes if "mgqe" in str(node.target)}
    assert bool(custom) == (ready is not mgqe.portable)  # the portable program runs where mgqe is not
    for size in (2, 9):
        expected = model(*batch(size, size))
        torch.testing.assert_close(exported.module()(*batch(size, size)), expected)
        torch.testing.assert_close(compiled(*batch(size, size)), expected)


@pytest.mark.slow
def test_ahead_of_time_inductor(tmp_path):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    model = two_towers()
    exported = torch.export.export(mgqe.portable(model), batch(5), dynamic_shapes=free_batch())
    path = aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    loaded = aoti_load_package(path)
    for size in (2, 9):
        torch.testing.assert_close(loaded(*batch(size, size)), model(*batch(size, size)))


def test_bad_input_names_the_path():
    with pytest.raises(ValueError, match=r"Linear has no compact table: call mgqe.compress_"):
        mgqe.portable(nn.Linear(2, 2))
    model = two_towers()
    model.extra = nn.ModuleDict({"late": MGQEmbedding(100, 8)})
    with pytest.raises(ValueError, match=r"extra\.late: not frozen: call mgqe.freeze_"):
        mgqe.portable(model)
    model = two_towers()
    model.user = CompactEmbedding(FullTable(torch.randn(N, DIM)))
    with pytest.raises(TypeError, match="user: holds a FullTable, and only a CompactTable"):
        mgqe.portable(model)
    model.user = CompactEmbedding(build(CASES[-1]).table)
    with pytest.raises(ValueError, match="user: the table has no rows"):
        mgqe.portable(model)
    with pytest.raises(TypeError, match="expected a CompactTable, got Tensor"):
        PortableEmbedding(torch.randn(2, 2))
    with pytest.raises(ValueError, match="mode must be one of"):
        PortableEmbeddingBag(build(CASES[0]).table, mode="most")
