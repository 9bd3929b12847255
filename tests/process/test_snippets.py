"""What the pages show works as it stands there: every program and every command, against a real server."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.models import build_controlnet, build_lora
from tests.process.conftest import BIN, RunningServer, picture
from tests.process.hub import serving

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = {page: FENCED.findall(page.read_text(encoding="utf-8")) for page in PAGES}
KINDS = {"python", "sh", "json"}
NOT_RUN = {
    "",  # drawings and shapes of bodies
    "ini", "dockerfile", "nginx",  # files of other programs
}  # fmt: skip
SHELL = """set -eu -o pipefail
mezzotint() {
  "$BIN" "$@" | tee told
  if [ "$1 $2" = "keys create" ]; then KEY=$(grep -o "mz_[A-Za-z0-9_-]*" told); fi
}
"""
# What stands on the pages for what each reader has -> what this test has.
HERE = {
    r"curl -s ": "curl -sS --fail-with-body ",
    r"\.venv/bin/mezzotint serve.*": ":",  # it runs
    r"\.venv/bin/mezzotint": "mezzotint",
    r"/var/lib/mezzotint": "production",
    r"/downloads/": "downloads/",
    r"OWNER/NAME/FILE": "ink/brush/brush",
    r"OWNER/NAME": "ink/tiny",
    r"\bNAME\b": "icons",
}


def test_no_block_is_of_a_kind_that_nobody_looked_at() -> None:
    found = {kind for blocks in BLOCKS.values() for kind, _ in blocks}
    assert found <= KINDS | NOT_RUN


SHOWING = [page for page, blocks in BLOCKS.items() if {kind for kind, _ in blocks} & KINDS]
OWN = {  # pages whose server the next one could not use
    "http",  # makes an API key, and from then on everybody is asked for one
    "models",  # sets what the bundled model draws with
}


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory, random_sd: Path) -> Path:
    """What a reader is taken to have: models that the server knows, what they downloaded, pictures."""
    owned = tmp_path_factory.mktemp("owned")
    served, downloads = owned / "served", owned / "downloads"
    shutil.copytree(random_sd / "tiny", served / "my-sd15")
    build_lora(served / "ink.safetensors", served / "my-sd15")
    net = build_controlnet(served / "edges", served / "my-sd15")
    (net / "mezzotint.json").write_text('{"control_type": "canny"}', encoding="utf-8")
    shutil.copytree(random_sd / "tiny", downloads / "pencil")
    for name in ("ink", "brush"):
        build_lora(downloads / f"{name}.safetensors", served / "my-sd15")
    for name in ("sketch.png", "photo.png", "photo.jpg", "pizza.png"):
        Image.new("RGB", (128, 128), "white").save(owned / name)
    mask = Image.new("RGBA", (128, 128), "white")
    mask.paste((0, 0, 0, 0), (16, 16, 48, 48))
    mask.save(owned / "mask.png")
    return owned


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, owned: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server") / "data", "--models", str(owned / "served")) as running:
        yield running


@pytest.fixture
def page_server(page: Path, tmp_path: Path, owned: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    if page.stem in OWN:
        with RunningServer(tmp_path / "data", "--models", str(owned / "served")) as running:
            yield running
    else:
        yield request.getfixturevalue("server")


@pytest.mark.parametrize("page", SHOWING, ids=[page.stem for page in SHOWING])
def test_what_a_page_shows_works(page: Path, page_server: RunningServer, tmp_path: Path, owned: Path) -> None:
    for kind, text in BLOCKS[page]:
        if kind == "json":
            json.loads(text)
    here = Path(shutil.copytree(owned, tmp_path / "here"))
    with serving({"ink/tiny": owned / "served" / "my-sd15", "ink/brush": owned / "downloads"}) as hub:
        drawn = page_server.client.wait(page_server.client.submit(prompt="a boat", steps=1)["id"])["id"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEZZOTINT_")}
        environment |= {"BIN": str(BIN), "MEZZOTINT_DATA": str(page_server.data), "MEZZOTINT_SERVER": page_server.url}
        environment |= {"MEZZOTINT_HUB": hub.url, "MEZZOTINT_HUB_HOSTS": "127.0.0.1"}
        for kind, text in BLOCKS[page]:
            if kind not in ("python", "sh") or "make demo" in text:  # that one is part of what it would run
                continue
            ours = re.sub(r"(http://127\.0\.0\.1|localhost):7801", page_server.url, text).replace("ses_...", drawn)
            command = [sys.executable, "-c", _whole(ours)] if kind == "python" else ["bash", "-c", SHELL + _here(ours)]
            done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, ours + done.stdout + done.stderr
            if "pizza.png" in ours:
                assert picture(here / "pizza.png").size == (128, 128)


def _here(commands: str) -> str:
    for theirs, ours in HERE.items():
        commands = re.sub(theirs, ours, commands)
    return commands


def _whole(program: str) -> str:
    """A program that is shown inside a coroutine, inside one."""
    if not program.startswith("async with"):
        return program
    inside = textwrap.indent(program, "    ")
    return (
        f"import asyncio, mezzotint\nfrom mezzotint import Mezzotint\nasync def main():\n{inside}\nasyncio.run(main())"
    )
