"""Look-ups in ONNX Runtime, and single operators that every graph of them has; one thread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import mgqe
from benchmarks._common import Contender
from benchmarks.speed.export import EXAMPLE, PEER, session
from mgqe import CompactEmbedding, CompactTable


def sessions(
    folder: Path, rows: int, dim: int, tables: Mapping[str, CompactTable]
) -> dict[str, onnxruntime.InferenceSession]:
    """Of nn.Embedding and of each table."""
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(nn.Embedding(rows, dim), (EXAMPLE,), dynamic_shapes=shapes)
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(folder / "rows.onnx"), external_data=False)
    found = {PEER: session(folder / "rows.onnx", 1)}
    for budget, table in tables.items():
        path = folder / f"{budget.rstrip('%')}.onnx"
        mgqe.export_onnx(CompactEmbedding(table), EXAMPLE, path)
        found[f"{budget} table"] = session(path, 1)
    return found


def operators(codes: Tensor, coordinates: int, turned: bool, dim: int, ids: Tensor) -> dict[str, Contender]:
    """Packed rows gathered, an index written for each coordinate, coordinates found by these, and a product, if turned.

    Args:
        codes: uint8, of all rows, packed.
        coordinates: numbers of a row that codes name.
        turned: whether these are multiplied with a matrix of ``dim`` columns.
        dim: numbers of a row.
        ids: of a batch.
    """
    n, generator = len(ids), np.random.default_rng(0)
    index = generator.integers(32, size=(n, coordinates), dtype=np.int32)
    made = {
        "Gather of packed rows": _one("Gather", {"x": codes.numpy()}, ids.numpy() % len(codes), np.uint8),
        "GatherElements": _one(
            "GatherElements", {"x": np.ones((32, coordinates), np.float32)}, index, np.float32, axis=0
        ),
    }
    made["Cast to indices"] = _one("Cast", {}, index.astype(np.uint8), np.int32, to=int(TensorProto.INT32))
    if turned:
        numbers = np.ones((n, coordinates), np.float32)
        made["MatMul"] = _one("MatMul", {"m": np.ones((coordinates, dim), np.float32)}, numbers, np.float32)
    return made


def _one(kind: str, constants: dict[str, np.ndarray], given: np.ndarray, result: type, **attributes: int) -> Contender:
    """A graph of one operator, called with what is given: after the constants, but before a matrix."""
    names = [*constants, "given"] if kind != "MatMul" else ["given", *constants]
    node = helper.make_node(kind, names, ["found"], **attributes)
    kind_of_given = helper.np_dtype_to_tensor_dtype(given.dtype)
    graph = helper.make_graph(
        [node], kind, [helper.make_tensor_value_info("given", kind_of_given, given.shape)],
        [helper.make_tensor_value_info("found", helper.np_dtype_to_tensor_dtype(np.dtype(result)), [None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda i: runtime.run(None, {"given": given})
