"""The dialects on a server that asks for keys, and what Open WebUI and SillyTavern send, replayed."""

import base64
import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.process.conftest import RunningServer, wait_for
from tests.process.test_keys import make_key

QUICK: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
SLOW: dict[str, Any] = {"width": 64, "height": 64, "steps": 1000, "batch_size": 8}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Its address and two keys."""
    with RunningServer(tmp_path_factory.mktemp("keyed") / "data") as server:
        server.worker_pid()
        keys = make_key(server.data), make_key(server.data)
        wait_for(lambda: httpx2.get(f"{server.url}/v1/models").status_code == 401, 5)
        yield server.url, *keys


def call(keyed: tuple[str, str, str], key: str | None, method: str, path: str, **options: Any) -> httpx2.Response:
    auth = ("anybody", key) if key else None
    return httpx2.request(method, keyed[0] + path, auth=auth, timeout=60, **options)


def test_without_a_key_each_dialect_asks_in_its_own_way(keyed: tuple[str, str, str]) -> None:
    for path, asked in (("/sdapi/v1/options", "Basic"), ("/controlnet/version", "Basic"), ("/v1/models", "Bearer")):
        for key in (None, "mz_wrong"):
            answer = call(keyed, key, "GET", path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith(asked)
    with openai.OpenAI(base_url=f"{keyed[0]}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "authentication_error")


def test_a_link_to_a_picture_opens_without_the_key(keyed: tuple[str, str, str]) -> None:
    with openai.OpenAI(base_url=f"{keyed[0]}/v1", api_key=keyed[1], max_retries=0) as client:
        answer = client.images.generate(prompt="x", response_format="url", extra_body={"num_inference_steps": 2})
    assert answer.data is not None
    got = httpx2.get(str(answer.data[0].url))
    assert Image.open(io.BytesIO(got.content)).size == (128, 128)


def test_nobody_sees_or_stops_anothers_picture(keyed: tuple[str, str, str]) -> None:
    _, one, other = keyed
    answers: list[httpx2.Response] = []
    sent = SLOW | {"force_task_id": "task(1)"}
    waiting = threading.Thread(target=lambda: answers.append(call(keyed, one, "POST", "/sdapi/v1/txt2img", json=sent)))
    waiting.start()
    wait_for(lambda: call(keyed, one, "GET", "/sdapi/v1/progress").json()["state"]["sampling_step"], 60)
    assert call(keyed, other, "GET", "/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert call(keyed, other, "GET", "/sdapi/v1/progress?id_task=task(1)").status_code == 404
    assert call(keyed, other, "POST", "/sdapi/v1/interrupt").json() == {}
    assert call(keyed, other, "GET", "/internal/pending-tasks").json() == {"size": 0, "tasks": []}
    assert call(keyed, one, "GET", "/sdapi/v1/progress").json()["state"]["interrupted"] is False
    assert call(keyed, one, "POST", "/sdapi/v1/interrupt?id_task=task(1)").json() == {}
    waiting.join(60)
    assert (answers[0].status_code, answers[0].json()["images"]) == (200, [])


def test_options_are_each_keys_own_and_refreshing_needs_its_scope(keyed: tuple[str, str, str]) -> None:
    _, one, other = keyed
    assert call(keyed, one, "POST", "/sdapi/v1/options", json={"samples_format": "webp"}).json() is None
    assert call(keyed, one, "GET", "/sdapi/v1/options").json()["samples_format"] == "webp"
    assert call(keyed, other, "GET", "/sdapi/v1/options").json()["samples_format"] == "png"
    for path in ("refresh-checkpoints", "unload-checkpoint", "reload-checkpoint"):
        assert call(keyed, one, "POST", f"/sdapi/v1/{path}").status_code == 403


def test_open_webui_draws_through_both_dialects(keyed: tuple[str, str, str]) -> None:
    key = keyed[2]
    options = call(keyed, key, "GET", "/sdapi/v1/options").json()
    title = call(keyed, key, "GET", "/sdapi/v1/sd-models").json()[0]["title"]
    changed = options | {"sd_model_checkpoint": title}
    assert call(keyed, key, "POST", "/sdapi/v1/options", json=changed).status_code == 200
    assert call(keyed, key, "GET", "/sdapi/v1/options").json()["sd_model_checkpoint"] == title
    sent = QUICK | {"prompt": "x", "batch_size": 1, "cfg_scale": 7.0, "sampler_name": "Euler", "scheduler": "Automatic"}
    answer = call(keyed, key, "POST", "/sdapi/v1/txt2img", json=sent).json()
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (64, 64)
    assert isinstance(answer["info"], str)
    bearer = {"Authorization": f"Bearer {key}"}
    drawn = {"model": "icons", "prompt": "x", "n": 1, "size": "64x64", "response_format": "b64_json", "steps": 2}
    answer = httpx2.post(f"{keyed[0]}/v1/images/generations", headers=bearer, json=drawn, timeout=60).json()
    assert set(answer["data"][0]) == {"b64_json", "seed", "width", "height"}
    files = [("image[]", ("image.png", base64.b64decode(answer["data"][0]["b64_json"]), "image/png"))]
    form = {"model": "icons", "prompt": "x", "n": "1", "num_inference_steps": "2"}
    edited = httpx2.post(f"{keyed[0]}/v1/images/edits", headers=bearer, data=form, files=files, timeout=60)
    assert edited.status_code == 200


def test_sillytavern_finds_its_lists_and_draws(keyed: tuple[str, str, str]) -> None:
    key = keyed[2]
    for name in ("sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae"):
        assert isinstance(call(keyed, key, "GET", f"/sdapi/v1/{name}").json(), list), name
    idle = call(keyed, key, "GET", "/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    sent = QUICK | {
        "prompt": "x", "negative_prompt": "y", "sampler_name": "Euler a", "scheduler": "normal", "cfg_scale": 7,
        "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1, "hr_additional_modules": [],
        "denoising_strength": 0.7, "hr_second_pass_steps": 0, "clip_skip": 1, "seed": None,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": None},
        "override_settings_restore_afterwards": True, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    answer = call(keyed, key, "POST", "/sdapi/v1/txt2img", json=sent)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"]) == 1
    assert answer.headers["x-mezzotint-ignored"] == "clip_skip"
