"""That results on the device are those of the CPU, before anything is timed."""

from __future__ import annotations

import copy
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import mgqe
from benchmarks.gpu._settings import Run, Sizes, Skip, captured
from mgqe import ops
from mgqe.baselines import AdditiveEmbedding, CCEmbedding, FullEmbedding, HashEmbedding, LowRankEmbedding, QREmbedding
from mgqe.ops import reference
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import make_optimizer
from mgqe.recsys.train.run import build_tables

PROCESSES_S = 90  # after which several processes are given up


def layers_of(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """The arguments of the layers whose results are compared, by name."""
    even = {"num_centroids": sizes.checked_centroids}
    subspaces = {"capacity": "subspaces", "num_subspaces": (sizes.checked_dim // 2, sizes.checked_dim // 4)}
    return {
        "default": {},
        "even": even,
        "sx": {**even, "quantizer": "sx"},
        "subspaces": {**subspaces, "num_centroids": min(sizes.checked_centroids)},
    }


def layer(sizes: Sizes, name: str, warm_up: int = 0) -> mgqe.MGQEmbedding:
    """A layer on the CPU; its codebooks have started unless it warms up."""
    torch.manual_seed(0)
    counts = torch.arange(sizes.checked_rows, 0, -1)
    options = layers_of(sizes)[name]
    made = mgqe.MGQEmbedding(sizes.checked_rows, sizes.checked_dim, counts=counts, warmup_steps=warm_up, **options)
    if not warm_up:
        made.start_quantizing()
    return made


def drawn_ids(run: Run, shape: tuple[int, ...], seed: int, of: float = 1.0) -> Tensor:
    """Ids on the CPU, of all rows or of the first part of them."""
    return torch.randint(int(run.sizes.checked_rows * of), shape, generator=torch.Generator().manual_seed(seed))


def codes(run: Run) -> None:
    """Codes are equal: both decide in double precision."""
    made = torch.Generator().manual_seed(0)
    for subspaces, count, width in run.sizes.checked_codes:
        rows, book = (
            torch.randn(run.sizes.checked_rows // 4, subspaces * width, generator=made),
            torch.randn(subspaces, count, width, generator=made),
        )
        with run.there:
            mine = ops.assign(rows.to(run.device), book.to(run.device)).cpu()
        assert torch.equal(mine, ops.assign(rows, book)), f"codes of {subspaces} x {count} x {width}"


def frozen(run: Run) -> None:
    """Look-ups and bags of frozen tables have the CPU's bits; top-K has its ids and scores, to rounding."""
    rows, dim = run.sizes.checked_rows, run.sizes.checked_dim
    ids = torch.arange(4 * rows).mul_(7).remainder_(rows)
    offsets, queries = torch.arange(0, 4 * rows, 50), torch.randn(5, dim, generator=torch.Generator().manual_seed(1))
    for name in layers_of(run.sizes):
        table = layer(run.sizes, name).freeze()
        assert torch.equal(reference.lookup(ids, table.snapshot.lookup.table), table.lookup(ids)), f"twin of {name}"
        with run.there:
            there = copy.deepcopy(table).to(run.device)  # a copy is laid out anew
            found = there.lookup(ids.to(run.device)).cpu()
            pooled = {m: there.bag(ids.to(run.device), offsets.to(run.device), m).cpu() for m in ("sum", "mean", "max")}
            mine = [each.cpu() for each in there.topk(queries.to(run.device), 10)]
        same_numbers(run, found, table.lookup(ids), f"look-ups of {name}")
        for mode, bags in pooled.items():
            same_numbers(run, bags, table.bag(ids, offsets, mode), f"bags ({mode}) of {name}")
        theirs = table.topk(queries, 10)
        # Sums of a score run in another order than on the CPU, which decides near ties.
        torch.testing.assert_close(mine[0], theirs[0], atol=1e-4, rtol=1e-4)
        same = float((mine[1] == theirs[1]).float().mean())
        assert same > 0.95, f"ids of top-K of {name}: {same:.3f} are the CPU's"


def same_numbers(run: Run, mine: Tensor, theirs: Tensor, what: str) -> None:
    """The same bits on a GPU, nearly so in Triton's interpreter."""
    assert torch.equal(mine, theirs) if run.exact else torch.allclose(mine, theirs, atol=1e-4), what


def training(run: Run) -> None:
    """Vectors, losses and gradients of a step, to rounding; freezing gives the codes of the CPU, but for near ties."""
    ids = drawn_ids(run, (64, 8), 2)
    for name in layers_of(run.sizes):
        mine = layer(run.sizes, name)
        there = copy.deepcopy(mine).to(run.device)
        (mine(ids).square().sum() + mgqe.quantization_loss(mine)).backward()
        expected = mine.eval().freeze().to_dense()
        with run.there:
            (there(ids.to(run.device)).square().sum() + mgqe.quantization_loss(there)).backward()
            made = there.eval().freeze().to_dense()
        for a, b in zip(mine.parameters(), there.parameters(), strict=True):
            if a.grad is not None and b.grad is not None:
                torch.testing.assert_close(b.grad.cpu(), a.grad, atol=1e-3, rtol=1e-3)
        same = (made - expected).abs().amax(1) < 1e-5
        assert same.float().mean() > 0.95, f"codes of {name}: {float(same.float().mean()):.3f} are the CPU's"


def no_waits(run: Run) -> None:
    """torch's sync debug mode raises where a step waits for the device."""
    if run.device.type != "cuda":
        raise Skip("torch watches waits on GPUs alone; tests/nn/test_waits.py counts them on the CPU")
    for name in layers_of(run.sizes):
        there = layer(run.sizes, name).to(run.device)
        optimizer = mgqe.RowwiseAdagrad(there.parameters(), lr=0.01)
        batches = [drawn_ids(run, (4_096,), seed).to(run.device) for seed in range(4)]
        for number, ids in enumerate(batches):
            torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")
            try:
                optimizer.zero_grad()
                (there(ids).square().mean() + mgqe.quantization_loss(there)).backward()
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def no_waits_in_an_epoch(run: Run) -> None:
    """The same for steps of `mgqe train`: all but the first of an epoch, before which its data are drawn."""
    if run.device.type != "cuda":
        raise Skip("torch watches waits on GPUs alone; tests/recsys/test_device.py counts them on the CPU")
    for model in ("gmf", "sasrec"):
        task = "sequential" if model == "sasrec" else "ranking"
        config = TrainConfig(data="planted", task=task, model=model, embedding="mgqe:D=16,K=64/16", batch_size=1_024)
        data = RunData.load(config)
        module, phase = build_tables(config, data).to(run.device), config.phase("quantised", data.task.selects_by)
        mgqe.start_quantizing(module)
        optimizer, trainer = make_optimizer(module, phase), data.task.on(run.device)
        module.train()
        try:
            for number, batch in enumerate(trainer.batches(phase.batch_size, "check", 1)):
                torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")
                with run.device:
                    loss = trainer.loss(module, batch) + mgqe.quantization_loss(module)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if number == 5:
                    break
        finally:
            torch.cuda.set_sync_debug_mode("default")


def late_errors(run: Run) -> None:
    """Ids out of range are an error at the next check, and end nothing."""
    there = torch.nn.ModuleDict({"item": layer(run.sizes, "even").to(run.device)})
    with run.there:
        there["item"](torch.tensor([0, run.sizes.checked_rows], device=run.device))
    message = "no error"
    try:
        mgqe.check_ids(there)
    except IndexError as error:
        message = str(error)
    assert message.startswith(f"item: id {run.sizes.checked_rows} is out of range"), message


def graphs(run: Run) -> None:
    """Passes, losses and the optimiser's step are captured as a CUDA graph, whose replay gives what the step gives."""
    if run.device.type != "cuda":
        raise Skip("CUDA graphs are of GPUs")
    for name in layers_of(run.sizes):
        there = layer(run.sizes, name).to(run.device)
        optimizer = mgqe.RowwiseAdagrad(there.parameters(), lr=0.01)
        ids = drawn_ids(run, (512,), 5).to(run.device)

        def step(
            there: mgqe.MGQEmbedding = there, optimizer: torch.optim.Optimizer = optimizer, ids: Tensor = ids
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            (there(ids).square().mean() + mgqe.quantization_loss(there)).backward()
            optimizer.step()

        graph = captured(step, there)
        ids.copy_(drawn_ids(run, (512,), 6))
        before = {key: value.clone() for key, value in there.state_dict().items()}
        sums = [(state["sum"], state["sum"].clone()) for state in optimizer.state.values()]
        graph.replay()
        replayed = there.raw_weight.detach().clone()
        there.load_state_dict(before)
        for now, earlier in sums:
            now.copy_(earlier)
        with mgqe.one_graph(there):
            step()
        torch.testing.assert_close(there.raw_weight.detach(), replayed, atol=1e-4, rtol=1e-3)


def starts(run: Run) -> None:
    """Codebooks that start and revive on the device serve rows as well as the CPU's; calibration gives its metric."""
    for name in layers_of(run.sizes):
        errors = []
        for device, where in ((torch.device("cpu"), nullcontext()), (run.device, run.there_with_torch)):
            made = layer(run.sizes, name, warm_up=100)
            rows = made.raw_weight.detach().clone()
            made.to(device)
            with where:
                made.start_quantizing()
                made.revive()
                errors.append(float((made.eval().freeze().to_dense() - rows).square().mean()))
        assert errors[1] < 1.1 * errors[0], f"errors of {name}: {errors[1]:.4f}, on the CPU {errors[0]:.4f}"
    model = torch.nn.ModuleDict({"item": layer(run.sizes, "even")})
    batches = [drawn_ids(run, (64,), seed) for seed in range(3)]
    found = []
    for device, where in ((torch.device("cpu"), nullcontext()), (run.device, run.there_with_torch)):
        there = copy.deepcopy(model).to(device)
        given = [ids.to(device) for ids in batches]
        with where:
            found.append(mgqe.calibrate(there, given, lambda m, ids: m["item"](ids).exp().mean(), progress=False))
    mine, theirs = (each.metrics["item"].matrix.cpu() for each in found)
    torch.testing.assert_close(theirs, mine, atol=1e-6, rtol=1e-3)


def distinct_ids(run: Run) -> None:
    """Distinct ids, found on the device and quantised once, give the step that ids give which are quantised again."""
    ids = drawn_ids(run, (2 * run.sizes.checked_rows,), 7, of=0.1).to(run.device)
    for name in layers_of(run.sizes):
        mine = layer(run.sizes, name).to(run.device)
        theirs = copy.deepcopy(mine)
        theirs.distinct_on_gpu = True
        with run.there:
            for each in (mine, theirs):
                (each(ids).square().mean() + mgqe.quantization_loss(each)).backward()
        torch.testing.assert_close(theirs.raw_weight.grad, mine.raw_weight.grad, atol=1e-4, rtol=1e-3)


def baselines(run: Run) -> None:
    """Full tables and the baselines that train: a step's vectors and gradients."""
    ids = drawn_ids(run, (64, 8), 4)
    for kind in (FullEmbedding, HashEmbedding, QREmbedding, LowRankEmbedding, CCEmbedding, AdditiveEmbedding):
        torch.manual_seed(0)
        mine = kind(run.sizes.checked_rows, run.sizes.checked_dim)
        there = copy.deepcopy(mine).to(run.device)
        mine(ids).square().sum().backward()
        with run.there:
            there(ids.to(run.device)).square().sum().backward()
        for a, b in zip(mine.parameters(), there.parameters(), strict=True):
            torch.testing.assert_close(b.grad.cpu(), a.grad, atol=1e-3, rtol=1e-3)


def compiled(run: Run) -> None:
    """torch.compile(fullgraph=True) of forward pass and loss in training gives the eager step, traced alone."""
    for name in layers_of(run.sizes):
        compiled_is_eager(run, name, "aot_eager")


def compiled_by_default(run: Run) -> None:
    """The same with torch's default compiler, whose steps are timed."""
    if run.device.type != "cuda":
        raise Skip("torch's default compiler is checked on GPUs")
    for name in ("even", "default", "sx"):
        compiled_is_eager(run, name, "inductor")


def compiled_is_eager(run: Run, name: str, backend: str | Callable[..., Any]) -> None:
    """A compiled step's loss and the gradients of all parameters are the eager step's, to rounding."""
    ids = drawn_ids(run, (run.sizes.checked_rows // 4,), 3).to(run.device)
    there = layer(run.sizes, name).to(run.device)
    twin = copy.deepcopy(there)

    def loss_of(ids: Tensor) -> Tensor:
        return there(ids).square().mean() + mgqe.quantization_loss(there)

    torch.compiler.reset()
    with run.there:
        with mgqe.one_graph(there):
            mine = torch.compile(loss_of, fullgraph=True, backend=backend)(ids)
            mine.backward()
        theirs = twin(ids).square().mean() + mgqe.quantization_loss(twin)
        theirs.backward()
    what = f"compiled by {backend}: %s of {name}\n%s"
    close_to(mine, theirs, what, "the loss")
    for (parameter, a), b in zip(there.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), what % (f"the gradient of {parameter}", "one is missing")
        if a.grad is not None:
            close_to(a.grad, b.grad, what, f"the gradient of {parameter}")


def close_to(mine: Tensor, theirs: Tensor | None, what: str, part: str) -> None:
    """Equal to rounding, or an AssertionError that says of what."""
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3, msg=lambda text: what % (part, text))


BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


def several_processes(run: Run) -> None:
    """DistributedDataParallel over NCCL, two processes where there are two GPUs, else one: tables stay alike.

    On the CPU the same over gloo. Codebooks start within, by a broadcast; plans and the statistics of SX travel, too.
    """
    if not dist.is_available() or not dist.is_backend_available(BACKENDS[run.device.type]):
        raise Skip(f"this torch has no {BACKENDS[run.device.type]}")
    world = min(2, torch.cuda.device_count()) if run.device.type == "cuda" else 2
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(
            _train_in_parallel, (world, run.device.type, f"{folder}/meet", run.sizes), nprocs=world, join=False
        )
        give_up = time.monotonic() + PROCESSES_S
        try:
            while not context.join(timeout=5.0):  # raises what a process raised
                assert time.monotonic() < give_up, f"the processes did not end in {PROCESSES_S} s"
        finally:
            for process in context.processes:
                process.kill()


def _train_in_parallel(rank: int, world: int, kind: str, meeting: str, sizes: Sizes) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(BACKENDS[kind], init_method=f"file://{meeting}", rank=rank, world_size=world)
    for name in layers_of(sizes):
        there = layer(sizes, name, warm_up=2).to(device)
        parallel = torch.nn.parallel.DistributedDataParallel(there, device_ids=[rank] if kind == "cuda" else None)
        optimizer = torch.optim.Adagrad(there.parameters(), lr=0.01)
        for step in range(5):
            drawn = torch.Generator().manual_seed(2 * step + rank)
            ids = torch.randint(sizes.checked_rows, (256,), generator=drawn).to(device)
            optimizer.zero_grad()
            (parallel(ids).square().mean() + mgqe.quantization_loss(there)).backward()
            optimizer.step()
        assert there.quantizing, name
        for key, mine in there.state_dict().items():
            theirs = mine.to(device).clone()
            dist.broadcast(theirs, 0)
            assert torch.equal(mine.to(device), theirs), f"{key} of {name} differs between the processes"
    dist.destroy_process_group()


CHECKS: dict[str, Callable[[Run], None]] = {
    "codes": codes,
    "frozen tables": frozen,
    "training": training,
    "start, revival, calibration": starts,
    "distinct ids": distinct_ids,
    "baselines": baselines,
    "no waits in a step": no_waits,
    "no waits in an epoch": no_waits_in_an_epoch,
    "ids out of range": late_errors,
    "CUDA graphs": graphs,
    "torch.compile": compiled,
    "several processes": several_processes,
    "torch.compile, its default": compiled_by_default,
}


def check_all(run: Run, results: dict[str, str]) -> None:
    """Run every check, print its result and keep it by name: "right", "skipped: why" or "WRONG: how"."""
    print("Results against the CPU's", flush=True)
    for name, check in CHECKS.items():
        try:
            if time.monotonic() > run.deadline > run.began:
                raise Skip("no time left")
            check(run)
            results[name] = "right"
        except Skip as why:
            results[name] = f"skipped: {why}"
        except Exception as error:  # whatever it is: the next check is to run, too
            results[name] = f"WRONG: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            traceback.print_exc(limit=4)
        print(f"  {name}: {results[name]}", flush=True)
