"""strace on a server's process: what it asks of the kernel, and calls of it that are made to fail."""

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.conftest import RunningServer

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
)


INJECTED = "(INJECTED)"


@contextlib.contextmanager
def traced(server: RunningServer, file: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """All its threads, into the file, while the body runs."""
    command = ["strace", "-f", *flags, "-o", str(file), "-p", str(server.process.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            pytest.skip(f"strace may not look on here: {said.strip()}")
        try:
            yield strace
        finally:  # else who waits for it waits for the server's end
            strace.send_signal(signal.SIGINT)


@contextlib.contextmanager
def failing(server: RunningServer, file: Path, call: str, error: str, nth: int) -> Iterator[None]:
    """The nth such call of each thread fails, until one has; then all is well again. The file tells whether one did."""
    flags = ("-y", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={nth}")
    with traced(server, file, *flags) as strace:

        def let_go() -> None:
            while strace.poll() is None and INJECTED not in file.read_text():
                time.sleep(0.01)
            strace.send_signal(signal.SIGINT)

        threading.Thread(target=let_go, daemon=True).start()
        yield
