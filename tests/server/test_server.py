"""mgqe.server: answers of the collection, its errors as JSON, limits; in process, and once on loopback."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import torch

import mgqe
from mgqe import CompactTable, Tiers

httpx = pytest.importorskip("httpx")
for package in ("starlette", "uvicorn", "pydantic", "orjson"):
    pytest.importorskip(package, reason="needs mgqe[serve]")

import uvicorn  # noqa: E402

from mgqe import server  # noqa: E402
from mgqe.server.protocol import Protocol  # noqa: E402
from mgqe.server.run import listening_socket  # noqa: E402


def table_of(rows=2000):
    made = torch.Generator().manual_seed(0)
    sizes = [rows // 10, rows - rows // 10]
    codes = [torch.randint(k, (n, 4), generator=made) for n, k in zip(sizes, (256, 16), strict=True)]
    books = [torch.randn(4, 256, 2, generator=made)]
    return CompactTable.from_codes(Tiers.from_sizes(sizes), codes, books, [0, 0], [256, 16])


def ask(app, method, path, body=None, **options):
    """Status and JSON of a request to an application in this process."""

    async def send():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, json=body, **options)

    answer = asyncio.run(send())
    return answer.status_code, answer.json()


@pytest.fixture
def table():
    return table_of()


@pytest.fixture
def call(table, monkeypatch):
    """(method, path, body) -> status and JSON, from an application with small limits."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # for the whole process: not in the tests' own
    app = server.make_app(mgqe.Collection(table), max_k=50, max_queries=4, max_body=10_000)

    return partial(ask, app)


def test_health(call):
    assert call("GET", "/health") == (200, {"status": "ok", "num_embeddings": 2000, "embedding_dim": 8, "ids": "rows"})


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


