"""Devices that users name: whether they are there, and what to do where they are not or have too little memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def named_device(device: torch.device | str | int) -> torch.device:
    """The device of a name, whether it is there or not. "auto" is torch's default GPU, or the CPU without one.

    Raises:
        ValueError: no device has this name.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1 and so on, or auto, got {device!r}") from error


def usable_device(device: torch.device | str | int) -> torch.device:
    """As :func:`named_device`, of a device that tensors can be made on.

    Raises:
        ValueError: no device has this name, or it is a GPU and torch sees none, or fewer of them.
    """
    found = named_device(device)
    if found.type != "cuda":
        return found
    if torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(
            f"device={str(device)!r} needs a build of torch with CUDA, and this one, {torch.__version__}, has none: "
            "install torch as https://pytorch.org/get-started says for your CUDA version, or use device='cpu'"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            f"device={str(device)!r} needs a GPU, and torch sees none: check that nvidia-smi lists one and that "
            "CUDA_VISIBLE_DEVICES does not hide it, or use device='cpu'"
        )
    if found.index is not None and found.index >= torch.cuda.device_count():
        number = torch.cuda.device_count()
        raise ValueError(
            f"device={str(device)!r} is not there: torch sees {number} GPU(s), the first of which is cuda:0"
        )
    return found


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Say what does not fit into a GPU's memory, and what to do, where something does not."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{what} does not fit into the GPU's memory ({error}). {remedy}") from error


def memory_for_layer(kind: str, num_embeddings: int, embedding_dim: int) -> AbstractContextManager[None]:
    """:func:`memory_for` a layer of any class."""
    return memory_for(
        f"a {kind} of {num_embeddings:,} x {embedding_dim}",
        "Take fewer dimensions or a larger GPU, or train on the CPU; mgqe.MGQEmbedding can have rows that take less "
        '(rows="bfloat16" or "cached", docs/large_tables.md)',
    )


def memory_for_rows(num_embeddings: int, embedding_dim: int) -> AbstractContextManager[None]:
    """:func:`memory_for` rows that train."""
    return memory_for(
        f"a table of {num_embeddings:,} x {embedding_dim} numbers",
        'rows="bfloat16" takes half of it, rows="cached" full rows for the ids that train now alone '
        "(docs/large_tables.md); a frozen table is 5 to 50 times smaller",
    )
