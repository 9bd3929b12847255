"""Models while a server runs: they come, change and go on disk, are loaded and let go, have settings of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.models import build_controlnet
from tests.process.conftest import RunningServer, wait_for


@pytest.fixture(scope="module")
def root(random_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(random_sd, tmp_path_factory.mktemp("kept") / "models"))


@pytest.fixture(scope="module")
def running(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server") / "data", "--models", str(root)) as server:
        server.worker_pid()
        yield server


def call(server: RunningServer, method: str, path: str, body: Any = None) -> httpx2.Response:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        return client.request(method, path, json=body)


def states(server: RunningServer) -> dict[str, str]:
    return {one["id"]: one["state"] for one in server.client.models()}


def step(server: RunningServer, session_id: str) -> int:
    return int(server.client.session(session_id)["progress"]["step"] or 0)


def guided(server: RunningServer) -> tuple[list[str], str]:
    """The models that a ControlNet can guide now, and the ETag of the answer."""
    told = call(server, "GET", "/api/inference/supported-types")
    return next((one["models"] for one in told.json()["types"] if one["type"] == "controlnet"), []), told.headers[
        "etag"
    ]


def test_a_model_is_known_soon_after_it_comes_changes_or_goes(running: RunningServer, root: Path) -> None:
    assert "tiny" not in guided(running)[0]
    build_controlnet(root / "tiny-canny", root / "tiny")
    wait_for(lambda: "tiny" in guided(running)[0], 60)
    with_it = guided(running)[1]
    shutil.rmtree(root / "tiny-canny")
    wait_for(lambda: "tiny" not in guided(running)[0], 60)
    assert guided(running)[1] != with_it


def test_a_weight_file_that_was_cut_short_makes_its_model_invalid_with_the_reason(
    running: RunningServer, root: Path
) -> None:
    shutil.copytree(root / "tiny", root / "cut")
    call(running, "POST", "/api/models/rescan")
    assert states(running)["cut"] == "ready"
    weights = root / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    found = {one["id"]: one for one in call(running, "POST", "/api/models/rescan").json()["models"]}
    assert (found["cut"]["state"], "unet" in found["cut"]["reason"]) == ("invalid", True)
    refused = call(running, "POST", "/api/inference/sessions", {"prompt": "x", "model": "cut"})
    assert (refused.status_code, refused.json()["code"]) == (422, "model_invalid")
    assert call(running, "POST", "/api/models/cut/load").json()["code"] == "model_invalid"
    shutil.rmtree(root / "cut")


def test_a_model_is_loaded_and_let_go_by_name(running: RunningServer) -> None:
    loaded = call(running, "POST", "/api/models/tiny/load", {"device": "cpu:0"})
    assert loaded.status_code == 200
    assert loaded.json()["resident_on"] == ["cpu:0"]
    let_go = call(running, "POST", "/api/models/tiny/unload")
    assert (let_go.status_code, let_go.json()["resident_on"]) == (200, [])
    assert call(running, "POST", "/api/models/nope/load").json()["code"] == "model_not_found"
    wrong = call(running, "POST", "/api/models/tiny/load", {"device": "cuda:7"})
    assert (wrong.status_code, wrong.json()["code"], wrong.json()["field"]) == (422, "device_not_found", "device")
    assert call(running, "POST", "/api/models/tiny/load", {"devise": "cpu:0"}).json()["code"] == "unknown_field"
    twice = call(running, "POST", "/api/models/tiny/load", {"device": "cpu:0", "Device": "cpu:0"})
    assert (twice.status_code, twice.json()["code"]) == (422, "duplicate_field")


def test_a_model_whose_weights_are_replaced_is_not_resident_until_they_are_loaded(
    running: RunningServer, root: Path
) -> None:
    shutil.copytree(root / "tiny", root / "swapped")
    call(running, "POST", "/api/models/rescan")
    assert call(running, "POST", "/api/models/swapped/load").json()["resident_on"] == ["cpu:0"]
    assert call(running, "PATCH", "/api/models/swapped", {"guidance_scale": 3}).json()["resident_on"] == ["cpu:0"]
    weights = root / "swapped" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    call(running, "POST", "/api/models/rescan")
    shown = [call(running, "GET", path).json() for path in ("/api/models/swapped", "/api/inference/capabilities")]
    assert shown[0]["resident_on"] == []
    assert next(one for one in shown[1]["models"] if one["id"] == "swapped")["resident_on"] == []
    assert call(running, "POST", "/api/models/swapped/load").json()["resident_on"] == ["cpu:0"]
    shutil.rmtree(root / "swapped")


def test_a_model_that_one_device_holds_is_not_loaded_on_another_unasked(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--device", "cpu:0", "--device", "cpu:1") as server:
        wait_for(lambda: all(one["state"] == "ready" for one in server.client.workers()), 60)
        assert call(server, "POST", "/api/models/icons/load", {"device": "cpu:1"}).json()["resident_on"] == ["cpu:1"]
        assert call(server, "POST", "/api/models/icons/load").json()["resident_on"] == ["cpu:1"]


def test_a_model_in_use_is_not_let_go_and_its_session_goes_on_when_its_folder_goes(
    running: RunningServer, root: Path
) -> None:
    shutil.copytree(root / "tiny", root / "fleeting")
    call(running, "POST", "/api/models/rescan")
    session = running.client.submit(prompt="x", model="fleeting", steps=1000, width=128, height=128)
    wait_for(lambda: step(running, session["id"]) > 0, 60)
    refused = call(running, "POST", "/api/models/fleeting/unload")
    assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")
    shutil.rmtree(root / "fleeting")
    call(running, "POST", "/api/models/rescan")
    assert "fleeting" not in states(running)
    before = step(running, session["id"])
    wait_for(lambda: step(running, session["id"]) > before, 60)
    running.client.cancel(session["id"])
    assert running.client.wait(session["id"])["state"] == "cancelled"
    assert call(running, "POST", "/api/models/fleeting/unload").json()["resident_on"] == []


def test_settings_of_a_model_are_the_defaults_of_its_requests(running: RunningServer, root: Path) -> None:
    faults = call(running, "PATCH", "/api/models/tiny", {"width": 15, "scheduler": "fast", "stepz": 3, "dtype": "int4"})
    assert faults.status_code == 422
    assert [one["field"] for one in faults.json()["errors"]] == ["width", "scheduler", "stepz", "dtype"]
    changes = {"width": 32, "numInferenceSteps": 3, "guidance_scale": 2.5, "scheduler": "euler"}
    body = call(running, "PATCH", "/api/models/tiny", changes).json()
    assert body["width"] == 32
    assert body["settings"] == {"width": 32, "num_inference_steps": 3, "guidance_scale": 2.5, "scheduler": "euler"}
    ended = running.client.wait(running.client.submit(prompt="x", model="tiny")["id"])
    request = ended["request"]
    got = [request[name] for name in ("width", "height", "num_inference_steps", "guidance_scale", "scheduler")]
    assert got == [32, 16, 3, 2.5, "euler"]
    back = call(running, "PATCH", "/api/models/tiny", dict.fromkeys(changes)).json()
    assert (back["width"], back["settings"]) == (16, {})


def test_a_default_size_that_was_set_is_not_told_as_the_native_one(running: RunningServer) -> None:
    call(running, "PATCH", "/api/models/tiny", {"width": 96})
    models = {one["id"]: one for one in call(running, "GET", "/api/inference/capabilities").json()["models"]}
    assert (models["tiny"]["native_size"]["width"], models["tiny"]["defaults"]["width"]) == (16, 96)
    told = call(running, "POST", "/api/inference/validate", {"model": "tiny"}).json()
    notes = {one["code"]: one["message"] for one in told["warnings"] + told["recommendations"]}
    assert "16x16" in notes["size_far_from_native"]
    assert "16x16" in notes["use_native_size"]
    call(running, "PATCH", "/api/models/tiny", {"width": None})


def test_a_setting_that_has_become_wrong_can_be_taken_back(running: RunningServer, root: Path) -> None:
    shutil.copytree(root / "tiny" / "vae", root / "clear")
    call(running, "POST", "/api/models/rescan")
    assert call(running, "PATCH", "/api/models/tiny", {"vae": "clear"}).json()["defaults"]["vae"] == "clear"
    shutil.rmtree(root / "clear")
    call(running, "POST", "/api/models/rescan")
    assert states(running)["tiny"] == "invalid"
    assert call(running, "PATCH", "/api/models/tiny", {"vae": None}).json()["state"] == "ready"


def test_a_dtype_of_its_own_is_what_a_model_runs_in(running: RunningServer) -> None:
    assert call(running, "PATCH", "/api/models/tiny", {"dtype": "bfloat16"}).status_code == 200
    ended = running.client.wait(running.client.submit(prompt="x", model="tiny", steps=1)["id"])
    assert ended["usage"]["dtype"] == "bfloat16"
    call(running, "PATCH", "/api/models/tiny", {"dtype": None})
    ended = running.client.wait(running.client.submit(prompt="x", model="tiny", steps=1)["id"])
    assert ended["usage"]["dtype"] == "float32"
