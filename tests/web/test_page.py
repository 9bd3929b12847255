"""The web page in a real browser, against a real server and the bundled model."""

import asyncio
import gzip
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from safetensors.torch import save_file

import mezzotint
from mezzotint.api_keys import USUAL, Limits, Scope
from mezzotint.catalog import BUNDLED
from mezzotint.store import beside
from tests.models import build_sd, build_sdxl
from tests.process.conftest import RunningServer, wait_for
from tests.web.contract import CONTRACT, generated

PAGE = Path(mezzotint.__file__).parent / "page"
WEB = Path(__file__).parents[2] / "web"
SHOTS = Path(os.environ.get("PAGE_SHOTS", WEB.parent / "out" / "page"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = json.loads((WEB / "tests" / "hostile.json").read_text(encoding="utf-8"))
MOST_SCRIPT_BYTES = 150_000

pytestmark = [
    pytest.mark.skipif(not (PAGE / "index.html").exists(), reason="the page is not built: make page, with Node"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("page") / "data") as running:
        running.worker_pid()
        yield running


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with models that can do little, and with files by hostile names or words."""
    models = tmp_path_factory.mktemp("models")
    build_sdxl(models / "large")
    build_sd(models / "patcher", inpaints=True)
    lora = shutil.copy(BUNDLED / "blob.safetensors", models / "hostile.safetensors")
    (models / "hostile.json").write_text(json.dumps({"trigger_words": HOSTILE}), encoding="utf-8")
    save_file({"emb_params": torch.ones(2, 256)}, models / "quiet.v2.safetensors")
    for name in HOSTILE:
        shutil.copy(lora, models / f"{name.replace('/', '')}.safetensors")
    with RunningServer(
        tmp_path_factory.mktemp("strange") / "data", "--models", str(models), "--default-model", "patcher"
    ) as running:
        running.worker_pid()
        yield running


SCENARIOS = (
    "make", "validation", "several", "paint", "paintByKeys", "misled", "takenOver", "narrow", "dragged", "keyboard",
    "adapters", "restore", "watch", "thrifty", "crowd", "gallery", "filters", "unseen", "lost", "silent", "machine",
    "hostile", "accessibleLight", "accessibleDark",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator["subprocess.Popen[str]"]:
    """Reads `SCENARIO URL`, answers what was wrong."""
    assert CHROMIUM is not None
    with subprocess.Popen(
        ["node", WEB / "tests" / "run.mjs", SHOTS], env=os.environ | {"CHROMIUM": CHROMIUM},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as running:  # fmt: skip
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_visitor_can(scenario: str, browser: "subprocess.Popen[str]", server: RunningServer) -> None:
    assert played(browser, scenario, server) == []


@pytest.mark.parametrize("scenario", ["lacking", "naming", "hostileNames"])
def test_a_visitor_can_with_strange_models(
    scenario: str, browser: "subprocess.Popen[str]", strange: RunningServer
) -> None:
    assert played(browser, scenario, strange) == []


def test_a_visitor_whose_key_is_over_is_told(browser: "subprocess.Popen[str]", tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data") as server:
        server.worker_pid()
        key = key_of(server, expires_at=time.time() + 12)
        assert played(browser, "expired", server, key) == []


def test_a_visitor_who_may_only_read_is_told_by_the_button(browser: "subprocess.Popen[str]", tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data") as server:
        server.worker_pid()
        assert played(browser, "readOnly", server, key_of(server, "read-own")) == []


def key_of(server: RunningServer, *scopes: Scope, expires_at: float | None = None) -> str:
    """With the limits of one that is made without a word about them. From now on the server asks for a key."""
    database = f"sqlite:///{server.data}/mezzotint.db"
    making = beside.create_key(database, name="t", scopes=scopes or USUAL, limits=Limits(), expires_at=expires_at)
    key = asyncio.run(making)[1]
    wait_for(lambda: httpx2.get(server.url).status_code == 401, 5)
    return key


def played(browser: "subprocess.Popen[str]", scenario: str, server: RunningServer, key: str = "") -> object:
    assert browser.stdin is not None
    assert browser.stdout is not None
    browser.stdin.write(f"{scenario} {server.url} {key}\n")
    return json.loads(browser.stdout.readline())


def test_the_page_is_small_and_may_run_nothing_but_its_own_script(server: RunningServer) -> None:
    answer = httpx2.get(server.url)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in answer.text
    scripts = list(PAGE.glob("assets/*.js"))
    assert scripts
    assert sum(len(gzip.compress(script.read_bytes())) for script in scripts) < MOST_SCRIPT_BYTES


def test_the_page_reads_what_the_document_says() -> None:
    assert CONTRACT.read_text(encoding="utf-8") == generated(), "make contract"
