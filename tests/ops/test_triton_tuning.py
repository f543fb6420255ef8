"""Shapes of the programs of kernels for GPUs: the same bits in each, tried once per table, never where it hurts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which runs on CPUs by its interpreter: pip install triton")

from ops_tables import mixed_table, table
from whole_tables import whole_table

from mgqe import ops
from mgqe.checks.waiting import as_on_gpu
from mgqe.ops import _topk_gpu, triton_kernels
from mgqe.ops.layout.searches import Search, Searches
from mgqe.ops.triton_kernels import tuning
from mgqe.ops.triton_kernels.tuning import Tuned

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="makes up what a GPU would measure")
MODULES = [
    importlib.import_module(f"{triton_kernels.__name__}.{each.name}")
    for each in pkgutil.iter_modules(triton_kernels.__path__)
]
TUNED = {name: (module, made) for module in MODULES for name, made in vars(module).items() if isinstance(made, Tuned)}
NUMBERS_OF_ROWS = {"num_ids", "num_rows", "num_bags", "num_queries"}


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def look_up(parts: Any) -> list[Tensor]:
    return [ops.PreparedLookup(parts)(torch.arange(parts.num_embeddings))]


def pool(parts: Any) -> list[Tensor]:
    ids = torch.arange(38) % parts.num_embeddings
    return [ops.bag(ops.PreparedLookup(parts), ids, torch.arange(0, 38, 2), mode) for mode in ("sum", "mean")]


def search(parts: Any) -> list[Tensor]:
    """Of ids that scores and ties put in one order: the first rows set thresholds, which the kernel reads."""
    first, _topk_gpu.FIRST_ROWS = _topk_gpu.FIRST_ROWS, 8
    try:
        return list(ops.topk(ops.PreparedLookup(parts), ops.TopKJob(numbers(19, parts.embedding_dim), 12))[:2])
    finally:
        _topk_gpu.FIRST_ROWS = first


def quantize() -> list[Tensor]:
    searches = Searches((Search(0, 2, 0, 2, 0, 0, (9,)), Search(2, 3, 18, 3, 0, 1, (5,))), 2, 33)
    made = triton_kernels.nearest(numbers(130, 5), None, numbers(33), searches, 1.0, 2.0)
    return [made.codes, made.taken, made.errors, made.loss]


EVEN, WHOLE = table(sizes=(9, 60), counts=(4, 2))[0], whole_table([2, 1, 4], [(3, 8, 0), (2, 6, 1)], [9, 60], 7)
WORK: dict[str, list[Callable[[], list[Tensor]]]] = {
    "_nearest": [quantize, lambda: [ops.assign(numbers(70, 8), numbers(4, 5, 2), numbers(4, 5))]],
    "_transform": [lambda: [ops.transform(numbers(69, 5), numbers(9), numbers(5, 9))]],
    "_decode": [lambda: look_up(EVEN)],
    "_decode_through": [
        lambda: look_up(WHOLE.snapshot.lookup.table),
        lambda: look_up(mixed_table(sizes=(9, 60), matrix=torch.float32, dim=9)[0]),
    ],
    "_bag_codes": [lambda: pool(EVEN), lambda: pool(WHOLE.snapshot.lookup.table)],
    "_keep": [lambda: search(EVEN), lambda: search(table(sizes=(69,), counts=(4,), subspaces=(2,))[0])],
}


@pytest.fixture(params=WORK)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def fresh(name: str, monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """The kernel, for which nothing has been tried."""
    module, made = TUNED[name]
    other = Tuned(made.kernel, made.shapes, made.key, made.rows, made._zeroed)
    monkeypatch.setattr(module, name, other)
    return other


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_all_tuned_kernels_are_tested() -> None:
    assert set(TUNED) == set(WORK)


def test_tables_are_told_apart_and_not_numbers_of_rows(name: str) -> None:
    made = TUNED[name][1]
    assert made.rows in NUMBERS_OF_ROWS
    assert not set(made.key) & NUMBERS_OF_ROWS
    assert 2 <= len(made.shapes) <= 4
    assert len({tuple(shape) for shape in made.shapes}) == 1


def test_every_shape_has_the_same_bits(name: str, fresh: Tuned) -> None:
    with as_on_gpu():
        for work in WORK[name]:
            expected, shapes = work(), fresh.shapes
            for shape in shapes[1:]:
                fresh.shapes = (shape,)
                assert same(work(), expected), shape
            fresh.shapes = shapes


def test_the_fastest_shape_is_found_once_by_tritons_autotuner(
    name: str, fresh: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times are made up, so that the last shape is the fastest; results are right in the very pass that tries."""
    work, timed, tried = WORK[name][0], [], []

    def milliseconds(launch: Callable[[], None], quantiles: Any = None) -> list[float]:
        launch()
        launch()
        timed.append(launch)
        return [float(-len(timed))]

    with as_on_gpu():
        expected = work()
        monkeypatch.setattr(tuning, "milliseconds", milliseconds)
        monkeypatch.setattr(
            tuning, "may_try", lambda kernel, rows: kernel is fresh.kernel and (tried.append(rows), True)[1]
        )
        for _ in range(2):
            assert same(work(), expected)
    tables = len(tried)
    assert tables >= 1
    assert len(fresh._chosen) == tables  # not tried again
    assert len(timed) == tables * len(fresh.shapes)
    for chosen in fresh._chosen.values():
        assert {key: chosen[key] for key in fresh.shapes[-1]} == fresh.shapes[-1]


