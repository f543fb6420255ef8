"""Look-ups in ONNX Runtime, and single operators that every graph of them has; one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def operators(
    codes: Tensor, widths: Sequence[int], turned: bool, dim: int, ids: Sequence[Tensor]
) -> tuple[dict[str, Contender], dict[str, Contender]]:
    """What every graph does, and single operators of it or in their place.

    A graph gathers packed rows, writes an index for each coordinate, finds coordinates by these, and multiplies them
    with a matrix, if turned. All but the first are in one graph here, whose indices are given as bytes. In place of
    GatherElements, a Gather may find all numbers of a code, of which the widest code has the most; in place of MatMul,
    MatMulInteger leaves whole numbers, which are yet to be scaled. With uint8 and uint8 its sums are exact on every
    processor; with uint8 and int8, processors without VNNI may clip them.

    Args:
        codes: uint8, of all rows, packed.
        widths: how many coordinates each code of a row names.
        turned: whether coordinates are multiplied with a matrix of ``dim`` columns.
        dim: numbers of a row.
        ids: of each batch.
    """
    n, coordinates, generator = len(ids[0]), sum(widths), np.random.default_rng(0)
    given = generator.integers(256, size=(n, coordinates), dtype=np.uint8)
    index, numbers = given.astype(np.int32), given.astype(np.float32)
    table, matrix = np.ones((256, coordinates), np.float32), np.ones((coordinates, dim), np.float32)
    cast = _node("Cast", "given", "index", to=int(TensorProto.INT32))
    found = _node("GatherElements", "table index", "found" if not turned else "numbers", axis=0)
    product = _node("MatMul", "numbers matrix", "found")
    graph = [cast, found, product] if turned else [cast, found]
    constants = {"table": table, "matrix": matrix} if turned else {"table": table}
    parts = {
        "Gather of packed rows": _run(
            [_node("Gather", "codes given", "found")],
            {"codes": codes.numpy()},
            [each.numpy() % len(codes) for each in ids],
            np.uint8,
        ),
        f"{', '.join(node.op_type for node in graph)} in one graph": _run(graph, constants, [given], np.float32),
    }
    single = {
        "Cast": _run([_node("Cast", "given", "found", to=int(TensorProto.INT32))], {}, [given], np.int32),
        "GatherElements": _run(
            [_node("GatherElements", "table given", "found", axis=0)], {"table": table}, [index], np.float32
        ),
    }
    if turned:
        single["MatMul"] = _run([_node("MatMul", "given matrix", "found")], {"matrix": matrix}, [numbers], np.float32)
        for kind in (np.uint8, np.int8):
            single[f"MatMulInteger, uint8 and {kind.__name__}"] = _run(
                [_node("MatMulInteger", "given matrix", "found")], {"matrix": matrix.astype(kind)}, [given], np.int32
            )
    if turned and len(widths) < coordinates:
        D, padded = len(widths), max(widths)
        entry = _node("Gather", "table given", "entries", axis=0)
        joined = _node("Reshape", "entries shape", "numbers")
        constants = {
            "table": np.ones((256 * D, padded), np.float32),
            "shape": np.array([-1, D * padded]),
            "matrix": np.ones((D * padded, dim), np.float32),
        }
        single["Gather of whole codes, MatMul in one graph"] = _run(
            [entry, joined, product], constants, [generator.integers(256 * D, size=(n, D), dtype=np.int32)], np.float32
        )
    return parts, single


def _node(kind: str, inputs: str, output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def _run(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], batches: list[np.ndarray], result: type
) -> Contender:
    """A graph from "given" to "found", called with one batch after another."""
    kind_of_given, kind = (helper.np_dtype_to_tensor_dtype(np.dtype(each)) for each in (batches[0].dtype, result))
    graph = helper.make_graph(
        nodes, "operators", [helper.make_tensor_value_info("given", kind_of_given, batches[0].shape)],
        [helper.make_tensor_value_info("found", kind, [None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda i: runtime.run(None, {"given": batches[i % len(batches)]})
