"""mgqe compress needs less memory than its file has bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")]
N, D = 1_500_000, 64  # 384 MB
MOST = 0.6  # of the file's bytes

# Memory of the process's own, without files that are mapped, whose pages the system takes back when it needs them.
COMPRESS = """
import json, sys, threading, time
from mgqe.cli.app import app
from mgqe.vectors.read import read_vectors
import polars  # by which Parquet is read

def own():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

def watch():
    while True:
        most[0] = max(most[0], own())
        time.sleep(0.005)

before = own()
most = [before]
threading.Thread(target=watch, daemon=True).start()
app(["compress", *sys.argv[1:]], standalone_mode=False)
print(json.dumps(most[0] - before))
"""


def write(kind: str, folder: Path) -> Path:
    path = folder / f"items.{kind}"
    rows = np.lib.format.open_memmap(folder / "items.npy", "w+", np.float32, (N, D))
    generator = np.random.default_rng(0)
    for start in range(0, N, 50_000):
        rows[start : start + 50_000] = generator.standard_normal((50_000, D), np.float32)
    if kind == "safetensors":
        save_file({"item.weight": torch.from_numpy(rows)}, path)
    elif kind == "parquet":
        pl = pytest.importorskip("polars")
        frame = pl.DataFrame({"id": np.arange(N), "vector": pl.Series(rows, dtype=pl.Array(pl.Float32, D))})
        frame.write_parquet(path, row_group_size=50_000)
    return path


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_a_file_need_not_fit_in_memory(kind, tmp_path):
    path = write(kind, tmp_path)
    command = [sys.executable, "-c", COMPRESS, str(path), "--budget", "5%", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures, grown = json.JSONDecoder().raw_decode(done.stdout)[0], int(done.stdout.splitlines()[-1])
    assert figures["num_embeddings"] == N
    print(kind, f"{grown:,} bytes for a file of {path.stat().st_size:,}")
    assert grown < MOST * path.stat().st_size
