"""The part of the Hugging Face Hub's HTTP interface that pushing and loading a model uses, on this machine."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory: ``files[repository][path]``; every branch and tag is the one commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.kinds: dict[str, str] = {}
        self.cards: list[str] = []  # that were to be checked
        self.revisions: set[str] = set()  # that were asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/(?:models|datasets)/(\w+/\w+)(?:/revision/([^/]+))?", path):
            self._describe(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/(?:models|datasets)/(\w+/\w+)/tree/([^/]+)/?.*", path):
            files = self.server.files.get(found[1], {})
            self._json([{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()])
        elif found := re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._json({"error": f"not found: {path}"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.files.setdefault(name, {})
            self.server.kinds[name] = asked.get("type", "model")
            self.server.private[name] = asked.get("private", asked.get("visibility") == "private")
            self._json({"url": f"{self.server.url}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/(?:models|datasets)/(\w+/\w+)/preupload/([^/]+)", self.path):
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self._json({"files": modes})
        elif found := re.fullmatch(r"/api/(?:models|datasets)/(\w+/\w+)/commit/([^/?]+).*", self.path):
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    content = base64.b64decode(operation["value"]["content"])
                    self.server.files[found[1]][operation["value"]["path"]] = content
                elif operation["key"] == "deletedFile":
                    self.server.files[found[1]].pop(operation["value"]["path"], None)
            self._json({"commitUrl": f"{self.server.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json({"error": f"not found: {self.path}"}, 404)

    def _describe(self, name: str, revision: str) -> None:
        if name not in self.server.files or revision not in ("main", "v1", COMMIT):
            code = "RevisionNotFound" if name in self.server.files else "RepoNotFound"
            self._json({"error": f"{name}, {revision}: not found"}, 404, {"X-Error-Code": code})
            return
        self.server.revisions.add(revision)
        siblings = [{"rfilename": path} for path in self.server.files[name]]
        self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": True, "tags": [], "downloads": 0})

    def _file(self, name: str, revision: str, path: str) -> None:
        content = self.server.files.get(name, {}).get(path)
        if content is None:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self._answer(content, 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
