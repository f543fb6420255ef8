"""export_onnx: write a frozen model as an ONNX file that holds the packed codes and decodes them."""

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
from mgqe.convert.export.onnx_rows import prepare, write_rows
from mgqe.convert.export.portable_layers import PortableEmbedding
from mgqe.convert.export.portable_model import portable
from mgqe.files.aside import aside_folder
from mgqe.files.atomic import fill_file
from mgqe.files.regular import require_replaceable

OPSET = 18  # the first with BitwiseAnd and with maxima in ScatterElements
MAX_ONE_FILE = 2_000_000_000  # bytes; a protobuf message has less than 2 GiB
_MAX_FOLDED = 512  # elements: constant folding is for shapes and masks, and must not decode a table


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
    """Write a frozen model to an ONNX file that holds the tables' packed codes and decodes them by standard operators.

    The file is as large as the frozen tables and the dense weights together, plus some kilobytes of graph per table.
    Look-ups return the bits that the frozen model returns; where rows are coordinates times a matrix, and for bags and
    the model's own layers, they agree to rounding.

    Args:
        model: a model from :func:`mgqe.freeze_`. It is not changed.
        args: example inputs of the forward pass, as for ``torch.export``: a batch of 2 or more.
        path: of the file, which is replaced if it exists. Above 2 GB the weights are in a second file, ``<name>.data``.
        kwargs: keyword inputs of the forward pass.
        dynamic_shapes: the sizes that may change, in the form of ``torch.export``; default: the first axis of each
            tensor.
        input_names, output_names: names in the file.
        opset_version: at least 18.

    Returns:
        the bytes written.

    Raises:
        ImportError: the extra is not installed: ``pip install 'mgqe[onnx]'``.
        ValueError, TypeError: as :func:`mgqe.portable`; an older opset; an example batch of fewer than 2; a model that
            torch.export cannot trace; an operator that ONNX does not have. The message names the operator.

    Example:
        >>> import torch, mgqe, onnxruntime
        >>> model = torch.nn.Sequential(mgqe.DPQEmbedding(1000, 16), torch.nn.Linear(16, 1))
        >>> tables = mgqe.freeze_(model)
        >>> ids = torch.tensor([3, 17, 999])
        >>> nbytes = mgqe.export_onnx(model, ids, "model.onnx", input_names=["ids"])
        >>> scores, = onnxruntime.InferenceSession("model.onnx").run(None, {"ids": ids.numpy()})
        >>> scores.shape
        (3, 1)
    """
    _require("onnx", "onnxscript")
    opset_version = as_int("opset_version", opset_version)
    if opset_version < OPSET:
        raise ValueError(f"opset_version must be at least {OPSET} (BitwiseAnd), got {opset_version}")
    require_replaceable(Path(path))
    portable_model = portable(model)
    joined: dict[tuple[int, ...], Tensor] = {}
    for module in portable_model.modules():
        if isinstance(module, PortableEmbedding):
            prepare(module, joined)
    inputs = args if isinstance(args, tuple) else (args,)
    if dynamic_shapes is None:
        dynamic_shapes = _first_axes(inputs, dict(kwargs or {}))
    with torch.no_grad():
        program = _trace(portable_model, inputs, dict(kwargs or {}), dynamic_shapes)
        converted = _convert(program, input_names=input_names, output_names=output_names, opset_version=opset_version)
    return _save(converted, Path(path))


def _require(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"exporting to ONNX needs {name}: pip install 'mgqe[onnx]'") from error


def _first_axes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes with the first axis of every tensor free, for positional and keyword inputs."""

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


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Any:
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # torch.export raises many types, none of them public
        raise ValueError(
            f"torch.export cannot trace {type(model).__name__} with these example inputs: {_first_line(error)}. A "
            "forward pass must not turn values of tensors into Python numbers or branch on them, and what "
            "dynamic_shapes= leaves free must be free: try torch.export.export(mgqe.portable(model), args), or export "
            "a module of the part that scores"
        ) from error


def _convert(program: Any, **options: Any) -> Any:
    try:
        table: Any = {torch.ops.mgqe_export.rows.default: write_rows}
        return torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False, custom_translation_table=table, **options
        )
    except Exception as error:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        if missing:
            fault = f"ONNX has nothing for the operator {missing[1]}: write that step with standard torch operators"
        else:
            fault = f"torch.onnx.export failed: {_first_line(error)}: try another opset_version="
        raise ValueError(f"{fault}. torch.export.export(mgqe.portable(model), args) works without ONNX") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}"


def _save(program: Any, path: Path) -> int:
    """Fold small constants, drop debugging information, and write. Returns the bytes of the file or both files."""
    optimizer = importlib.import_module("onnxscript.optimizer")
    model = program.model
    optimizer.optimize(model, input_size_limit=_MAX_FOLDED, output_size_limit=_MAX_FOLDED)
    # Stack traces and the like, which take several times the bytes of the graph.
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    needs_two_files = sum(value.const_value.nbytes for value in model.graph.initializers.values()) > MAX_ONE_FILE
    if not needs_two_files:
        fill_file(path, lambda file: file.write(program.model_proto.SerializeToString()))
        return path.stat().st_size
    with aside_folder(path) as folder:
        program.save(str(folder / path.name), external_data=True)
        return sum(_move(file, path.parent / file.name) for file in sorted(folder.iterdir(), reverse=True))


def _move(source: Path, target: Path) -> int:
    """Write a file under another name, as a whole or not at all, and return its bytes."""
    with source.open("rb") as content:
        fill_file(target, lambda file: shutil.copyfileobj(content, file, 1 << 24))
    return target.stat().st_size
