"""What topk.py measures against: tables of random codes, other libraries' searches, and plain reading."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgqe import CompactTable, Tiers
from mgqe.table.search import TopK

Search = Callable[[Tensor], tuple[Tensor, Tensor]]  # queries (B, d) -> scores, ids (B, k)

BLOCK = 1_000_000  # rows of a brute-force step


@dataclass(frozen=True)
class Made:
    """A table, the codes that it was made from (N, D), its one codebook (D, K, s), and its decoded rows (N, d)."""

    table: CompactTable
    codes: Tensor
    centroids: Tensor
    dense: Tensor


def make_table(
    sizes: Sequence[int], counts: Sequence[int], num_subspaces: int, dim: int, seed: int, dense: bool = True
) -> Made:
    """Random codes in frequency order; every tier uses the first of the same centroids."""
    generator = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(k, (n, num_subspaces), generator=generator, dtype=torch.uint8)
        for n, k in zip(sizes, counts, strict=True)
    ]
    centroids = torch.randn(num_subspaces, max(counts), dim // num_subspaces, generator=generator)
    return from_codes(codes, centroids, counts, dense)


def from_codes(codes: Sequence[Tensor], centroids: Tensor, counts: Sequence[int], dense: bool = True) -> Made:
    """The table of these codes (n_g, D), tiers one after the other; decoded too if ``dense``."""
    tiers = Tiers.from_sizes([len(tier) for tier in codes])
    table = CompactTable.from_codes(tiers, list(codes), [centroids], [0] * len(codes), list(counts))
    return Made(table, torch.cat(list(codes)), centroids, decode(table) if dense else torch.empty(0))


def decode(table: CompactTable) -> Tensor:
    """All rows, a block at a time."""
    dense = torch.empty(table.num_embeddings, table.embedding_dim)
    for start in range(0, len(dense), BLOCK):
        end = min(start + BLOCK, len(dense))
        dense[start:end] = table.lookup(torch.arange(start, end))
    return dense


# ---- peers: each finds the same answer (IndexPQFastScan: nearly) over the same rows --------------------------------


def matmul_topk(dense: Tensor, k: int, bias: Tensor | None = None) -> Search:
    """torch's float32 product with all rows, then topk."""
    if bias is None:
        return lambda queries: tuple((queries @ dense.T).topk(k))
    return lambda queries: tuple(torch.addmm(bias, queries, dense.T).topk(k))


def gather_topk(made: Made, k: int) -> Search:
    """Partial scores gathered by code and summed, in torch (PQTopK)."""
    columns = [column.contiguous() for column in made.codes.T.int()]

    def search(queries: Tensor) -> tuple[Tensor, Tensor]:
        pieces = queries.view(len(queries), *made.centroids.shape[::2])
        partial = torch.einsum("bds,dks->bdk", pieces, made.centroids)
        total = partial[:, 0].index_select(1, columns[0])
        for j, column in enumerate(columns[1:], start=1):
            total += partial[:, j].index_select(1, column)
        return tuple(total.topk(k))

    return search


