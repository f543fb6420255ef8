"""That results on the device are those of the CPU, before anything is timed."""

from __future__ import annotations

import copy
import tempfile
import time
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

import mgqe
from benchmarks.gpu._settings import Run, Skip, captured
from mgqe import ops
from mgqe.baselines import AdditiveEmbedding, CCEmbedding, FullEmbedding, HashEmbedding, LowRankEmbedding, QREmbedding
from mgqe.checks.waiting import reads_wait
from mgqe.ops import reference
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import make_optimizer
from mgqe.recsys.train.run import build_tables

N, DIM = 2_000, 16
PROCESSES_S = 90  # after which several processes are given up
COUNTS = torch.arange(N, 0, -1)
LAYERS = {
    "default": {},
    "even": {"num_centroids": (64, 16)},
    "sx": {"num_centroids": (64, 16), "quantizer": "sx"},
    "subspaces": {"capacity": "subspaces", "num_subspaces": (8, 4), "num_centroids": 16},
}


def layer(name: str) -> mgqe.MGQEmbedding:
    """A layer on the CPU whose codebooks have started."""
    torch.manual_seed(0)
    made = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=0, **LAYERS[name])
    made.start_quantizing()
    return made


def codes(run: Run) -> None:
    """Codes are equal: both decide in double precision."""
    made = torch.Generator().manual_seed(0)
    for subspaces, count, width in ((4, 2, 4), (8, 256, 2), (1, 5_000, 3), (1, 65_536, 1)):
        rows, book = (
            torch.randn(500, subspaces * width, generator=made),
            torch.randn(subspaces, count, width, generator=made),
        )
        mine = ops.assign(rows.to(run.device), book.to(run.device)).cpu()
        assert torch.equal(mine, ops.assign(rows, book)), f"codes of {subspaces} x {count} x {width}"


def frozen(run: Run) -> None:
    """Look-ups and bags of frozen tables have the CPU's bits; top-K has its ids and scores, to rounding."""
    ids = torch.arange(4 * N).mul_(7).remainder_(N)
    offsets, queries = torch.arange(0, 4 * N, 50), torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    for name in LAYERS:
        table = layer(name).freeze()
        there = table.to(run.device)
        assert torch.equal(there.lookup(ids.to(run.device)).cpu(), table.lookup(ids)), f"look-ups of {name}"
        assert torch.equal(reference.lookup(ids, table.snapshot.lookup.table), table.lookup(ids)), f"twin of {name}"
        for mode in ("sum", "mean", "max"):
            mine = there.bag(ids.to(run.device), offsets.to(run.device), mode).cpu()
            assert torch.equal(mine, table.bag(ids, offsets, mode)), f"bags ({mode}) of {name}"
        mine, theirs = there.topk(queries.to(run.device), 10), table.topk(queries, 10)
        # Sums of a score run in another order than on the CPU, which decides near ties.
        torch.testing.assert_close(mine[0].cpu(), theirs[0], atol=1e-4, rtol=1e-4)
        same = float((mine[1].cpu() == theirs[1]).float().mean())
        assert same > 0.95, f"ids of top-K of {name}: {same:.3f} are the CPU's"


def training(run: Run) -> None:
    """Vectors, losses and gradients of a step, to rounding; freezing gives the codes of the CPU, but for near ties."""
    ids = torch.randint(N, (64, 8), generator=torch.Generator().manual_seed(2))
    for name in LAYERS:
        mine = layer(name)
        there = copy.deepcopy(mine).to(run.device)
        for each, given in ((mine, ids), (there, ids.to(run.device))):
            (each(given).square().sum() + mgqe.quantization_loss(each)).backward()
        for a, b in zip(mine.parameters(), there.parameters(), strict=True):
            if a.grad is not None and b.grad is not None:
                torch.testing.assert_close(b.grad.cpu(), a.grad, atol=1e-3, rtol=1e-3)
        same = (there.eval().freeze().to_dense() - mine.eval().freeze().to_dense()).abs().amax(1) < 1e-5
        assert same.float().mean() > 0.95, f"codes of {name}: {float(same.float().mean()):.3f} are the CPU's"


def no_waits(run: Run) -> None:
    """torch's sync debug mode raises where a step waits for the device."""
    if run.device.type != "cuda":
        raise Skip("torch watches waits on GPUs alone; tests/nn/test_waits.py counts them on the CPU")
    for name in LAYERS:
        there = layer(name).to(run.device)
        optimizer = mgqe.RowwiseAdagrad(there.parameters(), lr=0.01)
        batches = [torch.randint(N, (4_096,), device=run.device) for _ in range(4)]
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
    there = torch.nn.ModuleDict({"item": layer("even").to(run.device)})
    if not reads_wait(run.device):
        raise Skip("on the CPU the pass itself raises")
    there["item"](torch.tensor([0, N], device=run.device))
    message = "no error"
    try:
        mgqe.check_ids(there)
    except IndexError as error:
        message = str(error)
    assert message.startswith(f"item: id {N} is out of range"), message


