"""A hub on this machine: what huggingface_hub asks of Hugging Face's to make a repository, send a folder, fetch it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Repositories by name: files by path. Large files arrive before the commit that names them by checksum."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []

    def version(self, name: str) -> str:
        return hashlib.sha1(repr((len(self.messages), sorted(self.repos[name].items()))).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request. Writing needs the token."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            owner, repo, *rest = path.removeprefix("/api/models/").split("/")
            name = f"{owner}/{repo}"
            if name not in self.server.repos:
                return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            files = self.server.repos[name]
            if rest[:1] == ["tree"]:
                tree = [
                    {"type": "file", "path": path, "size": len(files[path]), "oid": etag(files[path])} for path in files
                ]
                return self.answer(200, tree)
            listed = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": self.server.version(name), "siblings": listed})
        owner, repo, _, _, *file = path.strip("/").split("/")  # OWNER/NAME/resolve/VERSION/FILE
        name, content = f"{owner}/{repo}", self.server.repos[f"{owner}/{repo}"]["/".join(file)]
        return self.answer(200, content, {"X-Repo-Commit": self.server.version(name), "ETag": f'"{etag(content)}"'})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = (
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            if "Content-Length" in self.headers
            else self.chunks()
        )
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            return self.create(**json.loads(body))
        if self.path.endswith("/info/lfs/objects/batch"):
            found = [self.place(one["oid"], one["size"]) for one in json.loads(body)["objects"]]
            return self.answer(200, {"transfer": "basic", "objects": found})
        owner, repo, what, _ = urlsplit(self.path).path.removeprefix("/api/models/").split("/", 3)
        if what == "preupload":
            modes = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for path in (file["path"] for file in json.loads(body)["files"])
            ]
            return self.answer(200, {"files": modes})
        assert what == "commit", self.path
        return self.commit(f"{owner}/{repo}", [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        content = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self.chunks()
        )
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {})

    def create(self, name: str, organization: str, visibility: str = "public", private: bool = False, **_: str) -> None:
        full = f"{organization}/{name}"
        code = 409 if full in self.server.repos else 200
        if code == 200:
            self.server.repos[full], self.server.private[full] = {}, private or visibility == "private"
        self.answer(code, {"url": f"{self.server.address}/{full}", "id": full})

    def place(self, oid: str, size: int) -> dict[str, object]:
        return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{self.server.address}/large/{oid}"}}}

    def commit(self, name: str, lines: list[dict]) -> None:
        files = self.server.repos[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]
        version = self.server.version(name)
        url = f"{self.server.address}/{name}/commit/{version}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": version})

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, code: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
