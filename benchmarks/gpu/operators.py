"""What steps and bags give a GPU to do, counted on the CPU: operators of torch, kernels of Triton, bytes moved.

TRITON_INTERPRET=1 python -m benchmarks.gpu.operators

Layers take the ways of a GPU, and Triton's kernels run in its interpreter. What only the host does is not counted
(views, allocations, questions about a tensor), nor that an operator of torch may launch more than one kernel.
Operators of mgqe count as what they call. Bytes are those of the tensors that an operator or a kernel takes and gives,
each once; of tensors with a row per id of the table those of the batch's rows. Caches make the true number smaller.
Frozen tables' codes are not counted, which kernels find by their addresses.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mgqe
from mgqe.checks.waiting import as_on_gpu

ROWS, DIM, BATCHES = 300, 16, (32, 64)
COUNTS = torch.arange(ROWS, 0, -1)
LAYERS = {
    "nn.Embedding": None,
    "dpq, 16 centroids": {"num_centroids": 16},
    "mgqe, 16 and 8 centroids": {"num_centroids": (16, 8)},
    "mgqe, default": {},
    "mgqe, sx": {"num_centroids": (16, 8), "quantizer": "sx"},
}
BAG = 16  # ids
BAGS = {"bags of dpq": LAYERS["dpq, 16 centroids"], "bags of mgqe, default": LAYERS["mgqe, default"]}
ON_HOST = {"promote_types", "sparse_dim", "is_coalesced", "_sparse_coo_tensor_with_dims_and_tensors", "set_"}


class Step(TorchDispatchMode):
    """Counts what is launched within.

    Attributes:
        operators: of torch that compute something, by name.
        kernels: of Triton, by name.
        bytes: that both read and write.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.operators: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.bytes = 0
        self._in_kernel = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "mgqe":
            with self:  # what is in it, which a mode does not see otherwise
                return OPDEFS[function._schema.name]._init_fn(*args, **(kwargs or {}))
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)
        on_host = is_view or "empty" in name or name in ON_HOST or function.namespace == "profiler"
        if not on_host and not self._in_kernel:
            self.operators[name] += 1
            self._move(args, kwargs, made)
        return made

    @contextmanager
    def kernel(self, name: str, arguments: Any) -> Iterator[None]:
        """A launch of Triton; the interpreter itself moves its arguments by operators of torch."""
        self.kernels[name] += 1
        self._move(arguments)
        self._in_kernel = True
        try:
            yield
        finally:
            self._in_kernel = False

    def _move(self, *what: Any) -> None:
        tensors = {id(leaf): leaf for leaf in tree_leaves(what) if isinstance(leaf, torch.Tensor)}
        for tensor in tensors.values():
            if tensor.is_sparse:
                continue
            rows = tensor.shape[0] if tensor.dim() else 1
            self.bytes += tensor.nbytes * self.batch // ROWS if rows == ROWS else tensor.nbytes


@contextmanager
def counted(step: Step) -> Iterator[None]:
    """Within, a step's launches are counted, those of Triton's interpreter, too."""
    from triton.runtime.interpreter import GridExecutor

    call = GridExecutor.__call__

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with step.kernel(self.fn.__name__, (args, kwargs)):
            return call(self, *args, **kwargs)

    GridExecutor.__call__ = counting
    try:
        with step:
            yield
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


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad(set_to_none=True)
    (layer(ids).square().mean() + mgqe.quantization_loss(layer)).backward()
    optimizer.step()


def third_step(options: dict[str, Any] | None, batch: int) -> Step:
    """What the third step of a layer launches; the first two keep what later ones need."""
    layer = make(options)
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
    ids = [torch.randint(ROWS, (batch,)) for _ in range(3)]
    step = Step(batch)
    with as_on_gpu():
        train(layer, optimizer, ids[0])
        train(layer, optimizer, ids[1])
        with counted(step):
            train(layer, optimizer, ids[2])
    return step


def bags(options: dict[str, Any], batch: int) -> Step:
    """What sums of bags of a frozen table launch, the second time."""
    table = make(options).eval().freeze()
    ids = torch.randint(ROWS, (batch // BAG, BAG))
    step = Step(batch)
    with as_on_gpu():
        there = copy.deepcopy(table)  # laid out anew
        there.bag(ids)
        with counted(step):
            there.bag(ids)
    return step


def main() -> None:
    """Print the counts of each layer's third step, and of bags."""
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("this needs Triton in its interpreter: pip install triton, and set TRITON_INTERPRET=1")
    print(f"{'layer':<28}{'operators':>11}{'of Triton':>11}{'bytes per id':>14}")
    for name, options in [*LAYERS.items(), *BAGS.items()]:
        count = bags if name in BAGS else third_step
        small, large = (count(options, batch) for batch in BATCHES)
        operators, kernels = small.operators.total(), small.kernels.total()
        per_id = (large.bytes - small.bytes) / (BATCHES[1] - BATCHES[0])
        print(f"{name:<28}{operators:>11}{kernels:>11}{per_id:>14,.0f}", flush=True)


if __name__ == "__main__":
    main()
