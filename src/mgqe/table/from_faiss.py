"""The codes and centroids of a faiss index, for ``CompactTable.from_faiss``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe.codec.packing import CHUNK_CODES, row_bytes, unpack
from mgqe.ops.layout.packed_format import MAX_BITS
from mgqe.table.faiss import import_faiss

REMEDY = "compress its vectors: `mgqe compress vectors.npy`, of numpy.save('vectors.npy', index.reconstruct_n())"


@dataclass(frozen=True)
class FaissCodes:
    """What an IndexPQ holds, perhaps behind a rotation.

    Attributes:
        codes: (n, D) integers.
        centroids: float32 (D, 2**bits, s).
        bits: of a code.
        mean, matrix: (d,) and (D * s, d): vectors are mean + coordinates @ matrix; None without a rotation.
    """

    codes: Tensor
    centroids: Tensor
    bits: int
    mean: Tensor | None = None
    matrix: Tensor | None = None


def faiss_codes(index: Any) -> FaissCodes:
    """The codes of an index. TypeError: another kind of index. ValueError: codes that no table holds."""
    faiss = import_faiss("CompactTable.from_faiss")
    if not isinstance(index, faiss.Index):
        raise TypeError(f"expected a faiss index, got {type(index).__name__}")
    outer = faiss.downcast_index(index)
    is_turned = isinstance(outer, faiss.IndexPreTransform)
    mean, matrix = _rotation(faiss, outer) if is_turned else (None, None)
    inner = faiss.downcast_index(outer.index) if is_turned else outer
    if not isinstance(inner, faiss.IndexPQ):
        raise TypeError(f"expected an IndexPQ, or one behind a rotation (OPQ), got {type(inner).__name__}: {REMEDY}")
    pq = inner.pq
    if pq.nbits > MAX_BITS:
        raise ValueError(f"codes of {pq.nbits} bits: a table has at most {MAX_BITS}: {REMEDY}")
    if not inner.ntotal:
        raise ValueError("the index is empty: add vectors first")
    centroids = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
    rows = torch.from_numpy(faiss.vector_to_array(inner.codes).reshape(inner.ntotal, row_bytes(pq.M, pq.nbits)))
    narrow = torch.uint8 if pq.nbits <= 8 else torch.int32
    chunks = torch.split(rows, max(1, CHUNK_CODES // pq.M))  # faiss packs codes as mgqe.codec.packing does
    codes = torch.cat([unpack(chunk, pq.M, pq.nbits).to(narrow) for chunk in chunks])
    return FaissCodes(codes, torch.from_numpy(centroids.astype(np.float32)), pq.nbits, mean, matrix)


def _rotation(faiss: Any, index: Any) -> tuple[Tensor, Tensor]:
    """The mean and the matrix of the transform before an index."""
    steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    if len(steps) != 1 or not isinstance(steps[0], faiss.LinearTransform) or not steps[0].is_orthonormal:
        named = ", ".join(type(step).__name__ for step in steps)
        raise TypeError(
            f"expected one orthonormal transform such as OPQMatrix before the IndexPQ, got {named}: {REMEDY}"
        )
    step = steps[0]
    matrix = torch.from_numpy(faiss.vector_to_array(step.A).reshape(step.d_out, step.d_in).copy())
    offset = torch.from_numpy(faiss.vector_to_array(step.b).copy()) if step.have_bias else torch.zeros(step.d_out)
    return -(offset @ matrix), matrix
