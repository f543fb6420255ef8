"""Calls load_model while save_model replaces the folder, again and again: every load must give one whole model.

    python tests/support/model_folder_stress.py --loads 2000

prints the loads, the saves meanwhile, and what went wrong, and exits with 1 if anything did.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import mgqe
from mgqe.baselines import FullEmbedding
from mgqe.convert import saves
from mgqe.files import locks

TABLES = 8


class Many(nn.Module):
    """Several tables and a few dense weights, all of one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(50, 4) for _ in range(TABLES)])
        self.head = nn.Linear(4, 2)
        self.value = value
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)

    def frozen(self) -> Many:
        """This model, with frozen tables."""
        for n in range(TABLES):
            full = FullEmbedding(50, 4, _weight=torch.full((50, 4), self.value))
            self.tables[n] = mgqe.CompactEmbedding(full.freeze())
        return self

    def values(self) -> set[float]:
        """The distinct values in the model: a single one, if it is whole."""
        dense = torch.cat([self.head.weight.detach().flatten(), self.head.bias.detach()])
        return {*dense.tolist(), *(x for table in self.tables for x in table(torch.arange(50)).unique().tolist())}


def save_until(stop: Callable[[], bool], folder: Path, first: int, saves: Callable[[], None]) -> None:
    """Save models of the values first, first + 10, ... to the folder, one over the other."""
    value = first
    while not stop():
        mgqe.save_model(Many(float(value)).frozen(), folder)
        saves()
        value = (value + 10) % 1000


def load_until(
    stop: Callable[[], bool], folder: Path, loaded: Callable[[], None], wrong: Callable[[str], None]
) -> None:
    """Load the folder, and report every load that is not one whole model."""
    while not stop():
        try:
            values = mgqe.load_model(Many(-1.0), folder).values()
            if len(values) != 1 or values == {-1.0}:
                wrong(f"a mixture of {sorted(values)}")
        except Exception:
            wrong(traceback.format_exc(limit=4))
        loaded()


class Tally:
    """Counts of all processes and threads, and whether to stop."""

    def __init__(self, context: multiprocessing.context.BaseContext, loads: int, seconds: float) -> None:
        self.loads, self.saves = context.Value("q", 0), context.Value("q", 0)
        self.wrong = context.SimpleQueue()
        self.enough, self.end = loads, time.monotonic() + seconds

    def stop(self) -> bool:
        """Whether there were enough loads, or the time is over."""
        return self.loads.value >= self.enough or time.monotonic() > self.end

    def loaded(self) -> None:
        """Count a load."""
        with self.loads.get_lock():
            self.loads.value += 1

    def saved(self) -> None:
        """Count a save."""
        with self.saves.get_lock():
            self.saves.value += 1


def work(tally: Tally, folder: Path, first: int, has_locks: bool) -> None:
    """Save in one thread and load in another one, in this process."""
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # makes saves several times faster; no machine is switched off here
    if not has_locks:
        saves._lock = locks._lock = lambda *args, **keywords: None
    threads = [threading.Thread(target=save_until, args=(tally.stop, folder, first, tally.saved))]
    threads.append(threading.Thread(target=load_until, args=(tally.stop, folder, tally.loaded, tally.wrong.put)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stress(
    folder: Path, loads: int, seconds: float, processes: int = 2, has_locks: bool = True
) -> tuple[int, int, list[str]]:
    """(loads, saves in the meantime, descriptions of failures)."""
    context = multiprocessing.get_context("spawn")
    tally = Tally(context, loads, seconds)
    mgqe.save_model(Many(0.0).frozen(), folder)
    workers = [context.Process(target=work, args=(tally, folder, n + 1, has_locks)) for n in range(processes)]
    for worker in workers:
        worker.start()
    wrong = []
    while any(worker.is_alive() for worker in workers) or not tally.wrong.empty():
        if tally.wrong.empty():
            time.sleep(0.05)
        else:
            wrong.append(tally.wrong.get())
    wrong += [f"a process ended with {worker.exitcode}" for worker in workers if worker.exitcode]
    return tally.loads.value, tally.saves.value, wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--no-locks", action="store_true", help="as on a system without file locks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loads, saves, wrong = stress(
            Path(folder) / "model", options.loads, options.seconds, has_locks=not options.no_locks
        )
        left = len(list((Path(folder) / "model").iterdir()))
    for text in wrong[:5]:
        print(text)
    print(f"{loads:,} loads during {saves:,} saves of {TABLES} tables: {len(wrong)} went wrong; {left} files are left")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
