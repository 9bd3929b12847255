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
    log = data.with_suffix(".log")  # a pipe that nobody reads would stop the server once it is full
    with log.open("ab") as written:
        written.truncate(0)
        server = subprocess.Popen([MEZZOTINT, "serve", "--port", "0", "--data", data, *flags], stderr=written)
        try:
            yield _listening(server, log)
        finally:
            server.terminate()
            server.wait()


def describe() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"


def keep(name: str, result: dict[str, Any]) -> None:
    """Append to benchmarks/results/NAME.jsonl."""
    line = {"at": time.time(), "machine": describe(), **result}
    with (Path(__file__).parent / "results" / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _listening(server: "subprocess.Popen[bytes]", log: Path) -> str:
    while server.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and (told := json.loads(line))["event"] == "listening":
                return str(told["url"])
        time.sleep(0.02)
    raise RuntimeError("the server did not start")
