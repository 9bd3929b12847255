"""Accepted means on the disk: the log is synced before the answer leaves, by what the kernel was asked to do.

A kill cannot show this, as the kernel keeps what a killed process wrote. strace looks on instead, and what it saw is
written to a copy again without what was not synced.
"""

import random
import re
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.process.conftest import RunningServer
from tests.process.strace import needs_strace, traced

pytestmark = needs_strace

CALLS = "trace=write,writev,pwrite64,fdatasync,fsync,sendto,sendmsg"
SESSION = re.compile(r"ses_[0-9A-Z]{26}")
WRITE = re.compile(r'pwrite64\(\d+<.*/(mezzotint\.db(?:-wal)?)>, "(.*)", (\d+), (\d+)')
SYNC = re.compile(r"f(?:data)?sync\(\d+<.*/(mezzotint\.db(?:-wal)?)>")
ANSWERS = 10


@dataclass(frozen=True)
class Seen:
    calls: list[str]
    before: Path  # the database and its log when strace began to look


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Ten sessions accepted, one after the other."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "before").mkdir()
    with RunningServer(folder / "data") as server:
        for file in (server.data / "mezzotint.db", server.data / "mezzotint.db-wal"):
            shutil.copy(file, folder / "before")
        with traced(server, folder / "trace", "-y", "-s", "20000", "-e", CALLS):
            for number in range(ANSWERS):
                body = {"prompt": "a boat", "seed": number, "steps": 1}
                httpx2.post(f"{server.url}/api/inference/sessions", json=body, timeout=30).raise_for_status()
    return Seen(list(calls(folder / "trace")), folder / "before")


def test_the_log_is_synced_before_the_answer_leaves(seen: Seen) -> None:
    answered = 0
    written: dict[str, bool] = {}  # sessions in the log -> synced since
    for line in seen.calls:
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


def test_without_what_was_not_synced_every_answered_session_is_there(seen: Seen, tmp_path: Path) -> None:
    chance = random.Random(7)
    synced: list[re.Match[str]] = []
    unsynced: dict[str, list[re.Match[str]]] = defaultdict(list)
    answered: set[str] = set()
    for line in seen.calls:
        if write := WRITE.match(line):
            unsynced[write[1]].append(write)
        elif (sync := SYNC.match(line)) and line.endswith("= 0"):
            synced += unsynced.pop(sync[1], [])
        elif "HTTP/1.1 202" in line:
            answered |= set(SESSION.findall(line))
            lost = [write for writes in unsynced.values() for write in writes]
            some = [write for write in lost if chance.random() < 0.5]  # a disk may write what it was not told to
            for number, kept in enumerate(([], some)):
                assert answered <= sessions(seen.before, [*synced, *kept], tmp_path / f"{len(answered)}-{number}")
    assert len(answered) == ANSWERS
    assert not answered & sessions(seen.before, [], tmp_path / "none"), "they would be there without a single write"


def sessions(before: Path, writes: list[re.Match[str]], disk: Path) -> set[str]:
    """What a start finds on a disk that has taken these writes."""
    shutil.copytree(before, disk)
    for write in writes:
        data = write[2].encode().decode("unicode_escape").encode("latin-1")
        assert len(data) == int(write[3]), "strace was told to show all of it"
        with (disk / write[1]).open("r+b") as file:
            file.seek(int(write[4]))
            file.write(data)
    with closing(sqlite3.connect(disk / "mezzotint.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {session_id for (session_id,) in database.execute("SELECT id FROM sessions")}


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
