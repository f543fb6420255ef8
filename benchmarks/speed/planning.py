"""What it takes to plan, to calibrate and to freeze, against the seconds that were aimed at.

    plan from counts      an even shape within the budget, of how often ids occur
    plan of rows          the plan that a layer makes of trained rows, in the metric of queries
    calibrate             the metric of SASRec's table of items, on 60 batches of made-up histories, as large as those
                          of Amazon Games
    freeze                rows to a table: a layer with a budget, and the even shape that counts alone give within it

python -m benchmarks.speed.planning
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import mgqe
from benchmarks._common import Measurement, argument_parser, print_table, save
from benchmarks.speed.budgets import BUDGETS, counts_of, full_rows
from mgqe.recsys.models.sasrec import SASRec
from mgqe.recsys.tasks.losses import shared_softmax_loss

QUERIES = 10_000
ITEMS, DIM, WINDOW, POSITIONS, NEGATIVES, BATCHES = 23_715, 64, 50, 1024, 256, 60  # as mgqe train has amazon-games
SECONDS = {"plan from counts": 1.0, "plan of rows": 2.0, "calibrate": 60.0}  # at most
FREEZE_MOST = 1.3  # times the even shape's

Histories = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs (n,), targets (n,), lengths (b,), negatives (c,)


def histories(seed: int) -> list[Histories]:
    """Batches of whole windows; ids by a power law."""
    generator = torch.Generator().manual_seed(seed)
    often = counts_of(ITEMS).double()
    windows = POSITIONS // WINDOW

    def ids(number: int) -> Tensor:
        return torch.multinomial(often, number, replacement=True, generator=generator)

    batches = []
    for _ in range(BATCHES):
        items = ids(windows * (WINDOW + 1)).view(windows, WINDOW + 1)
        lengths = torch.full((windows,), WINDOW)
        negatives = torch.randint(ITEMS, (NEGATIVES,), generator=generator)
        batches.append((items[:, :-1].flatten(), items[:, 1:].flatten(), lengths, negatives))
    return batches


def softmax_loss(model: SASRec, batch: Histories) -> Tensor:
    """The loss that Amazon Games is trained by, with one look-up in the item table."""
    inputs, targets, lengths, negatives = batch
    places = [len(inputs), len(targets), len(negatives)]
    of_inputs, of_targets, of_negatives = model.item(torch.cat([inputs, targets, negatives])).split(places)
    hidden = model.encode(of_inputs, lengths)
    return shared_softmax_loss(hidden, (hidden * of_targets).sum(1), of_negatives, targets, negatives)


def seconds_of(call: Callable[[], object], rounds: int) -> list[float]:
    """Of each round."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def measured(options: argparse.Namespace) -> Iterator[Measurement]:
    """All parts; ratios are to the seconds that were aimed at, and those of freezing to the even shape's."""
    n, d = options.rows, options.dim
    rows, counts = full_rows(n, d, options.seed), counts_of(n)
    queries = torch.randn(QUERIES, d, generator=torch.Generator().manual_seed(options.seed))
    torch.manual_seed(options.seed)
    model, batches = SASRec(nn.Embedding(ITEMS, DIM), DIM), histories(options.seed)

    def against(setting: dict[str, object], name: str, call: Callable[[], object]) -> Measurement:
        times = seconds_of(call, options.rounds)
        median = statistics.median(times)
        return Measurement(setting, name, median, min(times), median / SECONDS[name], 1.0)

    size = {"rows": f"{n:,}", "dim": d, "threads": torch.get_num_threads()}
    calibrated = {**size, "rows": f"{ITEMS:,}", "dim": DIM}
    yield against(calibrated, "calibrate", lambda: mgqe.calibrate(model, batches, softmax_loss, progress=False))
    for budget in options.budgets:
        setting = {**size, "budget": budget}
        yield against(setting, "plan from counts", lambda b=budget: mgqe.plan(n, d, b, counts=counts))  # type: ignore[misc]
        known = {"counts": counts, "weight": rows, "queries": queries}
        yield against(setting, "plan of rows", lambda b=budget, k=known: mgqe.plan(n, d, b, **k))  # type: ignore[misc]
        even = mgqe.plan(n, d, budget, counts=counts).arguments()
        makers = {
            "freeze, even shape": lambda given=even: mgqe.MGQEmbedding.from_pretrained(rows, **given).freeze(),
            "freeze, budget": lambda b=budget: mgqe.MGQEmbedding.from_pretrained(
                rows, counts=counts, budget=b
            ).freeze(),
        }
        times = {name: seconds_of(make, options.rounds) for name, make in makers.items()}
        base = statistics.median(times["freeze, even shape"])
        for name, each in times.items():
            most = FREEZE_MOST if name == "freeze, budget" else None
            yield Measurement(setting, name, statistics.median(each), min(each), statistics.median(each) / base, most)


def main() -> None:
    parser = argument_parser(__doc__ or "", "planning")
    parser.set_defaults(threads=[1], rounds=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table")
    parser.add_argument("--dim", type=int, default=64, help="numbers of a row")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), help="shares of the full table's bytes")
    options = parser.parse_args()
    results: list[Measurement] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        results += measured(options)
    print_table(results, 1, "call")
    save(options.out, "planning", options, results)


if __name__ == "__main__":
    main()
