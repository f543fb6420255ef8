"""One table, many readers: threads beside a writer, processes on one mapped file, forks; kernels without the GIL."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mgqe import CompactTable, Tiers, append, load, ops, save
from mgqe.ops import _library as native

THREADS = 64


def value_table(n, subspaces=4):
    """Centroid k of every subspace is the number k, so that the vector (v, v, ...) decodes to itself; all ids 0."""
    book = torch.arange(256.0)[None, :, None].expand(subspaces, -1, -1)
    sizes = (n // 4, n - n // 4)
    codes = [torch.zeros(size, subspaces, dtype=torch.int64) for size in sizes]
    return CompactTable.from_codes(Tiers.from_sizes(sizes), codes, [book], (0, 0), (256, 256))


def mixed_value_table(n):
    """The same, but with a matrix, as a mixed table."""
    book = torch.arange(256.0).repeat(4)
    sizes, bits = (n // 4, n - n // 4), ((8, 8, 8, 8),) * 2
    codes = [torch.zeros(size, 4, dtype=torch.int64) for size in sizes]
    return CompactTable.from_mixed_codes(
        Tiers.from_sizes(sizes), codes, [book], (0, 0), (1, 1, 1, 1), bits, mean=torch.zeros(4), matrix=torch.eye(4)
    )


# What readers do: a call on a table of at least n ids, and what it must give when ids have these values (N,).
# A method that reads a table is tested by one line here.
READS = {
    "lookup": (lambda t, n: t.lookup(torch.arange(n))[:, 0], lambda v, n: v[:n]),
    "two threads": (lambda t, n: t.lookup(torch.arange(2100) % n)[:, 3], lambda v, n: v[torch.arange(2100) % n]),
    "codes": (lambda t, n: t.codes(torch.arange(n))[:, 1].float(), lambda v, n: v[:n]),
    "bag": (lambda t, n: t.bag(torch.arange(n)[None])[0, 0], lambda v, n: v[:n].sum()),
    "topk": (lambda t, n: t.topk(torch.ones(4), 3)[0], lambda v, n: 4 * v.sort(descending=True).values[:3]),
    "unknown id": (lambda t, n: t.lookup(torch.tensor([-1]))[0], lambda v, n: torch.full((4,), 7.0)),
    "tiers": (lambda t, n: torch.tensor(sum(t.tiers.sizes) >= n), lambda v, n: torch.tensor(True)),
}  # fmt: skip


@pytest.fixture
def _eager_switching():
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(2)
    yield
    sys.setswitchinterval(before)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_eager_switching")
@pytest.mark.parametrize("make", [value_table, mixed_value_table])
def test_readers_beside_a_writer(make):
    """Every answer is that of a state which was current at some moment of the call; appended ids are there at once."""
    table = make(20).with_fallback(torch.full((4,), 7.0))
    states = [torch.zeros(20)]  # every state, in order; one is added before it is published
    published = [0]  # states[:published[0] + 1] have been
    newest = [19]  # an id that append has returned
    seen, errors, done = set(), [], threading.Event()

    def reader(number):
        names = list(READS)
        try:
            while not done.is_set():
                name = names[number % len(names)]
                number += 1
                table.lookup(torch.tensor([newest[0]]))
                oldest, n = published[0], table.num_embeddings
                answer = READS[name][0](table, n)
                seen.add((name, n, oldest, len(states) - 1, tuple(answer.reshape(-1).tolist())))
        except BaseException as error:
            errors.append(error)

    def append_rows(value, tier):
        states.append(torch.cat([states[-1], torch.full((3,), value)]))
        newest[0] = int(table.append(torch.full((3, 4), value), tier)[-1])
        published[0] += 1

    def update_rows(ids, value):
        states.append(states[-1].index_fill(0, ids, value))
        table.update(ids, torch.full((len(ids), 4), value))
        published[0] += 1

    threads = [threading.Thread(target=reader, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        for step in range(1, 41):
            append_rows(float(step), step // 8 % 2)
            # Ids of both tiers of the base and of what was just appended, all at once.
            update_rows(torch.tensor([0, 19, newest[0]]), 100.0 + step)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert torch.equal(table.lookup(torch.arange(140))[:, 2], states[-1])
    assert {name for name, *_ in seen} == READS.keys()
    for name, n, oldest, latest, answer in seen:
        possible = [READS[name][1](values, n) for values in states[oldest : latest + 1] if len(values) >= n]
        assert answer in {tuple(p.reshape(-1).tolist()) for p in possible}, (name, n, oldest, latest)


@pytest.mark.usefixtures("_eager_switching")
def test_writers_wait_for_each_other():
    table = value_table(20)
    found, errors = {}, []

    def writer(number):
        try:
            for step in range(10):
                ids = tuple(table.append(torch.full((2, 4), float(number)), step % 2).tolist())
                found[ids] = number
                table.update(torch.tensor([number]), torch.full((1, 4), float(step + 1)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(i for ids in found for i in ids) == list(range(20, 180))
    for ids, number in found.items():
        assert table.lookup(torch.tensor(ids))[:, 0].tolist() == [number, number]
    assert table.lookup(torch.arange(8))[:, 0].tolist() == [10.0] * 8


# ---- the interpreter's lock ------------------------------------------------------------------------------------


def long_calls():
    """Kernel calls of 30 milliseconds or more: name, and arguments that stay alive."""
    table = value_table(1000, subspaces=64)
    ids, out = torch.randint(0, 1000, (400_000,)), torch.empty(400_000, 64)
    descriptor = table.snapshot.lookup.descriptor
    yield "mgqe_lookup", [descriptor.address, ids.data_ptr(), ids.numel(), out.data_ptr(), 1], (table, ids, out)
    rows, book = torch.rand(40_000, 32), torch.rand(4, 1024, 8)
    codes = torch.empty(40_000, 4, dtype=torch.int32)
    arguments = [rows.data_ptr(), book.data_ptr(), None, 40_000, 4, 1024, 8, codes.data_ptr(), 1]
    yield "mgqe_assign", arguments, (rows, book, codes)


@pytest.mark.skipif(not ops.native_available(), reason="the native library is not built")
def test_kernels_run_without_the_interpreters_lock():
    """Another thread runs Python in the middle half of a call; in a call that keeps the lock it cannot."""
    keeps_the_lock = ctypes.PyDLL(str(native._LIBRARY))
    for name, arguments, _alive in long_calls():
        kept = getattr(keeps_the_lock, name)
        kept.argtypes, kept.restype = native._SIGNATURES[name], ctypes.c_int32
        released = getattr(native.library(), name)
        assert any(ticks_within(released, arguments) for _ in range(200))  # on a busy machine few calls show it
        assert any(ticks_within(kept, arguments) == 0 for _ in range(3))


def ticks_within(function, arguments):
    """How often a second thread came to run while the call was in its middle half."""
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    other = threading.Thread(target=tick)
    other.start()
    try:
        start = time.perf_counter()
        assert function(*arguments) == 0
        length = time.perf_counter() - start
    finally:
        stop.set()
        other.join()
    return sum(start + length / 4 < tick < start + 3 * length / 4 for tick in ticks)


# ---- processes -------------------------------------------------------------------------------------------------

SERVER = """
    import json, re, sys
    import torch
    import mgqe

    path = sys.argv[1]
    table = mgqe.load(path)

    def answer():
        rows = table.lookup(torch.arange(table.num_embeddings))  # touches every page of the codes
        return {"ids": table.num_embeddings, "sum": float(rows.double().sum())}

    def memory():
        "Kilobytes of the mapped file by kind, or nothing where the system does not tell."
        found, mine = {}, False
        try:
            for line in open("/proc/self/smaps"):
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    mine = line.rstrip().endswith(path)
                elif mine and line.endswith("kB\\n"):
                    name, size, _ = line.split()
                    found[name.rstrip(":")] = found.get(name.rstrip(":"), 0) + int(size)
        except OSError:
            pass
        return found

    for line in sys.stdin:
        if line.strip() == "load":
            table = mgqe.load(path)
        print(json.dumps({**answer(), "memory": memory() if line.strip() == "memory" else {}}), flush=True)
