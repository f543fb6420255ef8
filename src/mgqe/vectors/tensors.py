"""Matrices in files of tensors: safetensors, and state dicts of torch, which are read without running their code."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgqe.vectors.vectors import Vectors, choose

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TABLE_NAMES = ("emb", "wte", "item", "user")  # what matrices of vectors are called


def read_safetensors(path: Path, name: str | None) -> Vectors:
    """A tensor of a safetensors file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            kinds = {key: file.get_slice(key).get_dtype() for key in shapes}
            matrices = [key for key, shape in shapes.items() if len(shape) == 2 and kinds[key] in _KINDS]
            chosen = choose(likely(matrices, name), shapes, name, "tensor")
            return Vectors(file.get_tensor(chosen), name=chosen)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it cannot be read as safetensors: {error}") from error


_KINDS = ("F16", "F32", "F64", "BF16")


def read_state_dict(path: Path, name: str | None) -> Vectors:
    """A tensor of a state dict, at any depth of it: ``{"model": {"item.weight": ...}}`` has ``model.item.weight``.

    Raises ValueError for a file that holds anything but tensors and plain values, whose code would have to run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that are refused below
            # Files from before torch 1.6 are no archives, and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            "it cannot be read as a state dict of torch, or holds Python objects, which are not loaded since that "
            "runs code: save {name: tensor} (model.state_dict())"
        ) from error
    tensors = {key: value for key, value in _tensors(content, "") if value.layout is torch.strided}
    if not tensors:
        raise ValueError("it holds no dense tensor: save a state dict, torch.save(model.state_dict(), path)")
    matrices = [key for key, value in tensors.items() if value.ndim == 2 and value.dtype in FLOATS]
    chosen = choose(likely(matrices, name), {key: tuple(value.shape) for key, value in tensors.items()}, name, "tensor")
    return Vectors(tensors[chosen].detach(), name=chosen)


def likely(matrices: list[str], wanted: str | None) -> list[str]:
    """The only one whose name says that it is a table of vectors, where there are several; else all."""
    named = [each for each in matrices if any(part in each.lower() for part in TABLE_NAMES)]
    return named if wanted is None and len(named) == 1 else matrices


def _tensors(content: Any, prefix: str) -> Any:
    if isinstance(content, Tensor):
        yield prefix or "tensor", content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))
