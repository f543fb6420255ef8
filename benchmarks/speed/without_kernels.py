"""How much longer the README's first example takes without the native kernels, as installed without a compiler.

python -m benchmarks.speed.without_kernels
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks._common import SPEED, Measurement, save

README = Path(__file__).parents[2] / "README.md"
TIMED = """
import sys, tempfile, time, warnings
warnings.simplefilter("ignore")
import torch, mgqe
from mgqe import ops
torch.manual_seed(0)
ops.native_available()
with tempfile.TemporaryDirectory() as folder:
    source = sys.stdin.read().replace("items.safetensors", folder + "/items.safetensors")
    started = time.perf_counter()
    exec(source)
    print(time.perf_counter() - started)
"""


def example() -> str:
    """The first block of Python in the README."""
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def seconds(native: bool) -> float:
    """Of one run in a process of its own, imports left out."""
    env = {**os.environ, "MGQE_NATIVE": str(int(native))}
    done = subprocess.run(
        [sys.executable, "-c", TIMED], input=example(), env=env, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind, one after the other")
    parser.add_argument("--out", type=Path, default=SPEED / "without-kernels.json", help="where the JSON goes")
    options = parser.parse_args()
    measured: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.turns):
        for native in measured:
            measured[native].append(seconds(native))
    kernels, without = (statistics.median(measured[native]) for native in (True, False))
    print(f"with kernels {kernels:.2f} s, without {without:.2f} s: {without / kernels:.1f} times as long")
    named = {"with kernels": measured[True], "without": measured[False]}
    found = [
        Measurement({"what": "README's first example"}, name, median, min(times), median / kernels)
        for name, times in named.items()
        for median in [statistics.median(times)]
    ]
    save(options.out, "without_kernels", options, found)


if __name__ == "__main__":
    main()
