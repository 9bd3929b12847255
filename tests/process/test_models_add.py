"""`mezzotint models add`: from a folder, a file, or a hub of this machine that speaks Hugging Face's protocol."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from mezzotint.adding import add
from mezzotint.config import load_settings
from mezzotint.errors import InvalidRequest, SetupError
from tests.models import build_lora

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


@pytest.fixture
def hub(random_sd: Path, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    server.repositories["ink/tiny"] = random_sd / "tiny"
    (tmp_path / "lora").mkdir()
    build_lora(tmp_path / "lora" / "pencil.safetensors", random_sd / "tiny")
    (tmp_path / "lora" / "README.md").write_text("a LoRA")
    server.repositories["ink/pencil"] = tmp_path / "lora"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def add_from(hub: Hub, source: str, root: Path, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Any:
    return add(load_settings(models=(root,), hub=hub.url, hub_hosts=hosts), source)


def test_a_repository_and_one_file_are_fetched_whole_and_usable(hub: Hub, tmp_path: Path) -> None:
    (hub.repositories["ink/pencil"] / "run.py").write_text("raise SystemExit")
    root = tmp_path / "models"
    model = add_from(hub, "ink/tiny", root)
    assert (model.id, model.state, model.kind) == ("tiny", "ready", "checkpoint")
    origin = hub.repositories["ink/tiny"]
    weights = sorted(file.relative_to(origin) for file in origin.rglob("*.safetensors"))
    assert weights
    assert all((root / "tiny" / file).read_bytes() == (origin / file).read_bytes() for file in weights)
    assert add_from(hub, "ink/pencil", root).kind == "lora"
    assert (root / "pencil.safetensors").is_file()
    assert not any(path.endswith((".py", ".md")) for path in hub.asked)
    assert sorted(file.name for file in root.iterdir()) == ["pencil.safetensors", "tiny"]


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.2", "http://localhost"])
def test_a_redirect_to_a_host_that_is_not_allowed_ends_it_and_leaves_nothing(
    hub: Hub, tmp_path: Path, elsewhere: str
) -> None:
    hub.elsewhere = f"{elsewhere}:{hub.server_port}"
    with pytest.raises(SetupError, match="not among hub_hosts"):
        add_from(hub, "ink/tiny", tmp_path / "models")
    assert not any("/stored/" in path for path in hub.asked)
    assert list((tmp_path / "models").iterdir()) == []


def test_what_is_not_there_or_comes_changed_is_told_and_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="HF_TOKEN"):
        add_from(hub, "ink/nothing", tmp_path / "models")
    with pytest.raises(InvalidRequest, match=r"it has .*pencil\.safetensors"):
        add_from(hub, "ink/pencil/other.safetensors", tmp_path / "models")
    hub.wrong_digests = True
    with pytest.raises(SetupError, match="the hub says"):
        add_from(hub, "ink/tiny", tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_or_file_is_copied_once_and_what_cannot_be_used_is_refused(random_sd: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    command = [sys.executable, "-m", "mezzotint", "models", "add", str(random_sd / "tiny"), "--models", str(root)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "ready"), done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (again.returncode, "--name" in again.stderr) == (2, True)
    settings = load_settings(models=(root,))
    assert add(settings, str(random_sd / "tiny"), name="second").id == "second"
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    for source in (str(pickle), str(tmp_path), "no such thing"):
        with pytest.raises(InvalidRequest):
            add(settings, source)
    assert sorted(file.name for file in root.iterdir()) == ["second", "tiny"]
