"""What is timed on a GPU, beside torch's own modules and the packages that are installed."""

from __future__ import annotations

import functools
import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import mgqe
from benchmarks.gpu._settings import Built, Contender, Run, Skip, captured
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import make_optimizer, run_epoch
from mgqe.recsys.train.run import build_tables

STEP, LOOKUP, BAG, TOPK = 1.3, 0.6, 0.7, 0.3  # the most that ratios are to be
MEMORY = 1.01  # "its bytes and nothing else": an allocator rounds up, and small tables of numbers lie beside the codes
EPOCHS = {"gmf": "mgqe:D=16,K=256/64", "sasrec": "mgqe:D=16,K=256/64"}


# ---- tables ------------------------------------------------------------------------------------------------------


@functools.cache
def even_table(rows: int, dim: int) -> mgqe.CompactTable:
    """A frozen table of d / 4 subspaces of 256 and 64 centroids, codes at random, on the CPU."""
    made = torch.Generator().manual_seed(0)
    tiers = mgqe.Tiers.from_fractions(rows, (0.1, 0.9))
    counts = (256, 64)
    codes = [
        torch.randint(k, (n, dim // 4), generator=made, dtype=torch.int32)
        for n, k in zip(tiers.sizes, counts, strict=True)
    ]
    book = torch.randn(dim // 4, max(counts), 4, generator=made)
    return mgqe.CompactTable.from_codes(tiers, codes, [book], [0, 0], counts)


@functools.cache
def whole_table(rows: int, dim: int) -> mgqe.CompactTable:
    """A frozen table as budgets make them: whole centroids of 1 to 8 bits and a whole matrix, on the CPU."""
    made = torch.Generator().manual_seed(1)
    tiers = mgqe.Tiers.from_fractions(rows, (0.1, 0.9))
    widths = [2] * (dim // 4) + [4] * (dim // 8)
    bits = [[8 - j * 4 // len(widths) - 2 * g for j in range(len(widths))] for g in range(2)]
    codes = [
        torch.stack([torch.randint(1 << b, (n,), generator=made, dtype=torch.int32) for b in of_tier], 1)
        for n, of_tier in zip(tiers.sizes, bits, strict=True)
    ]
    sizes = [sum(w << b for w, b in zip(widths, of_tier, strict=True)) for of_tier in bits]
    books = [torch.randint(-127, 128, (size,), generator=made).float() for size in sizes]
    mean, matrix = torch.randn(dim, generator=made), torch.randn(dim, dim, generator=made)
    return mgqe.CompactTable.from_mixed_codes(
        tiers, codes, books, [0, 1], widths, bits, None, "int8", mean=mean, matrix=matrix, matrix_dtype="int8_columns"
    )


def memory(run: Run) -> None:
    """How much of the device's memory a frozen table takes once it has been read, beside the bytes that it says."""
    what = f"memory of a frozen table of {run.sizes.rows:,} rows, beside its bytes"
    print(f"\n{what}", flush=True)
    for name, make in (("mgqe 256/64", even_table), ("mgqe of a budget", whole_table)):
        run.aims[what, name] = MEMORY
        if run.device.type != "cuda":
            run.skip(what, "the memory of GPUs alone is measured", name)
            continue
        try:
            run.wait()
            before = torch.cuda.memory_allocated(run.device)
            table = make(run.sizes.rows, run.sizes.dim).to(run.device)
            table.lookup(torch.zeros(1, dtype=torch.int64, device=run.device))
            run.wait()
            taken = torch.cuda.memory_allocated(run.device) - before
        except torch.OutOfMemoryError as error:
            run.skip(what, " ".join(str(error).split())[:200], name)
            continue
        run.rows.append(memory_row(what, name, table.nbytes, taken))
        print(f"  {name:<30}{table.nbytes:>16,} bytes, allocated {taken:,}", flush=True)
        del table


def memory_row(what: str, name: str, nbytes: int, taken: int) -> dict[str, object]:
    """A measurement of memory, as the JSON has it."""
    ratio = taken / nbytes
    sizes = {"bytes_of_table": nbytes, "bytes_allocated": taken}
    return {"what": what, "name": name, **sizes, "ratio": ratio, "target": MEMORY, "target_met": ratio <= MEMORY}


# ---- training ----------------------------------------------------------------------------------------------------


def step_of(run: Run, layer: nn.Module, rows: int, replayed: bool = False, compiled: bool = False) -> Contender:
    """A step of training: a batch of Zipf ids, a loss, the way back, RowwiseAdagrad with sparse gradients.

    ``replayed``: captured as a CUDA graph before. ``compiled``: passes and losses as one graph of torch.compile; the
    optimiser's kernels are launched after it.
    """
    batches = [run.zipf(run.sizes.batch, rows, seed) for seed in range(4)]
    target = torch.randn(run.sizes.batch, run.sizes.dim, device=run.device, generator=run.generator(9))
    optimizer = mgqe.RowwiseAdagrad(layer.parameters(), lr=0.01)
    turn = itertools.count()

    ids = batches[0].clone()

    def loss_of(ids: Tensor) -> Tensor:
        return (layer(ids) - target).square().mean() + mgqe.quantization_loss(layer)

    if compiled:
        torch.compiler.reset()
        backend = "inductor" if run.device.type == "cuda" else "aot_eager"  # which needs no C++ compiler
        in_one_graph = torch.compile(loss_of, fullgraph=True, backend=backend)

    def step() -> None:
        if compiled:
            with mgqe.one_graph(layer):
                loss = in_one_graph(ids)
        else:
            loss = loss_of(ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    if replayed and run.device.type != "cuda":
        raise Skip("CUDA graphs are of GPUs")
    run_step = captured(step, layer).replay if replayed else step

    def next_step(_: int) -> None:
        ids.copy_(batches[next(turn) % len(batches)])
        run_step()

    return next_step


def full_step(run: Run, number: int, replayed: bool = False) -> Built:
    """Steps of an nn.Embedding of so many rows."""
    return lambda: step_of(run, nn.Embedding(number, run.sizes.dim, sparse=True, device=run.device), number, replayed)


def quantised_step(
    run: Run, number: int, replayed: bool = False, distinct: bool = False, compiled: bool = False, **options: Any
) -> Built:
    """Steps of an MGQEmbedding whose codebooks have started."""

    def build() -> Contender:
        torch.manual_seed(0)
        layer = mgqe.MGQEmbedding(number, run.sizes.dim, sparse=True, device=run.device, warmup_steps=0, **options)
        mgqe.start_quantizing(layer)
        layer.distinct_on_gpu = distinct
        return step_of(run, layer, number, replayed, compiled)

    return build


def two_tiers(rows: int) -> dict[str, Any]:
    """A tenth of the rows with 256 centroids, the rest with 64."""
    return {"tiers": mgqe.Tiers.from_fractions(rows, (0.1, 0.9)), "num_centroids": (256, 64)}


def training(run: Run) -> None:
    """Steps of layers whose codebooks have started, beside nn.Embedding(sparse=True) with the same optimiser."""
    rows = run.sizes.rows
    tiers = two_tiers(rows)
    full, quantised = partial(full_step, run), partial(quantised_step, run)
    contenders = {
        "nn.Embedding": full(rows),
        "mgqe 256/64": quantised(rows, **tiers),
        "mgqe 256/64, distinct ids": quantised(rows, distinct=True, **tiers),
        "mgqe 256/64, bfloat16 rows": quantised(rows, rows="bfloat16", **tiers),
        "mgqe 256/64, SX": quantised(rows, quantizer="sx", **tiers),
        "nn.Embedding, replayed": full(rows, replayed=True),
        "mgqe 256/64, replayed": quantised(rows, replayed=True, **tiers),
    }
    targets = dict.fromkeys(("mgqe 256/64", "mgqe 256/64, bfloat16 rows"), STEP)
    run.compare(f"training step, {run.sizes.batch:,} Zipf ids, {rows:,} rows", contenders, "nn.Embedding", targets)
    rows = run.sizes.planned_rows
    counts = torch.arange(rows, 0, -1)
    planned = {"nn.Embedding": full(rows), "mgqe default": quantised(rows, counts=counts)}
    what = f"training step, {run.sizes.batch:,} Zipf ids, {rows:,} rows"
    run.compare(what, planned, "nn.Embedding", {"mgqe default": STEP})


# ---- frozen tables -----------------------------------------------------------------------------------------------


def lookups(run: Run) -> None:
    """Uniform ids of frozen tables, beside nn.Embedding."""
    rows, n = run.sizes.rows, run.sizes.lookups
    ids = [torch.randint(rows, (n,), device=run.device, generator=run.generator(s)) for s in range(3)]

    def full() -> Contender:
        weight = torch.randn(rows, run.sizes.dim, device=run.device)
        return lambda i: nn.functional.embedding(ids[i % 3], weight)

    def frozen(table: mgqe.CompactTable) -> Contender:
        return lambda i: table.lookup(ids[i % 3])

    contenders = {
        "nn.Embedding": full,
        "mgqe 256/64": lambda: frozen(even_table(rows, run.sizes.dim).to(run.device)),
        "mgqe of a budget": lambda: frozen(whole_table(rows, run.sizes.dim).to(run.device)),
        "fbgemm int8, bags of 1": lambda: fbgemm(run, "INT8", rows, n, 1),
        "fbgemm int4, bags of 1": lambda: fbgemm(run, "INT4", rows, n, 1),
    }
    targets = {"mgqe 256/64": LOOKUP, "mgqe of a budget": LOOKUP}
    run.compare(f"look-up of {n:,} uniform ids, {rows:,} rows", contenders, "nn.Embedding", targets)


def bags(run: Run) -> None:
    """Sums of bags of Zipf ids, beside nn.EmbeddingBag and fbgemm's tables of 8 and 4 bits."""
    rows, number, length = run.sizes.rows, run.sizes.bags, run.sizes.bag_length
    ids = [run.zipf(number * length, rows, s) for s in range(3)]
    offsets = torch.arange(0, number * length, length, device=run.device)

    def full() -> Contender:
        weight = torch.randn(rows, run.sizes.dim, device=run.device)
        return lambda i: nn.functional.embedding_bag(ids[i % 3], weight, offsets, mode="sum")

    def frozen(table: mgqe.CompactTable) -> Contender:
        return lambda i: table.bag(ids[i % 3], offsets, "sum")

    contenders = {
        "nn.EmbeddingBag": full,
        "mgqe 256/64": lambda: frozen(even_table(rows, run.sizes.dim).to(run.device)),
        "mgqe of a budget": lambda: frozen(whole_table(rows, run.sizes.dim).to(run.device)),
        "fbgemm int8": lambda: fbgemm(run, "INT8", rows, number, length),
        "fbgemm int4": lambda: fbgemm(run, "INT4", rows, number, length),
    }
    targets = {"mgqe 256/64": BAG, "mgqe of a budget": BAG}
    run.compare(f"{number:,} bags of {length} Zipf ids, {rows:,} rows", contenders, "nn.EmbeddingBag", targets)


def fbgemm(run: Run, kind: str, rows: int, number: int, length: int) -> Contender:
    """fbgemm's table of so many bits, sums of bags of Zipf ids (uniform ones in bags of one id)."""
    if run.device.type != "cuda":
        raise Skip("fbgemm is compared on GPUs")
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

    table = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("", rows, run.sizes.dim, SparseType[kind], EmbeddingLocation.DEVICE)],
        device=run.device,
        output_dtype=SparseType.FP32,
    )
    table.fill_random_weights()
    drawn = [
        torch.randint(rows, (number,), device=run.device) if length == 1 else run.zipf(number * length, rows, s)
        for s in range(3)
    ]
    ids = [each.int() for each in drawn]
    offsets = torch.arange(0, number * length + 1, length, device=run.device, dtype=torch.int32)
    return lambda i: table(ids[i % 3], offsets)


# ---- top-K -------------------------------------------------------------------------------------------------------


def top_k(run: Run) -> None:
    """The 100 rows of highest inner product, exactly, beside a product of half precision and faiss's or cuvs's."""
    rows, dim, k = run.sizes.rows, run.sizes.dim, run.sizes.k
    for number in run.sizes.queries:
        queries = torch.randn(number, dim, device=run.device, generator=run.generator(5))

        def product(queries: Tensor = queries) -> Contender:
            weight = torch.randn(rows, dim, device=run.device).to(torch.float16)
            return lambda _: half_product(queries.to(torch.float16), weight, k)

        def frozen(queries: Tensor = queries) -> Contender:
            table = even_table(rows, dim).to(run.device)
            return lambda _: table.topk(queries, k)

        contenders: dict[str, Built] = {
            "float16 product, torch.topk": product,
            "mgqe 256/64": frozen,
            "faiss on the GPU, flat": lambda q=queries: faiss_flat(run, rows, q, k),
            "cuvs, brute force": lambda q=queries: cuvs_flat(run, rows, q, k),
        }
        targets = {"mgqe 256/64": TOPK} if number > 1 else {}
        what = f"top-{k} of {rows:,} rows, {number:,} queries"
        run.compare(what, contenders, "float16 product, torch.topk", targets)


def half_product(queries: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each query by a product in half precision, a million rows at a time."""
    parts = []
    for start in range(0, len(weight), 1 << 20):
        scores, at = torch.topk(queries @ weight[start : start + (1 << 20)].T, min(k, len(weight) - start))
        parts.append((scores, at + start))
    scores, ids = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    best, at = torch.topk(scores, k)
    return best, ids.gather(1, at)


def faiss_flat(run: Run, rows: int, queries: Tensor, k: int) -> Contender:
    """faiss's exact index in half precision."""
    import faiss

    if run.device.type != "cuda" or not hasattr(faiss, "StandardGpuResources"):
        raise Skip("this faiss is not the build for GPUs" if run.device.type == "cuda" else "compared on GPUs")
    options = faiss.GpuIndexFlatConfig()
    options.useFloat16 = True
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), run.sizes.dim, options)
    for start in range(0, rows, 1 << 20):
        index.add(torch.randn(min(1 << 20, rows - start), run.sizes.dim).numpy())
    host = queries.cpu().numpy()
    return lambda _: index.search(host, k)


def cuvs_flat(run: Run, rows: int, queries: Tensor, k: int) -> Contender:
    """cuvs's exact index."""
    if run.device.type != "cuda":
        raise Skip("compared on GPUs")
    from cuvs.neighbors import brute_force

    index = brute_force.build(torch.randn(rows, run.sizes.dim, device=run.device), metric="inner_product")
    return lambda _: brute_force.search(index, queries, k)


# ---- epochs ------------------------------------------------------------------------------------------------------


def epochs(run: Run) -> None:
    """An epoch of GMF and of SASRec on the demo's data, beside full tables."""
    for model, spec in EPOCHS.items():
        contenders = {name: lambda m=model, s=s: epoch(run, m, s) for name, s in (("full", "full"), ("mgqe", spec))}
        run.compare(f"an epoch of {model} on the demo's data", contenders, "full", {})


def epoch(run: Run, model: str, spec: str) -> Contender:
    """Trains an epoch as `mgqe train` does, of data that are on the device."""
    task = "sequential" if model == "sasrec" else "ranking"
    config = TrainConfig(data="planted", task=task, model=model, embedding=spec)
    data = RunData.load(config)
    module = build_tables(config, data).to(run.device)
    mgqe.start_quantizing(module)
    phase = config.phase("full", data.task.selects_by)
    optimizer, trainer = make_optimizer(module, phase), data.task.on(run.device)

    def train(number: int) -> None:
        run_epoch(module, trainer, phase, number + 1, optimizer, mgqe.quantization_loss, device=run.device)

    return train


# ---- compiled steps ----------------------------------------------------------------------------------------------


def compiled_training(run: Run) -> None:
    """The same steps through torch.compile(fullgraph=True), which may take a minute; so they come last."""
    rows, tiers = run.sizes.rows, two_tiers(run.sizes.rows)
    contenders = {
        "nn.Embedding": full_step(run, rows),
        "mgqe 256/64": quantised_step(run, rows, **tiers),
        "mgqe 256/64, compiled": quantised_step(run, rows, compiled=True, **tiers),
    }
    what = f"compiled training step, {run.sizes.batch:,} Zipf ids, {rows:,} rows"
    run.compare(what, contenders, "nn.Embedding", {"mgqe 256/64, compiled": STEP})


# Of the script's minutes, with those of the checks before.
CHECKS_SHARE = 0.28
PARTS = {training: 0.2, lookups: 0.1, bags: 0.1, top_k: 0.18, memory: 0.02, epochs: 0.06, compiled_training: 0.06}
