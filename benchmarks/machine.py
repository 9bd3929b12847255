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

import psutil

from mezzotint.client import Client

MEZZOTINT = Path(sys.executable).parent / "mezzotint"

SPARE_S = 120.0
PRACTISES_S = 3.0  # after it has loaded it begins to practise within this time
AT_REST = 0.05  # of a core, which a spare takes at most once it has loaded and practised


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


def pids_with_spare(client: Client, model: str) -> tuple[int, int]:
    """Of the worker and of the spare, once that has loaded the model and come to rest."""
    deadline = time.monotonic() + SPARE_S
    while time.monotonic() < deadline:
        worker, *spares = client.workers()
        ready = [one["pid"] for one in spares if one["state"] == "spare" and model in one["resident_models"]]
        if ready and _at_rest(ready[0]):
            return int(worker["pid"]), int(ready[0])
        time.sleep(0.2)
    raise RuntimeError(f"no spare stood by within {SPARE_S:g} s")


def wait_for_rest(client: Client) -> None:
    """Until the worker and its spare, which may have no room for the model, do nothing any more."""
    deadline = time.monotonic() + SPARE_S
    while time.monotonic() < deadline:
        pids = [worker["pid"] for worker in client.workers()]
        if len(pids) > 1 and all(map(_at_rest, pids)):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the workers did not come to rest within {SPARE_S:g} s")


def _at_rest(pid: int) -> bool:
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(PRACTISES_S)
    return sum(process.cpu_times()[:2]) - before < AT_REST * PRACTISES_S


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
