"""What the tables of budgets are compared with: torch's and fbgemm's row-wise bags, and faiss's indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Bag = Callable[[Tensor, Tensor], Tensor]  # (ids, offsets) -> sums
Search = Callable[[Tensor], Tensor]  # queries -> ids of the 100 rows of highest inner product


def row_wise_bags(rows: Tensor) -> Iterator[tuple[str, Bag]]:
    """Rows of 8 and of 4 bits, each with a scale and an offset: torch's, and fbgemm's where fbgemm-gpu-cpu is."""
    for bits, pack, look_up in (
        (8, torch.ops.quantized.embedding_bag_byte_prepack, torch.ops.quantized.embedding_bag_byte_rowwise_offsets),
        (4, torch.ops.quantized.embedding_bag_4bit_prepack, torch.ops.quantized.embedding_bag_4bit_rowwise_offsets),
    ):
        weight = pack(rows)
        yield f"torch int{bits} row-wise", lambda ids, offsets, w=weight, f=look_up: f(w, ids, offsets)
    try:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
    except (ImportError, OSError):
        return
    for bits, kind in ((8, SparseType.INT8), (4, SparseType.INT4)):
        table = ("rows", *rows.shape, kind, EmbeddingLocation.HOST)
        bags = IntNBitTableBatchedEmbeddingBagsCodegen([table], device="cpu", output_dtype=SparseType.FP32)
        bags.fill_random_weights()  # as fast as others
        yield f"fbgemm int{bits} row-wise", bags


def searches(rows: Tensor) -> Iterator[tuple[str, Search]]:
    """faiss's indexes of about d / 4 and d / 2 bytes per row; none where faiss is not installed."""
    try:
        import faiss
    except ImportError:
        return
    (n, d), product = rows.shape, faiss.METRIC_INNER_PRODUCT
    quarter = d // 4
    for name, index in (
        (f"faiss IndexPQ, {quarter} bytes", faiss.IndexPQ(d, quarter, 8, product)),
        (f"faiss IndexPQFastScan, {quarter} bytes", faiss.IndexPQFastScan(d, 2 * quarter, 4, product)),
        (
            f"faiss IndexScalarQuantizer, {d // 2} bytes",
            faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_4bit, product),
        ),
    ):
        index.train(rows[:: max(1, n // 20_000)].numpy())
        index.add(rows.numpy())

        def search(queries: Tensor, index: object = index) -> Tensor:
            faiss.omp_set_num_threads(torch.get_num_threads())
            return torch.from_numpy(index.search(queries.numpy(), 100)[1])  # type: ignore[attr-defined]

        yield name, search
