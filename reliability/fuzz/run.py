"""Tries cases in child processes, which may crash, hang or run out of memory.

A case is a number that determines the artefact and its damage.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from reliability.fuzz.build import Artefact, Files
from reliability.fuzz.mutations import mutate
from reliability.fuzz.outcome import Outcome, judge, write_files

BATCH = 400  # cases per child
CPU_SECONDS, SECONDS = 5.0, 60.0  # limits per case: processor time and elapsed time
HUNG = (signal.SIGALRM, signal.SIGPROF)
MEMORY = 1 << 30  # bytes that a child may allocate


@dataclass(frozen=True)
class Case:
    """One damaged artefact."""

    number: int
    artefact: Artefact
    mutation: str
    files: Files


@dataclass(frozen=True)
class Result:
    """The result of one case."""

    number: int
    kind: str
    name: str
    mutation: str
    outcome: Outcome


def case_of(artefacts: Sequence[Artefact], seed: int, number: int) -> Case:
    """The case of a number; seed and number determine the artefact and its damage."""
    rng = Random(f"{seed} {number}")
    artefact = rng.choice(artefacts)
    mutation, files = mutate(rng, artefact.files)
    return Case(number, artefact, mutation, files)


@dataclass
class Fuzzer:
    """Tries cases in child processes.

    Attributes:
        artefacts: the undamaged artefacts.
        expected: the digest that using each undamaged artefact gives, by kind and name.
        seed: determines the cases, together with their numbers.
        folder: the folder to which children write.
        on_result: called with each result, in this process.
    """

    artefacts: Sequence[Artefact]
    seed: int
    folder: Path
    on_result: Callable[[Result], None]
    expected: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def run(self, jobs: int, first: int, more: Callable[[int], bool]) -> int:
        """Try cases from ``first`` on while ``more(number)``, in ``jobs`` children at a time; returns their number."""
        self.learn()
        batches = self._batches(first, more)
        with selectors.DefaultSelector() as selector:
            for lane in range(jobs):
                self._start(selector, lane, batches)
            tried = 0
            while selector.get_map():
                for key, _ in selector.select():
                    child: Child = key.data
                    tried += child.read(self.on_result, self)
                    if child.ended:
                        selector.unregister(child.pipe)
                        tried += child.finish(self.on_result, self)
                        rest = child.rest()
                        self._start(selector, child.lane, iter([rest]) if rest else batches)
        return tried

    def learn(self) -> None:
        """Use the undamaged artefacts, in this process, so that children start with warm caches."""
        from reliability.fuzz.use import use

        for artefact in self.artefacts:
            write_files(self.folder / "whole", artefact.files)
            result = use(artefact.kind, self.folder / "whole", artefact.checked)
            self.expected[artefact.kind, artefact.name] = result

    def _batches(self, start: int, more: Callable[[int], bool]) -> Iterator[range]:
        while more(start):
            end = next((n for n in range(start + 1, start + BATCH) if not more(n)), start + BATCH)
            yield range(start, end)
            start = end

    def _start(self, selector: selectors.BaseSelector, lane: int, batches: Iterator[range]) -> None:
        batch = next(batches, None)
        if batch is not None:
            child = Child(self, lane, batch)
            selector.register(child.pipe, selectors.EVENT_READ, child)

    def try_one(self, number: int, folder: Path) -> Result:
        """One case, in this process."""
        case = case_of(self.artefacts, self.seed, number)
        outcome = judge(case.artefact, folder, case.files, self.expected[case.artefact.kind, case.artefact.name])
        return Result(number, case.artefact.kind, case.artefact.name, case.mutation, outcome)


class Child:
    """A forked process that tries a batch and writes one line per case."""

    def __init__(self, fuzzer: Fuzzer, lane: int, batch: range) -> None:
        self.lane, self.batch, self.ended = lane, batch, False
        self._current = mmap.mmap(-1, 8)  # the case at work, shared with the child
        self._current[:8] = batch.start.to_bytes(8, "little")
        self._left = b""
        self._done = 0
        self.pipe, end = os.pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self.pipe)
                self._work(fuzzer, end)
                status = 0
            finally:
                os._exit(status)
        os.close(end)

    def _work(self, fuzzer: Fuzzer, end: int) -> None:
        limit_memory(MEMORY)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        folder = fuzzer.folder / f"lane-{self.lane}"
        for number in self.batch:
            self._current[:8] = number.to_bytes(8, "little")
            signal.setitimer(signal.ITIMER_REAL, SECONDS)  # these signals have no handler and end the process
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            result = fuzzer.try_one(number, folder)
            about = [number, result.kind, result.name, result.mutation, result.outcome.name, result.outcome.message]
            os.write(end, json.dumps(about).encode() + b"\n")
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)

    def read(self, on_result: Callable[[Result], None], fuzzer: Fuzzer) -> int:
        """Report the results that the child has written; returns their number."""
        content = os.read(self.pipe, 1 << 16)
        self.ended = not content
        *lines, self._left = (self._left + content).split(b"\n")
        for line in lines:
            number, kind, name, mutation, outcome, message = json.loads(line)
            on_result(Result(number, kind, name, mutation, Outcome(outcome, message)))
        self._done += len(lines)
        return len(lines)

    def finish(self, on_result: Callable[[Result], None], fuzzer: Fuzzer) -> int:
        """Report the case that ended the child, if one did; returns 1 or 0."""
        os.close(self.pipe)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return 0
        number = int.from_bytes(self._current[:8], "little")
        case = case_of(fuzzer.artefacts, fuzzer.seed, number)
        why = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        outcome = Outcome("hang" if -code in HUNG else "crash", why)
        on_result(Result(number, case.artefact.kind, case.artefact.name, case.mutation, outcome))
        self._done += 1
        return 1

    def rest(self) -> range:
        """The cases that the child did not try."""
        return self.batch[self._done :]


def limit_memory(more: int) -> None:
    """Limit this process to ``more`` bytes of address space in addition to what it has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not on Linux
        return
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
