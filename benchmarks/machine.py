"""What every benchmark shares: a running server, the line that names the machine, the file that keeps results."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

MEZZOTINT = Path(sys.executable).parent / "mezzotint"


@contextlib.contextmanager
def running_server(data: Path, *flags: str) -> Iterator[str]:
    """The URL of a server of its own, ended afterwards."""
    server = subprocess.Popen(
        [MEZZOTINT, "serve", "--port", "0", "--data", data, *flags], stderr=subprocess.PIPE, text=True
    )
    try:
        yield _listening(server)
    finally:
        server.terminate()
        server.communicate()


def describe() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"


def keep(name: str, result: dict[str, Any]) -> None:
    """Append to benchmarks/results/NAME.jsonl."""
    line = {"at": time.time(), "machine": describe(), **result}
    with (Path(__file__).parent / "results" / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _listening(server: "subprocess.Popen[str]") -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if (told := json.loads(line))["event"] == "listening":
            return str(told["url"])
    raise RuntimeError("the server did not start")
