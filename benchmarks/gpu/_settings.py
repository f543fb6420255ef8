"""What all parts of the comparison share: sizes, the clock, and what is skipped and why."""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import mgqe
from mgqe.checks.waiting import as_on_gpu

Contender = Callable[[int], object]
Built = Callable[[], Contender]


class Skip(Exception):
    """Why something is not measured: a package that is missing, no time left."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    rows: int = 10_000_000
    dim: int = 64
    batch: int = 65_536  # ids of a training step
    lookups: int = 1_000_000
    bags: int = 16_384
    bag_length: int = 64
    queries: tuple[int, ...] = (1, 1024)
    k: int = 100
    planned_rows: int = 1_000_000  # of the layer whose shape is planned, which reads rows on the CPU
    rounds: int = 5
    calls: int = 5
    checked_rows: int = 2_000  # of the tables whose results are compared
    checked_dim: int = 16
    checked_centroids: tuple[int, int] = (64, 16)
    checked_codes: tuple[tuple[int, int, int], ...] = ((4, 2, 4), (8, 256, 2), (1, 5_000, 3), (1, 65_536, 1))

    @classmethod
    def small(cls) -> Sizes:
        """For a run that shows that the script works."""
        timed = 3_000, 16, 128, 256, 8, 4, (1, 3), 5, 1_000, 1, 1
        return cls(*timed, 100, 8, (8, 4), ((4, 2, 4), (2, 70, 2)))


@dataclass
class Run:
    """One run of the comparison.

    Attributes:
        device: where everything is.
        sizes: how large.
        deadline: on the clock of time.monotonic; nothing begins after it.
        began: on the same clock.
        rows: what was measured, as the JSON has it.
        aims: the most that ratios are to be, of all that was to be measured: by what, and by name.
        skipped: what was not, and why.
        failed: contenders that raised an error which they must not.
    """

    device: torch.device
    sizes: Sizes
    deadline: float
    began: float = 0.0
    rows: list[dict[str, object]] = field(default_factory=list)
    aims: dict[tuple[str, str], float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def there(self) -> AbstractContextManager[None]:
        """Around what the device does; on the CPU by the ways of a GPU, by Triton's interpreter if it is installed."""
        return nullcontext() if self.device.type == "cuda" else as_on_gpu()

    @property
    def there_with_torch(self) -> AbstractContextManager[Any]:
        """As ``there``, for what takes many steps: on the CPU without Triton's interpreter."""
        if self.device.type == "cuda":
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(as_on_gpu())
        stack.enter_context(patch.dict(os.environ, {"MGQE_TRITON": "0"}))
        return stack

    @property
    def exact(self) -> bool:
        """Whether a product and its sum are rounded once, as on GPUs and CPUs, and not in Triton's interpreter."""
        return self.device.type == "cuda"

    def generator(self, seed: int = 0) -> torch.Generator:
        """For numbers that are drawn on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def zipf(self, n: int, rows: int, seed: int) -> Tensor:
        """Ids (n,) int64 in order of frequency: id i about as often as 1 / (i + 1)."""
        uniform = torch.rand(n, generator=self.generator(seed), device=self.device, dtype=torch.float64)
        return ((rows + 1) ** uniform - 1).long().clamp_(max=rows - 1)

    def skip(self, what: str, why: str, name: str = "") -> None:
        """Say that something is left out: a whole comparison, or one contender of it by ``name``."""
        self.skipped[f"{what}: {name}" if name else what] = why
        print(f"  skipped {name or what}: {why}", flush=True)

    def compare(self, what: str, contenders: Mapping[str, Built], peer: str, targets: Mapping[str, float]) -> None:
        """Time contenders in turns, and print and keep their medians beside the peer's; each is built here, or skipped.

        ``peer``: the contender that ratios are taken to. ``targets``: the most that a ratio is to be, on a GPU.
        """
        print(f"\n{what}", flush=True)
        self.aims |= {(what, name): target for name, target in targets.items()}
        ready: dict[str, tuple[Contender, int]] = {}
        for name, build in contenders.items():
            if time.monotonic() > self.deadline:
                self.skip(what, "no time left", name)
                continue
            self.wait()
            before = self._allocated()
            try:
                contender = build()
                self._reset_peak()
                contender(0)
                self.wait()
            except (Skip, ImportError, torch.OutOfMemoryError) as reason:
                self.skip(what, " ".join(str(reason).split())[:200], name)
                continue
            except Exception as error:  # whatever it is: the others are to be measured, too
                traceback.print_exc(limit=4)
                self.skip(what, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", name)
                if name.startswith("mgqe"):  # other packages' errors are theirs
                    self.failed.append(f"{what}: {name}")
                continue
            ready[name] = contender, self._peak() - before
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.sizes.rounds):
            for name, (contender, _) in ready.items():
                if time.monotonic() <= self.deadline or not seconds[name]:
                    seconds[name] += self._timed(contender)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        for name, median in medians.items():
            ratio = median / medians[peer] if peer in medians else None
            target = targets.get(name) if self.device.type == "cuda" else None
            self.rows.append(
                {
                    "what": what,
                    "name": name,
                    "median_s": median,
                    "best_s": min(seconds[name]),
                    "calls": len(seconds[name]),
                    "peer": peer,
                    "ratio": ratio,
                    "target": target,
                    "target_met": None if target is None or ratio is None else ratio <= target,
                    "peak_bytes": ready[name][1] if self.device.type == "cuda" else None,
                }
            )
            print(table_line(self.rows[-1]), flush=True)
        ready.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for packages with an allocator of their own

    def _timed(self, contender: Contender) -> list[float]:
        contender(0)
        seconds = []
        for i in range(1, self.sizes.calls + 1):
            self.wait()
            start = time.perf_counter()
            contender(i)
            self.wait()
            seconds.append(time.perf_counter() - start)
        return seconds

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


def table_line(row: Mapping[str, object]) -> str:
    """A measurement in one line of at most 80 columns."""
    ratio, target, peak = row["ratio"], row["target"], row["peak_bytes"]
    text = f"  {row['name']!s:<30}{float(row['median_s']) * 1e3:>11.3f} ms"  # type: ignore[arg-type]
    text += f"{ratio:>8.3f}" if isinstance(ratio, float) else " " * 8
    text += f"{peak / 2**20:>9,.0f} MiB" if isinstance(peak, int) else ""
    if isinstance(target, float):
        text += f"  {'met' if row['target_met'] else 'MISSED'} ({target:g})"
    return text


def against_aims(run: Run) -> list[dict[str, object]]:
    """Every ratio that has an aim, measured or not: ratio and verdict are None where it was not, or not on a GPU."""
    measured = {(row["what"], row["name"]): row for row in run.rows}
    nothing = {"ratio": None, "target_met": None}
    return [
        {"what": what, "name": name, "target": aim}
        | {key: measured.get((what, name), nothing)[key] for key in ("ratio", "target_met")}
        for (what, name), aim in run.aims.items()
    ]


def aim_line(aim: Mapping[str, object]) -> str:
    """A ratio beside its aim, and the verdict, in one line."""
    ratio = f"{aim['ratio']:.3f}" if isinstance(aim["ratio"], float) else "-"
    verdict = {True: "met", False: "MISSED", None: "not measured on a GPU"}[aim["target_met"]]  # type: ignore[index]
    most = f"at most {aim['target']:g}"
    return f"  {ratio:>8} {most:<14} {verdict:<22} {aim['name']}, {aim['what']}"


def captured(step: Callable[[], None], model: nn.Module) -> torch.cuda.CUDAGraph:
    """A step of a model as a CUDA graph, after three ordinary ones. Its tensors are to stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with mgqe.one_graph(model):
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph
