"""How many kernels a training step launches on a GPU, counted on the CPU: operators of torch, and kernels of Triton.

TRITON_INTERPRET=1 python -m benchmarks.gpu.operators

Layers take the ways of a GPU, and Triton's kernels run in its interpreter. Views and allocations are not counted, nor
that an operator of torch may launch more than one kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mgqe
from mgqe.checks.waiting import as_on_gpu

ROWS, DIM, BATCH = 300, 16, 32
COUNTS = torch.arange(ROWS, 0, -1)
LAYERS = {
    "nn.Embedding": None,
    "dpq, 16 centroids": {"num_centroids": 16},
    "mgqe, 16 and 8 centroids": {"num_centroids": (16, 8)},
    "mgqe, default": {},
    "mgqe, sx": {"num_centroids": (16, 8), "quantizer": "sx"},
}


class Operators(TorchDispatchMode):
    """Counts operators of torch that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = function._schema.returns
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        if not is_view and "empty" not in function.overloadpacket.__name__:
            self.count += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_kernels() -> Iterator[list[int]]:
    """A list with one entry for each kernel of Triton that is launched within."""
    from triton.runtime.interpreter import GridExecutor

    launched: list[int] = []
    call = GridExecutor.__call__

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(1)
        return call(self, *args, **kwargs)

    GridExecutor.__call__ = counting
    try:
        yield launched
    finally:
        GridExecutor.__call__ = call


def make(options: dict[str, Any] | None) -> nn.Module:
    """A layer whose codebooks have started; an nn.Embedding for None."""
    torch.manual_seed(0)
    if options is None:
        return nn.Embedding(ROWS, DIM, sparse=True)
    kind = mgqe.DPQEmbedding if isinstance(options.get("num_centroids"), int) else mgqe.MGQEmbedding
    counts = {} if kind is mgqe.DPQEmbedding else {"counts": COUNTS}
    layer = kind(ROWS, DIM, sparse=True, warmup_steps=0, **counts, **options)
    mgqe.start_quantizing(layer)
    return layer


def step(layer: nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad(set_to_none=True)
    (layer(ids).square().mean() + mgqe.quantization_loss(layer)).backward()
    optimizer.step()


def main() -> None:
    """Print the counts of each layer's third step."""
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("this needs Triton in its interpreter: pip install triton, and set TRITON_INTERPRET=1")
    print(f"{'layer':<28}{'tiers':>6}{'operators':>11}{'of Triton':>11}")
    for name, options in LAYERS.items():
        layer = make(options)
        optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
        batches = [torch.randint(ROWS, (BATCH,)) for _ in range(3)]
        with as_on_gpu():
            step(layer, optimizer, batches[0])
            step(layer, optimizer, batches[1])
            with Operators() as operators, counted_kernels() as kernels:
                step(layer, optimizer, batches[2])
        tiers = layer.tiers.num_tiers if isinstance(layer, mgqe.MGQEmbedding) else 1
        print(f"{name:<28}{tiers:>6}{operators.count:>11}{len(kernels):>11}", flush=True)


if __name__ == "__main__":
    main()
