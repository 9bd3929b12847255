"""What was denoised is kept: workers and servers killed at any moment, and the pictures are the undisturbed ones."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mezzotint.errors import CallerError
from tests.models import build_controlnet, build_lora, build_sd
from tests.process.conftest import RunningServer, is_alive, wait_for
from tests.process.test_types import bodies

BASE: dict[str, Any] = {"prompt": "a boat", "seed": 4, "width": 32, "height": 32, "deterministic": True}
ASKED: dict[str, dict[str, Any]] = {
    "text2img": {"steps": 120, "scheduler": "euler_ancestral"},
    "img2img": {**bodies()["img2img"], "steps": 120, "scheduler": "heun"},
    "all": {**bodies()["all"], "steps": 60, "scheduler": "dpm_sde"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("models")
    build_sd(root / "tiny")
    build_controlnet(root / "tiny-canny", root / "tiny", seed=2)
    build_lora(root / "ink.safetensors", root / "tiny", seed=3)
    data = tmp_path_factory.mktemp("server") / "data"
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("MEZZOTINT_THREADS", "1")  # so that a busy machine slows steps down, and does not stop them
    with RunningServer(data, "--models", str(root), "--default-model", "tiny") as running:
        running.worker_pid()
        yield running
    monkeypatch.undo()


def begin(server: RunningServer, **asked: Any) -> str:
    """A session of which steps are done and kept."""
    session_id: str = server.client.submit(**BASE | asked)["id"]
    wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 3, 60)
    time.sleep(0.3)
    return session_id


def digests(session: dict[str, Any]) -> list[str]:
    assert session["state"] == "succeeded", session["error"]
    return [image["sha256"] for image in session["images"]]


def undisturbed(server: RunningServer, **asked: Any) -> list[str]:
    return digests(server.client.wait(server.client.submit(**BASE | asked)["id"]))


def attempts(server: RunningServer, session_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.client.trace(session_id)["attempts"]
    return found


def kill_worker(server: RunningServer) -> None:
    os.kill(server.worker_pid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ASKED)
def test_a_worker_killed_costs_a_few_steps_and_the_picture_is_the_same(server: RunningServer, kind: str) -> None:
    session_id = begin(server, **ASKED[kind])
    kill_worker(server)
    ended = server.client.wait(session_id)
    assert digests(ended) == undisturbed(server, **ASKED[kind])
    first, second = attempts(server, session_id)
    assert (first["steps_resumed"], first["cause"]) == (0, "worker_lost")
    steps = ended["progress"]["steps"]
    assert steps > second["steps_resumed"] > 0
    assert ended["usage"]["steps_resumed"] == second["steps_resumed"]
    assert ended["usage"]["steps_run"] == steps
    wait_for(lambda: not list((server.data / "checkpoints").iterdir()), 5)


def test_a_server_killed_goes_on_from_the_disk(server: RunningServer) -> None:
    asked = {"steps": 500, "scheduler": "dpm_multistep"}
    session_id = begin(server, **asked)
    wait_for((server.data / "checkpoints" / session_id / "0").exists, 10)
    worker = server.worker_pid()
    server.kill()
    wait_for(lambda: not is_alive(worker), 5)
    server.start()
    ended = server.client.wait(session_id)
    assert attempts(server, session_id)[1]["steps_resumed"] > 0
    assert digests(ended) == undisturbed(server, **asked)


def test_a_paused_session_frees_its_worker_survives_the_server_and_goes_on_where_it_was(server: RunningServer) -> None:
    asked = {"steps": 200, "scheduler": "euler_ancestral"}
    session_id = begin(server, **asked)
    assert server.client.pause(session_id)["pause_requested"] is True
    wait_for(lambda: server.client.session(session_id)["state"] == "paused", 10)
    held = server.client.session(session_id)
    assert (held["pause_requested"], 0 < held["progress"]["fraction"] < 1) == (False, True)
    assert server.client.pause(session_id)["state"] == "paused"
    assert server.client.wait(server.client.submit(**BASE, steps=2)["id"])["state"] == "succeeded"
    server.kill()
    server.start()
    assert server.client.session(session_id)["state"] == "paused"
    assert server.client.resume(session_id)["state"] == "queued"
    ended = server.client.wait(session_id)
    assert digests(ended) == undisturbed(server, **asked)
    first, second = attempts(server, session_id)
    assert (first["cause"], second["steps_resumed"]) == ("pause", ended["usage"]["steps_resumed"])
    assert second["steps_resumed"] >= held["progress"]["fraction"] * 200 - 1 > 0
    assert ended["usage"]["steps_run"] == 200
    timing = ended["timing"]
    spans = [seconds for name, seconds in timing.items() if name.endswith("_s") and name != "total_s"]
    assert sum(spans) == pytest.approx(timing["total_s"], rel=0.05, abs=0.1)
    assert timing["paused_s"] > 1


def test_what_cannot_be_paused_or_resumed_says_why(server: RunningServer) -> None:
    session_id = begin(server, steps=1000)
    second = server.client.submit(**BASE, steps=5, device="cpu:0", expires_s=100)["id"]
    for verb, wrong in (("resume", session_id), ("pause", server.client.wait(second)["id"])):
        with pytest.raises(CallerError) as told:
            getattr(server.client, verb)(wrong)
        assert told.value.code == "illegal_state"
    server.client.pause(session_id)
    wait_for(lambda: server.client.session(session_id)["state"] == "paused", 10)
    assert server.client.cancel(session_id)["state"] == "cancelled"
    with pytest.raises(CallerError):
        server.client.resume(session_id)
    with pytest.raises(CallerError):
        server.client.pause("ses_none")


def test_images_that_are_done_are_not_drawn_again(server: RunningServer) -> None:
    asked = {"steps": 60, "num_images": 12, "deterministic": False}
    session_id = server.client.submit(**BASE | asked)["id"]
    wait_for(lambda: server.client.session(session_id)["images"], 60)
    before = server.client.session(session_id)
    assert before["state"] == "running"
    kill_worker(server)
    ended = server.client.wait(session_id)
    done = len(before["images"])
    assert digests(ended)[:done] == digests({**before, "state": "succeeded"})
    assert attempts(server, session_id)[1]["steps_resumed"] >= done * 60
    assert len({image["sha256"] for image in ended["images"]}) == 12


@pytest.mark.parametrize("phases", [["loading", "denoising", "decoding"], ["encoding"]], ids="-".join)
def test_a_worker_killed_in_any_phase_costs_nothing(server: RunningServer, phases: list[str]) -> None:
    """A worker just started, so that it loads; denoised for a while, so that something is kept: who loses two workers
    in a row without a step is taken for the cause. The kill while the last image is decoded may come too late.
    """
    asked = {"steps": 24, "num_images": 6, "prompt": "a boat " + " ".join(phases)}
    before = server.worker_pid()
    kill_worker(server)
    wait_for(lambda: server.client.workers()[0]["pid"] != before, 60)
    session_id: str = server.client.submit(**BASE | asked)["id"]
    events = server.client.events(session_id)
    for phase in phases:
        for _, kind, data in events:
            if kind == "progress" and data["phase"] == phase and (phase != "denoising" or data["step"] > 12):
                break
        kill_worker(server)
    ended = server.client.wait(session_id)
    assert digests(ended) == undisturbed(server, **asked)
    assert len(attempts(server, session_id)) in (len(phases), 1 + len(phases))