"""


@pytest.fixture
def servers(tmp_path):
    """Two processes that serve one file of 4 MB of codes."""
    path = tmp_path / "items.safetensors"
    save(value_table(1 << 20), path)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]

    def ask(what):
        for server in started:
            server.stdin.write(f"{what}\n")
            server.stdin.flush()
        return [json.loads(server.stdout.readline()) for server in started]

    yield path, ask
    for server in started:
        server.stdin.close()
        server.wait()
        server.stdout.close()


def test_processes_share_one_mapped_file(servers):
    """They go on with what they loaded while another process appends and saves, and hold the file's memory once."""
    path, ask = servers
    n = 1 << 20
    first = [{"ids": n, "sum": 0.0, "memory": {}}] * 2
    assert ask("answer") == first
    for own in (answer["memory"] for answer in ask("memory")):
        assert own.get("Rss") or not os.path.exists("/proc/self/smaps")
        if own.get("Rss"):
            assert own["Rss"] >= 4096  # all of it is there,
            assert own.get("Private_Dirty", 0) == 0
            assert own["Shared_Clean"] >= 0.95 * own["Rss"]  # and the other process has the same pages
    assert append(path, torch.full((5, 4), 3.0)).tolist() == list(range(n, n + 5))
    assert ask("answer") == first
    assert ask("load") == [{"ids": n + 5, "sum": 60.0, "memory": {}}] * 2
    table = load(path)
    table.update(torch.tensor([0, n]), torch.full((2, 4), 100.0))
    save(table, path)
    assert len(list(path.parent.iterdir())) == 1
    assert ask("answer") == [{"ids": n + 5, "sum": 60.0, "memory": {}}] * 2
    assert ask("load") == [{"ids": n + 5, "sum": 848.0, "memory": {}}] * 2


