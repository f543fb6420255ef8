"""examples/serve_topk.py: answers of the library, its errors as JSON, limits; in process, and once on loopback."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from paths import EXAMPLES

import mgqe
from mgqe import CompactTable, Tiers

httpx = pytest.importorskip("httpx")
for package in ("starlette", "uvicorn", "pydantic", "orjson"):
    pytest.importorskip(package, reason="needs mgqe[serve]")

EXAMPLE = EXAMPLES / "serve_topk.py"


def table_of(rows=2000):
    made = torch.Generator().manual_seed(0)
    sizes = [rows // 10, rows - rows // 10]
    codes = [torch.randint(k, (n, 4), generator=made) for n, k in zip(sizes, (256, 16), strict=True)]
    books = [torch.randn(4, 256, 2, generator=made)]
    return CompactTable.from_codes(Tiers.from_sizes(sizes), codes, books, [0, 0], [256, 16])


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("serve_topk", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table():
    return table_of()


@pytest.fixture
def call(example, table, monkeypatch):
    """(method, path, body) -> status and JSON, from an application with small limits."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # for the whole process: not in the tests' own
    app = example.make_app(table, max_k=50, max_queries=4, max_body=10_000)

    def run(method, path, body=None, **options):
        async def send():
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, json=body, **options)

        answer = asyncio.run(send())
        return answer.status_code, answer.json()

    return run


def test_health(call):
    assert call("GET", "/health") == (200, {"status": "ok", "rows": 2000, "dim": 8})


def test_lookup_gives_the_tables_rows(call, table):
    status, answer = call("POST", "/lookup", {"ids": [0, 7, 1999]})
    assert status == 200
    assert torch.equal(torch.tensor(answer["vectors"]), table.lookup(torch.tensor([0, 7, 1999])))
    assert call("POST", "/lookup", {"ids": []}) == (200, {"vectors": []})


def test_topk_by_vector_and_by_id_are_the_tables(call, table):
    ids = torch.tensor([3, 1500])
    expected = table.topk(table.lookup(ids), 20)
    for body in ({"ids": ids.tolist()}, {"vectors": table.lookup(ids).tolist()}):
        status, answer = call("POST", "/topk", {**body, "k": 20})
        assert status == 200
        assert answer["ids"] == expected.ids.tolist()
        assert torch.equal(torch.tensor(answer["scores"]), expected.scores)


def test_exclusions_for_all_queries_and_a_query(call, table):
    ids = [3, 1500]
    best = call("POST", "/topk", {"ids": ids, "k": 5})[1]["ids"]
    each = call("POST", "/topk", {"ids": ids, "k": 5, "exclude": best})[1]["ids"]
    assert all(not set(a) & set(b) for a, b in zip(best, each, strict=True))
    everywhere = call("POST", "/topk", {"ids": ids, "k": 5, "exclude": best[0] + best[1]})[1]["ids"]
    assert not set(best[0] + best[1]) & set(everywhere[0] + everywhere[1])


