"""How far a session is, drawn on a terminal. Must not ask: it is told."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def bar(*, quiet: bool) -> Iterator[Any]:
    """A bar with step and time left on a terminal; nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda kind, data: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("starting", total=None, left="")

        def show(kind: str, data: dict[str, Any]) -> None:
            if kind == "progress" and data["phase"]:
                left = f"{data['eta_s']:.0f} s left" if data["eta_s"] is not None else ""
                bar.update(line, description=data["phase"], completed=data["step"], total=data["steps"], left=left)

        yield show
