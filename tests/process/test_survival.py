"""What is accepted is kept: workers killed, the server killed, stopped, started twice."""

import functools
import json
import os
import resource
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from mezzotint.errors import InvalidRequest, MezzotintError
from tests.process.conftest import BIN, RunningServer, is_alive, wait_for


@pytest.fixture
def server(server: RunningServer) -> RunningServer:
    """The module's, up and with nothing to do, whatever the test before did to it."""
    if server.process.poll() is not None:
        server.start()
    for left in list(server.client.sessions(active=True)):
        server.client.cancel(left["id"])
        server.client.wait(left["id"])
    server.worker_pid()
    return server


def test_a_worker_killed_mid_run_costs_nothing_and_the_server_answers_all_the_while(server: RunningServer) -> None:
    restarts = server.client.workers()[0]["restarts"]
    ids = [server.client.submit(prompt="a cat", steps=30, seed=seed)["id"] for seed in range(3)]
    wait_for(lambda: server.client.session(ids[0])["progress"]["step"] > 2, 60)
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(httpx2.get(f"{server.url}/api/inference/sessions?active=true", timeout=5).status_code)
            time.sleep(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    os.kill(server.worker_pid(), signal.SIGKILL)
    ended = [server.client.wait(session_id) for session_id in ids]
    stop.set()
    asking.join()
    assert [session["state"] for session in ended] == ["succeeded"] * 3
    assert {session["attempt"] for session in ended} == {2}
    assert set(answers) == {200}
    assert len(answers) > 20
    (worker,) = server.client.workers()
    assert (worker["restarts"], worker["last_exit"]) == (restarts + 1, "killed by SIGKILL")

    undisturbed = server.client.wait(server.client.submit(prompt="a cat", steps=30, seed=0)["id"])
    assert undisturbed["images"][0]["sha256"] == ended[0]["images"][0]["sha256"]


def test_a_session_that_keeps_losing_its_worker_is_blamed_and_others_are_not(server: RunningServer) -> None:
    large = {"width": 512, "height": 512}  # its steps are slow: few workers live until one of them is kept
    poison = server.client.submit(prompt="poison", steps=1000, seed=1, priority=9, **large)["id"]
    mate = server.client.submit(prompt="mate", steps=200, seed=2)["id"]

    def told(killed: int) -> dict[str, Any] | None:
        """The suspect as it runs again, or has ended."""
        session = server.client.session(poison)
        runs = session["state"] == "running" and session["attempt"] > killed
        return session if runs or session["state"] in ("succeeded", "failed") else None

    wait_for(lambda: server.client.session(mate)["state"] == "running", 60)
    session = wait_for(functools.partial(told, 0), 60)
    while session["state"] == "running" and session["attempt"] < 40:  # a step that was kept in time clears its name
        os.kill(server.worker_pid(), signal.SIGKILL)
        session = wait_for(functools.partial(told, session["attempt"]), 60)
    assert (session["state"], session["error"]["code"]) == ("failed", "worker_lost")
    assert server.client.wait(mate)["state"] == "succeeded"
    first, *_, last = server.client.trace(poison)["attempts"]
    beside = server.client.trace(mate)["attempts"]
    assert beside[0]["started_at"] < first["ended_at"], "they were lost together"
    # one that fails sooner was alone too, but another may have been on its way to that worker
    apart = all(one["ended_at"] < last["started_at"] or one["started_at"] > last["ended_at"] for one in beside)
    assert apart or last["number"] < 4


def test_a_server_killed_mid_run_goes_on_where_it_was_told_to(server: RunningServer) -> None:
    running = server.client.submit(prompt="x", steps=30, seed=1)["id"]
    queued = [server.client.submit(prompt="x", steps=2, seed=seed)["id"] for seed in range(20)]
    cancelled = server.client.submit(prompt="x", steps=80, seed=5)["id"]
    wait_for(lambda: server.client.session(running)["progress"]["step"] > 0, 60)
    server.client.cancel(cancelled)
    seen = _taken(server, running, 1)[0][0]
    worker = server.worker_pid()
    server.kill()
    wait_for(lambda: not is_alive(worker), 5)
    server.start()
    assert server.client.session(cancelled)["state"] == "cancelled"
    told = [(number, kind) for number, kind, _ in server.client.events(running, after=seen)]
    assert (told[0][1], told[-1][1]) == ("state", "end")
    assert told[0][0] > seen
    for session_id in [running, *queued]:
        assert server.client.wait(session_id)["state"] == "succeeded"


def test_a_client_that_comes_back_after_the_server_was_killed_is_told_what_it_missed(
    server: RunningServer,
) -> None:
    missed = server.client.submit(prompt="x", steps=2, seed=1)["id"]
    running = server.client.submit(prompt="x", steps=30, seed=2, num_images=2)["id"]
    first = next(number for number, kind, _ in server.client.events(missed) if kind == "state")
    whole = [(number, kind, data) for number, kind, data in server.client.events(missed) if kind != "progress"]
    wait_for(lambda: server.client.session(running)["progress"]["step"] > 2, 60)
    last = [number for number, _, _ in _taken(server, running, 5)][-1]
    server.kill()
    server.start()
    again = [(number, kind, data) for number, kind, data in server.client.events(missed, after=first)]
    assert again == whole[1:], "what an earlier process told is told again, word for word"
    told = list(server.client.events(running, after=last))
    numbers = [number for number, _, _ in told]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > last
    assert told[0][1] == "state"
    assert [kind for _, kind, _ in told].count("image") == 2
    assert (told[-1][1], told[-1][2]["state"]) == ("end", "succeeded")
    stored = [(number, kind) for number, kind, _ in server.client.events(running) if kind != "progress"]
    server.kill()
    server.start()
    assert [(number, kind) for number, kind, _ in server.client.events(running)] == stored


def _taken(server: RunningServer, session_id: str, count: int) -> list[tuple[int, str, object]]:
    return [event for event, _ in zip(server.client.events(session_id), range(count), strict=False)]


def test_a_key_means_the_same_session_after_the_server_was_killed(server: RunningServer) -> None:
    before = {session["id"] for session in server.client.sessions()}

    def send() -> str:
        body, headers = {"prompt": "x", "steps": 2}, {"Idempotency-Key": "once"}
        answer = httpx2.post(f"{server.url}/api/inference/sessions", json=body, headers=headers)
        return str(answer.json()["id"])

    first = send()
    server.kill()
    server.start()
    assert send() == first
    assert server.client.wait(first)["state"] == "succeeded"
    assert {session["id"] for session in server.client.sessions()} - before == {first}


def test_a_stop_lets_running_sessions_end_and_leaves_nothing_behind(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="x", steps=20)["id"]
    wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 0, 60)
    worker = server.worker_pid()
    assert server.stop() == 0
    assert not is_alive(worker)
    assert not list(server.data.glob("**/*.tmp"))
    server.start()
    assert server.client.session(session_id)["state"] == "succeeded"


