"""A disk that fails or is full while sessions run: what was accepted ends, success is success, and work goes on after.

strace makes the n-th call of a thread of the server fail. A few n in the ordinary lane; `make torture` takes n = 1, 2
and on until a run comes through untouched.
"""

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mezzotint.errors import TryLater
from mezzotint.events import Events
from mezzotint.retention import DAY_S, Retention
from mezzotint.session import State, Usage
from mezzotint.store import sqlite
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from tests.process.conftest import RunningServer, wait_for
from tests.process.strace import INJECTED, failing, needs_strace
from tests.requests import request
from tests.torture.history import FINAL, check

SESSIONS = "/api/inference/sessions"
ASKED = {"prompt": "a boat", "seed": 4, "width": 32, "height": 32, "scheduler": "euler_ancestral"}
OWN_FAULTS = {"not_ready", "storage_full"}  # what a failing or full disk is called
ALL = os.environ.get("DISK_FAULTS") == "all"
# With the n of the ordinary lane. SQLite writes by pwrite64 and syncs by fdatasync; pictures and states are fsynced.
FAULTS = {
    ("fdatasync", "EIO"): 4,
    ("pwrite64", "EIO"): 2,
    ("pwrite64", "ENOSPC"): 9,
    ("fsync", "EIO"): 2,
    ("fsync", "ENOSPC"): 3,
}


class Caller:
    """Says it again under the same key until it is accepted, and knows what was."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.acknowledged: dict[str, str] = {}

    def send(self, **asked: Any) -> str:
        """The session's id. Whoever refuses says why in one of two words, within the ten seconds it is given."""
        key, until = f"key-{len(self.acknowledged)}", time.monotonic() + 20
        while True:
            headers = {"Idempotency-Key": key}
            answer = httpx2.post(self.server.url + SESSIONS, json=ASKED | asked, headers=headers, timeout=30)
            if answer.is_success:
                self.acknowledged[key] = answer.json()["id"]
                return self.acknowledged[key]
            assert (answer.status_code, answer.json()["code"]) in {(503, "not_ready"), (507, "storage_full")}
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() < until, "the disk is well again, and still nothing is accepted"
            time.sleep(0.05)

    def state(self, session_id: str) -> str:
        return str(self.server.client.session(session_id)["state"])

    def say(self, session_id: str, verb: str) -> bool:
        """Whether it was done. What the disk refused is said again."""
        while (answer := self._post(f"{SESSIONS}/{session_id}/{verb}")).status_code in (503, 507):
            assert answer.json()["code"] in OWN_FAULTS
            time.sleep(0.05)
        assert answer.status_code in (200, 202, 409)
        return answer.is_success

    def _post(self, path: str) -> httpx2.Response:
        return httpx2.post(self.server.url + path, timeout=30)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory, random_sd: Path) -> Iterator[Caller]:
    data = tmp_path_factory.mktemp("server") / "data"
    with RunningServer(data, "--models", str(random_sd), "--default-model", "tiny") as server:
        server.worker_pid()
        yield Caller(server)


@needs_strace
@pytest.mark.parametrize(("call", "error"), FAULTS, ids=map("-".join, FAULTS))
def test_a_call_of_the_disk_that_fails_loses_nothing(call: str, error: str, caller: Caller, tmp_path: Path) -> None:
    for nth in itertools.count(1) if ALL else (FAULTS[call, error],):
        trace = tmp_path / f"{nth}"
        with failing(caller.server, trace, call, error, nth):
            work(caller)
        if INJECTED not in trace.read_text():
            break
    assert nth > FAULTS[call, error] if ALL else INJECTED in trace.read_text()
    assert caller.server.client.workers()[0]["restarts"] == 0, "a disk's fault is no worker's"


def test_the_server_stops_and_left_nothing_that_it_should_not_have(caller: Caller) -> None:
    assert caller.server.stop() == 0
    assert check(caller.server.data, caller.acknowledged, {}) == []


