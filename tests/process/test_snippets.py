"""What the pages show works as it stands there: every program and every command, against a real server."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
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


@pytest.mark.parametrize("page", SHOWING, ids=[page.stem for page in SHOWING])
def test_what_a_page_shows_works(page: Path, tmp_path: Path, random_sd: Path) -> None:
    for kind, text in BLOCKS[page]:
        if kind == "json":
            json.loads(text)
    programs = [(kind, text) for kind, text in BLOCKS[page] if kind in ("python", "sh")]
    if not programs:
        return
    here = tmp_path / "here"
    _furnish(here, random_sd)
    repositories = {"ink/tiny": random_sd / "tiny", "ink/brush": here / "downloads"}
    with (
        serving(repositories) as hub,
        RunningServer(tmp_path / "data", "--models", str(here / "served")) as server,
    ):
        drawn = server.client.wait(server.client.submit(prompt="a boat", steps=1)["id"])["id"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEZZOTINT_")}
        environment |= {"BIN": str(BIN), "MEZZOTINT_DATA": str(server.data), "MEZZOTINT_SERVER": server.url}
        environment |= {"MEZZOTINT_HUB": hub.url, "MEZZOTINT_HUB_HOSTS": "127.0.0.1"}
        for kind, text in programs:
            if "make demo" in text:
                continue  # this is part of what it would run
            ours = re.sub(r"(http://127\.0\.0\.1|localhost):7801", server.url, text).replace("ses_...", drawn)
            command = [sys.executable, "-c", _whole(ours)] if kind == "python" else ["bash", "-c", SHELL + _here(ours)]
            done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, ours + done.stdout + done.stderr
            if "pizza.png" in ours:
                assert picture(here / "pizza.png").size == (64, 64)


def _here(commands: str) -> str:
    for theirs, ours in HERE.items():
        commands = re.sub(theirs, ours, commands)
    return commands


def _furnish(here: Path, random_sd: Path) -> None:
    """What a reader is taken to have: pictures, models of their own, what they downloaded."""
    for name in ("sketch.png", "photo.png", "photo.jpg", "pizza.png"):
        here.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "white").save(here / name)
    mask = Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (16, 16, 48, 48))
    mask.save(here / "mask.png")
    served, downloads = here / "served", here / "downloads"
    served.mkdir()
    shutil.copytree(random_sd / "tiny", served / "my-sd15")
    build_lora(served / "ink.safetensors", served / "my-sd15")
    net = build_controlnet(served / "edges", served / "my-sd15")
    (net / "mezzotint.json").write_text('{"control_type": "canny"}', encoding="utf-8")
    downloads.mkdir()
    shutil.copytree(random_sd / "tiny", downloads / "pencil")
    for name in ("ink", "brush"):
        build_lora(downloads / f"{name}.safetensors", served / "my-sd15")


def _whole(program: str) -> str:
    """A program that is shown inside a coroutine, inside one."""
    if not program.startswith("async with"):
        return program
    inside = textwrap.indent(program, "    ")
    return (
        f"import asyncio, mezzotint\nfrom mezzotint import Mezzotint\nasync def main():\n{inside}\nasyncio.run(main())"
    )
