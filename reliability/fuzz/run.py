"""Cases, each a number: which artefact, how damaged. They are tried in children that may crash, hang or run out."""

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
CPU_SECONDS, SECONDS = 5.0, 60.0  # per case: at work, and in all
HUNG = (signal.SIGALRM, signal.SIGPROF)
MEMORY = 1 << 30  # bytes a child may take besides what it starts with


@dataclass(frozen=True)
class Case:
    """One damaged artefact."""

    number: int
    artefact: Artefact
    mutation: str
    files: Files


@dataclass(frozen=True)
class Result:
    """Of one case."""

    number: int
    kind: str
    name: str
    mutation: str
    outcome: Outcome


def case_of(artefacts: Sequence[Artefact], seed: int, number: int) -> Case:
    """A case by its number: the same artefact and damage whenever it is asked for."""
    rng = Random(f"{seed} {number}")
    artefact = rng.choice(artefacts)
    mutation, files = mutate(rng, artefact.files)
    return Case(number, artefact, mutation, files)


@dataclass
class Fuzzer:
    """Tries cases in children.

    Attributes:
        artefacts: whole ones.
        expected: what each gives when it is whole.
        seed: of the cases.
        folder: where children write.
        on_result: called with each result, in this process.
    """

    artefacts: Sequence[Artefact]
    seed: int
    folder: Path
    on_result: Callable[[Result], None]
    expected: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def run(self, jobs: int, first: int, more: Callable[[int], bool]) -> int:
        """Try cases from ``first`` on while ``more(number)``, in ``jobs`` children at a time; how many were tried."""
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
        """What whole artefacts give; in this process, so that the children start with warm caches."""
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
    """A forked process that tries a batch and writes a line per case."""

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
            signal.setitimer(signal.ITIMER_REAL, SECONDS)  # nobody handles these signals: they end the process
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            result = fuzzer.try_one(number, folder)
            about = [number, result.kind, result.name, result.mutation, result.outcome.name, result.outcome.message]
            os.write(end, json.dumps(about).encode() + b"\n")
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)

    def read(self, on_result: Callable[[Result], None], fuzzer: Fuzzer) -> int:
        """Take what the child has written; how many cases it was."""
        content = os.read(self.pipe, 1 << 16)
        self.ended = not content
        *lines, self._left = (self._left + content).split(b"\n")
        for line in lines:
            number, kind, name, mutation, outcome, message = json.loads(line)
            on_result(Result(number, kind, name, mutation, Outcome(outcome, message)))
        self._done += len(lines)
        return len(lines)

    def finish(self, on_result: Callable[[Result], None], fuzzer: Fuzzer) -> int:
        """When the child has ended: the case that ended it, if one did, and how many cases that is."""
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
        """The cases that the child has not tried."""
        return self.batch[self._done :]


def limit_memory(more: int) -> None:
    """Let this process take so many bytes of address space besides what it has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # no Linux
        return
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
