"""A preview on a terminal: two pixels in each character."""

import base64
import io

from PIL import Image

from mezzotint.cli.progress import blocks


def test_a_picture_becomes_coloured_half_blocks() -> None:
    picture, file = Image.new("RGB", (4, 4), (255, 0, 0)), io.BytesIO()
    picture.paste((0, 0, 255), (0, 2, 4, 4))
    picture.save(file, "PNG")
    lines = blocks(base64.b64encode(file.getvalue()).decode(), 4).split("\n")
    assert len(lines) == 2
    assert lines[0] == "\x1b[38;2;255;0;0;48;2;255;0;0m\u2580" * 4 + "\x1b[0m"
    assert lines[1].startswith("\x1b[38;2;0;0;255;48;2;0;0;255m")