def test_a_stop_holds_the_calls_that_wait_and_refuses_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_DRAIN_S", "300")
    with RunningServer(tmp_path / "data") as server, ThreadPoolExecutor() as pool:
        held = pool.submit(
            httpx2.post,
            f"{server.url}/api/inference/sessions",
            json={"prompt": "x", "steps": 200},
            headers={"Prefer": "wait=300"},
            timeout=300,
        )
        (running,) = wait_for(lambda: list(server.client.sessions(active=True)), 60)
        wait_for(lambda: server.client.session(running["id"])["progress"]["step"] > 0, 60)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{server.url}/readyz").status_code == 503, 10)
        refused = httpx2.post(f"{server.url}/api/inference/sessions", json={"prompt": "y"})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        answer = held.result()
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
        server.client.close()
        assert server.process.wait(30) == 0


def test_a_stop_that_does_not_wait_tells_whoever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_DRAIN_S", "0")
    with RunningServer(tmp_path / "data") as running, ThreadPoolExecutor() as pool:
        asked = {"prompt": "x", "steps": 1000}
        sent = {
            "native": ("/api/inference/sessions", asked, {"Prefer": "wait=60"}),
            "a1111": ("/sdapi/v1/txt2img", asked, {}),
            "openai": ("/v1/images/generations", asked, {}),
        }
        held = {
            name: pool.submit(httpx2.post, running.url + path, json=body, headers=headers, timeout=60)
            for name, (path, body, headers) in sent.items()
        }
        streamed = asked | {"stream": True}
        stream = pool.submit(httpx2.post, f"{running.url}/v1/images/generations", json=streamed, timeout=60)
        wait_for(lambda: len([*running.client.sessions(active=True)]) == 4, 60)
        assert running.stop() == 0
        answers = {name: one.result() for name, one in held.items()}
        assert {name: one.status_code for name, one in answers.items()} == {"native": 202, "a1111": 503, "openai": 503}
        assert answers["native"].json()["state"] == "queued"
        assert answers["openai"].json()["error"]["code"] == "not_ready"
        assert all("Retry-After" in answers[name].headers for name in ("a1111", "openai"))
        assert "event: error" in stream.result().text
        assert "Traceback" not in running.log.read_text()
        running.start()
        assert len([*running.client.sessions(active=True)]) == 4


