"""Nearest-centroid assignment against torch and faiss.

The torch peers compute what a layer without a kernel would: a batched matrix product (or cdist) and an argmin over
the (D, rows, K) tensor in memory. The twin is this package's own fallback, which adds up in a fixed order so that a
row's code does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import ops
from mgqe.ops import reference

PEER = "torch matmul + argmin"
TARGET = 1 / 15  # of the torch peer's time


def matmul_argmin(rows: Tensor, centroids: Tensor) -> Tensor:
    """Codes by 0.5 ||c||^2 - <x, c>, one batched product."""
    num_subspaces, _, width = centroids.shape
    parts = rows.view(-1, num_subspaces, width).transpose(0, 1)
    bias = 0.5 * centroids.square().sum(-1)
    return torch.baddbmm(bias[:, None], parts, centroids.transpose(1, 2), alpha=-1).argmin(-1).T


def matmul_min(rows: Tensor, centroids: Tensor) -> Tensor:
    """The same with ``min`` and its index."""
    num_subspaces, _, width = centroids.shape
    parts = rows.view(-1, num_subspaces, width).transpose(0, 1)
    bias = 0.5 * centroids.square().sum(-1)
    return torch.baddbmm(bias[:, None], parts, centroids.transpose(1, 2), alpha=-1).min(-1).indices.T


def cdist_argmin(rows: Tensor, centroids: Tensor) -> Tensor:
    """Codes by Euclidean distances."""
    num_subspaces, _, width = centroids.shape
    return torch.cdist(rows.view(-1, num_subspaces, width).transpose(0, 1), centroids).argmin(-1).T


def faiss_codes(batches: list[Tensor], centroids: Tensor) -> Contender | None:
    """faiss's product quantizer with these centroids, where faiss is installed."""
    try:
        import faiss
    except ImportError:
        return None
    num_subspaces, num_centroids, width = centroids.shape
    quantizer = faiss.ProductQuantizer(num_subspaces * width, num_subspaces, num_centroids.bit_length() - 1)
    faiss.copy_array_to_vector(centroids.numpy().ravel(), quantizer.centroids)
    arrays = [batch.numpy() for batch in batches]

    def run(i: int) -> object:
        faiss.omp_set_num_threads(torch.get_num_threads())
        return quantizer.compute_codes(arrays[i % len(arrays)])

    return run


def main() -> None:
    parser = argument_parser(__doc__ or "", "assign")
    parser.add_argument("--rows", type=int, default=4096, help="rows per call")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--subspaces", type=int, nargs="+", default=[8, 16], help="numbers of subspaces")
    parser.add_argument("--centroids", type=int, default=256, help="centroids per subspace")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    results: list[Measurement] = []
    for num_subspaces in options.subspaces:
        batches = [torch.randn(options.rows, options.dim) for _ in range(options.calls + 1)]
        centroids = torch.randn(num_subspaces, options.centroids, options.dim // num_subspaces)
        agree = (ops.assign(batches[0], centroids) == matmul_argmin(batches[0], centroids)).float().mean()
        if agree < 0.999:
            raise SystemExit(f"the kernel and torch agree on {float(agree):.2%} of the codes only")
        functions = {
            "mgqe": ops.assign,
            PEER: matmul_argmin,
            "torch matmul + min": matmul_min,
            "torch cdist + argmin": cdist_argmin,
            "mgqe torch twin": lambda rows, c: reference.assign(rows, c, None),
        }
        contenders: dict[str, Contender] = {
            name: lambda i, f=f, b=batches, c=centroids: f(b[i], c) for name, f in functions.items()
        }
        if peer := faiss_codes(batches, centroids):
            contenders["faiss ProductQuantizer"] = peer
        for threads in options.threads:
            torch.set_num_threads(threads)
            setting = {"subspaces": num_subspaces, "centroids": options.centroids, "threads": threads}
            results += measure(setting, contenders, PEER, options.rounds, options.calls, {"mgqe": TARGET})
    print_table(results, options.rows, "row")
    save(options.out, "assign", options, results)


if __name__ == "__main__":
    main()
