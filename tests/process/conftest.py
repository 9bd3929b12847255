"""A real server process on a free port, its real worker, the bundled model, a real data folder."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from PIL import Image

from mezzotint.client import Client

BIN = Path(sys.executable).parent / "mezzotint"
START_S = 60.0
END_S = 60.0


class RunningServer:
    """`with RunningServer(data) as server:`; may be killed and started again on the same folder.

    It runs models in torch float32, so that nothing is measured beside a test, unless flags say otherwise,
    and keeps no spare worker unless told to.
    """

    def __init__(self, data: Path, *flags: str, spare: bool = False, failpoints: str = "") -> None:
        """`failpoints`: of the first process; a later `start` has none."""
        plain = () if "--executor" in flags else ("--executor", "torch", "--dtype", "float32")
        self.data, self._flags = data, (*plain, *flags)
        self._environment = os.environ | {"MEZZOTINT_SPARE": str(spare).lower()}
        self._failpoints = {"MEZZOTINT_FAILPOINTS": failpoints} if failpoints else {}
        self.log = data.parent / f"{data.name}.log"

    def __enter__(self) -> "RunningServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    def start(self) -> None:
        started = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN, "serve", "--port", "0", "--data", self.data, *self._flags],
                stdout=log,
                stderr=log,
                env=self._environment | self._failpoints,
            )
        self._failpoints = {}
        line = wait_for(lambda: self._line("listening", started), START_S)
        self.url: str = line["url"]
        self.client: Any = Client(self.url, retries=0)  # untyped: tests reach into answers as they like

    def _line(self, event: str, start: int) -> Any:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {self.log.read_text()}")
        for text in self.log.read_text()[start:].splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if line["event"] == event:
                    return line
        return None

    def worker_pid(self) -> int:
        """Of the worker that is ready now."""

        def ready() -> int | None:
            worker = self.client.workers()[0]
            return worker["pid"] if worker["state"] == "ready" else None

        return int(wait_for(ready, START_S))

    def kill(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)


def wait_for(condition: Callable[[], Any], limit_s: float) -> Any:
    """Poll until the condition gives something true."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {condition}")


def picture(path: Path) -> Image.Image:
    """A picture file, read whole."""
    opened = Image.open(io.BytesIO(path.read_bytes()))
    opened.load()
    return opened


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def folder() -> Path | None:
    """The models that `server` serves beside the bundled ones, with `tiny` among them. A module may have its own."""
    return None


@pytest.fixture(scope="module")
def server(folder: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests of a module that leave it as they found it."""
    models = ("--models", str(folder), "--default-model", "tiny") if folder else ()
    with RunningServer(tmp_path_factory.mktemp("server") / "data", *models) as running:
        running.worker_pid()
        yield running
