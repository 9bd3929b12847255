"""The worker in reserve: it takes over with what its like had loaded, and no session hangs on it."""

import base64
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.models import build_sd
from tests.pictures import picture
from tests.process.conftest import RunningServer, wait_for

STEPS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("spare") / "data", spare=True) as running:
        yield running


def with_spare(server: RunningServer, *, loaded: bool, model: str = "icons") -> tuple[dict[str, Any], dict[str, Any]]:
    """The worker and the one in reserve, once both are up."""

    def both() -> tuple[dict[str, Any], dict[str, Any]] | None:
        worker, *spares = server.client.workers()
        up = worker["state"] == "ready" and spares and spares[0]["state"] == "spare"
        return (worker, spares[0]) if up and (not loaded or model in spares[0]["resident_models"]) else None

    found: tuple[dict[str, Any], dict[str, Any]] = wait_for(both, 120)
    return found


def begun(server: RunningServer, seed: int) -> str:
    sent = server.client.submit(prompt="a cat", steps=STEPS, seed=seed)["id"]
    wait_for(lambda: server.client.session(sent)["progress"]["step"] > 5, 60)
    return str(sent)


def pixels(server: RunningServer, ended: dict[str, Any]) -> bytes:
    with Image.open(io.BytesIO(server.client.image(ended["id"]))) as opened:
        return opened.tobytes()


def test_the_spare_takes_over_with_the_model_loaded_and_another_stands_by(server: RunningServer) -> None:
    undisturbed = server.client.wait(server.client.submit(prompt="a cat", steps=STEPS, seed=0)["id"])
    worker, spare = with_spare(server, loaded=True)
    sent = begun(server, 0)
    os.kill(worker["pid"], signal.SIGKILL)
    ended = server.client.wait(sent)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    assert pixels(server, ended) == pixels(server, undisturbed)
    after, another = with_spare(server, loaded=True)
    assert (after["id"], after["pid"]) == (spare["id"], spare["pid"])
    assert (after["restarts"], after["last_exit"]) == (1, "killed by SIGKILL")
    assert another["id"] not in (worker["id"], spare["id"])


def test_a_spare_that_is_lost_costs_nobody_anything(server: RunningServer) -> None:
    worker, spare = with_spare(server, loaded=False)
    sent = begun(server, 1)
    os.kill(spare["pid"], signal.SIGKILL)
    wait_for(lambda: [one["id"] for one in server.client.workers()] != [worker["id"], spare["id"]], 60)
    assert server.client.wait(sent)["attempt"] == 1
    assert with_spare(server, loaded=False)[0]["restarts"] == worker["restarts"]


def test_a_spare_that_took_over_answers_who_asks_it_to_load_a_model_before_it_has_run_anything(
    server: RunningServer,
) -> None:
    worker, spare = with_spare(server, loaded=False)
    os.kill(worker["pid"], signal.SIGKILL)
    wait_for(lambda: server.client.workers()[0]["id"] == spare["id"], 60)
    answer = httpx2.post(f"{server.url}/api/models/icons/load", timeout=60)
    assert (answer.status_code, answer.json()["resident_on"]) == (200, ["cpu:0"])


def test_worker_and_spare_killed_together_cost_a_start_and_no_session(server: RunningServer) -> None:
    worker, spare = with_spare(server, loaded=False)
    sent = begun(server, 2)
    time.sleep(0.5)  # its first checkpoint comes a quarter of a second after it began
    os.kill(spare["pid"], signal.SIGKILL)
    os.kill(worker["pid"], signal.SIGKILL)
    ended = server.client.wait(sent)
    assert ended["state"] == "succeeded"
    assert ended["usage"]["steps_resumed"] > 0


def test_a_spare_does_not_die_of_practising_on_a_model_that_only_inpaints(tmp_path: Path) -> None:
    build_sd(tmp_path / "models" / "painter", inpaints=True)
    with RunningServer(tmp_path / "data", "--models", str(tmp_path / "models"), spare=True) as server:
        sent = {"model": "painter", "prompt": "a cat", "width": 16, "height": 16}

        def draw(steps: int) -> None:
            body = sent | {"image": png("RGB"), "mask": png("L"), "steps": steps}
            assert server.client.wait(server.client.submit(**body)["id"])["state"] == "succeeded"

        draw(2)
        _, spare = with_spare(server, loaded=True, model="painter")
        draw(100)
        assert with_spare(server, loaded=True, model="painter")[1]["id"] == spare["id"]


def png(mode: str) -> str:
    file = io.BytesIO()
    picture(mode, (16, 16)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
