"""Workers and the server killed at named points: nothing lost, nothing done twice, the picture is the undisturbed one.

A few points in the ordinary lane; `make torture` takes all of them.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.process.conftest import END_S, RunningServer, wait_for
from tests.torture.history import check

ASKED: dict[str, Any] = {"prompt": "a boat", "seed": 4, "steps": 300, "scheduler": "euler_ancestral"}
ASKED["deterministic"] = True
ALL = os.environ.get("FAILPOINTS") == "all"
IN_WORKERS = ["step=kill@40"]
IN_SERVERS = ["store.renamed=kill"]
if ALL:
    IN_WORKERS += ["decode=kill", "load.start=kill", "load.mid=kill", "encode=kill", "checkpoint.before_send=kill@2"]
    IN_WORKERS += ["ipc.mid_frame=kill@20", "step=segv@40", "encode=segv"]
    IN_SERVERS += [
        "accept.before_commit=kill",
        "accept.after_commit=kill",
        "claim.after_commit=kill",
        "checkpoint.before_write=kill",
    ]
    IN_SERVERS += ["store.tmp_written=kill", "store.before_commit=kill", "store.after_commit=kill"]
SESSIONS = "/api/inference/sessions"


def serving(folder: Path, models: Path, failpoints: str = "", *, spare: bool = False) -> RunningServer:
    flags = ("--models", str(models), "--default-model", "tiny")
    return RunningServer(folder / "data", *flags, spare=spare, failpoints=failpoints)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, random_sd: Path) -> bytes:
    with serving(tmp_path_factory.mktemp("truth"), random_sd) as server:
        ended = server.client.wait(server.client.submit(**ASKED)["id"])
        picture: bytes = server.client.image(ended["id"])
        return picture


@pytest.mark.parametrize("fault", IN_WORKERS)
def test_a_worker_that_dies_there_costs_time_alone(fault: str, tmp_path: Path, random_sd: Path, truth: bytes) -> None:
    with serving(tmp_path, random_sd, fault) as server:
        session_id = send(server)
        ended = server.client.wait(session_id)
        assert (ended["state"], server.client.image(session_id)) == ("succeeded", truth)
        assert server.client.workers()[0]["restarts"] == 1
        ends(server, session_id, truth)


@pytest.mark.parametrize("fault", IN_SERVERS)
def test_a_server_that_dies_there_loses_nothing(fault: str, tmp_path: Path, random_sd: Path, truth: bytes) -> None:
    with serving(tmp_path, random_sd, fault) as server:
        with contextlib.suppress(httpx2.HTTPError):  # nobody is told what became of it
            send(server)
        server.process.wait(END_S)
        server.start()
        session_id = send(server)
        ended = server.client.wait(session_id)
        assert (ended["state"], server.client.image(session_id)) == ("succeeded", truth)
        ends(server, session_id, truth)


def test_a_worker_that_dies_as_it_pauses_leaves_a_paused_session(tmp_path: Path, random_sd: Path, truth: bytes) -> None:
    with serving(tmp_path, random_sd, "pause.at_boundary=kill") as server:
        session_id = send(server)
        wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 60, END_S)
        server.client.pause(session_id)
        wait_for(lambda: server.client.session(session_id)["state"] == "paused", END_S)
        server.client.resume(session_id)
        ended = server.client.wait(session_id)
        assert (ended["state"], server.client.image(session_id)) == ("succeeded", truth)
        assert ended["usage"]["steps_resumed"] > 0
        ends(server, session_id, truth)


@pytest.mark.skipif(not ALL, reason="make torture")
def test_a_spare_that_dies_as_it_warms_is_replaced(tmp_path: Path, random_sd: Path, truth: bytes) -> None:
    with serving(tmp_path, random_sd, "spare.warming=kill", spare=True) as server:
        ended = server.client.wait(send(server))
        wait_for(lambda: [one["state"] for one in server.client.workers()] == ["ready", "spare"], END_S)
        ends(server, ended["id"], truth)


@pytest.mark.skipif(not ALL, reason="make torture")
def test_a_cancel_that_was_not_answered_may_be_said_again(tmp_path: Path, random_sd: Path) -> None:
    with serving(tmp_path, random_sd, "cancel.before_update=kill") as server:
        session_id = send(server)
        with pytest.raises(httpx2.HTTPError):
            httpx2.post(f"{server.url}{SESSIONS}/{session_id}/cancel", timeout=10)
        server.process.wait(END_S)
        server.start()
        server.client.cancel(session_id)
        assert server.client.wait(session_id)["state"] == "cancelled"
        ends(server, session_id)


def send(server: RunningServer) -> str:
    """The session of the one key."""
    answer = httpx2.post(server.url + SESSIONS, json=ASKED, headers={"Idempotency-Key": "a"}, timeout=END_S)
    session_id: str = answer.raise_for_status().json()["id"]
    return session_id


def ends(server: RunningServer, session_id: str, *truth: bytes) -> None:
    """It stops cleanly and left nothing that it should not have."""
    assert server.stop() == 0
    assert check(server.data, {"a": session_id}, {ASKED["prompt"]: list(truth)}) == []