def graphs(run: Run) -> None:
    """Passes, losses and the optimiser's step are captured as a CUDA graph, whose replay gives what the step gives."""
    if run.device.type != "cuda":
        raise Skip("CUDA graphs are of GPUs")
    for name in LAYERS:
        there = layer(name).to(run.device)
        optimizer = mgqe.RowwiseAdagrad(there.parameters(), lr=0.01)
        ids = torch.randint(N, (512,), device=run.device)

        def step(
            there: mgqe.MGQEmbedding = there, optimizer: torch.optim.Optimizer = optimizer, ids: Tensor = ids
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            (there(ids).square().mean() + mgqe.quantization_loss(there)).backward()
            optimizer.step()

        graph = captured(step, there)
        ids.copy_(torch.randint(N, (512,), device=run.device))
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
    for name, options in LAYERS.items():
        errors = []
        for device in ("cpu", run.device):
            torch.manual_seed(0)
            made = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=0, **options)
            rows = made.raw_weight.detach().clone()
            made.to(device)
            made.start_quantizing()
            made.revive()
            errors.append(float((made.eval().freeze().to_dense() - rows).square().mean()))
        assert errors[1] < 1.1 * errors[0], f"errors of {name}: {errors[1]:.4f}, on the CPU {errors[0]:.4f}"
    model = torch.nn.ModuleDict({"item": layer("even")})
    batches = [torch.randint(N, (64,), generator=torch.Generator().manual_seed(s)) for s in range(3)]
    found = []
    for device in ("cpu", run.device):
        there = copy.deepcopy(model).to(device)
        given = [ids.to(device) for ids in batches]
        found.append(mgqe.calibrate(there, given, lambda m, ids: m["item"](ids).exp().mean(), progress=False))
    mine, theirs = (each.metrics["item"].matrix.cpu() for each in found)
    torch.testing.assert_close(theirs, mine, atol=1e-6, rtol=1e-3)


def distinct_ids(run: Run) -> None:
    """Distinct ids, found on the device and quantised once, give the step that ids give which are quantised again."""
    if not reads_wait(run.device):
        raise Skip("on the CPU ids are always distinct")
    ids = torch.randint(N // 10, (4_096,), device=run.device)
    for name in LAYERS:
        mine = layer(name).to(run.device)
        theirs = copy.deepcopy(mine)
        theirs.distinct_on_gpu = True
        for each in (mine, theirs):
            (each(ids).square().mean() + mgqe.quantization_loss(each)).backward()
        torch.testing.assert_close(theirs.raw_weight.grad, mine.raw_weight.grad, atol=1e-4, rtol=1e-3)


def baselines(run: Run) -> None:
    """Full tables and the baselines that train: a step's vectors and gradients."""
    ids = torch.randint(N, (64, 8), generator=torch.Generator().manual_seed(4))
    for kind in (FullEmbedding, HashEmbedding, QREmbedding, LowRankEmbedding, CCEmbedding, AdditiveEmbedding):
        torch.manual_seed(0)
        mine = kind(N, DIM)
        there = copy.deepcopy(mine).to(run.device)
        for each, given in ((mine, ids), (there, ids.to(run.device))):
            each(given).square().sum().backward()
        for a, b in zip(mine.parameters(), there.parameters(), strict=True):
            torch.testing.assert_close(b.grad.cpu(), a.grad, atol=1e-3, rtol=1e-3)


def compiled(run: Run) -> None:
    """torch.compile(fullgraph=True) of forward pass and loss in training gives the step's gradients."""
    ids = torch.randint(N, (512,), generator=torch.Generator().manual_seed(3)).to(run.device)
    for name in LAYERS:
        there = layer(name).to(run.device)
        twin = copy.deepcopy(there)

        def loss_of(ids: Tensor, there: mgqe.MGQEmbedding = there) -> Tensor:
            return there(ids).square().mean() + mgqe.quantization_loss(there)

        torch.compiler.reset()
        with mgqe.one_graph(there):
            torch.compile(loss_of, fullgraph=True, backend="aot_eager")(ids).backward()
        (twin(ids).square().mean() + mgqe.quantization_loss(twin)).backward()
        torch.testing.assert_close(there.raw_weight.grad, twin.raw_weight.grad, atol=1e-4, rtol=1e-3)


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
            _train_in_parallel, (world, run.device.type, f"{folder}/meet"), nprocs=world, join=False
        )
        give_up = time.monotonic() + PROCESSES_S
        try:
            while not context.join(timeout=5.0):  # raises what a process raised
                assert time.monotonic() < give_up, f"the processes did not end in {PROCESSES_S} s"
        finally:
            for process in context.processes:
                process.kill()


def _train_in_parallel(rank: int, world: int, kind: str, meeting: str) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(BACKENDS[kind], init_method=f"file://{meeting}", rank=rank, world_size=world)
    for name, options in LAYERS.items():
        torch.manual_seed(0)
        there = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, warmup_steps=2, **options).to(device)
        parallel = torch.nn.parallel.DistributedDataParallel(there, device_ids=[rank] if kind == "cuda" else None)
        optimizer = torch.optim.Adagrad(there.parameters(), lr=0.01)
        for step in range(5):
            ids = torch.randint(N, (256,), generator=torch.Generator().manual_seed(2 * step + rank)).to(device)
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
