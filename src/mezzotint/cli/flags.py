"""Flags that several commands have, and the exit codes. Must not do anything.

Exit codes: 0 done, 1 failed, 2 bad use or invalid request, 3 server not reachable, 130 interrupted.
"""

from pathlib import Path
from typing import Annotated

import typer

DONE, FAILED, BAD_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Server = Annotated[str | None, typer.Option(envvar="MEZZOTINT_SERVER", help="URL of a running server")]
Data = Annotated[Path | None, typer.Option(help="data folder")]
Models = Annotated[list[Path] | None, typer.Option(help="folder of models; may be given several times")]
Device = Annotated[list[str] | None, typer.Option(help="device to use; may be given several times")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a worker")]