def test_as_many_callers_may_follow_as_the_system_allows(tmp_path: Path) -> None:
    """Each holds a file, and the usual limit is one that processes may raise themselves."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, most), most))
    try:
        with RunningServer(tmp_path / "data") as server:
            assert psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (most, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def test_a_stop_that_every_process_is_told_of_lets_running_sessions_end(server: RunningServer) -> None:
    """As service managers do, and shells at the end of a login."""
    session_id = server.client.submit(prompt="x", steps=60)["id"]
    wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 0, 60)
    for child in psutil.Process(server.process.pid).children(recursive=True):
        child.send_signal(signal.SIGTERM)
    assert server.stop() == 0
    server.start()
    session = server.client.session(session_id)
    assert (session["state"], session["attempt"]) == ("succeeded", 1)


def test_a_default_model_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--default-model", "icnos") as running:
        told = [json.loads(line) for line in running.log.read_text().splitlines()]
        (line,) = [line for line in told if line["event"] == "the default model is not there"]
        assert (line["level"], line["default_model"], line["models"]) == ("warning", "icnos", ["icons"])
        with pytest.raises(InvalidRequest, match="the nearest is 'icons'"):
            running.client.submit(prompt="x")


def test_a_device_that_torch_does_not_see_is_told_with_the_way_out(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--device", "cuda:99") as running:
        (worker,) = wait_for(lambda: [one for one in running.client.workers() if one["last_exit"]], 60)
        assert "cuda:99 is none of them; install a torch for its driver, or set devices=cpu:0" in worker["last_exit"]
        assert "Traceback" not in running.log.read_text()


def test_a_server_for_others_that_asks_nobody_for_a_key_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEZZOTINT_HOSTS", "images.example.com")
    with RunningServer(tmp_path / "data") as running:
        assert "asking nobody for an API key until the first is made" in running.log.read_text()
        assert subprocess.run([BIN, "keys", "create", "--data", running.data], check=False).returncode == 0
        running.kill()
        running.log.unlink()
        running.start()
        assert "asking nobody" not in running.log.read_text()


def test_a_second_signal_stops_at_once_and_the_session_goes_on_after_the_restart(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="x", steps=1000)["id"]
    wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 0, 60)
    logged = len(server.log.read_text())
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in server.log.read_text()[logged:], 10)
    before = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - before < 5
    server.start()
    wait_for(lambda: (now := server.client.session(session_id))["attempt"] == 2 and now["progress"]["step"] > 0, 60)
    assert server.client.trace(session_id)["attempts"][0]["cause"] == "stop"


def serve_once(*flags: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    command = [BIN, "serve", *flags]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=30, check=False)


def test_a_second_server_on_the_folder_is_refused(server: RunningServer) -> None:
    second = serve_once("--port", "0", "--data", server.data)
    assert second.returncode == 1
    assert "in use by another server" in second.stderr
    assert server.client.devices()


def test_a_port_in_use_is_refused(server: RunningServer, tmp_path: Path) -> None:
    second = serve_once("--port", server.url.rpartition(":")[2], "--data", tmp_path / "other")
    assert second.returncode == 1
    assert "--port" in second.stderr


def test_a_worker_that_hangs_is_replaced_and_its_session_goes_on(server: RunningServer) -> None:
    session_id = server.client.submit(prompt="x", steps=30)["id"]
    wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 0, 60)
    hung = server.worker_pid()
    os.kill(hung, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: server.client.session(session_id)["attempt"] == 2, 30)
    assert time.monotonic() - stopped < 20  # noticed after 10 s of silence, started anew in a few more
    assert not is_alive(hung)
    assert server.client.wait(session_id)["state"] == "succeeded"


def test_a_server_that_was_suspended_goes_on_with_the_worker_that_it_has(server: RunningServer) -> None:
    worker = server.worker_pid()
    session_id = server.client.submit(prompt="x", steps=400)["id"]
    wait_for(lambda: server.client.session(session_id)["progress"]["step"] > 0, 60)
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(13)  # longer than a worker may be silent
    os.kill(server.process.pid, signal.SIGCONT)
    ended = server.client.wait(session_id)
    assert (ended["state"], ended["attempt"], server.worker_pid()) == ("succeeded", 1, worker)


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (["--host", "0.0.0.0"], {}, "not loopback"),
        ([], {"MEZZOTINT_PROT": "1"}, "did you mean MEZZOTINT_PORT?"),
        ([], {"MEZZOTINT_QUEUE_SIZE": "many"}, "queue_size"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    tmp_path: Path, flags: list[str], env: dict[str, str], words: str
) -> None:
    refused = serve_once("--port", "0", "--data", tmp_path / "data", *flags, **env)
    assert refused.returncode == 2
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_full_queue_refuses_by_name_and_says_when_to_come_back(tmp_path: Path) -> None:
    os.environ["MEZZOTINT_QUEUE_SIZE"] = "2"
    try:
        with RunningServer(tmp_path / "data") as server:
            server.worker_pid()
            server.client.submit(prompt="x", steps=1000, num_images=16)
            wait_for(lambda: list(server.client.sessions(state="running")), 30)
            for _ in range(2):
                server.client.submit(prompt="x")
            with pytest.raises(MezzotintError) as caught:
                server.client.submit(prompt="x")
            assert caught.value.code == "queue_full"
    finally:
        del os.environ["MEZZOTINT_QUEUE_SIZE"]
