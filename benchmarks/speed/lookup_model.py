"""What look-ups of planned shapes take: the measurements that the constants of mgqe.codec.planning.speed are fitted to.

Tables of random codes have the shapes that plans have: levels, joined coordinates, turned or not, a matrix in bytes or
in floats, and even ones. Ids are in frequency order. There is one thread, and constants are fitted by relative error.
Sizes that the file has already, of the same commit, versions and options, are not measured again. ``--fit`` writes the
constants that fit best into mgqe/codec/planning/speed.py. The errors of these are then those of the measurements that
they were fitted to: measure once more, into another ``--out``, to see how well they do on others.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, read_saved, save
from benchmarks.speed.budgets import LARGE_NUMBERS, counts_of
from benchmarks.speed.decode import zipf_ids
from mgqe import CompactTable
from mgqe.codec.capacity import BY_COLUMNS, Capacity, TierShape
from mgqe.codec.layout import CENTROID_DTYPES, TableLayout
from mgqe.codec.planning import speed
from mgqe.codec.planning.speed import COSTS, Costs, Frequencies, lookup_share
from mgqe.codec.tensors import map_tensors
from mgqe.codec.tier_map import build_tier_map
from mgqe.codec.tiers import Tiers

LOOKUP = "nn.Embedding"
LOOKED_UP = 1 << 22  # numbers at once: for more than 32 MB torch gets fresh memory each time


def shapes(n: int, d: int) -> dict[str, tuple[Capacity, bool]]:
    """Name -> (capacity, whether rows are turned), of two tiers."""
    sizes = (n // 10, n - n // 10)

    def mixed(widths: list[int], head: int, tail: int, matrix: str = BY_COLUMNS) -> Capacity:
        tiers = [
            TierShape.mixed(size, [bits] * len(widths), g) for g, (size, bits) in enumerate(zip(sizes, (head, tail)))
        ]
        return Capacity(d, tuple(tiers), False, False, tuple(widths), matrix)

    def joined(codes: int, coordinates: int, matrix: str = BY_COLUMNS) -> Capacity:
        small, more = divmod(coordinates, codes)
        return mixed([small + (j < more) for j in range(codes)], 8, 8, matrix)

    return {
        "levels of 7 and 6 bits": (mixed([1] * d, 7, 6), False),
        "levels of 5 and 4 bits": (mixed([1] * d, 5, 4), False),
        "levels of 4 and 3 bits, turned": (mixed([1] * d, 4, 3), True),
        "levels of 4 and 3 bits, half the coordinates, turned": (mixed([1] * (d // 2), 4, 3), True),
        **{
            f"{codes} codes, {coordinates} coordinates, turned": (joined(codes, coordinates), True)
            for codes, coordinates in ((d // 4, d), (d // 8, d), (d // 8, d // 2), (max(2, d // 16), d * 2 // 3))
        },
        f"{d // 4} codes, {d} coordinates, turned in floats": (joined(d // 4, d, "int8"), True),
        f"{d // 8} codes, {d // 2} coordinates, turned in floats": (joined(d // 8, d // 2, "int8"), True),
        f"{d // 8} even codes": (Capacity.of(d, sizes, [d // 8] * 2, [256, 256]), False),
        f"{d // 2} even codes": (Capacity.of(d, sizes, [d // 2] * 2, [256, 64]), False),
    }


def table(
    capacity: Capacity, turned: bool, seed: int, tiers: Tiers | None = None, centroid_dtype: str | None = None
) -> CompactTable:
    """Of random codes; ids are in frequency order unless ``tiers`` says which tier each is in."""
    generator = torch.Generator().manual_seed(seed)
    tiers = Tiers.from_sizes(capacity.sizes) if tiers is None else tiers
    layout = TableLayout.of(tiers, capacity, centroid_dtype or ("int8" if capacity.widths else "float32"), None)
    tensors = map_tensors(None if layout.order is None else build_tier_map(tiers))
    for name, (kind, shape) in layout.tensors(capacity.codebook_shapes).items():
        if name in tensors:
            continue
        if kind == torch.uint8:
            words = torch.randint(1 << 62, (-(-shape[0] * shape[1] // 7),), generator=generator)
            tensors[name] = words[:, None].view(torch.uint8)[:, :7].reshape(-1)[: shape[0] * shape[1]].view(shape)
        elif kind in CENTROID_DTYPES.values() and kind.is_floating_point:
            tensors[name] = torch.rand(shape, generator=generator)
        else:
            tensors[name] = torch.randint(-127, 128, shape, generator=generator).to(kind)
    if capacity.has_levels:
        for g, tier in enumerate(capacity.tiers):
            levels = [torch.linspace(-127, 127, 1 << bits) for bits in tier.code_bits]
            tensors[f"centroids.{g}"] = torch.cat(levels).to(torch.int8)
    if capacity.widths and not turned:
        tensors["matrix"] = torch.eye(capacity.embedding_dim, dtype=torch.int8)
    return CompactTable.from_tensors(tensors, layout.to_json())


def measured(n: int, d: int, options: argparse.Namespace) -> Iterator[Measurement]:
    """All shapes of one size."""
    generator, count = np.random.default_rng(options.seed), min(options.ids, LOOKED_UP // d)
    full, tables = torch.nn.Embedding.from_pretrained(torch.ones(n, d)), {}
    for name, shape in shapes(n, d).items():
        tables[name] = table(*shape, options.seed)
    for kind in ("Zipf", "uniform"):
        ids = [
            zipf_ids(generator, n, count, 1.05)
            if kind == "Zipf"
            else torch.from_numpy(generator.integers(n, size=count))
            for _ in range(options.calls + 1)
        ]
        contenders: dict[str, Contender] = {LOOKUP: lambda i, b=ids: full(b[i])}
        contenders |= {name: lambda i, t=t, b=ids: t.lookup(b[i]) for name, t in tables.items()}
        of_kind = measure({"rows": n, "dim": d, "ids": kind}, contenders, LOOKUP, options.rounds, options.calls)
        print_table(of_kind, count, "id")
        yield from of_kind


@dataclass(frozen=True, eq=False)
class Problem:
    """A measured share, and what it is to be explained by."""

    capacity: Capacity
    turned: bool
    asked: Frequencies
    share: float

    def expected(self, costs: Costs = COSTS) -> float:
        """The share that these costs expect."""
        return lookup_share(self.capacity, self.asked, self.turned, costs)


def problems_of(results: list[Measurement]) -> list[Problem | None]:
    """One for each measurement; None for those of nn.Embedding."""
    asked: dict[tuple[int, str], Frequencies] = {}
    problems: list[Problem | None] = []
    for each in results:
        n, d, kind = (each.setting[name] for name in ("rows", "dim", "ids"))
        if (n, kind) not in asked:
            asked[n, kind] = Frequencies.of(n, counts_of(n) if kind == "Zipf" else None)
        is_peer = each.name == LOOKUP
        problems.append(None if is_peer else Problem(*shapes(n, d)[each.name], asked[n, kind], each.ratio))
    return problems


def fitted(problems: list[Problem]) -> Costs:
    """The costs that explain the shares best, by the logarithm of their errors, of which large ones count less.

    Shares say nothing of the unit: full_number stays as it is.
    """

    def errors(logs: np.ndarray) -> np.ndarray:
        costs = replace(Costs(*np.exp(logs)), full_number=COSTS.full_number)
        return np.array([np.log(each.expected(costs) / each.share) for each in problems])

    logs, damping = np.log(astuple(COSTS)), 1e-2
    now = errors(logs)
    for _ in range(100):  # Levenberg-Marquardt
        slopes = np.stack([(errors(logs + 1e-4 * unit) - now) / 1e-4 for unit in np.eye(len(logs))], 1)
        weights = 1 / np.sqrt(1 + (now / 0.1) ** 2)
        square = (slopes * weights[:, None]).T @ slopes
        step = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-6), -(slopes * weights[:, None]).T @ now)
        then = errors(logs + step.clip(-1, 1))
        if loss(then) < loss(now):
            logs, now, damping = logs + step.clip(-1, 1), then, damping / 3
        else:
            damping *= 4
    return Costs(*(float(f"{cost:.2g}") for cost in np.exp(logs)))


def with_costs(source: str, costs: Costs) -> str:
    """The source of mgqe.codec.planning.speed with these constants."""
    for name, value in asdict(costs).items():
        source, found = re.subn(rf"^    {name}: float = .*$", f"    {name}: float = {value:.2g}", source, flags=re.M)
        assert found == 1, name
    return source


def loss(errors: np.ndarray) -> float:
    """Squares of small errors, and large ones themselves."""
    return float((np.sqrt(1 + (errors / 0.1) ** 2) - 1).sum())


def main() -> None:
    parser = argument_parser(__doc__ or "", "lookup-model")
    parser.set_defaults(threads=[1], rounds=3, calls=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000, 1_000_000, 10_000_000], help="sizes")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128], help="dimensions per row")
    parser.add_argument("--ids", type=int, default=65_536, help="ids of a look-up; fewer of many dimensions")
    parser.add_argument("--fit", action="store_true", help="write the constants that fit best into the package")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    results = read_saved(options.out, ("ids", "rounds", "calls", "seed"), options)
    known = {(m.setting["rows"], m.setting["dim"]) for m in results}
    for n in options.rows:
        for d in options.dims:
            if (n, d) not in known and n * d <= LARGE_NUMBERS:
                results += measured(n, d, options)
    problems = problems_of(results)
    costs = fitted([each for each in problems if each is not None])
    used = costs if options.fit else COSTS
    shares = [1.0 if each is None else each.expected(used) for each in problems]
    results = [replace(m, extra={"expected": round(s, 4)}) for m, s in zip(results, shares, strict=True)]
    save(options.out, "lookup-model", options, results)
    off = np.array([abs(np.log(s / m.ratio)) for m, s in zip(results, shares, strict=True) if m.name != LOOKUP])
    print(f"expected shares are off by a factor of {np.exp(np.median(off)):.2f} at the median")
    print(f"and of {np.exp(np.quantile(off, 0.9)):.2f} at most in nine of ten; fitted to these measurements:")
    print("\n".join(f"    {name}: float = {value:.2g}" for name, value in asdict(costs).items()))
    if options.fit:
        path = Path(speed.__file__)
        path.write_text(with_costs(path.read_text(), costs))
        print(f"written to {path}")


if __name__ == "__main__":
    main()