def test_fewer_than_k_are_fewer(example, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    app = example.make_app(table_of(20))

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.post("/topk", json={"ids": [0, 1], "k": 20, "exclude": [[4], [5, 6]]})

    answer = asyncio.run(send()).json()
    assert [len(row) for row in answer["ids"]] == [len(row) for row in answer["scores"]] == [19, 18]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/topk", {"ids": [3], "k": 51}, 422, "less than or equal to 50"),
        ("/topk", {"ids": [3], "k": 0}, 400, "k must be in 1 .. 2000"),
        ("/topk", {"ids": [1, 2, 3, 4, 5]}, 422, "at most 4 items"),
        ("/topk", {"vectors": [[0.0] * 8] * 5}, 422, "at most 4 items"),
        ("/topk", {}, 400, "either vectors or ids"),
        ("/topk", {"ids": [1], "vectors": [[0.0] * 8]}, 400, "either vectors or ids"),
        ("/topk", {"ids": [2000]}, 404, "id 2000 is out of range"),
        ("/topk", {"ids": [-1]}, 422, "greater than or equal to 0"),
        ("/topk", {"ids": [2**64]}, 422, "less than"),
        ("/topk", {"ids": [1], "exclude": [2000]}, 404, "exclude holds id 2000"),
        ("/topk", {"ids": [1, 2], "exclude": [[1]]}, 400, "one such tensor per query, 2, got 1"),
        ("/topk", {"vectors": [[1.0]]}, 400, "(B, 8), got (1, 1)"),
        ("/topk", {"vectors": [[1.0], [1.0, 2.0]]}, 400, "expected sequence of length 1"),
        ("/topk", {"vectors": [[1e300] * 8]}, 400, "query 0 holds NaN or infinity"),
        ("/topk", {"ids": [1], "excluded": [1]}, 422, "excluded: Extra inputs"),
        ("/topk", {"ids": "all"}, 422, "ids: "),
        ("/topk", {"ids": [True]}, 422, "valid integer"),
        ("/topk", {"ids": [1], "k": "3"}, 422, "valid integer"),
        ("/lookup", {"ids": [2000]}, 404, "id 2000 is out of range"),
        ("/lookup", {"ids": [1] * 5}, 422, "at most 4 items"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_errors_are_json_with_a_4xx_status(call, path, body, status, message):
    got, answer = call("POST", path, body)
    assert got == status
    assert list(answer) == ["error"]
    assert message in answer["error"]


def test_bodies_that_are_no_json_or_too_long(call):
    async def pieces():
        for _ in range(20):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    assert call("POST", "/topk", content=b'{"ids": [', headers=headers)[0] == 422
    status, answer = call("POST", "/topk", content=b'{"vectors": [[NaN, 0, 0, 0, 0, 0, 0, 0]]}', headers=headers)
    assert (status, answer) == (400, {"error": "query 0 holds NaN or infinity"})
    for content in (b" " * 10_001, pieces()):
        status, answer = call("POST", "/topk", content=content, headers=headers)
        assert (status, answer) == (413, {"error": "the body must have at most 10,000 bytes"})


def test_a_fault_of_the_server_tells_nothing(call, table, monkeypatch):
    def broken(ids):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(table, "lookup", broken)
    assert call("POST", "/lookup", {"ids": [1]}) == (500, {"error": "internal error"})


def test_other_tables_are_refused(example):
    with pytest.raises(TypeError, match="expected a table of codes"):
        example.make_app(torch.nn.Embedding(3, 2))


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_real_server_answers_many_at_once(table, tmp_path):
    mgqe.save(table, tmp_path / "items.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "items.safetensors"), "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as server:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if server.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            assert server.poll() is None, server.stderr.read().decode()
            expected = table.topk(table.lookup(torch.arange(64)), 10).ids.tolist()
            with ThreadPoolExecutor(16) as pool:
                found = list(pool.map(lambda i: post(port, "/topk", {"ids": [i], "k": 10}), range(64)))
            assert [answer["ids"][0] for _, answer in found] == expected
            assert post(port, "/topk", {"ids": [2000]})[0] == 404
            with socket.create_connection(("127.0.0.1", port)) as gone:  # in the middle of a body
                gone.sendall(b"POST /topk HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
            assert post(port, "/lookup", {"ids": [0]})[0] == 200
        finally:
            server.terminate()
        assert "Traceback" not in server.stderr.read().decode()


@contextmanager
def serving(example, app):
    """The port of an application in this process, so that a test can replace what it calls."""
    server = example.uvicorn.Server(example.uvicorn.Config(app, port=0, log_level="error", http=example.Protocol))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def slow(table, monkeypatch):
    """A table whose top-K takes a fifth of a second, and the calls of it."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    plain, calls = table.topk, []

    def topk(*arguments, **options):
        calls.append(time.monotonic())
        time.sleep(0.2)
        return plain(*arguments, **options)

    monkeypatch.setattr(table, "topk", topk)
    return calls


def sent(port, text, length=None):
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    body = text.encode()
    head = f"POST /topk HTTP/1.1\r\nHost: here\r\nContent-Length: {length or len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_work_whose_client_has_gone_is_dropped(example, table, slow):
    with serving(example, example.make_app(table, number=2)) as port:
        gone = [sent(port, '{"ids": [1]}') for _ in range(50)]
        while len(slow) < 2:  # the server is at work
            time.sleep(0.005)
        for connection in gone:
            connection.close()
        start = time.monotonic()
        assert post(port, "/lookup", {"ids": [0]})[0] == 200
        assert time.monotonic() - start < 2.5  # all of them take 5 s
        assert len(slow) < 10


def test_a_full_queue_refuses_at_once(example, table, slow):
    with serving(example, example.make_app(table, number=1, max_waiting=2)) as port, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda i: post(port, "/topk", {"ids": [i]}), range(12)))
        assert post(port, "/topk", {"ids": [1]})[0] == 200
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 503}
    assert 3 <= statuses.count(200) < 12
    assert list({a["error"] for s, a in found if s == 503}) == ["too many requests are waiting: try again later"]


@pytest.mark.parametrize("part", ["nothing", "half a head", "half a second head", "half a body"])
def test_a_request_that_is_not_sent_to_its_end_is_closed(example, table, monkeypatch, part):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(example.Protocol, "seconds", 0.3)
    with serving(example, example.make_app(table, seconds=0.3)) as port:
        if part == "half a body":
            connection = sent(port, "{", length=100)
        else:
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            second = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n" if part == "half a second head" else b""
            connection.sendall(second + (b"" if part == "nothing" else b"POST /topk HT"))
        start, content = time.monotonic(), b""
        while received := connection.recv(4096):
            content += received
        assert 0.2 < time.monotonic() - start < 5
        assert (b"408" in content) == (part == "half a body")
        assert post(port, "/lookup", {"ids": [0]})[0] == 200
