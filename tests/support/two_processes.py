"""Starts ddp_worker.py twice and returns what each process ended with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from paths import SUPPORT


def two_processes(mode: str, folder: Path) -> list[dict]:
    worker = SUPPORT / "ddp_worker.py"
    arguments = [str(folder / "meet"), str(folder / "out"), mode]
    running = [subprocess.Popen([sys.executable, str(worker), str(rank), *arguments]) for rank in range(2)]
    try:
        assert [process.wait(timeout=900) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(2)]
