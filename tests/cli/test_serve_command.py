"""`mgqe serve` as a process, and what it refuses at start."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app

for package in ("starlette", "uvicorn", "httptools", "pydantic", "orjson"):
    pytest.importorskip(package, reason="needs mgqe[serve]")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    made = torch.Generator().manual_seed(0)
    table = mgqe.CompactTable.from_codes(
        mgqe.Tiers.from_sizes([500]), [torch.randint(16, (500, 4), generator=made)],
        [torch.randn(4, 16, 2, generator=made)], [0], [16],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("items")
    mgqe.Collection(table, [f"shoe-{n}" for n in range(500)]).save(folder)
    return folder


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_real_server_answers_many_at_once(items):
    expected = mgqe.Collection.load(items)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "mgqe.cli", "serve", str(items), "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            line = server.stdout.readline()
            found = re.fullmatch(rf"{re.escape(str(items))}: 500 ids x 8 dimensions, at http://127.0.0.1:(\d+)\n", line)
            assert found, line + server.stderr.read()
            port = int(found[1])
            names = [f"shoe-{n}" for n in range(32)]
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda one: ask(port, "POST", "/topk", {"ids": [one], "k": 10}), names))
            assert [answer["ids"][0] for _, answer in answers] == expected.topk(expected.lookup(names), 10).ids
            assert ask(port, "POST", "/topk", {"ids": ["hat"]})[0] == 404
            with socket.create_connection(("127.0.0.1", port)) as gone:  # in the middle of a body
                gone.sendall(b"POST /topk HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
            assert ask(port, "GET", "/health")[0] == 200
        finally:
            server.send_signal(signal.SIGINT)
            errors = server.stderr.read()
        assert (server.wait(), errors) == (0, "")


def refused(*arguments):
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    return result.output


def test_what_cannot_be_served_is_one_line(items, tmp_path):
    mgqe.save(mgqe.baselines.FullTable(torch.zeros(3, 4)), tmp_path / "item.mgqe.safetensors")
    assert "a FullTable has no top-K" in refused(tmp_path / "item.mgqe.safetensors")
    assert f"tables: name one of {tmp_path / 'item.mgqe.safetensors'}" in refused(tmp_path)
    assert "--ids goes with a table" in refused(items, "--ids", tmp_path / "ids")
    assert "table.with_fallback" in refused(items, "--unknown", "fallback")
    assert "no such" in refused(tmp_path / "none").lower()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in refused(items, "--port", port)
