"""Decoding rows of a frozen table against nn.Embedding.

Ids are in frequency order: Zipf ids fall mostly on the first rows, uniform ids everywhere. "+ sum" also reads the
result: large outputs are written around the caches, and a reader must not lose the time that this saves.
10 million rows need 2.5 GB for nn.Embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import ops
from mgqe.ops import reference

PEER = "nn.Embedding"
NAME = "mgqe D=8 K=256"
ALIGNED = "mgqe D=8, two tiers of 8 bits"
PACKED = "mgqe D=8 K=(256, 64)"


def table(sizes: list[int], counts: list[int], num_subspaces: int, dim: int, seed: int) -> ops.TableBuffers:
    """A table of random codes that share one codebook."""
    made = torch.Generator().manual_seed(seed)
    bits = [(count - 1).bit_length() for count in counts]
    return ops.TableBuffers(
        codes=[
            torch.randint(256, (n, -(-num_subspaces * b // 8)), generator=made, dtype=torch.uint8)
            for n, b in zip(sizes, bits, strict=True)
        ],
        centroids=[torch.randn(num_subspaces, max(counts), dim // num_subspaces, generator=made)],
        scales=[torch.empty(0)],
        map_bits=[],
        map_ranks=[],
        order=[],
        sizes=sizes,
        bits=bits,
        num_subspaces=[num_subspaces] * len(sizes),
        codebook_of=[0] * len(sizes),
        embedding_dim=dim,
        padding_idx=-1,
    )


def zipf_ids(generator: np.random.Generator, rows: int, count: int, exponent: float) -> Tensor:
    """Ids with probability proportional to (id + 1) ** -exponent."""
    kept = np.empty(0, dtype=np.int64)
    while len(kept) < count:
        drawn = generator.zipf(exponent, 4 * count)
        kept = np.concatenate([kept, drawn[drawn <= rows]])
    return torch.from_numpy(kept[:count] - 1)


def faiss_decode(parts: ops.TableBuffers, batches: list[Tensor]) -> Contender | None:
    """faiss's product quantizer over the gathered codes, where faiss is installed."""
    try:
        import faiss
    except ImportError:
        return None
    book = parts.centroids[0]
    quantizer = faiss.ProductQuantizer(parts.embedding_dim, parts.num_subspaces[0], parts.bits[0])
    faiss.copy_array_to_vector(book.numpy().ravel(), quantizer.centroids)
    codes, arrays = parts.codes[0].numpy(), [batch.numpy() for batch in batches]

    def run(i: int) -> object:
        faiss.omp_set_num_threads(torch.get_num_threads())
        return quantizer.decode(codes[arrays[i]])

    return run


def main() -> None:
    parser = argument_parser(__doc__ or "", "decode")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="sizes of the table")
    parser.add_argument("--ids", type=int, default=65_536, help="ids per call")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    parser.add_argument("--exponent", type=float, default=1.05, help="of the Zipf ids")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    results: list[Measurement] = []
    for rows in options.rows:
        embedding = torch.nn.Embedding(rows, options.dim)
        head = rows // 10
        tables = {
            NAME: table([rows], [256], 8, options.dim, options.seed),
            "mgqe D=16 K=256": table([rows], [256], 16, options.dim, options.seed),
            ALIGNED: table([head, rows - head], [256, 256], 8, options.dim, options.seed),
            PACKED: table([head, rows - head], [256, 64], 8, options.dim, options.seed),
        }
        prepared = {name: ops.PreparedLookup(parts) for name, parts in tables.items()}
        generator = np.random.default_rng(options.seed)
        draws: dict[str, Callable[[], Tensor]] = {
            "Zipf": lambda g=generator, r=rows: zipf_ids(g, r, options.ids, options.exponent),
            "uniform": lambda g=generator, r=rows: torch.from_numpy(g.integers(r, size=options.ids)),
        }
        for distribution, draw in draws.items():
            batches = [draw() for _ in range(options.calls + 1)]
            functions = {
                PEER: embedding,
                **prepared,
                f"{PEER} + sum": lambda ids, f=embedding: f(ids).sum(),
                f"{NAME} + sum": lambda ids, f=prepared[NAME]: f(ids).sum(),
                "mgqe torch twin": lambda ids, p=tables[NAME]: reference.lookup(ids, p),
            }
            contenders: dict[str, Contender] = {
                name: lambda i, f=f, b=batches: f(b[i]) for name, f in functions.items()
            }
            if peer := faiss_decode(tables[NAME], batches):
                contenders["faiss ProductQuantizer"] = peer
            for threads in options.threads:
                torch.set_num_threads(threads)
                setting = {"rows": f"{rows:,}", "ids": distribution, "threads": threads}
                targets = {NAME: 0.5 if rows <= 1_000_000 else 0.3}
                results += measure(setting, contenders, PEER, options.rounds, options.calls, targets)
                tails: dict[str, Contender] = {name: contenders[name] for name in (ALIGNED, PACKED)}
                results += measure(
                    {**setting, "peer": ALIGNED}, tails, ALIGNED, options.rounds, options.calls, {PACKED: 1.15}
                )
        del embedding
    print_table(results, options.ids, "row")
    save(options.out, "decode", options, results)


if __name__ == "__main__":
    main()
