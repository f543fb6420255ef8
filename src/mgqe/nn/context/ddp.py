"""Several processes: codebooks that start and revive alike on each, gradients that DistributedDataParallel expects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

SEED_ROWS = 64  # rows that a common seed is hashed from


def cpu_generator() -> torch.Generator:
    """A generator seeded from torch's global one, so that ``torch.manual_seed`` decides."""
    return torch.Generator("cpu").manual_seed(int(torch.randint(2**62, (), device="cpu")))


def data_parallel() -> Any:
    """The DistributedDataParallel module whose forward pass is running; None outside of one."""
    return getattr(DistributedDataParallel, "_active_ddp_module", None)


def common_generator(rows: Tensor, step: int) -> torch.Generator:
    """A generator on the CPU for draws that must be the same on every process.

    A single process seeds it from torch's global generator, so that ``torch.manual_seed`` decides. Processes that train
    together have equal rows but may have different seeds (for their samples and dropout): there the seed is a hash of
    the rows and the step, and needs no communication.

    Args:
        rows: (N, d) the table's rows.
        step: training passes so far.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return cpu_generator()
    some = rows.detach()[:SEED_ROWS].float().cpu().contiguous()
    digest = hashlib.sha256(some.numpy().tobytes() + step.to_bytes(8, "little")).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))


@torch.no_grad()
def broadcast_from_first(module: nn.Module) -> None:
    """Within a DistributedDataParallel pass: take the first process's parameters and buffers of ``module``.

    The same draws from the same rows give the same bits on CPUs; where sums run in no fixed order they may not.
    """
    parallel = data_parallel()
    if parallel is None:
        return
    group = parallel.process_group
    source = dist.get_global_rank(group, 0)
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.detach(), source, group=group)


def of_first(value: T) -> T:
    """Within a DistributedDataParallel pass: the first process's value, copied by pickle; outside of one the value."""
    parallel = data_parallel()
    if parallel is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, dist.get_global_rank(parallel.process_group, 0), group=parallel.process_group)
    return values[0]


@torch.no_grad()
def average(*tensors: Tensor) -> None:
    """Within a DistributedDataParallel pass: replace each tensor, in place, by its mean over the processes."""
    parallel = data_parallel()
    if parallel is None:
        return
    for tensor in tensors:
        dist.all_reduce(tensor, group=parallel.process_group)
        tensor.div_(dist.get_world_size(parallel.process_group))


def total_over_processes() -> Callable[[Tensor], Any] | None:
    """Within a DistributedDataParallel pass: replaces a tensor, in place, by its sum over the processes."""
    parallel = data_parallel()
    if parallel is None:
        return None
    return lambda tensor: dist.all_reduce(tensor, group=parallel.process_group)


class KeepInGraph(torch.autograd.Function):
    """Identity on vectors whose backward pass also gives parameters a gradient of zeros.

    DistributedDataParallel waits for a gradient of every parameter; codebooks have none in the warm-up, and later
    one through the auxiliary loss alone, which is no output of the module.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, *parameters: Tensor) -> Tensor:
        """vectors (...), returned as they are."""
        ctx.parameters = [(p.shape, p.dtype, p.device) for p in parameters]
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The vectors' gradient unchanged; zeros for the parameters."""
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.parameters]
        return grad, *(z if needed else None for z, needed in zip(zeros, ctx.needs_input_grad[1:], strict=True))


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is torch's DTensor, a tensor spread over processes; without importing that class."""
    return hasattr(tensor, "full_tensor")


def recomputing() -> bool:
    """Whether this is a backward pass that computes a forward pass again (torch.utils.checkpoint)."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
