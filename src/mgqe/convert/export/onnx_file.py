"""export_onnx: a frozen model as an ONNX file that holds the packed codes and decodes them."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgqe.checks.scalars import as_int
from mgqe.convert.export.portable_model import portable
from mgqe.files.atomic import fill_file, replaceable, temporary_folder

OPSET = 18  # the first with BitwiseAnd and with maxima in ScatterElements
ONE_FILE = 2_000_000_000  # bytes; protobuf ends at 2 GiB

# Elements. Folding is for shapes and masks: a decoded table must not come out of it.
_FOLD_AT_MOST = 512


def export_onnx(
    model: nn.Module,
    args: Tensor | tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int = OPSET,
) -> int:
    """Write a frozen model to an ONNX file that has the tables' packed codes in it, decoded by standard operators.

    The file is as large as the frozen tables and the dense weights together, plus some kilobytes of graph a table.
    Look-ups in it give the bits that the frozen model gives; bags, and the model's own layers, agree to rounding.

    Args:
        model: one that :func:`mgqe.freeze_` left; it is not changed.
        args: example inputs of the forward pass, as for ``torch.export``: a batch of 2 or more.
        path: of the file, replaced if it is there. Above 2 GB the weights go beside it, to ``<name>.data``.
        kwargs: keyword inputs of the forward pass.
        dynamic_shapes: which sizes may change, in ``torch.export``'s own form; default: the first axis of each tensor.
        input_names, output_names: in the file.
        opset_version: at least 18.

    Returns:
        Bytes written.

    Raises:
        ImportError: without the extra, ``pip install 'mgqe[onnx]'``.
        ValueError, TypeError: what :func:`mgqe.portable` raises; an older opset; an example batch of fewer than 2; a
            model that torch.export cannot trace; an operator that ONNX does not have, which is named.
    """
    _need("onnx", "onnxscript")
    opset_version = as_int("opset_version", opset_version)
    if opset_version < OPSET:
        raise ValueError(f"opset_version must be at least {OPSET} (BitwiseAnd), got {opset_version}")
    replaceable(Path(path))
    ready = portable(model)
    given = args if isinstance(args, tuple) else (args,)
    if dynamic_shapes is None:
        dynamic_shapes = _first_axes(given, dict(kwargs or {}))
    with torch.no_grad():
        program = _traced(ready, given, dict(kwargs or {}), dynamic_shapes)
        made = _converted(program, input_names=input_names, output_names=output_names, opset_version=opset_version)
    return _save(made, Path(path))


def _need(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"exporting to ONNX needs {name}: pip install 'mgqe[onnx]'") from error


def _first_axes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first axis of every tensor, free; the form that torch.export takes where there are kwargs is by name."""

    def free(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            if value.dim() == 0:
                return {}
            if value.shape[0] < 2:
                raise ValueError(
                    f"{where} has shape {tuple(value.shape)}: give an example batch of 2 or more, since torch.export "
                    "takes sizes of 0 and 1 for fixed ones"
                )
            return {0: torch.export.Dim.DYNAMIC}
        if isinstance(value, (list, tuple)):
            return type(value)(free(v, f"{where}[{i}]") for i, v in enumerate(value))
        if isinstance(value, dict):
            return {key: free(v, f"{where}[{key!r}]") for key, v in value.items()}
        return None

    positional = tuple(free(value, f"args[{i}]") for i, value in enumerate(args))
    return (*positional, *(free(value, f"kwargs[{key!r}]") for key, value in kwargs.items()))


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Any:
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # of many types, none of them public
        raise ValueError(
            f"torch.export cannot trace {type(model).__name__} with these example inputs: {_first_line(error)}. A "
            "forward pass must not turn values of tensors into Python numbers or branch on them, and what "
            "dynamic_shapes= leaves free must be free: try torch.export.export(mgqe.portable(model), args), or export "
            "a module of the part that scores"
        ) from error


def _converted(program: Any, **options: Any) -> Any:
    try:
        made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, **options)
    except Exception as error:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        if missing:
            told = f"ONNX has nothing for the operator {missing[1]}: write that step with standard torch operators"
        else:
            told = f"torch.onnx.export failed: {_first_line(error)}: try another opset_version="
        raise ValueError(f"{told}. torch.export.export(mgqe.portable(model), args) works without ONNX") from error
    return made


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}"


def _save(made: Any, path: Path) -> int:
    """Fold what is small, drop what only debugging needs, write; bytes of the file, and of the one beside it."""
    optimizer = importlib.import_module("onnxscript.optimizer")
    model = made.model
    optimizer.optimize(model, input_size_limit=_FOLD_AT_MOST, output_size_limit=_FOLD_AT_MOST)
    # Stack traces and the like: several times the size of the graph.
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    beside = sum(value.const_value.nbytes for value in model.graph.initializers.values()) > ONE_FILE
    if not beside:
        fill_file(path, lambda file: file.write(made.model_proto.SerializeToString()))
        return path.stat().st_size
    with temporary_folder(path) as folder:
        made.save(str(folder / path.name), external_data=True)
        return sum(_moved(file, path.parent / file.name) for file in sorted(folder.iterdir(), reverse=True))


def _moved(source: Path, target: Path) -> int:
    """Bytes of a file that is written again under another name, whole or not at all."""
    with source.open("rb") as content:
        fill_file(target, lambda file: shutil.copyfileobj(content, file, 1 << 24))
    return target.stat().st_size
