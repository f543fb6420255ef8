"""The process group of a script that torchrun starts, and a clear end where another rank is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from mgqe.torchrec.ranks import Ranks

# How gloo and NCCL say that a peer is gone, or does not answer.
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process exited",
    "socket",
    "gloo",
)

# Seconds that gloo's threads get to release their last tensors. They do so a moment after a result is there; where
# Python has begun to end by then, the process aborts (pytorch/pytorch#190489).
_RELEASE = 0.1


class RankLostError(RuntimeError):
    """Another rank ended, or no longer answers; what it said last tells why."""


@contextmanager
def process_group(backend: str | None = None, timeout: timedelta = timedelta(minutes=10)) -> Iterator[Ranks]:
    """The group of all ranks, from the environment that ``torchrun`` sets; one rank without it.

    Args:
        backend: default: "nccl" with a GPU, else "gloo".
        timeout: how long a rank waits for one that is alive but does not answer.

    Raises:
        RankLostError: another rank ended or did not answer in time.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend or ("nccl" if torch.cuda.is_available() else "gloo"), timeout=timeout)
    rank, size = dist.get_rank(), dist.get_world_size()
    try:
        yield Ranks()
    except RuntimeError as error:
        if size > 1 and not isinstance(error, RankLostError) and any(sign in str(error).lower() for sign in _LOST):
            raise RankLostError(
                f"rank {rank} of {size}: another rank ended or did not answer within {timeout}, so this one ends too. "
                "The first error of the other ranks, or how torchrun says they ended, is the cause; start again from "
                f"the last checkpoint ({error})"
            ) from error
        raise
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
        time.sleep(_RELEASE)