def faiss_search(index: Any, k: int) -> Search:
    """A faiss index at torch's number of threads."""
    import faiss

    def search(queries: Tensor) -> tuple[Tensor, Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        scores, ids = index.search(queries.numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    return search


def faiss_flat(dense: Tensor) -> Any:
    """faiss's brute force over float32 rows."""
    import faiss

    index = faiss.IndexFlatIP(dense.shape[1])
    index.add(dense.numpy())
    return index


def faiss_pq(made: Made) -> Any:
    """faiss's product quantiser with the same centroids and codes (8 bits each)."""
    import faiss

    num_subspaces, num_centroids, width = made.centroids.shape
    index = faiss.IndexPQ(num_subspaces * width, num_subspaces, 8, faiss.METRIC_INNER_PRODUCT)
    padded = np.zeros((num_subspaces, 256, width), np.float32)
    padded[:, :num_centroids] = made.centroids.numpy()
    faiss.copy_array_to_vector(padded.ravel(), index.pq.centroids)
    faiss.copy_array_to_vector(made.codes.numpy().ravel(), index.codes)
    index.ntotal, index.is_trained = len(made.codes), True
    return index


def faiss_fast_scan(made: Made) -> Any:
    """faiss's 4-bit scan with rounded tables, in as many bytes per row.

    Of a table with K = 16 it holds the same codes; of others, codes that it trained on the decoded rows.
    """
    import faiss

    num_subspaces, num_centroids, width = made.centroids.shape
    same = num_centroids == 16
    count = num_subspaces if same else 2 * num_subspaces
    index = faiss.IndexPQFastScan(num_subspaces * width, count, 4, faiss.METRIC_INNER_PRODUCT)
    if same:
        faiss.copy_array_to_vector(made.centroids.numpy().ravel(), index.pq.centroids)
        index.is_trained = True
    else:
        index.train(made.dense[torch.randperm(len(made.dense))[:65_536]].numpy())
    index.add(made.dense.numpy())
    return index


# ---- whether an answer is right ------------------------------------------------------------------------------------


def brute_force(dense: Tensor, queries: Tensor, k: int, bias: Tensor | None = None) -> TopK:
    """The best k in double precision."""
    best: list[TopK] = []
    for start in range(0, len(dense), BLOCK):
        scores = queries.double() @ dense[start : start + BLOCK].double().T
        if bias is not None:
            scores += bias[start : start + BLOCK].double()
        values, ids = scores.topk(min(k, scores.shape[1]))
        best.append(TopK(values, ids + start))
    scores = torch.cat([part.scores for part in best], dim=1)
    ids = torch.cat([part.ids for part in best], dim=1)
    kept = scores.topk(k)
    return TopK(kept.values, ids.gather(1, kept.indices))


def recall(
    found: tuple[Tensor, Tensor], dense: Tensor, queries: Tensor, exact: TopK, bias: Tensor | None = None
) -> float:
    """The share of distinct returned ids that are among the best k, or tie with the last of them to rounding."""
    ids = found[1]
    scores = torch.einsum("bd,bkd->bk", queries.double(), dense[ids.clamp(min=0)].double())
    if bias is not None:
        scores += bias[ids.clamp(min=0)].double()
    slack = 1e-6 * exact.scores.abs().amax(dim=1, keepdim=True)
    good = (scores >= exact.scores[:, -1:] - slack) & (ids >= 0)
    right = sum(len(set(row[kept].tolist())) for row, kept in zip(ids, good, strict=True))
    return right / ids.numel()


# ---- reading the codes once ----------------------------------------------------------------------------------------


def readers(codes: Tensor) -> dict[str, Callable[[], object]]:
    """Ways to read memory once with torch's threads that do next to nothing else; the fastest is the bandwidth.

    memcmp of a buffer with itself reads each byte from memory once, and again from the nearest cache.
    """
    flat = codes.reshape(-1)
    words = flat[: flat.numel() // 8 * 8]
    memcmp = ctypes.CDLL(None).memcmp
    memcmp.argtypes, memcmp.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
    pool = ThreadPoolExecutor()

    def compare() -> int:
        threads = torch.get_num_threads()
        share = -(-flat.numel() // threads)
        spans = [(i * share, min(share, flat.numel() - i * share)) for i in range(threads)]
        others = [pool.submit(memcmp, flat.data_ptr() + at, flat.data_ptr() + at, count) for at, count in spans[1:]]
        at, count = spans[0]
        return memcmp(flat.data_ptr() + at, flat.data_ptr() + at, count) + sum(other.result() for other in others)

    return {
        "read once: torch int64 sum": lambda: words.view(torch.int64).sum(),
        "read once: torch float32 sum": lambda: words.view(torch.float32).sum(),
        "read once: memcmp with itself": compare,
    }