def test_fewer_than_k_are_fewer(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    app = server.make_app(mgqe.Collection(table_of(20)))
    answer = ask(app, "POST", "/topk", {"ids": [0, 1], "k": 20, "exclude": [[4], [5, 6]]})[1]
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
        ("/topk", {"ids": [2000]}, 404, "there is no row 2000: rows are 0 to 1999"),
        ("/topk", {"ids": [-1]}, 422, "greater than or equal to 0"),
        ("/topk", {"ids": [2**64]}, 422, "less than"),
        ("/topk", {"ids": [1], "score": "euclidean"}, 422, "'dot' or 'cosine'"),
        ("/lookup", {"ids": [1], "unknown": "none"}, 422, "'error', 'zeros' or 'fallback'"),
        ("/topk", {"ids": [1, 2], "exclude": [[1]]}, 400, "one such tensor per query, 2, got 1"),
        ("/topk", {"vectors": [[1.0]]}, 400, "(B, 8), got (1, 1)"),
        ("/topk", {"vectors": [[1.0], [1.0, 2.0]]}, 400, "expected sequence of length 1"),
        ("/topk", {"vectors": [[1e300] * 8]}, 400, "query 0 holds NaN or infinity"),
        ("/topk", {"ids": [1], "excluded": [1]}, 422, "excluded: Extra inputs"),
        ("/topk", {"ids": "all"}, 422, "ids: "),
        ("/topk", {"ids": [True]}, 422, "valid integer"),
        ("/topk", {"ids": [1], "k": "3"}, 422, "valid integer"),
        ("/lookup", {"ids": [2000]}, 404, "there is no row 2000: rows are 0 to 1999"),
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


def test_what_cannot_be_served_is_refused_with_the_remedy(table):
    items = mgqe.Collection(table)
    full = mgqe.baselines.FullTable(torch.zeros(3, 8))
    narrow = mgqe.Collection(mgqe.baselines.FullTable(torch.zeros(3, 4)))
    bytes_ids = mgqe.Collection(full, [b"a", b"b", b"c"])
    with pytest.raises(TypeError, match=r"expected a collection, got CompactTable: mgqe.Collection"):
        server.make_app(table)
    with pytest.raises(TypeError, match=r"a FullTable has no top-K: serve a table of codes"):
        server.make_app(mgqe.Collection(full))
    with pytest.raises(ValueError, match=r"ids are bytes, which JSON does not have: .* ids of text"):
        server.make_app(items, bytes_ids)
    with pytest.raises(ValueError, match=r"the users' vectors have 4 dimensions and the items' 8"):
        server.make_app(items, narrow)
    with pytest.raises(ValueError, match=r"unknown must be one of error, zeros, fallback, got 'none'"):
        server.make_app(items, unknown="none")
    with pytest.raises(ValueError, match=r"needs a table with one: table.with_fallback"):
        server.make_app(items, unknown="fallback")


def test_a_map_of_hashes_cannot_give_ids_back(table, tmp_path):
    polars = pytest.importorskip("polars")
    ids = mgqe.IdMap.from_log(polars.DataFrame({"id": [f"i{n}" for n in range(2000)]}), "id", keep_ids=False)
    with pytest.raises(ValueError, match="keep_ids"):
        server.make_app(mgqe.Collection(table, ids))


# ---- string ids, users, and ids that are not there --------------------------------------------------------------


@pytest.fixture
def shoes(table, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return mgqe.Collection(table, [f"shoe-{n}" for n in range(2000)])


def test_string_ids_in_and_out(shoes):
    app = server.make_app(shoes)
    assert ask(app, "GET", "/health")[1]["ids"] == "string"
    hits = shoes.topk(shoes.lookup(["shoe-3", "shoe-9"]), 4, exclude=[["shoe-3"], ["shoe-9", "hat"]])
    body = {"ids": ["shoe-3", "shoe-9"], "k": 4, "exclude": [["shoe-3"], ["shoe-9", "hat"]]}
    status, answer = ask(app, "POST", "/topk", body)
    assert (status, answer["ids"]) == (200, hits.ids)
    assert torch.equal(torch.tensor(answer["scores"]), hits.scores)
    cosine = shoes.topk(shoes.lookup(["shoe-3"]), 2, candidates=["shoe-5", "shoe-7", "shoe-8"], score="cosine")
    body = {"ids": ["shoe-3"], "k": 2, "candidates": ["shoe-5", "shoe-7", "shoe-8"], "score": "cosine"}
    assert ask(app, "POST", "/topk", body)[1]["ids"] == cosine.ids
    assert ask(app, "POST", "/lookup", {"ids": [3]}) == (422, {"error": "ids.0: Input should be a valid string"})


def test_ids_that_are_not_there_follow_the_rule(shoes):
    app = server.make_app(shoes)
    status, answer = ask(app, "POST", "/lookup", {"ids": ["hat"]})
    assert (status, "does not know 1 of the ids: 'hat'" in answer["error"]) == (404, True)
    assert ask(app, "POST", "/lookup", {"ids": ["hat"], "unknown": "zeros"}) == (200, {"vectors": [[0.0] * 8]})
    assert ask(app, "POST", "/lookup", {"ids": ["hat"], "unknown": "fallback"})[0] == 400
    assert ask(app, "POST", "/topk", {"ids": ["hat"]})[0] == 404
    fallback = mgqe.Collection(shoes.table.with_fallback(torch.ones(8)), shoes.ids)
    app = server.make_app(fallback, unknown="fallback")
    assert ask(app, "POST", "/lookup", {"ids": ["hat"]}) == (200, {"vectors": [[1.0] * 8]})
    assert ask(app, "POST", "/lookup", {"ids": ["hat"], "unknown": "error"})[0] == 404


def test_queries_of_other_collections(shoes):
    users = mgqe.Collection(mgqe.baselines.FullTable(torch.eye(8)[:2]), [7, -1])
    app = server.make_app(shoes, users)
    expected = shoes.topk(torch.eye(8)[1:2], 3)
    assert ask(app, "POST", "/topk", {"ids": [-1], "k": 3})[1]["ids"] == expected.ids
    assert ask(app, "POST", "/topk", {"ids": ["shoe-1"]})[0] == 422
    assert ask(app, "POST", "/lookup", {"ids": ["shoe-1"]})[0] == 200


# ---- on loopback ------------------------------------------------------------------------------------------------


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_answers_are_sent_at_once():
    """asyncio leaves TCP_NODELAY out for sockets of another protocol, and then an answer takes 40 ms more."""
    with listening_socket("127.0.0.1", 0) as taken:
        assert taken.proto == socket.IPPROTO_TCP


@contextmanager
def serving(app):
    """The port of an application in this process, so that a test can replace what it calls."""
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", http=Protocol))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
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


def test_work_whose_client_has_gone_is_dropped(table, slow):
    with serving(server.make_app(mgqe.Collection(table), workers=2)) as port:
        gone = [sent(port, '{"ids": [1]}') for _ in range(50)]
        while len(slow) < 2:  # the server is at work
            time.sleep(0.005)
        for connection in gone:
            connection.close()
        start = time.monotonic()
        assert post(port, "/lookup", {"ids": [0]})[0] == 200
        assert time.monotonic() - start < 2.5  # all of them take 5 s
        assert len(slow) < 10


def test_a_full_queue_refuses_at_once(table, slow):
    with (
        serving(server.make_app(mgqe.Collection(table), workers=1, max_waiting=2)) as port,
        ThreadPoolExecutor(12) as pool,
    ):
        found = list(pool.map(lambda i: post(port, "/topk", {"ids": [i]}), range(12)))
        assert post(port, "/topk", {"ids": [1]})[0] == 200
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 503}
    assert 3 <= statuses.count(200) < 12
    assert list({a["error"] for s, a in found if s == 503}) == ["too many requests are waiting: try again later"]


@pytest.mark.parametrize("part", ["nothing", "half a head", "half a second head", "half a body"])
def test_a_request_that_is_not_sent_to_its_end_is_closed(table, monkeypatch, part):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(Protocol, "seconds", 0.3)
    with serving(server.make_app(mgqe.Collection(table), seconds=0.3)) as port:
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
