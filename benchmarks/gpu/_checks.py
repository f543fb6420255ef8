"""That results on the device are those of the CPU, before anything is timed."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

import mgqe
from benchmarks.gpu._settings import Run, Skip, captured
from mgqe import ops
from mgqe.checks.waiting import reads_wait
from mgqe.ops import reference

N, DIM = 2_000, 16
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
    """Look-ups, bags and top-K of frozen tables have the CPU's bits."""
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
        assert torch.equal(mine[1].cpu(), theirs[1]), f"ids of top-K of {name}"
        assert torch.equal(mine[0].cpu(), theirs[0]), f"scores of top-K of {name}"


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


def nccl(run: Run) -> None:
    """Two processes, DistributedDataParallel over NCCL: codebooks and rows stay alike."""
    if run.device.type != "cuda" or torch.cuda.device_count() < 2:
        raise Skip("needs two GPUs; gloo is tested on the CPU")
    torch.multiprocessing.spawn(_train_in_parallel, (29_531,), nprocs=2)


def _train_in_parallel(rank: int, port: int) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    there = layer("even").to(device)
    parallel = torch.nn.parallel.DistributedDataParallel(there, device_ids=[rank])
    optimizer = torch.optim.Adagrad(there.parameters(), lr=0.01)
    for step in range(5):
        ids = torch.randint(N, (256,), generator=torch.Generator().manual_seed(2 * step + rank)).to(device)
        optimizer.zero_grad()
        (parallel(ids).square().mean() + mgqe.quantization_loss(there)).backward()
        optimizer.step()
    mine = there.raw_weight.detach()
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    assert torch.equal(mine, theirs), "rows differ between the processes"
    dist.destroy_process_group()


CHECKS: dict[str, Callable[[Run], None]] = {
    "codes": codes,
    "frozen tables": frozen,
    "training": training,
    "no waits in a step": no_waits,
    "ids out of range": late_errors,
    "CUDA graphs": graphs,
    "torch.compile": compiled,
    "NCCL": nccl,
}


def check_all(run: Run) -> dict[str, str]:
    """Run every check and print its result: "right", "skipped: why" or "WRONG: how"."""
    print("Results against the CPU's", flush=True)
    results = {}
    for name, check in CHECKS.items():
        try:
            check(run)
            results[name] = "right"
        except Skip as why:
            results[name] = f"skipped: {why}"
        except Exception as error:  # whatever it is: the next check is to run, too
            results[name] = f"WRONG: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            traceback.print_exc(limit=4)
        print(f"  {name}: {results[name]}", flush=True)
    return results