class StandIn:
    """In place of a kernel of arguments num_rows, length and ROWS: what it was launched with."""

    arg_names = ("num_rows", "length", "ROWS")

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self.best_config = self

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            self.launches.append(dict(zip(self.arg_names, args, strict=False)) | constants)

        return launch

    def all_kwargs(self) -> dict[str, int]:
        return {"ROWS": 64, "num_warps": 8}


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    now = {"captures": False, "debug": 0}
    monkeypatch.setattr(tuning, "JITFunction", StandIn)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now["captures"])
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: now["debug"])
    monkeypatch.delenv("MGQE_TUNE", raising=False)
    return now


def test_when_shapes_are_tried(on_a_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, autotuner = StandIn(), StandIn()
    made = Tuned(kernel, [{"ROWS": 32, "num_warps": 4}, {"ROWS": 64, "num_warps": 8}], ["length"], "num_rows", ())
    made.__dict__["_autotuner"] = autotuner

    def rows_of(*launches: tuple[int, int]) -> list[int]:
        for launch in launches:
            made[None](*launch)
        return [each["ROWS"] for each in kernel.launches[-len(launches) :]]

    many = tuning.LEAST
    assert rows_of((many - 1, 5), (1, 5)) == [32, 32]  # too few rows to tell shapes apart
    on_a_gpu["captures"] = True
    assert rows_of((many, 5)) == [32]
    on_a_gpu.update(captures=False, debug=2)
    assert rows_of((many, 5)) == [32]
    on_a_gpu["debug"] = 0
    monkeypatch.setenv("MGQE_TUNE", "0")
    assert rows_of((many, 5)) == [32]
    monkeypatch.delenv("MGQE_TUNE")
    assert autotuner.launches == []
    made[None](many, 5)
    assert autotuner.launches == [{"num_rows": many, "length": 5}]
    on_a_gpu["captures"] = True
    assert rows_of((many, 5), (1, 5), (7 * many, 5)) == [64, 64, 64]  # what was found, for any number of rows
    assert rows_of((many, 6)) == [32]  # another table
    on_a_gpu["captures"] = False
    made[None](many, 6)
    assert len(autotuner.launches) == 2


def test_the_interpreter_tries_nothing() -> None:
    assert not any(tuning.may_try(made.kernel, 10**9) for _, made in TUNED.values())