def work(caller: Caller) -> None:
    """Sessions side by side: one drawn, one paused and taken up again, one cancelled."""
    drawn = caller.send(steps=2, num_images=2)
    paused, cancelled = caller.send(steps=60), caller.send(steps=1000)
    ids = (drawn, paused, cancelled)
    wait_for(lambda: caller.server.client.session(paused)["progress"]["step"] > 3, 30)
    if caller.say(paused, "pause"):
        wait_for(lambda: caller.state(paused) in {"paused", *FINAL}, 30)
        caller.say(paused, "resume")
    is_cancelled = caller.say(cancelled, "cancel")
    wait_for(lambda: all(caller.state(one) in FINAL for one in ids), 60)
    for session_id in ids:
        ended = caller.server.client.session(session_id)
        if session_id == cancelled and is_cancelled:
            assert ended["state"] == "cancelled"
        elif ended["state"] == "failed":
            assert ended["error"]["code"] in OWN_FAULTS
            assert ended["error"]["retryable"]
        elif ended["state"] == "succeeded":
            for image in ended["images"]:
                caller.server.client.image(session_id, image["index"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_refuses_by_name_and_work_goes_on_when_there_is_room(small_disk: Path, random_sd: Path) -> None:
    flags = ("--models", str(random_sd), "--default-model", "tiny")
    with RunningServer(small_disk / "data", *flags) as server:
        server.worker_pid()
        caller = Caller(server)
        before = caller.send(steps=2)
        assert server.client.wait(before)["state"] == "succeeded"
        large = server.client.submit(steps=1, num_images=4, width=256, height=256)["id"]
        assert server.client.wait(large)["state"] == "succeeded"
        running = caller.send(steps=1000)
        wait_for(lambda: server.client.session(running)["progress"]["step"] > 0, 30)
        ballast = small_disk / "ballast"
        fill(ballast)
        refused = httpx2.post(server.url + SESSIONS, json=ASKED, timeout=30)
        assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
        assert server.client.image(before)  # reading goes on
        assert caller.state(running) == "running"
        assert httpx2.post(f"{server.url}{SESSIONS}/{running}/cancel", timeout=30).status_code == 200, "so does this"
        assert server.client.wait(running)["state"] == "cancelled"
        gone = httpx2.delete(f"{server.url}{SESSIONS}/{large}", timeout=30)
        assert gone.status_code == 204, "who is told to free some space can"
        ballast.unlink()
        freed = time.monotonic()
        after = caller.send(steps=2)
        assert time.monotonic() - freed < 10
        assert server.client.wait(after)["state"] == "succeeded"
        assert server.stop() == 0
        assert check(server.data, caller.acknowledged, {}) == []


@pytest.mark.anyio
async def test_what_is_old_makes_room_on_a_full_disk(small_disk: Path) -> None:
    store, blobs = await Store.open(f"sqlite:///{small_disk / 'db'}"), Blobs(small_disk / "sessions")
    for number in range(3):
        await store.add(f"ses_{number}", request(), warnings=[], now=100.0)
        await store.request_cancel(f"ses_{number}", now=100.0 + number)
        await blobs.put(f"ses_{number}", os.urandom(1 << 20))
    fill(small_disk / "ballast")
    with pytest.raises(TryLater, match="full"):
        await crowd(store)
    retention = Retention(store, blobs, Events(), retention_days=1)
    assert await retention.sweep(101.5 + DAY_S) == 2
    assert [path.name for path in (small_disk / "sessions").iterdir()] == ["ses_2"]
    assert [await store.get(f"ses_{number}") is None for number in range(3)] == [True, True, False]
    await store.close()


@pytest.mark.anyio
async def test_on_a_full_disk_sessions_are_stopped_and_removed_and_none_is_accepted(small_disk: Path) -> None:
    store = await Store.open(f"sqlite:///{small_disk / 'db'}")
    waiting, begun = [f"ses_{number}" for number in range(40)], ("ses_a", "ses_b")
    for session_id in (*waiting, *begun):
        await store.add(session_id, request(), warnings=[], now=100.0)
    for session_id in begun:
        await store.claim(session_id, worker="w", device="cpu:0", now=100.0)
    (ballast := small_disk / "ballast").touch()
    fill(ballast)
    for number, session_id in enumerate(waiting):
        if number < 4:
            with pytest.raises(TryLater, match="full"):
                await crowd(store)
        cancelled = await store.request_cancel(session_id, now=101.0)
        assert cancelled is not None
        assert cancelled.state == "cancelled"
        assert await store.delete(session_id)
    assert await store.request_pause("ses_a")
    assert await store.paused("ses_a", attempt=1, spans={}, usage=Usage(), now=101.0)
    assert await store.finish("ses_b", attempt=1, state=State.FAILED, now=101.0, spans={}, usage=Usage())
    ballast.unlink()
    assert await store.resume("ses_a", now=102.0)
    assert (small_disk / "db.reserve").stat().st_size == sqlite.RESERVE_BYTES, "for the next time"
    await store.close()


@pytest.mark.anyio
async def test_on_a_full_disk_pictures_go_after_the_row(small_disk: Path) -> None:
    store, blobs = await Store.open(f"sqlite:///{small_disk / 'db'}"), Blobs(small_disk / "sessions")
    await store.add("ses_0", request(), warnings=[], now=100.0)
    await store.request_cancel("ses_0", now=100.0)
    await blobs.put("ses_0", b"a picture")
    fill(small_disk / "ballast")
    (small_disk / "db.reserve").unlink(missing_ok=True)  # nothing is left to give
    fill(small_disk / "more")
    with pytest.raises(TryLater, match="full"):
        await crowd(store)
    with pytest.raises(TryLater, match="full"):
        await Retention(store, blobs, Events(), retention_days=1).sweep(101.0 + DAY_S)
    assert await store.get("ses_0") is not None
    assert len([*blobs.folder("ses_0").iterdir()]) == 1
    await store.close()


async def crowd(store: Store) -> None:
    """Until the log has no room for one more."""
    for number in itertools.count():
        await store.add(f"ses_new_{number}_{time.monotonic_ns()}", request(), warnings=[], now=100.0)


def fill(ballast: Path) -> None:
    """To the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
