"""Every type of request through a real server and its worker: pictures in as callers send them, pictures out."""

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mezzotint.errors import CallerError, InvalidRequest
from tests.models import build_controlnet, build_lora, build_sd, build_sdxl
from tests.process.conftest import BIN, RunningServer

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("types")
    build_sd(root / "tiny")
    build_sd(root / "painter", seed=1, inpaints=True)
    build_sdxl(root / "large")
    build_controlnet(root / "tiny-canny", root / "tiny", seed=2)
    build_lora(root / "ink.safetensors", root / "tiny", seed=3)
    return root


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def photo(size: int = 32) -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB").resize((size, size), Image.Resampling.BILINEAR)


def square(size: int = 32) -> Image.Image:
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).rectangle((8, 8, 20, 20), fill=255)
    return mask


def bodies() -> dict[str, dict[str, Any]]:
    image, mask = png(photo()), f"data:image/png;base64,{png(square())}"
    control = {"type": "canny", "image": image, "preprocessor": "canny", "options": {"low_threshold": 20}}
    return {
        "text2img": {},
        "img2img": {"image": image, "strength": 0.5},
        "inpainting": {"image": image, "mask": mask},
        "controlnet": {"controlnets": [control]},
        "lora": {"loras": [{"name": "ink", "weight": 0.7}]},
        "all": {"image": image, "mask": mask, "ControlNets": [control], "LoRAs": [{"Name": "ink"}]},
    }


def pixels(server: RunningServer, session: dict[str, Any]) -> Pixels:
    assert session["state"] == "succeeded", session["error"]
    return np.array(Image.open(io.BytesIO(server.client.image(session["id"], 0))))


def test_every_type_alone_and_together_draws_the_same(server: RunningServer) -> None:
    base = {"prompt": "a boat", "seed": 4, "steps": 6, "width": 32, "height": 32}
    alone = {kind: server.client.wait(server.client.submit(**base, **body)["id"]) for kind, body in bodies().items()}
    accepted = {kind: server.client.submit(**base, **body)["id"] for kind, body in bodies().items()}
    together = {kind: server.client.wait(session_id) for kind, session_id in accepted.items()}
    drawn = {kind: pixels(server, session) for kind, session in alone.items()}
    for kind, session in together.items():
        off = np.abs(pixels(server, session).astype(int) - drawn[kind]).mean()
        assert off <= 0.5, kind
        assert session["type"] == (kind if kind != "all" else "inpainting")
    different = [a for a in drawn for b in drawn if a < b and np.array_equal(drawn[a], drawn[b])]
    assert different == []


def test_what_the_mask_keeps_is_the_callers_picture(server: RunningServer) -> None:
    for model in ("tiny", "painter"):
        asked = server.client.submit(model=model, prompt="x", steps=4, **bodies()["inpainting"])
        drawn = pixels(server, server.client.wait(asked["id"]))
        kept = np.array(square()) == 0
        assert np.array_equal(drawn[kept], np.array(photo())[kept])
        assert not np.array_equal(drawn, np.array(photo()))


def test_sdxl_draws_too(server: RunningServer) -> None:
    session = server.client.wait(server.client.submit(model="large", prompt="a boat", steps=4)["id"])
    assert pixels(server, session).shape == (16, 16, 3)


def test_an_uploaded_picture_serves_many_sessions_and_each_keeps_its_own(server: RunningServer) -> None:
    file = io.BytesIO()
    photo().save(file, "JPEG", quality=95)
    asset = httpx2.post(
        f"{server.url}/api/assets", content=file.getvalue(), headers={"Content-Type": "image/jpeg"}
    ).json()
    source = f"asset:{asset['id']}"
    sessions = [server.client.submit(image=source, steps=4, seed=seed) for seed in (1, 2)]
    assert [one["request"]["image"] for one in sessions] == [source, source]
    (server.data / "assets" / f"{asset['id']}.png").unlink()
    for one in sessions:
        assert server.client.wait(one["id"])["state"] == "succeeded"
    with pytest.raises(InvalidRequest, match="is not here"):
        server.client.submit(image=source)


def test_faults_of_pictures_are_told_beside_the_others_and_leave_nothing(server: RunningServer) -> None:
    before = sorted((server.data / "sessions").iterdir())
    with pytest.raises(InvalidRequest) as caught:
        server.client.submit(image="https://x/y.png", mask=png(square()), steps=0, loras=[{"name": "imk"}])
    assert [(fault.field, fault.code) for fault in caught.value.faults] == [
        ("num_inference_steps", "invalid_value"),
        ("image", "invalid_image"),
        ("loras[0].name", "lora_not_found"),
    ]
    assert sorted((server.data / "sessions").iterdir()) == before


def test_models_tell_what_goes_with_what(server: RunningServer) -> None:
    fits = {one["id"]: one["fits"] for one in server.client.models() if one["kind"] != "checkpoint"}
    bundled = {"blob": ["icons"], "icons-canny": ["icons"], "monochrome": ["icons"], "quick": ["icons"]}
    assert fits == {"ink": ["painter", "tiny"], "tiny-canny": ["painter", "tiny"], **bundled}


def test_a_trace_tells_the_company_of_each_call(server: RunningServer) -> None:
    ids = [server.client.submit(prompt="x", steps=200, seed=seed)["id"] for seed in range(4)]
    for session_id in ids:
        server.client.wait(session_id)
    trace = httpx2.get(f"{server.url}/api/inference/sessions/{ids[0]}/trace").json()
    session = server.client.session(ids[0])
    assert sum(trace["batch_rows"].values()) == 200
    assert max(map(int, trace["batch_rows"])) > 2, "it had company"
    assert trace["spans"]["denoising_s"] == session["timing"]["denoising_s"] > 0
    (attempt,) = trace["attempts"]
    assert (attempt["number"], attempt["device"], attempt["ended_as"]) == (1, "cpu:0", "succeeded")
    assert httpx2.get(f"{server.url}/api/inference/sessions/ses_no/trace").status_code == 404


def test_the_command_line_takes_files(server: RunningServer, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    square().save(tmp_path / "mask.png")
    control = {"type": "canny", "image": str(tmp_path / "photo.png"), "preprocessor": "canny"}
    flags = ["--image", "photo.png", "--mask", "mask.png", "--loras", "ink:0.5", "--controlnets", json.dumps(control)]
    done = subprocess.run(
        [BIN, "generate", "a boat", "--server", server.url, "--steps", "4", "-o", "out.png", *flags],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = np.array(square()) == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "out.png"))[kept], np.array(photo())[kept])
    missing = subprocess.run([BIN, "generate", "x", "--image", "no.png"], cwd=tmp_path, capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (
        2, "mezzotint: --image no.png cannot be read: No such file or directory\n",
    )  # fmt: skip


def test_a_large_picture_fits_into_a_request_and_a_larger_one_is_refused(server: RunningServer) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    big = png(Image.fromarray(noise, "RGB"))
    assert len(big) > 1 << 20
    session = server.client.wait(server.client.submit(image=big, width=32, height=32, steps=2)["id"])
    assert session["state"] == "succeeded"
    assert session["usage"]["batch_rows"] == {"2": 1}
    assert session["usage"]["peak_memory_bytes"] > 100 << 20
    with pytest.raises(CallerError, match="over"):
        server.client.submit(image="A" * (33 << 20))
