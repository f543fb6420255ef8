"""What tables of budgets cannot take less time than: parts of the work alone, beside nn.Embedding and nn.EmbeddingBag.

Each part is torch's, in one run with the whole: the codes of the ids are read, rows of float32 are written (where
look-ups end), sums of bags are multiplied with a matrix, and rows that fit the second-level cache are added up, as many
as bags have. Of a training step the parts are a step of the same layer in its warm-up, which has no codes, the codes of
its ids alone, and one product of matrices that multiplies as many numbers as the search for these codes. Steps of the
warm-up are also timed sixteen at once, of which one gathers gradients, against a layer that gathers none.

python -m benchmarks.speed.bounds
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from benchmarks.speed.budgets import BUDGETS, full_rows, planned, training_step
from benchmarks.speed.decode import zipf_ids
from mgqe import CompactTable, MGQEmbedding
from mgqe.nn.metric import RARELY

IDS, BAGS, LENGTH = 65_536, 8192, 20
CACHED = 4096  # rows: 1 MB of them at 64 dimensions
TRAINED = 4096  # ids of a training step
NEVER = 2**62  # warm-up steps
LOOKUP, BAG, STEP = "look-up, Zipf ids", f"bags of {LENGTH}, Zipf ids", "training step, Zipf ids"
WARM_UP = f"{RARELY} steps of the warm-up, Zipf ids"
MOST = {WARM_UP: {"gradients gathered": 1.05}}  # times the first of a kind


def code_reader(table: CompactTable, ids: list[Tensor]) -> Contender:
    """Copies the codes of ids, all from the largest tier."""
    codes = max(table.snapshot.lookup.table.codes, key=len)
    wrapped = [each % len(codes) for each in ids]
    return lambda i: codes.index_select(0, wrapped[i])


def over(call: Callable[[Tensor], Tensor], batches: list[Tensor]) -> Contender:
    return lambda i: call(batches[i])


def many_steps(layer: MGQEmbedding, ids: list[Tensor]) -> Contender:
    """As many training steps as have one in which gradients are gathered."""
    step = training_step(layer, ids)
    return lambda i: [step((i + k) % len(ids)) for k in range(RARELY)]


def codes_finder(layer: MGQEmbedding, ids: Tensor) -> Contender:
    """Finds the codes of the distinct ids, tier after tier."""
    tiers = _ids_of_tiers(layer, ids)
    return lambda i: [layer.codes_of(of_tier, g) for g, of_tier in enumerate(tiers)]


def as_many_products(layer: MGQEmbedding, ids: Tensor) -> Contender:
    """For each tier a product of matrices with as many multiplications: of rows with the axes, and with centroids."""
    capacity, d, factors = layer.capacity, layer.embedding_dim, []
    for tier, of_tier in zip(capacity.tiers, _ids_of_tiers(layer, ids), strict=True):
        codes = zip(capacity.widths, tier.code_bits, strict=True)
        per_row = d * capacity.num_coordinates + (0 if capacity.has_levels else sum(w << bits for w, bits in codes))
        factors.append((torch.randn(len(of_tier), d), torch.randn(d, per_row // d)))
    return lambda i: [left @ right for left, right in factors]


def _ids_of_tiers(layer: MGQEmbedding, ids: Tensor) -> list[Tensor]:
    """The distinct ids in each tier; all ids are in the order of their counts."""
    distinct = ids.unique()
    ends = torch.searchsorted(distinct, torch.tensor(layer.tiers.starts[1:-1]))
    return list(distinct.tensor_split(ends))


def main() -> None:
    parser = argument_parser(__doc__ or "", "bounds")
    parser.set_defaults(threads=[1])
    parser.add_argument("--rows", type=int, default=1_000_000, help="size of the table")
    parser.add_argument("--dim", type=int, default=64, help="dimensions per row")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    n, d = options.rows, options.dim
    rows = full_rows(n, d, options.seed)
    tables = {budget: planned(rows, budget).freeze() for budget in BUDGETS}
    full, pooled = torch.nn.Embedding.from_pretrained(rows), torch.nn.EmbeddingBag.from_pretrained(rows, mode="sum")
    cached = torch.nn.EmbeddingBag.from_pretrained(rows[:CACHED].clone(), mode="sum")
    generator = np.random.default_rng(options.seed)
    singles = [zipf_ids(generator, n, IDS, 1.05) for _ in range(options.calls + 1)]
    bags = [zipf_ids(generator, n, BAGS * LENGTH, 1.05) for _ in range(options.calls + 1)]
    offsets = torch.arange(0, BAGS * LENGTH, LENGTH)
    few = [each % CACHED for each in bags]
    sums, matrix = torch.randn(BAGS, d), torch.randn(d, d)
    trained = [zipf_ids(generator, n, TRAINED, 1.05) for _ in range(options.calls + 1)]
    layers = {budget: planned(rows, budget, sparse=True) for budget in BUDGETS}
    warm_up, gathers, gathers_none = (planned(rows, BUDGETS[0], sparse=True, warmup_steps=NEVER) for _ in range(3))
    gathers_none.gathers_metric = False
    for layer in layers.values():
        layer.start_quantizing()
    contenders: dict[str, dict[str, Contender]] = {
        LOOKUP: {
            "the full table": over(full, singles),
            **{f"{budget} table": over(table.lookup, singles) for budget, table in tables.items()},
            **{f"codes of the {budget} table, read": code_reader(table, singles) for budget, table in tables.items()},
            "rows of float32, written": lambda i: torch.full((IDS, d), float(i)),
        },
        BAG: {
            "the full table": over(lambda ids: pooled(ids, offsets), bags),
            **{
                f"{budget} table": over(lambda ids, table=table: table.bag(ids, offsets), bags)  # type: ignore[misc]
                for budget, table in tables.items()
            },
            **{f"codes of the {budget} table, read": code_reader(table, bags) for budget, table in tables.items()},
            "sums, multiplied with a matrix": lambda i: sums @ matrix,
            "rows in the cache, added up": over(lambda ids: cached(ids, offsets), few),
        },
        STEP: {
            "the full table": training_step(torch.nn.Embedding(n, d, sparse=True), trained),
            "a layer in its warm-up": training_step(warm_up, trained),
            **{f"{budget} table": training_step(layer, trained) for budget, layer in layers.items()},
            **{
                f"codes for the {budget} table, found": codes_finder(each, trained[0])
                for budget, each in layers.items()
            },
            **{
                f"products of these for the {budget} table": as_many_products(each, trained[0])
                for budget, each in layers.items()
            },
        },
        WARM_UP: {
            "no gradients gathered": many_steps(gathers_none, trained),
            "gradients gathered": many_steps(gathers, trained),
        },
    }
    results: list[Measurement] = []
    ids = {LOOKUP: IDS, BAG: BAGS * LENGTH, STEP: TRAINED, WARM_UP: RARELY * TRAINED}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for what, named in contenders.items():
            setting = {"what": what, "rows": n, "dim": d, "ids": ids[what], "threads": threads}
            results += measure(setting, named, next(iter(named)), options.rounds, options.calls, MOST.get(what))
            print_table(results[-len(named) :], ids[what], "id")
    save(options.out, "bounds", options, results)


if __name__ == "__main__":
    main()
