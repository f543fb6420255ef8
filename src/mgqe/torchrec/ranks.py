"""What processes that train together ("ranks") tell each other: settings, refusals, counts, codebooks."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

# What a rank's refusal becomes on the others; anything else is a RuntimeError there.
_KINDS = ("ValueError", "TypeError", "IndexError", "KeyError", "OSError")


class Ranks:
    """The ranks of a process group; alone where torch.distributed is not in use.

    Every method but :meth:`split` is a collective: each rank calls it, in the same order.

    Args:
        group: default: all ranks.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group

    @property
    def active(self) -> bool:
        """Whether there are other ranks."""
        return self.size > 1

    @property
    def size(self) -> int:
        """How many ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self._group)

    @property
    def rank(self) -> int:
        """This process's rank, from 0."""
        return dist.get_rank(self._group) if self.size > 1 else 0

    def split(self, size: int) -> tuple[int, int]:
        """This rank's range (start, stop) of ``size`` rows that every rank has."""
        return size * self.rank // self.size, size * (self.rank + 1) // self.size

    def gather(self, value: Any) -> list[Any]:
        """Every rank's object, which pickle can write, in order of ranks."""
        if not self.active:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_numbers(self, numbers: Sequence[int], device: torch.device) -> Callable[[], Tensor]:
        """Send this rank's n numbers to all others.

        Returns:
            a function that waits for the numbers of all ranks and returns them, int64 (ranks, n) on the CPU.
        """
        local = torch.tensor(numbers, dtype=torch.int64, device=device)
        if not self.active:
            return local.cpu().unsqueeze(0).clone
        gathered = [torch.empty_like(local) for _ in range(self.size)]
        work = dist.all_gather(gathered, local, group=self._group, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return torch.stack(gathered).cpu()

        return wait

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.active:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Take rank 0's tensors."""
        if self.active:
            for tensor in tensors:
                dist.broadcast(tensor, self._first, group=self._group)

    @property
    def _first(self) -> int:
        """Rank 0 of the group, as a rank of all processes."""
        return dist.get_global_rank(self._group, 0) if self._group is not None else 0

    def of_first(self, value: T) -> T:
        """Rank 0's object, which pickle can write."""
        if not self.active:
            return value
        values = [value]
        dist.broadcast_object_list(values, self._first, group=self._group)
        return values[0]

    def led_by_first(self, work: Callable[[Callable[[Q], A]], T], answer: Callable[[Q], A]) -> T:
        """The result of ``work(ask)``, which rank 0 does alone, on every rank.

        Each ``ask(question)`` within the work runs ``answer(question)``, which may be a collective, on every rank.

        Raises on every rank what the work raises.
        """
        result: T | None = None
        error: Exception | None = None
        nothing: list[Q] = []  # more to ask
        if self.rank == 0:
            try:
                result = work(lambda question: answer(self.of_first([question])[0]))
            except Exception as wrong:  # whatever it is, the other ranks must not wait
                error = wrong
            self.of_first(nothing)
        else:
            while asked := self.of_first(nothing):
                answer(asked[0])
        self.refuse_together(error)
        return self.of_first(result)  # type: ignore[return-value]

    def refuse_together(self, error: Exception | None) -> None:
        """Raise on every rank if one of them has an error, and say on which.

        Raises:
            ValueError, TypeError, IndexError, KeyError, OSError: as the first rank that has one; else RuntimeError.
        """
        if not self.active:
            if error is not None:
                raise error
            return
        local = None if error is None else (_builtin(error), str(error))
        for rank, refusal in enumerate(self.gather(local)):
            if refusal is not None:
                name, text = refusal
                raise (getattr(builtins, name) if name in _KINDS else RuntimeError)(f"rank {rank}: {text}") from error

    def check_alike(self, settings: Mapping[str, str], what: str) -> None:
        """Raise ValueError on every rank unless all have the same settings; the message names the first difference."""
        first, *others = self.gather(dict(settings))
        for rank, other in enumerate(others, start=1):
            for name in {**first, **other}:
                expected, value = first.get(name, "nothing"), other.get(name, "nothing")
                if expected != value:
                    raise ValueError(
                        f"{what}: rank {rank} has {name} = {value}, but rank 0 has {expected}. Every rank needs the "
                        "same tables, tiers and configuration (counts: merge them first, mgqe.torchrec.merge_counts)"
                    )


def merge_counts(counts: Tensor, process_group: Any = None) -> Tensor:
    """Sum counts (N,) of ids over the ranks, so that each counts a part of the data and all get the same tiers.

    Args:
        counts: int64 (N,), as :func:`mgqe.count_ids` gives.
        process_group: default: all ranks. A collective: every rank calls it.

    Returns:
        int64 (N,) on the CPU, the same on every rank.

    Raises:
        ValueError: (on every rank) another N than rank 0's. TypeError: no integer tensor.
    """
    ranks = Ranks(process_group)
    error: Exception | None = None
    if not isinstance(counts, Tensor) or counts.is_floating_point() or counts.dtype == torch.bool or counts.ndim != 1:
        error = TypeError("counts must be an integer tensor of shape (num_embeddings,), as mgqe.count_ids gives")
    ranks.refuse_together(error)
    ranks.check_alike({"num_embeddings": f"{counts.shape[0]:,}"}, "counts")
    gpu = ranks.active and dist.get_backend(process_group) == "nccl"
    return ranks.add(counts.detach().to("cuda" if gpu else "cpu", torch.int64, copy=True)).cpu()


def _builtin(error: Exception | None) -> str:
    """The nearest built-in class of an error, by name."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), "RuntimeError")
