"""Accepted means on the disk: the log is synced before the answer leaves, by what the kernel was asked to do.

A kill cannot show this, as the kernel keeps what a killed process wrote. strace looks on instead.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2

from tests.process.conftest import RunningServer
from tests.process.strace import needs_strace, traced

CALLS = "trace=write,writev,pwrite64,fdatasync,fsync,sendto,sendmsg"
SESSION = re.compile(r"ses_[0-9A-Z]{26}")
ANSWERS = 10


@needs_strace
def test_the_log_is_synced_before_the_answer_leaves(tmp_path: Path) -> None:
    with (
        RunningServer(tmp_path / "data") as server,
        traced(server, tmp_path / "trace", "-y", "-s", "20000", "-e", CALLS),
    ):
        for number in range(ANSWERS):
            body = {"prompt": "a boat", "seed": number, "steps": 1}
            httpx2.post(f"{server.url}/api/inference/sessions", json=body, timeout=30).raise_for_status()
    answered = 0
    written: dict[str, bool] = {}  # sessions in the log -> synced since
    for line in calls(tmp_path / "trace"):
        of_the_log = "mezzotint.db-wal>" in line
        if of_the_log and re.match(r"p?write", line):
            written = dict.fromkeys(SESSION.findall(line), False) | written  # its later changes are not waited for
        elif of_the_log and re.match(r"f(data)?sync", line) and line.endswith("= 0"):
            written = dict.fromkeys(written, True)
        elif "HTTP/1.1 202" in line:
            answered += 1
            (session_id,) = set(SESSION.findall(line))
            assert written.get(session_id), f"{session_id} was answered before it was on the disk"
    assert answered == ANSWERS


def calls(file: Path) -> Iterator[str]:
    """What the server asked of the kernel: what it writes when that begins, what it syncs when that has ended."""
    begun: dict[str, str] = {}
    for line in file.read_text(errors="replace").splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.startswith("<... "):
            call = begun.pop(thread) + rest.partition("resumed>")[2]
            if "sync(" in call:
                yield call
        elif rest.endswith("<unfinished ...>"):
            begun[thread] = rest.removesuffix("<unfinished ...>")
            if "sync(" not in rest:
                yield rest
        else:
            yield rest
