"""Shapes of a kernel's programs: rows per program and warps, of which a GPU tries a few for each table, once.

Only what has the same bits in every shape is tuned, so that what trials happen to measure changes no result. (Of the
kernels here one also gives a loss, whose last bits may differ; no gradient comes from it.) Not tuned are therefore
kernels that sum over rows in blocks (gradients of centroids, statistics of SX), and the optimiser's, which move a
parameter in place: a trial would move it again, and a copy to restore it would be one of the whole table.

Environment, read at each trial:
    ``MGQE_TUNE=0``: every kernel has the first of its shapes.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.runtime import JITFunction

LEAST = 4096  # rows of a launch that is worth a trial: of fewer the time is that of a launch, whatever the shape
RUNS = 5  # of a trial, after one that compiles
_LOCK = threading.Lock()  # Triton's autotuner keeps what it tries in itself

Shape = dict[str, int]


class Tuned:
    """A kernel with several shapes; ``tuned[grid](...)`` launches it, where grid takes a shape.

    Attributes:
        kernel: the kernel.
        shapes: of its constants, and ``num_warps``; the first one is what it has before a trial, and where none can be.
        key: the arguments that tell tables apart. A number of rows is none of them.
        rows: the argument that is the number of rows.
    """

    def __init__(self, kernel: Any, shapes: Sequence[Shape], key: Sequence[str], rows: str, zeroed: Sequence[str]):
        self.kernel, self.shapes, self.key, self.rows, self._zeroed = kernel, tuple(shapes), tuple(key), rows, zeroed
        self._places = {name: kernel.arg_names.index(name) for name in (*key, rows)}
        self._chosen: dict[tuple[Any, ...], dict[str, Any]] = {}

    def __getitem__(self, grid: Callable[[dict[str, Any]], tuple[int, ...]]) -> Callable[..., None]:
        return functools.partial(self._run, grid)

    def _run(self, grid: Callable[[dict[str, Any]], tuple[int, ...]], *args: Any, **constants: Any) -> None:
        table = tuple(constants[name] if name in constants else args[self._places[name]] for name in self.key)
        if table not in self._chosen and may_try(self.kernel, args[self._places[self.rows]]):
            with _LOCK:
                self._autotuner[grid](*args, **constants)
                self._chosen[table] = self._autotuner.best_config.all_kwargs()
            return
        self.kernel[grid](*args, **constants, **self._chosen.get(table, self.shapes[0]))

    @functools.cached_property
    def _autotuner(self) -> Any:
        configs = [
            triton.Config({k: v for k, v in shape.items() if k != "num_warps"}, num_warps=shape["num_warps"])
            for shape in self.shapes
        ]
        has_cache = "cache_results" in inspect.signature(triton.autotune).parameters  # on disk, beside the programs
        more: dict[str, Any] = {"cache_results": True} if has_cache else {}
        more |= {"reset_to_zero": list(self._zeroed) or None, "do_bench": milliseconds}
        return triton.autotune(configs, list(self.key), **more)(self.kernel)


def tuned(*shapes: Shape, key: Sequence[str], rows: str, zeroed: Sequence[str] = ()) -> Callable[[Any], Tuned]:
    """Decorator of a kernel; see :class:`Tuned`.

    Args:
        shapes: the first one is the default.
        key, rows: see there.
        zeroed: arguments that the kernel adds to, which are zeros at a launch.
    """
    return lambda kernel: Tuned(kernel, shapes, key, rows, zeroed)


def may_try(kernel: Any, rows: int) -> bool:
    """Whether a launch may be repeated and waited for: not in the interpreter, in a capture, or if waits are errors."""
    if not isinstance(kernel, JITFunction) or rows < LEAST or os.environ.get("MGQE_TUNE", "1") == "0":
        return False
    return not torch.cuda.is_current_stream_capturing() and torch.cuda.get_sync_debug_mode() == 0


def milliseconds(launch: Callable[[], None], quantiles: Any = None) -> list[float]:
    """The median, the least and the greatest time of a launch. Triton's own timer takes 256 MB of the GPU for it."""
    launch()
    event: Any = torch.cuda.Event  # whose types torch does not say
    events = [[event(enable_timing=True) for _ in range(2)] for _ in range(RUNS)]
    for start, end in events:
        start.record()
        launch()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in events)
    return [times[RUNS // 2], times[0], times[-1]]
