"""The documentation site is built from docs/, its links lead somewhere, and it asks nobody else for anything."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "out" / "site"


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return {file: file.read_text(encoding="utf-8") for file in SITE.rglob("*.html") if file.name != "404.html"}


def test_every_page_has_its_place_and_every_link_leads_somewhere(pages: dict[Path, str]) -> None:
    menu = set(re.findall(r'"([\w/-]+)\.md"', (ROOT / "zensical.toml").read_text(encoding="utf-8")))
    there = {file.relative_to(ROOT / "docs").with_suffix("").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert menu == there
    assert len(pages) == len(there)
    dead = []
    for file, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchored = not parts.fragment or f'id="{parts.fragment}"' in pages.get(target, "")
            if not target.exists() or not anchored:
                dead.append((file.relative_to(SITE).as_posix(), link))
    assert dead == []


def test_the_site_asks_nobody_else_for_anything(pages: dict[Path, str]) -> None:
    for text in pages.values():
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert [one for one in loaded if "canonical" not in one] == []
