"""From `pip install` to a searched, compressed file: what someone does who has a matrix and a list of string ids.

python -m benchmarks.speed.first_use

A wheel of this clone is built first, which is not counted. Then, in a fresh environment and one after the other, are
counted: installing the wheel with what it needs, compressing the matrix with its ids, and asking for neighbours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._common import ROOT, SPEED, Measurement, save


def write_inputs(folder: Path, rows: int, dim: int, seed: int) -> None:
    """items.npy, whose coordinates vary less and less, and names.txt."""
    made = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    np.save(folder / "items.npy", made / np.sqrt(np.arange(1, dim + 1, dtype=np.float32)))
    (folder / "names.txt").write_text("".join(f"item-{row}\n" for row in range(rows)))


def seconds(command: list[str], folder: Path) -> float:
    """Of a command, whose output is shown."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print(f"$ {' '.join(command)}", flush=True)
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--budget", default="5%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch", default="torch", help="what to install of torch, such as torch==2.13.0")
    parser.add_argument("--out", type=Path, default=SPEED / "first-use.json", help="where the JSON goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.rows, options.dim, options.seed)
        subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", name, str(ROOT)], check=True)
        subprocess.run([sys.executable, "-m", "venv", "fresh"], cwd=folder, check=True)
        (wheel,) = folder.glob("mgqe-*.whl")
        mgqe = "fresh/bin/mgqe"
        steps = {
            "install": ["fresh/bin/python", "-m", "pip", "install", "-q", options.torch, f"{wheel}[cli]"],
            "compress": [mgqe, "compress", "items.npy", "--ids", "names.txt", "--budget", options.budget],
            "search": [mgqe, "neighbours", "items", "item-17"],
        }
        took = {step: seconds(command, folder) for step, command in steps.items()}
    took["all"] = sum(took.values())
    setting = {"rows": options.rows, "dim": options.dim}
    results = [Measurement(setting, step, each, each, each / took["all"]) for step, each in took.items()]
    print(", ".join(f"{step} {each:.0f} s" for step, each in took.items()), f"= {took['all'] / 60:.1f} minutes")
    save(options.out, "first-use", options, results)


if __name__ == "__main__":
    main()
