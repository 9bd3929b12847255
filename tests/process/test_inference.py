"""Asking before drawing, and drawing many: capabilities, supported types and validation on a real server."""

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from mezzotint.errors import STATUS, InvalidRequest
from tests.models import build_controlnet, build_lora, build_sd
from tests.process.conftest import RunningServer
from tests.process.test_types import photo, png

ROOT = "/api/inference"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inference")
    build_sd(root / "tiny")
    build_controlnet(root / "tiny-canny", root / "tiny", seed=2)
    build_lora(root / "ink.safetensors", root / "tiny", seed=3)
    (root / "ink.json").write_text('{"trigger_words": ["inkstyle"]}')
    return root


def get(server: RunningServer, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(server.url + ROOT + path, headers=headers)


def post(server: RunningServer, path: str, body: Any, **headers: str) -> httpx2.Response:
    return httpx2.post(server.url + ROOT + path, json=body, headers=headers, timeout=60)


def validate(server: RunningServer, **body: Any) -> dict[str, Any]:
    answer = post(server, "/validate", body)
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    return told


def until_new(server: RunningServer, path: str, etag: str) -> httpx2.Response:
    """The answer when it is another than that of `etag`; the last one when it stays the same for a minute."""
    deadline = time.monotonic() + 60
    while (told := get(server, path, **{"If-None-Match": etag})).status_code == 304 and time.monotonic() < deadline:
        time.sleep(0.1)
    return told


def test_capabilities_tell_what_is_there(server: RunningServer) -> None:
    told = get(server, "/capabilities").json()
    models = {one["id"]: one for one in told["models"]}
    assert models.keys() == {"tiny", "icons"}
    assert models["tiny"]["native_size"] == {"width": 16, "height": 16}
    assert models["tiny"]["supports"]["controlnets"] == ["tiny-canny"]
    assert "ink" in models["tiny"]["supports"]["loras"]
    assert [one["id"] for one in told["devices"]] == ["cpu:0"]
    assert told["devices"][0]["memory"]["total_bytes"] > 0
    assert {one["type"] for one in told["types"]} == {"text2img", "img2img", "inpainting", "controlnet", "lora"}
    assert told["limits"]["queue_free"] <= told["limits"]["queue_size"] == 10_000
    assert get(server, "/capabilities/cpu:0").json()["models"] == told["models"]
    assert get(server, "/capabilities/cuda:9").json()["code"] == "device_not_found"
    assert get(server, "/supported-types/cuda:9").status_code == 404


def test_an_answer_that_is_known_is_304_until_it_changes(server: RunningServer) -> None:
    for path in ("/capabilities", "/supported-types", "/supported-types/cpu:0"):
        first = get(server, path)
        again = get(server, path, **{"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "X-Field-Case" in again.headers["vary"]
    before = get(server, "/capabilities")
    resident = {one["id"]: one["resident_on"] for one in before.json()["models"]}
    if not resident["icons"]:
        server.client.wait(server.client.submit(model="icons", prompt="x", steps=1)["id"])
    told = until_new(server, "/capabilities", before.headers["etag"])
    assert (told.status_code, told.headers["etag"] == before.headers["etag"]) == (200, False)


def test_what_is_valid_is_resolved_and_accepted_as_it_stands(server: RunningServer) -> None:
    told = validate(server, prompt="a boat", seed=3, LoRAs=[{"name": "ink"}], metadata={"my_key": 1})
    assert (told["valid"], told["errors"]) == (True, [])
    assert told["resolved"]["num_inference_steps"] == 30
    assert told["validation_time_s"] < 1
    assert [one["code"] for one in told["recommendations"] if one["field"] == "loras[0].name"] == ["use_trigger_word"]
    for name, value in told["estimate"].items():
        assert value is not None or told["estimate"]["unknown"][name]
    accepted = server.client.submit(**told["resolved"] | {"num_inference_steps": 1})
    assert accepted["request"] | {"num_inference_steps": 30, "metadata": {"my_key": 1}} == told["resolved"]
    server.client.wait(accepted["id"])


def test_all_faults_come_at_once_and_are_those_of_acceptance(server: RunningServer) -> None:
    bad: dict[str, Any] = {"width": 17, "stpes": 3, "scheduler": "ddim", "clip_skip": 3, "seed": 2**63 - 1, "n": 2}
    bad |= {"loras": [{"name": "inc"}], "image": "x", "mask": png(photo(8)), "metadata": {"x": "y" * 20_000}}
    told = validate(server, **bad)
    assert (told["valid"], told["resolved"], told["estimate"]) == (False, None, None)
    fields = {one["field"]: one["code"] for one in told["errors"]}
    assert fields.keys() == {"width", "stpes", "clip_skip", "seed", "loras[0].name", "image", "metadata"}
    assert set(fields.values()) <= STATUS.keys()
    with pytest.raises(InvalidRequest) as caught:
        server.client.submit(**bad)
    refused = [{"field": one.field, "code": one.code, "message": one.message} for one in caught.value.faults]
    assert refused == told["errors"]


def test_what_will_have_no_effect_is_a_warning(server: RunningServer) -> None:
    told = validate(
        server,
        width=160,
        height=160,
        negative_prompt="fog",
        guidance_scale=1,
        eta=0.5,
        scheduler="euler",
        resize_mode="crop",
        output={"quality": 10},
        loras=[{"name": "ink", "scale": 0}],
    )
    assert told["valid"]
    assert {(one["field"], one["code"]) for one in told["warnings"]} == {
        ("width", "size_far_from_native"),
        *(
            (name, "no_effect")
            for name in ("negative_prompt", "eta", "resize_mode", "output.quality", "loras[0].scale")
        ),
    }
    quiet = validate(server, image=png(photo(16)), strength=0.1, steps=5, resize_mode="crop")
    assert [one["code"] for one in quiet["warnings"]] == ["strength_too_small"]


def test_a_picture_that_is_only_checked_is_not_kept(server: RunningServer) -> None:
    folder = server.data / "assets"
    before = sorted(folder.iterdir()) if folder.exists() else []
    control = {"type": "canny", "image": png(photo()), "preprocessor": "canny"}
    told = validate(server, image=png(photo(20)), controlnets=[control])
    assert sorted(folder.iterdir()) == before
    assert (told["valid"], told["resolved"]["type"], told["resolved"]["width"]) == (True, "img2img", 20)
    assert (told["resolved"]["image"], told["resolved"]["controlnets"][0]["image"]) == (None, None)
    assert told["unknown"].keys() == {"image", "controlnets[0].image", "seed"}
    assert validate(server, image=png(Image.new("RGB", (9, 9)))[:40])["errors"][0]["code"] == "invalid_image"


def test_a_body_that_is_no_request_is_told_as_one(server: RunningServer) -> None:
    assert validate(server, prompt=5)["errors"][0]["field"] == "prompt"
    answer = post(server, "/validate", [1])
    assert (answer.status_code, answer.json()["valid"]) == (200, False)
    broken = httpx2.post(f"{server.url}{ROOT}/validate", content="{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["code"]) == (400, "invalid_json")
