"""How kernels for GPUs are launched: on the GPU of their tensors, and by few programs, whatever the number of ids."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="needs Triton, which runs on CPUs by its interpreter: pip install triton")

from ops_tables import mixed_table, table
from whole_tables import whole_table

import mgqe
from mgqe import ops
from mgqe.checks.waiting import as_on_gpu
from mgqe.ops import _topk_gpu, triton_kernels
from mgqe.ops.triton_kernels.scores import Scorer

on_cpus = pytest.mark.skipif(torch.cuda.is_available(), reason="watches Triton's interpreter")


# ---- which GPU ---------------------------------------------------------------------------------------------------


class Entered(Exception):
    pass


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two GPUs is torch's current one; another that becomes it is told by an exception."""

    class Guard:
        def __init__(self, device: torch.device) -> None:
            raise Entered(str(device))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Guard)


def ids_on(device: str) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(3, dtype=torch.int64, device=device)


LAUNCHERS = {
    name: made
    for name in triton_kernels.__all__
    if inspect.isfunction(made := getattr(triton_kernels, name))
} | {
    "look-up": triton_kernels.GpuTable.__call__,
    "numbers": triton_kernels.GpuTable.numbers,
    "place": triton_kernels.GpuTable.place,
    "scores": Scorer.__call__,
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_kernels_run_on_the_gpu_of_their_tensors(launcher: Any, two_gpus: None) -> None:
    with pytest.raises(Entered, match="cuda:1"):
        launcher(None, ids_on("cuda:1"))


def test_a_table_is_read_where_it_lies_though_another_gpu_has_become_current(two_gpus: None) -> None:
    with as_on_gpu():
        prepared = ops.PreparedLookup(table(sizes=(5, 9))[0])
        assert prepared(torch.tensor([3])).shape == (1, prepared.table.embedding_dim)  # on no GPU nothing is entered
    with pytest.raises(Entered, match="cuda:1"):
        prepared.gpu_table(ids_on("cuda:1"))


# ---- how much memory ---------------------------------------------------------------------------------------------


def own_bytes(parts: ops.TableBuffers) -> int:
    """Of what a table is laid out in and has read, the bytes that are not the table's own."""
    with as_on_gpu():
        prepared = ops.PreparedLookup(parts)
        prepared(torch.arange(3))
        ops.bag(prepared, torch.arange(6).view(2, 3))
        ops.topk(prepared, ops.TopKJob(torch.ones(2, parts.embedding_dim), 2, cosine=True))
    mine = {each.untyped_storage().data_ptr() for each in parts.tensors()}
    laid_out = {id(each): each for each in tree_leaves((vars(prepared), vars(prepared.gpu_table)))}.values()
    others = {each.untyped_storage() for each in laid_out if isinstance(each, torch.Tensor)}
    return sum({each.data_ptr(): each.nbytes() for each in others if each.data_ptr() not in mine}.values())


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_table_on_a_gpu_is_its_bytes_and_a_few_numbers(shuffled: bool) -> None:
    """Of a codebook in float32 nothing but 8 bytes for each of five numbers of each tier's coordinates, and the tiers'
    own; and nothing, of any table, that grows with its rows."""
    few, many = (table(sizes=(9, rows), shuffled=shuffled)[0] for rows in (60, 1500))
    assert own_bytes(few) == own_bytes(many)
    tiers, levels = len(few.sizes), 3 * max(1, len(few.map_bits))
    entries = len(few.sizes) if shuffled else 1
    assert own_bytes(few) == 8 * (5 * few.num_coordinates * tiers + 3 * tiers + levels + entries)
    more = {"dtype": torch.int8, "matrix": torch.int8, "dim": 9, "shuffled": shuffled}
    assert len({own_bytes(mixed_table(sizes=(9, rows), **more)[0]) for rows in (60, 1500)}) == 1


# ---- how many programs -------------------------------------------------------------------------------------------


@contextmanager
def programs(found: set[tuple[Any, ...]]) -> Iterator[None]:
    """Within, collects what Triton would compile a program for: a kernel, its constants, and the types of the rest."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def watched(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        given = dict(zip(self.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in self.arg_names}
        plain = self.kwargs.get("do_not_specialize") or ()
        key = [(name, _kind(name, value, name in plain)) for name, value in given.items()]
        found.add((self.__name__, *key))
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = watched
    try:
        yield
    finally:
        InterpretedFunction.run = run


def _kind(name: str, value: Any, plain: bool) -> Any:
    if name.isupper():
        return value
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        wide = abs(value) >= 2**31
        return wide if plain else (wide, value == 1, value % 16 == 0)  # by default Triton tells these apart
    return type(value)


def train(**options: Any) -> Any:
    torch.manual_seed(0)
    layer = mgqe.MGQEmbedding(300, 8, counts=torch.arange(300, 0, -1), warmup_steps=0, sparse=True, **options)
    layer.start_quantizing()
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)

    def step(n: int) -> None:
        optimizer.zero_grad()
        (layer(torch.arange(n) * 7 % 300).square().mean() + mgqe.quantization_loss(layer)).backward()
        optimizer.step()

    return step


def read(parts: Any) -> Any:
    prepared = ops.PreparedLookup(parts)

    def use(n: int) -> None:
        ids = torch.arange(n) % parts.num_embeddings
        prepared(ids)
        ops.bag(prepared, ids, torch.arange(0, n, 3), "sum", None)
        few = ids[:16]  # the interpreter takes its time
        ops.bag(prepared, few, torch.tensor([0]), "sum", torch.ones(len(few)))
        ops.bag(prepared, few.view(-1, 1), None, "mean")

    return use


WORK = {
    "training": lambda: train(num_centroids=(16, 8)),
    "training of a plan": train,
    "training of SX": lambda: train(num_centroids=(16, 8), quantizer="sx"),
    "a table": lambda: read(table(sizes=(9, 60))[0]),
    "a mixed table": lambda: read(mixed_table(sizes=(9, 60), matrix=torch.float32, dim=9)[0]),
    "a table of whole numbers": lambda: read(
        whole_table([2, 1, 4], [(3, 8, 0), (2, 6, 1)], [9, 40], 7).snapshot.lookup.table
    ),
}


@on_cpus
@pytest.mark.parametrize("make", WORK.values(), ids=WORK)
def test_no_number_of_ids_makes_triton_compile_again(make: Any) -> None:
    with as_on_gpu():
        work, first, later = make(), set(), set()
        with programs(first):
            work(33)
        with programs(later):
            for n in (1, 2, 16, 100, 257):
                work(n)
    assert len(first) >= 2
    assert later <= first, later - first


TABLES = {
    "even": table(sizes=(9, 60), shuffled=True, padding_idx=7)[0],
    "mixed": mixed_table(sizes=(9, 60))[0],
    "through a matrix": mixed_table(sizes=(9, 60), matrix=torch.float32, dim=9)[0],
    "whole numbers": whole_table([2, 1, 4], [(3, 8, 0), (2, 6, 1)], [9, 60], 7).snapshot.lookup.table,
}


@on_cpus
@pytest.mark.parametrize("parts", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_are_summed_without_a_row_being_written(parts: Any, mode: str) -> None:
    found: set[tuple[Any, ...]] = set()
    with as_on_gpu(), programs(found):
        ops.bag(ops.PreparedLookup(parts), torch.arange(6).view(3, 2), None, mode)
    assert sorted(name for name, *_ in found) == ["_bag_codes", "_locate"]


@on_cpus
def test_numbers_of_queries_take_five_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1, 2, 4, 8 and 16 queries."""
    monkeypatch.setattr(_topk_gpu, "FIRST_ROWS", 8)
    parts, found = table(sizes=(9, 60))[0], set()
    with as_on_gpu(), programs(found):
        prepared = ops.PreparedLookup(parts)
        for number in (1, 2, 3, 4, 5, 8, 13, 16, 17, 40):
            ops.topk(prepared, ops.TopKJob(torch.randn(number, parts.embedding_dim), 3))
    names = [name for name, *_ in found]
    assert {name: names.count(name) for name in names} == {"_locate": 1, "_score": 1, "_keep": 5}
