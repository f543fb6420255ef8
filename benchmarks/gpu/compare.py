"""On a GPU: results against the CPU's, then times and memory against nn.Embedding, fbgemm, faiss and cuvs.

python -m benchmarks.gpu.compare    (or benchmarks/gpu.sh)

It is made for eight minutes and needs no network. Nothing new begins when the minutes are over, and what is left out is
printed with its reason. --small --device cpu shows that the script works, on any machine; its times say nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import ROOT, environment
from benchmarks.gpu._checks import check_all
from benchmarks.gpu._settings import Run, Sizes, against_aims, aim_line
from benchmarks.gpu._speed import CHECKS_SHARE, PARTS
from mgqe.checks.devices import usable_device
from mgqe.checks.waiting import as_on_gpu, reads_wait
from mgqe.ops._triton import triton_on

MINUTES = 7.5
SPARE_S = 22  # after which what has begun is stopped, so that all ends in under eight minutes


class _Over(BaseException):
    """Not an error that a check or a contender may have."""


@contextmanager
def stopped_after(seconds: float) -> Iterator[list[bool]]:
    """Stop what is within after so many seconds; the list has an entry then. Where there are no alarms it goes on."""
    stopped: list[bool] = []
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: Any) -> None:
        raise _Over

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield stopped
    except _Over:
        stopped.append(True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def gpu(device: torch.device) -> dict[str, Any]:
    """What the device is, and whether there are kernels; on the CPU those of the checks, by Triton's interpreter."""
    if device.type != "cuda":
        with as_on_gpu():
            return {"device": str(device), "triton_kernels": triton_on(device) is not None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "triton_kernels": triton_on(device) is not None,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run everything; the exit status is 1 if a result was wrong, or something of mgqe raised an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 and so on, or cpu (default: cuda)")
    parser.add_argument("--small", action="store_true", help="small tables, one call of each")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which nothing new begins (default: 7.5)")
    out = ROOT / "benchmarks" / "gpu" / "results" / "compare.json"
    parser.add_argument("--out", type=Path, default=out, help="where the JSON goes (default: beside the script)")
    options = parser.parse_args(arguments)
    try:
        device = usable_device(options.device)
    except ValueError as error:
        parser.error(f"{error} (with --small)")
    began = time.monotonic()
    sizes = Sizes.small() if options.small else Sizes()
    run = Run(device, sizes, began + 60 * options.minutes, began)
    if device.index is not None:
        torch.cuda.set_device(device)  # so that no launch has to change it
    torch.manual_seed(0)
    shares = {"checks": CHECKS_SHARE, **{part.__name__: share for part, share in PARTS.items()}}
    parts = ", ".join(f"{name} {options.minutes * share:.1f}" for name, share in shares.items())
    print(f"Minutes of each part: {parts}", flush=True)
    checks: dict[str, str] = {}
    with stopped_after(60 * max(options.minutes, MINUTES) + SPARE_S) as stopped:
        check_all(run, checks)
        total, planned = 60 * options.minutes, began + 60 * options.minutes * CHECKS_SHARE
        for part, share in PARTS.items():
            planned += total * share
            # What earlier parts left may be used; where they took longer, this one has its share all the same.
            run.deadline = min(began + total, max(planned, time.monotonic() + total * share))
            part(run)
    if stopped:
        run.skip("the rest", "the script was stopped: no time left")
    aims = against_aims(run)
    print("\nRatios beside what they are to be", *map(aim_line, aims), sep="\n", flush=True)
    content = {
        "benchmark": "gpu",
        "options": {"device": str(device), "small": options.small, "minutes": options.minutes},
        "environment": {**environment(), **gpu(device), "waits": reads_wait(device)},
        "seconds": round(time.monotonic() - began, 1),
        "checks": checks,
        "aims": aims,
        "results": run.rows,
        "skipped": run.skipped,
        "failed": run.failed,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{content['seconds']} s, written to {options.out}", file=sys.stderr)
    return int(bool(run.failed) or any(result.startswith("WRONG") for result in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
