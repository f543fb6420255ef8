"""`mgqe serve` under load on loopback: throughput, and p50 and p99 of the time until the answer is read.

Starts the server on a free port with a table of random codes, and for each kind of request keeps --clients connections
busy, each sending its next request when it has the last one's answer. The clients run in processes of their own but on
the same machine, so they take part of its cores. Meanwhile one more connection asks /health every 20 ms: its times show
whether the event loop stays free. Answers of one client are checked against the table's own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing as mp
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import mgqe
from benchmarks._common import SPEED, environment
from benchmarks.speed._topk import make_table


@contextmanager
def running(path: Path) -> Iterator[int]:
    """The server's port, once it listens."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "mgqe.cli", "serve", str(path), "--port", "0"]
    with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the server stopped")
            yield int(line.rsplit(":", 1)[1])
        finally:
            server.terminate()


class Client:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[float, bytes]:
        """Seconds until the answer was read, and the answer."""
        start = time.perf_counter()
        self.connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = self.connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - start
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:200]!r}")
        return seconds, content


def keep_busy(port: int, path: str, bodies: list[str], until: float, to: Any) -> None:
    """One client process: times of its requests, one after the other, until the clock says so."""
    client, times = Client(port), []
    while time.time() < until:
        times.append(client.ask("POST", path, bodies[len(times) % len(bodies)])[0])
    to.put(times)


def watch(port: int, until: float, times: list[float]) -> None:
    """Times of /health, asked now and then."""
    client = Client(port)
    while time.time() < until:
        times.append(client.ask("GET", "/health")[0])
        time.sleep(0.02)


def load(port: int, path: str, bodies: list[str], clients: int, seconds: float) -> tuple[list[float], list[float]]:
    """Times of all requests of one kind, and of /health meanwhile."""
    context = mp.get_context("fork")
    results, until = context.Queue(), time.time() + seconds
    workers = [context.Process(target=keep_busy, args=(port, path, bodies, until, results)) for _ in range(clients)]
    for worker in workers:
        worker.start()
    health: list[float] = []
    watcher = threading.Thread(target=watch, args=(port, until, health))
    watcher.start()
    times = [t for _ in workers for t in results.get(timeout=seconds + 60)]
    for worker in (*workers, watcher):
        worker.join()
    return times, health


def percentile(times: list[float], share: float) -> float:
    if len(times) < 2:
        raise SystemExit("too few requests were answered: give more --seconds")
    return statistics.quantiles(times, n=100, method="inclusive")[round(100 * share) - 1]


def check(port: int, table: mgqe.CompactTable) -> None:
    """What the server answers is what the table says."""
    expected = table.topk(table.lookup(torch.tensor([5])), 10)
    answer = json.loads(Client(port).ask("POST", "/topk", '{"ids": [5], "k": 10}')[1])
    same = answer["ids"] == expected.ids.tolist() and torch.equal(torch.tensor(answer["scores"]), expected.scores)
    if not same:
        raise SystemExit("the server's answer differs from the table's")


def after_abandoned(port: int, number: int, rows: int) -> tuple[float, float]:
    """Seconds of a heavy request alone; and of a look-up that comes when so many of them have been given up."""
    ids = torch.randint(rows, (256,), generator=torch.Generator().manual_seed(3)).tolist()
    body = json.dumps({"ids": ids, "k": 100}).encode()
    alone, _ = Client(port).ask("POST", "/topk", body.decode())
    head = f"POST /topk HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
    gone = [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]
    for connection in gone:
        connection.sendall(head.encode() + body)
    time.sleep(0.1)  # the server has read them all
    for connection in gone:
        connection.close()
    return alone, Client(port).ask("POST", "/lookup", '{"ids": [5]}')[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table; 64 dimensions, D=8, K=256")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="connections at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of request and number of clients")
    parser.add_argument("--abandoned", type=int, default=50, help="requests whose clients have gone")
    parser.add_argument("--out", type=Path, default=SPEED / "serve.json", help="where the JSON goes")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    table = make_table([options.rows], [256], 8, 64, 0, dense=False).table
    vectors = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(options.rows, (64, 100), generator=torch.Generator().manual_seed(2))
    kinds = {
        "top-10 of one item": ("/topk", [json.dumps({"ids": [i], "k": 10}) for i in ids[:, 0].tolist()]),
        "top-100 of one vector, 100 excluded": (
            "/topk",
            [json.dumps({"vectors": [v], "k": 100, "exclude": [e]}) for v, e in zip(vectors.tolist(), ids.tolist())],
        ),
        "top-10 of 32 items": ("/topk", [json.dumps({"ids": row[:32], "k": 10}) for row in ids.tolist()]),
        "look-up of 100 ids": ("/lookup", [json.dumps({"ids": row}) for row in ids.tolist()]),
    }
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.safetensors"
        mgqe.save(table, path)
        with running(path) as port:
            check(port, table)
            for name, (where, bodies) in (kinds if options.clients else {}).items():
                load(port, where, bodies, 1, 0.5)  # warm
                for clients in options.clients:
                    times, health = load(port, where, bodies, clients, options.seconds)
                    row = {
                        "request": name,
                        "rows": f"{options.rows:,}",
                        "clients": clients,
                        "requests": len(times),
                        "requests_per_s": len(times) / options.seconds,
                        "p50_ms": 1e3 * percentile(times, 0.5),
                        "p99_ms": 1e3 * percentile(times, 0.99),
                        "health_p50_ms": 1e3 * percentile(health, 0.5),
                        "health_p99_ms": 1e3 * percentile(health, 0.99),
                    }
                    results.append({key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()})
                    print(
                        f"{name:<36} {clients:3} clients {row['requests_per_s']:8.0f} requests/s   "
                        f"p50 {row['p50_ms']:7.2f} ms   p99 {row['p99_ms']:7.2f} ms   "
                        f"/health p99 {row['health_p99_ms']:6.2f} ms",
                        flush=True,
                    )
            alone, seconds = after_abandoned(port, options.abandoned, options.rows)
            print(f"a look-up after {options.abandoned} abandoned requests of {alone:.3f} s each: {seconds:.3f} s")
    kept = {key: value for key, value in vars(options).items() if key != "out"}
    content = {
        "benchmark": "serve",
        "options": kept,
        "environment": {**environment(), "nice": os.nice(0)},
        "results": results,
        "abandoned": {"requests": options.abandoned, "seconds_of_one": alone, "seconds_of_next_look_up": seconds},
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
