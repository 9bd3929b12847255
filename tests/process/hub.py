"""A hub of this machine that speaks Hugging Face's protocol."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a folder. Weights come by a redirect, as from the hub's stores of large files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, Path] = {}
        self.elsewhere = ""  # the host that large files are redirected to; empty: here
        self.wrong_digests = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self, repository: str) -> dict[str, Any]:
        root = self.repositories[repository]
        files = sorted(file for file in root.rglob("*") if file.is_file())
        siblings = [{"rfilename": file.relative_to(root).as_posix(), **self._size(file)} for file in files]
        return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}

    def digest(self, file: Path) -> str:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        return found[::-1] if self.wrong_digests else found

    def _size(self, file: Path) -> dict[str, Any]:
        size = file.stat().st_size
        if file.suffix != ".safetensors":
            return {"size": size, "blobId": "0" * 40}
        return {"size": size, "lfs": {"sha256": self.digest(file), "size": size, "pointerSize": 130}}


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if path.startswith("/api/models/"):
            repository = "/".join(path.split("/")[3:5])
            if repository not in self.server.repositories:
                self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            else:
                self._answer(200, json.dumps(self.server.listing(repository)).encode())
            return
        owner, name, what, rest = path.lstrip("/").split("/", 3)  # resolve/COMMIT/FILE or stored/FILE
        inside = rest.partition("/")[2] if what == "resolve" else rest
        file = self.server.repositories[f"{owner}/{name}"] / inside
        etag = f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'
        if what == "stored" or file.suffix != ".safetensors":
            self._answer(200, file.read_bytes(), **{"X-Repo-Commit": COMMIT, "ETag": etag})
            return
        head = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(file.stat().st_size), "X-Linked-Etag": etag}
        store = self.server.elsewhere or self.server.url
        self._answer(302, b"", Location=f"{store}/{owner}/{name}/stored/{inside}", **head)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


@contextlib.contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[Hub]:
    server = Hub()
    server.repositories |= repositories
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
