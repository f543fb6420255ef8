"""Run as a child: asks everything of tables whose tensors hold anything; dies of what a kernel must not do.

Prints a line for each outcome that is wrong, and how many were refused and answered.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ops_tables import MIXED, mixed_table

from mgqe import CompactTable, ops
from mgqe.ops.layout.packed_format import level_lengths

OUTCOMES: Counter[str] = Counter()
REFUSALS = (ValueError, IndexError)
INT32 = [-(2**31), -1, 0, 1, 255, 256, 2**31 - 1]
INT64 = [-(2**63), -1, 0, 1, 2**62, 2**63 - 1]
FLOATS = [0.0, -0.0, 1.0, -1e-45, 1e-30, 1e20, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]


def anything(shape, dtype, made, hostile):
    """A tensor of random values, some of them extreme where ``hostile``."""
    if dtype in (torch.float32, torch.float16):
        values = torch.randn(shape, generator=made).to(dtype)
        extremes = torch.tensor(FLOATS).to(dtype)
    else:
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        values = torch.randint(max(least, -(2**62)), min(most, 2**62), shape, generator=made, dtype=dtype)
        extremes = torch.tensor(
            INT64 if dtype == torch.int64 else [v for v in INT32 if least <= v <= most], dtype=dtype
        )
    if hostile:
        some = torch.rand(shape, generator=made) < 0.5
        picks = torch.randint(len(extremes), shape, generator=made)
        values = torch.where(some, extremes[picks], values)
    return values


@st.composite
def tables(draw):
    """Parts of a table whose shapes are right, whatever the values."""
    m = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.sampled_from([0, 1, 3, 60, 300, 1500]), min_size=m, max_size=m).filter(any))
    subspaces, width = draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.sampled_from([1, 2, 4, 5]))
    pieces = draw(st.sampled_from([subspaces, 1]))
    counts = draw(st.lists(st.sampled_from([1, 2, 5, 16, 100, 256, 300]), min_size=m, max_size=m))
    dtype = draw(st.sampled_from(["float32", "float16", "int8"]))
    ordered = draw(st.booleans())
    order = draw(st.permutations(range(m)))
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, hostile = sum(sizes), draw(st.booleans())
    config = {
        "num_embeddings": n,
        "embedding_dim": subspaces * width,
        "sizes": sizes,
        "num_subspaces": [subspaces] * m,
        "num_centroids": counts,
        "codebook_of": [0] * m,
        "centroid_dtype": dtype,
        "padding_idx": draw(st.sampled_from([None, 0, n - 1])),
        "order": None if ordered else list(order),
    }
    kinds = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
    tensors = {"centroids.0": anything((pieces, max(counts), width), kinds[dtype], made, hostile)}
    if dtype == "int8":
        tensors["scales.0"] = anything((pieces,), torch.float32, made, hostile)
    for g, (size, k) in enumerate(zip(sizes, counts, strict=True)):
        row = -(-subspaces * max(1, (k - 1).bit_length()) // 8)
        tensors[f"codes.{g}"] = anything((size, row), torch.uint8, made, hostile)
    if not ordered:
        tensors |= map_tensors(draw, sizes, order, made)
    return tensors, config, made


@st.composite
def mixed_tables(draw):
    """Parts of a mixed table whose shapes are right, whatever the values."""
    kinds = [torch.float32, torch.float16, torch.int8]
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    hostile = draw(st.booleans())
    parts, _, _ = mixed_table(
        **draw(st.sampled_from(list(MIXED.values()))),
        dtype=draw(st.sampled_from(kinds)),
        matrix=draw(st.sampled_from([None, *kinds])),
        dim=draw(st.integers(1, 70)),
        shuffled=draw(st.booleans()),
        padding_idx=draw(st.sampled_from([-1, 0])),
    )
    for tensor in (*parts.codes, *parts.centroids, *parts.scales, parts.mean, parts.matrix, parts.matrix_scales):
        if tensor is not None:
            tensor.copy_(anything(tensor.shape, tensor.dtype, made, hostile))
    return parts, made


def map_tensors(draw, sizes, order, made):
    """A tier map: right, right but for its ranks or bits, or nothing but noise."""
    kind = draw(st.sampled_from(["right", "ranks", "bits", "noise"]))
    left, tensors = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), {}
    left = left[torch.randperm(len(left), generator=made)]
    for level, length in enumerate(level_lengths(sizes, order)):
        blocks = -(-length // 256)
        flags = torch.zeros(256 * blocks, dtype=torch.bool)
        flags[:length] = left == order[level]
        left = left[left != order[level]]
        shifts = torch.arange(64)
        bits = (flags.view(-1, 64).long() << shifts).sum(1)
        ones = flags.view(-1, 256).sum(1)
        ranks = (ones.cumsum(0) - ones).int()
        if kind in ("ranks", "noise"):
            ranks = anything(ranks.shape, torch.int32, made, True)
        if kind in ("bits", "noise"):
            bits = anything(bits.shape, torch.int64, made, True)
        tensors[f"tier_map.bits.{level}"], tensors[f"tier_map.ranks.{level}"] = bits, ranks
    return tensors


def ask(name, call, num_embeddings, k=None):
    """One call: refused, or answered with ids that exist."""
    try:
        answer = call()
    except REFUSALS:
        OUTCOMES["refused"] += 1
        return
    OUTCOMES["answered"] += 1
    if k is not None:
        ids = answer[1]
        if bool(((ids < -1) | (ids >= num_embeddings)).any()):
            print(f"WRONG: {name} gave id {int(ids.min())} or {int(ids.max())} of {num_embeddings}")


def searches(prepared, n, dim, made, k):
    """Every search of a table, masks, lists and biases included."""
    queries = torch.randn(3, dim, generator=made)
    hidden = torch.rand(n, generator=made) < 0.9
    lists = ops.IdLists(torch.randint(n, (40,), generator=made), torch.tensor([[0, 40], [3, 9], [9, 9]]))
    levels = None
    try:
        levels = ops.bias_levels(prepared, torch.randn(n, generator=made))
    except REFUSALS:
        # As made before the map was damaged.
        levels = ops.BiasLevels(torch.randn(n), anything((n,), torch.uint8, made, True), torch.randn(256))
    jobs = {
        "dot": {},
        "cosine": {"cosine": True},
        "hidden": {"hidden": hidden},
        "hidden each": {"hidden": hidden.expand(3, -1).contiguous()},
        "excluded": {"excluded": lists},
        "candidates": {"candidates": lists},
        "bias": {"bias": levels},
        "bias and candidates": {"bias": levels, "candidates": lists},
    }
    methods = ["auto", "scan", "filter", "blocks"]
    for i, (name, more) in enumerate(jobs.items()):
        method = methods[(i + k) % len(methods)]
        ask(f"topk {name}", lambda m=more, w=method: ops.topk(prepared, ops.TopKJob(queries, k, **m), w), n, k)


def use(table, n, dim, made):
    """Look-ups and bags of right and of wrong ids and offsets; codes; a growing table."""
    ids = torch.randint(n, (100,), generator=made)
    ask("lookup", lambda: table.lookup(ids), n)
    ask("lookup of anything", lambda: table.lookup(anything((20,), torch.int64, made, True)), n)
    ask("codes", lambda: table.codes(ids), n)
    for mode in ("sum", "mean", "max"):
        ask("bag", lambda m=mode: table.bag(ids.view(20, 5), mode=m), n)
        ask("bag of anything", lambda m=mode: table.bag(ids, anything((7,), torch.int64, made, True), mode=m), n)
    ask("append", lambda: table.append(torch.randn(5, dim, generator=made)), n)
    ask("topk", lambda: table.topk(torch.randn(2, dim, generator=made), 1), n + 5, 1)


def damaged(prepared, made):
    """The same table with its tier map overwritten in place, which no check sees before the kernels do."""
    for bits, ranks in zip(prepared.table.map_bits, prepared.table.map_ranks, strict=True):
        if torch.rand((), generator=made) < 0.7:
            ranks.copy_(anything(ranks.shape, torch.int32, made, True))
        if torch.rand((), generator=made) < 0.5:
            bits.copy_(anything(bits.shape, torch.int64, made, True))


def main(examples, number):
    often = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    @often
    @given(tables())
    def run(case):
        tensors, config, made = case
        n, dim = config["num_embeddings"], config["embedding_dim"]
        try:
            table = CompactTable.from_tensors(tensors, config)
        except ValueError:
            OUTCOMES["refused whole"] += 1
            return
        k = int(torch.randint(1, n + 1, (1,), generator=made))
        searches(table.snapshot.lookup, n, dim, made, k)
        use(table, n, dim, made)
        prepared = table.snapshot.lookup
        damaged(prepared, made)
        searches(prepared, prepared.table.num_embeddings, dim, made, k)
        ids = torch.randint(n, (100,), generator=made)
        ask("lookup", lambda: prepared(ids), n)
        ask("bag", lambda: ops.bag(prepared, ids.view(20, 5)), n)

    @seed(number)
    @often
    @given(mixed_tables())
    def run_mixed(case):
        parts, made = case
        prepared, n = ops.PreparedLookup(parts), parts.num_embeddings
        for _ in range(2):
            k = int(torch.randint(1, n + 1, (1,), generator=made))
            ids = torch.randint(n, (100,), generator=made)
            searches(prepared, n, parts.embedding_dim, made, k)
            ask("lookup", lambda ids=ids: prepared(ids), n)
            for mode in ("sum", "mean", "max"):
                ask("bag", lambda m=mode, ids=ids: ops.bag(prepared, ids.view(20, 5), mode=m), n)
            damaged(prepared, made)

    run()
    run_mixed()
    print(dict(OUTCOMES))


if __name__ == "__main__":
    for name in sys.argv[3:]:
        ops.set_native_isa(name)
    main(int(sys.argv[1]), int(sys.argv[2]))