class Rows(Dataset):
    """Looks ids up in whatever process it is read in."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return self.table.num_embeddings

    def __getitem__(self, index):
        return self.table.lookup(torch.tensor([index]))[0], os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("_eager_switching")
def test_forks_after_use(tmp_path):
    table = value_table(16)
    table.append(torch.arange(8.0)[:, None].expand(8, 4))
    table.lookup(torch.zeros(5000, dtype=torch.int64))  # with several threads, whose pool a fork does not have
    save(table, tmp_path / "a")
    for each in (table, load(tmp_path / "a")):
        rows, processes = zip(*DataLoader(Rows(each), batch_size=4, num_workers=2, multiprocessing_context="fork"))
        assert torch.equal(torch.cat(rows), each.lookup(torch.arange(24)))
        assert os.getpid() not in torch.cat(processes).tolist()
    table._writer.__enter__()  # as if another thread were appending
    pid = os.fork()
    if pid == 0:  # a child changes its own copy
        torch.set_num_threads(1)
        status = 1
        try:
            ids = table.append(torch.full((1, 4), 9.0))
            status = 0 if table.lookup(ids).tolist() == [[9.0] * 4] else 2
        finally:
            os._exit(status)
    table._writer.__exit__(None, None, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert table.num_embeddings == 24


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_wait_for_the_threads_of_its_parent():
    """A server that warms up before it forks: the pool of several threads is not there in the child."""
    table = value_table(20_000)
    many, query = torch.randint(20_000, (100_000,)), torch.ones(4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = table.lookup(many), table.bag(many.view(1000, -1)), table.topk(query, 5).ids
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # instead of hanging
            status = 1
            try:
                found = table.lookup(many), table.bag(many.view(1000, -1)), table.topk(query, 5).ids
                # Not by torch: its own operations on several threads may hang here.
                equal = [bytes(a.numpy()) == bytes(b.numpy()) for a, b in zip(found, expected, strict=True)]
                status = 0 if all(equal) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)


def test_all_rows_are_those_of_one_moment():
    table, stop = value_table(500), threading.Event()

    def grow():
        while not stop.is_set():
            table.append(torch.ones(1, 4))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(50):
            before = table.num_embeddings
            assert before <= table.to_dense(chunk=64).shape[0] <= table.num_embeddings
            repr(table)
    finally:
        stop.set()
        writer.join()
