"""The programs on the pages of the dialects run as they stand there, against a real server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.process.conftest import RunningServer, picture

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.parametrize("page", ["openai.md", "a1111.md", "coming-from.md"])
def test_what_a_page_shows_works(page: str, server: RunningServer, tmp_path: Path) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    Image.new("RGBA", (64, 64)).save(tmp_path / "mask.png")
    here = program.replace("http://127.0.0.1:7801", server.url)
    assert here != program
    done = subprocess.run([sys.executable, "-c", here], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert picture(tmp_path / "pizza.png").size == (64, 64)
