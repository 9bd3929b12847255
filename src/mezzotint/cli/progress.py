"""How far a session is, drawn on a terminal. Must not ask: it is told."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def blocks(picture: str, columns: int) -> str:
    """A picture, base64, as ANSI text so many columns wide: two pixels above one another in each character."""
    import base64
    import io

    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
        rows = max(1, round(columns * opened.height / opened.width / 2))
        small = opened.convert("RGB").resize((columns, 2 * rows))
    flat = small.tobytes()
    pixels = [tuple(flat[at : at + 3]) for at in range(0, len(flat), 3)]
    lines = []
    for row in range(rows):
        upper = 2 * row * columns
        cells = ((pixels[upper + column], pixels[upper + columns + column]) for column in range(columns))
        marks = (f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m\u2580" for a, b in cells)
        lines.append("".join(marks) + "\x1b[0m")
    return "\n".join(lines)


@contextlib.contextmanager
def bar(*, quiet: bool) -> Iterator[Any]:
    """A bar with step and time left on a terminal; nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda kind, data: None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    console, bar = Console(stderr=True), Progress(*columns)
    shows = console.color_system == "truecolor"
    with Live(bar, console=console, transient=True) as live:
        line = bar.add_task("starting", total=None, left="")

        def show(kind: str, data: dict[str, Any]) -> None:
            if kind == "progress" and data["phase"]:
                left = f"{data['eta_s']:.0f} s left" if data["eta_s"] is not None else ""
                bar.update(line, description=data["phase"], completed=data["step"], total=data["steps"], left=left)
            elif kind == "preview" and shows:
                live.update(Group(bar, Text.from_ansi(blocks(data["b64_json"], min(48, console.width)))))

        yield show
