"""AUTOMATIC1111's routes on a real server, as its clients call them."""

import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mezzotint import Mezzotint, metadata, recipes
from mezzotint.api.app import build
from tests.models import build_controlnet, build_lora, build_sd
from tests.pictures import encoded, picture
from tests.process.conftest import RunningServer, wait_for

SIZE = (16, 16)
TINY: dict[str, Any] = {"width": 16, "height": 16, "steps": 3, "override_settings": {"sd_model_checkpoint": "tiny"}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a tiny random model, a ControlNet and a LoRA of it."""
    root = tmp_path_factory.mktemp("a1111")
    tiny = build_sd(root / "models" / "tiny")
    build_controlnet(root / "models" / "tiny-canny", tiny)
    build_lora(root / "models" / "Sketch.safetensors", tiny)
    noise = torch.Generator().manual_seed(1)
    for name, width in (("EasyNeg", 32), ("ForSdxl", 2048)):
        save_file({"emb_params": torch.randn(2, width, generator=noise)}, root / "models" / f"{name}.safetensors")
    with RunningServer(root / "data", "--models", str(root / "models")) as running:
        running.worker_pid()
        yield running


PICTURE = base64.b64encode(encoded(picture(size=SIZE))).decode()


def get(server: RunningServer, path: str, status: int = 200) -> Any:
    answer = httpx2.get(server.url + path, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def post(server: RunningServer, path: str, body: Any = None, status: int = 200) -> Any:
    answer = httpx2.post(server.url + path, json=body, timeout=120)
    assert answer.status_code == status, answer.text
    return answer.json()


def pixels(text: str) -> "np.ndarray[Any, Any]":
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def b64(image: Image.Image) -> str:
    return base64.b64encode(encoded(image)).decode()


OTHER_NET = {"image": PICTURE, "model": "other"}
INFO_TYPES: dict[str, Any] = {
    **dict.fromkeys(
        ("prompt", "negative_prompt", "sampler_name", "sd_model_name", "sd_model_hash", "job_timestamp", "version"), str
    ),
    **dict.fromkeys(("all_prompts", "all_negative_prompts", "infotexts", "styles", "all_seeds", "all_subseeds"), list),
    **dict.fromkeys(("seed", "subseed", "width", "height", "batch_size", "seed_resize_from_w", "clip_skip"), int),
    **dict.fromkeys(("seed_resize_from_h", "index_of_first_image"), int),
    **dict.fromkeys(("subseed_strength", "cfg_scale"), float),
    **dict.fromkeys(("restore_faces", "is_using_inpainting_conditioning", "interrupted"), bool),
    **dict.fromkeys(("sd_vae_name", "sd_vae_hash"), type(None)),
    "extra_generation_params": dict,
}


def test_txt2img_draws_what_a_native_session_draws_and_info_is_whole(served: RunningServer) -> None:
    asked = {"prompt": "a (red:1.2) apple", "negative_prompt": "blur", "seed": 5, "batch_size": 2, "cfg_scale": 6}
    answer = post(served, "/sdapi/v1/txt2img", TINY | asked | {"sampler_name": "Euler a", "scheduler": "automatic"})
    info = json.loads(answer["info"])
    assert {name: type(info[name]) for name in INFO_TYPES} == INFO_TYPES
    assert (info["all_seeds"], info["seed"], info["sampler_name"]) == ([5, 6], 5, "Euler a")
    assert (info["width"], info["cfg_scale"], info["clip_skip"], info["denoising_strength"]) == (16, 6.0, 1, None)
    assert len(info["sd_model_hash"]) == 10
    native = served.client.session(info["session_id"])
    assert native["request"]["scheduler"] == "euler_ancestral"
    assert native["request"]["prompt_syntax"] == "weighted"
    again = served.client.submit(
        model="tiny", prompt="a (red:1.2) apple", negative_prompt="blur", prompt_syntax="weighted", seed=6, steps=3,
        width=16, height=16, guidance_scale=6, scheduler="euler_ancestral",
        scheduler_options={"timestep_spacing": "linspace"},
    )  # fmt: skip
    alone = served.client.wait(again["id"])
    _, image = httpx2.get(served.url + alone["images"][0]["url"]), pixels(answer["images"][1])
    assert np.abs(image - np.asarray(Image.open(io.BytesIO(_.content)).convert("RGB")).astype(int)).mean() <= 0.5
    assert info["infotexts"][0].startswith("a (red:1.2) apple\nNegative prompt: blur\nSteps: 3, Sampler: Euler a, ")
    assert answer["parameters"]["prompt"] == "a (red:1.2) apple"


def test_a_lora_tag_works_and_stays_in_info(served: RunningServer) -> None:
    plain, tagged, twice = (
        post(served, "/sdapi/v1/txt2img", TINY | {"prompt": prompt, "seed": 1})
        for prompt in ("x", "x<lora:sketch:0.5>", "x<lora:Sketch:0.25><lora:sketch:te=0.25:unet=0.25>")
    )
    assert np.abs(pixels(plain["images"][0]) - pixels(tagged["images"][0])).mean() > 2
    assert np.abs(pixels(twice["images"][0]) - pixels(tagged["images"][0])).mean() <= 0.5
    info = json.loads(tagged["info"])
    assert info["prompt"] == "x<lora:sketch:0.5>"
    hashes = info["extra_generation_params"]["Lora hashes"]
    assert re.fullmatch("Sketch: [0-9a-f]{12}", hashes)
    told = recipes.png_info(base64.b64decode(tagged["images"][0]))["info"]
    assert all(f"Lora hashes: {json.dumps(hashes)}, " in text for text in (told, info["infotexts"][0]))
    assert served.client.session(info["session_id"])["request"]["loras"] == [{"name": "Sketch", "scale": 0.5}]
    off = post(
        served, "/sdapi/v1/txt2img", TINY | {"prompt": "x<lora:sketch>", "seed": 1, "disable_extra_networks": True}
    )
    assert off["images"] == plain["images"]
    missing = post(served, "/sdapi/v1/txt2img", TINY | {"prompt": "<lora:none:1>"}, 404)
    assert missing["code"] == "lora_not_found"
    post(served, "/sdapi/v1/txt2img", TINY | {"prompt": "<hypernet:x:1>"}, 422)


def test_a_subseed_varies_one_picture(served: RunningServer) -> None:
    asked = TINY | {"prompt": "x", "seed": 11, "batch_size": 2}
    plain = post(served, "/sdapi/v1/txt2img", asked | {"batch_size": 1})
    little, whole = (
        post(served, "/sdapi/v1/txt2img", asked | {"subseed": 40, "subseed_strength": share}) for share in (0.1, 1.0)
    )
    info = json.loads(little["info"])
    assert (info["all_seeds"], info["all_subseeds"], info["subseed_strength"]) == ([11, 11], [40, 41], 0.1)
    near = np.abs(pixels(plain["images"][0]) - pixels(little["images"][0])).mean()
    far = np.abs(pixels(plain["images"][0]) - pixels(whole["images"][0])).mean()
    assert 0 < near < far / 2
    other = post(served, "/sdapi/v1/txt2img", asked | {"seed": 40})  # 1.0 is the other noise
    for varied, alone in zip(whole["images"], other["images"], strict=True):
        assert np.abs(pixels(varied) - pixels(alone)).mean() <= 1


def test_a_picture_dropped_back_is_drawn_again_pixel_by_pixel(served: RunningServer) -> None:
    asked = TINY | {"prompt": "one<lora:sketch:0.5>", "seed": 9, "batch_size": 2, "subseed": 3, "subseed_strength": 0.2}
    answer = post(served, "/sdapi/v1/txt2img", asked)
    digests = {one["model_name"]: one["sha256"] for one in get(served, "/sdapi/v1/sd-models")}
    for image in answer["images"]:
        recipe = recipes.of_picture(base64.b64decode(image))
        assert recipe is not None
        body = recipes.with_models(recipe, digests).body
        again = served.client.wait(served.client.submit(**body)["id"])
        drawn = httpx2.get(served.url + again["images"][0]["url"]).content
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(drawn))).astype(int), pixels(image))


@pytest.mark.parametrize("scheduler", ["euler", "kdpm2"])
def test_the_text_of_a_native_picture_draws_it_again(served: RunningServer, scheduler: str) -> None:
    drawn = []
    body: dict[str, Any] = {"prompt": "a boat", "scheduler": scheduler, "steps": 3, "seed": 4, "model": "icons"}
    for _ in range(2):
        session = served.client.wait(served.client.submit(**body)["id"])
        drawn.append(served.client.image(session["id"]))
        recipe = recipes.of_texts({"parameters": metadata.texts(drawn[0])["parameters"]})
        assert recipe is not None
        body = recipe.body | {"model": "icons"}  # whose own spacing is trailing
    first, again = (pixels(base64.b64encode(file).decode()) for file in drawn)
    assert np.abs(first - again).max() <= 1


def test_img2img_begins_at_the_picture(served: RunningServer) -> None:
    image = picture(size=SIZE)
    asked = TINY | {"init_images": [b64(image)], "seed": 2, "prompt": "x"}
    little = post(served, "/sdapi/v1/img2img", asked | {"denoising_strength": 0.0})
    much = post(served, "/sdapi/v1/img2img", asked | {"denoising_strength": 1.0})
    info = json.loads(much["info"])
    assert info["denoising_strength"] == 1.0
    assert "init_images" not in much["parameters"]
    assert np.abs(pixels(little["images"][0]) - pixels(much["images"][0])).mean() > 2
    post(served, "/sdapi/v1/img2img", TINY | {"init_images": []}, 422)


@pytest.mark.parametrize("kind", ["white", "inverted", "alpha"])
def test_a_mask_repaints_what_it_says_and_keeps_the_inputs_size(served: RunningServer, kind: str) -> None:
    image = picture(size=(32, 24))
    where = np.zeros((24, 32), bool)
    where[8:16, 8:20] = True
    levels = Image.fromarray(np.where(where ^ (kind == "inverted"), 255, 0).astype(np.uint8), "L")
    mask = levels
    if kind == "alpha":  # black paint, opaque where it is repainted
        mask = Image.new("RGBA", levels.size, (0, 0, 0, 0))
        mask.putalpha(levels)
    asked = {
        "init_images": [b64(image)], "mask": b64(mask), "mask_blur": 0, "inpainting_fill": 1, "seed": 3,
        "inpainting_mask_invert": int(kind == "inverted"), "denoising_strength": 1.0,
    }  # fmt: skip
    answer = post(served, "/sdapi/v1/img2img", TINY | asked)
    drawn = pixels(answer["images"][0])
    assert drawn.shape == (24, 32, 3)  # the input's, though 16x16 was drawn
    changed = np.abs(drawn - np.asarray(image).astype(int)).max(axis=2)
    assert changed[~where].max() == 0
    assert changed[where].mean() > 5


def test_a_smaller_mask_is_brought_to_the_input_and_fill_hides_what_was_there(served: RunningServer) -> None:
    image = picture(size=(32, 32))
    mask = Image.new("L", (16, 16), 255)
    asked = {"init_images": [b64(image)], "mask": b64(mask), "inpaint_full_res": False, "seed": 3}
    kept, filled = (
        post(served, "/sdapi/v1/img2img", TINY | asked | {"inpainting_fill": fill, "denoising_strength": 0.4})
        for fill in (1, 0)
    )
    assert pixels(kept["images"][0]).shape == (16, 16, 3)
    assert np.abs(pixels(kept["images"][0]) - pixels(filled["images"][0])).mean() > 2


def test_a_controlnet_unit_changes_the_picture_and_an_unused_one_does_not(served: RunningServer) -> None:
    (name,) = (one for one in get(served, "/controlnet/model_list")["model_list"] if one.startswith("tiny-canny"))
    unit = {"image": b64(picture(size=SIZE)), "module": "canny", "model": name, "processor_res": 64, "threshold_a": 64}
    answers = [
        post(served, "/sdapi/v1/txt2img", TINY | {"seed": 4, "alwayson_scripts": {"ControlNet": {"args": args}}})
        for args in ([], [unit], [unit | {"enabled": False}])
    ]
    plain, guided, off = (pixels(answer["images"][0]) for answer in answers)
    assert np.abs(plain - guided).mean() > 1
    assert np.array_equal(plain, off)
    info = json.loads(answers[1]["info"])
    used = served.client.session(info["session_id"])["request"]["controlnets"][0]
    assert used["options"] == {"low_threshold": 64, "high_threshold": 200, "resolution": 64}
    assert used["resize_mode"] == "crop"
    assert info["extra_generation_params"]["ControlNet 0"].startswith("Module: canny, Model: tiny-canny, Weight: 1")
    script = {"controlnet": {"args": [unit | {"model": "None"}]}}
    post(served, "/sdapi/v1/txt2img", TINY | {"alwayson_scripts": script}, 422)
    script = {"controlnet": {"args": [unit | {"model": "other"}]}}
    post(served, "/sdapi/v1/txt2img", TINY | {"alwayson_scripts": script}, 404)


def test_detect_makes_a_map_of_each_picture(served: RunningServer) -> None:
    both = [b64(picture(size=(40, 30))), b64(Image.new("L", (40, 30)))]
    asked = {"controlnet_module": "canny", "controlnet_input_images": both, "controlnet_processor_res": 60}
    answer = post(served, "/controlnet/detect", asked)
    assert (answer["info"], [pixels(image).shape for image in answer["images"]]) == ("Success", [(60, 80, 3)] * 2)
    assert pixels(answer["images"][0]).max() == 255
    assert pixels(answer["images"][1]).max() == 0
    refused = post(served, "/controlnet/detect", asked | {"controlnet_input_images": both[:1] * 65}, 422)
    assert "1 to 64" in refused["detail"]


def test_progress_shows_the_callers_session_and_interrupt_brings_what_is_done(served: RunningServer) -> None:
    answers: list[Any] = []
    asked = TINY | {"steps": 1000, "batch_size": 4, "force_task_id": "task(txt2img-AB12CD3)", "prompt": "slow"}
    waiting = threading.Thread(target=lambda: answers.append(post(served, "/sdapi/v1/txt2img", asked)))
    idle = get(served, "/sdapi/v1/progress")
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    waiting.start()

    def running() -> Any:
        told = get(served, "/sdapi/v1/progress?skip_current_image=true")
        return told if told["state"]["sampling_step"] else None

    told = wait_for(running, 60)
    assert 0.01 <= told["progress"] < 1
    assert (told["state"]["job_count"], told["state"]["job"]) == (1, "task(txt2img-AB12CD3)")
    assert isinstance(told["eta_relative"], float)
    assert told["current_image"] is None
    shown = wait_for(lambda: get(served, "/sdapi/v1/progress")["current_image"], 60)
    assert pixels(shown).shape == (16, 16, 3)
    named = post(served, "/internal/progress", {"id_task": "task(txt2img-AB12CD3)", "id_live_preview": -1})
    assert named["live_preview"].startswith("data:image/png;base64,")
    assert named["id_live_preview"] > 0
    assert (named["active"], named["queued"], named["completed"]) == (True, False, False)
    assert get(served, "/internal/pending-tasks")["tasks"] == ["task(txt2img-AB12CD3)"]
    get(served, "/sdapi/v1/progress?id_task=nope", 404)
    post(served, "/sdapi/v1/interrupt?id_task=nope", status=404)
    assert post(served, "/sdapi/v1/interrupt", {"id_task": 12345}, status=422)["field"] == "id_task"
    skipped = httpx2.post(f"{served.url}/sdapi/v1/skip")
    assert (skipped.json(), skipped.headers["x-mezzotint-ignored"]) == ({}, "skip")
    assert post(served, "/sdapi/v1/interrupt") == {}
    waiting.join(60)
    (answer,) = answers
    assert json.loads(answer["info"])["interrupted"] is True
    assert answer["images"] == []
    assert post(served, "/internal/progress", {"id_task": "task(txt2img-AB12CD3)"})["completed"] is True
    assert post(served, "/internal/progress", {"id_task": "nope"})["active"] is False


@pytest.mark.anyio
@pytest.mark.parametrize("cancels", [False, True])
async def test_a_caller_who_leaves_holds_nothing_and_cancels_where_it_asked_to(
    tmp_path: Path, random_sd: Path, cancels: bool
) -> None:
    async with Mezzotint(models=[random_sd], data=tmp_path / "data") as engine:
        app = build(engine.operations)
        slow = {"prompt": "left alone", "steps": 1000, "batch_size": 8, "cancel_on_disconnect": cancels}
        sent = json.dumps(TINY | slow).encode()
        said = iter([{"type": "http.request", "body": sent}, {"type": "http.disconnect"}])
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/sdapi/v1/txt2img", "query_string": b"", "headers": headers}

        async def receive() -> Any:
            return next(said)

        async def send(_: Any) -> None:
            pass

        await app(scope, receive, send)
        if cancels:
            assert [one.cancel_requested for one in await engine.get_active_sessions()] in ([], [True])
            return
        (active,) = await engine.get_active_sessions()
        assert active.state in ("queued", "running")
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app, client=("", 0))) as client:
            pending = await client.get("http://localhost/internal/pending-tasks")
        assert pending.json()["tasks"] == [active.id]
        await engine.cancel_session(active.id)


def test_options_are_kept_and_bring_the_checkpoint(served: RunningServer) -> None:
    post(served, "/api/models/tiny/load", {})  # hashed by then: its title has the hash
    before = get(served, "/sdapi/v1/options")
    (title,) = [one["title"] for one in get(served, "/sdapi/v1/sd-models") if one["model_name"] == "tiny"]
    assert post(served, "/sdapi/v1/options", {"sd_model_checkpoint": title, "samples_format": "jpg", "x": 1}) is None
    options = get(served, "/sdapi/v1/options")
    assert (options["sd_model_checkpoint"], options["samples_format"], options["randn_source"]) == (title, "jpg", "CPU")
    answer = post(served, "/sdapi/v1/txt2img", {"width": 16, "height": 16, "steps": 1})
    assert json.loads(answer["info"])["sd_model_name"] == "tiny"
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).format == "JPEG"
    assert post(served, "/sdapi/v1/options", before) is None
    assert get(served, "/sdapi/v1/options") == before
    assert post(served, "/sdapi/v1/options", {"sd_model_checkpoint": "nope"}, 404)["code"] == "model_not_found"


def test_an_embedding_that_a_prompt_names_works_and_is_told_with_its_hash(served: RunningServer) -> None:
    asked = TINY | {"prompt": "x", "seed": 1}
    plain, named = (
        post(served, "/sdapi/v1/txt2img", asked | {"negative_prompt": text}) for text in ("other", "(easyneg:1.2)")
    )
    assert np.abs(pixels(plain["images"][0]) - pixels(named["images"][0])).mean() > 1
    info = json.loads(named["info"])
    session = served.client.session(info["session_id"])
    assert session["request"]["embeddings"] == ["EasyNeg"]
    told = metadata.texts(base64.b64decode(named["images"][0]))
    (used,) = json.loads(told["mezzotint"])["embeddings"]
    assert (used["id"], len(used["sha256"])) == ("EasyNeg", 64)
    for text in (told["parameters"], info["infotexts"][0]):
        assert f'TI hashes: "EasyNeg: {used["sha256"][:12]}"' in text
    assert "TI hashes" not in plain["info"]


def test_lists_have_the_shapes_that_clients_read(served: RunningServer) -> None:
    models = get(served, "/sdapi/v1/sd-models")
    assert {one["model_name"] for one in models} == {"icons", "tiny"}
    assert all({"title", "hash", "sha256", "filename", "config"} <= one.keys() for one in models)
    loras = get(served, "/sdapi/v1/loras")
    assert [one["name"] for one in loras] == ["Sketch", "blob", "monochrome", "quick"]
    assert loras[0] == {"name": "Sketch", "alias": "Sketch", "path": "Sketch.safetensors", "metadata": {}}
    assert len(get(served, "/sdapi/v1/samplers")) == 15
    assert [one["name"] for one in get(served, "/sdapi/v1/upscalers")] == ["None", "Lanczos", "Nearest"]
    assert get(served, "/sdapi/v1/scripts")["txt2img"] == ["controlnet", "controlnet m2m"]
    assert get(served, "/sdapi/v1/memory")["ram"]["total"] > 0
    karras = next(one for one in get(served, "/sdapi/v1/schedulers") if one["name"] == "karras")
    assert (karras["label"], karras["default_rho"]) == ("Karras", 7.0)
    for name in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "extensions"):
        assert get(served, f"/sdapi/v1/{name}") == []
    embeddings = get(served, "/sdapi/v1/embeddings")
    assert embeddings["skipped"].keys() == {"EasyNeg", "ForSdxl"}, "the caller's checkpoint is icons"
    assert embeddings["skipped"]["EasyNeg"] == {
        "step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 32, "vectors": 2,
    }  # fmt: skip
    assert post(served, "/sdapi/v1/refresh-embeddings") is None
    assert post(served, "/sdapi/v1/refresh-checkpoints") is None
    sliders = get(served, "/controlnet/module_list")["module_detail"]["canny"]["sliders"]
    assert [one["name"] for one in sliders] == ["Resolution", "Low Threshold", "High Threshold"]
    assert get(served, "/controlnet/control_types")["control_types"]["Canny"]["default_option"] == "canny"


@pytest.mark.parametrize("path", ["/sdapi/v1/interrogate", "/sdapi/v1/sd-modules", "/login", "/system_stats"])
def test_what_is_absent_is_404_on_every_method(served: RunningServer, path: str) -> None:
    for method in ("GET", "POST", "PUT"):
        answer = httpx2.request(method, served.url + path, data={"username": "x"})
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_url")


def test_pictures_are_made_larger(served: RunningServer) -> None:
    asked: dict[str, Any] = {"image": b64(picture(size=(20, 10))), "upscaler_1": "Nearest"}
    assert pixels(post(served, "/sdapi/v1/extra-single-image", asked)["image"]).shape == (20, 40, 3)
    sized = {"resize_mode": 1, "upscaling_resize_w": 30, "upscaling_resize_h": 30}
    assert pixels(post(served, "/sdapi/v1/extra-single-image", asked | sized)["image"]).shape == (30, 30, 3)
    whole = asked | sized | {"upscaling_crop": False}
    assert pixels(post(served, "/sdapi/v1/extra-single-image", whole)["image"]).shape == (30, 60, 3)
    several = {"imageList": [{"data": asked["image"], "name": "a"}] * 2, "upscaler_1": "Lanczos"}
    assert len(post(served, "/sdapi/v1/extra-batch-images", several)["images"]) == 2
    post(served, "/sdapi/v1/extra-single-image", asked | {"upscaler_1": "ESRGAN"}, 404)


def test_hires_fix_draws_on_at_the_larger_size(served: RunningServer) -> None:
    sent = TINY | {
        "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent (bicubic)", "denoising_strength": 0.5,
        "hr_second_pass_steps": 4, "hr_sampler_name": "Use same sampler", "hr_prompt": "", "seed": 9,
    }  # fmt: skip
    answer = post(served, "/sdapi/v1/txt2img", sent)
    assert pixels(answer["images"][0]).shape == (32, 32, 3)
    told = json.loads(answer["info"])
    assert told["denoising_strength"] == 0.5
    assert told["extra_generation_params"] == {
        "Hires upscale": "2", "Hires steps": "4", "Hires upscaler": "Latent (bicubic)",
    }  # fmt: skip
    session = get(served, f"/api/inference/sessions/{told['session_id']}")
    assert session["request"]["hires"] == {
        "width": 32, "height": 32, "upscaler": "latent_bicubic", "strength": 0.5, "steps": 8,
    }  # fmt: skip
    assert (session["progress"]["steps"], session["usage"]["steps_run"]) == (3 + 4, 3 + 4)
    names = (
        "model",
        "prompt",
        "prompt_syntax",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
    )
    native = {name: session["request"][name] for name in (*names, "scheduler", "scheduler_options", "seed", "hires")}
    again = served.client.wait(served.client.submit(**native)["id"])
    assert np.array_equal(
        pixels(base64.b64encode(served.client.image(again["id"])).decode()), pixels(answer["images"][0])
    )
    named = [one["name"] for one in get(served, "/sdapi/v1/latent-upscale-modes")]
    assert named[0] == "Latent"
    assert "Latent (bicubic)" in named


def test_png_info_reads_what_was_written(served: RunningServer) -> None:
    answer = post(served, "/sdapi/v1/txt2img", TINY | {"prompt": "one, two: three", "seed": 9})
    told = post(served, "/sdapi/v1/png-info", {"image": "data:image/png;base64," + answer["images"][0]})
    assert told["info"].startswith("one, two: three\nSteps: 3, Sampler: Euler, ")
    assert (told["parameters"]["Seed"], told["parameters"]["Size-1"]) == ("9", "16")
    assert json.loads(told["items"]["mezzotint"])["seed"] == 9
    empty = post(served, "/sdapi/v1/png-info", {"image": b64(picture(size=SIZE))})
    assert empty == {"info": "", "items": {}, "parameters": {}}


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        ({"sampler_name": "DPM fast"}, 404, "sampler_name"),
        ({"sampler_name": "Euler a", "scheduler": "karras"}, 422, "scheduler"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN_4x"}, 404, "hr_upscaler"),
        ({"enable_hr": True, "hr_checkpoint_name": "other"}, 422, "hr_checkpoint_name"),
        ({"enable_hr": True, "hr_resize_x": 33}, 422, "hr_resize_x"),
        ({"enable_hr": True, "hr_scale": 8, "width": 2048, "height": 2048}, 422, "hr_scale"),
        ({"scheduler": "polyexponential"}, 404, "scheduler"),
        ({"batch_size": 8, "n_iter": 9}, 422, "n_iter"),
        ({"prompt": "<lora:Sketch:9>"}, 422, "prompt"),
        (
            {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": False}, OTHER_NET]}}},
            404,
            "alwayson_scripts.ControlNet.args[1].model",
        ),
        ({"tiling": True}, 422, "tiling"),
        ({"s_churn": 1}, 422, "s_churn"),
        ({"steps": 0}, 422, "steps"),
        ({"width": 15}, 422, "width"),
        ({"script_name": "x/y/z plot"}, 422, "script_name"),
        ({"alwayson_scripts": {"roop": {"args": [True]}}}, 422, "alwayson_scripts.roop"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "override_settings.sd_model_checkpoint"),
        ({"override_settings": {"sd_vae": "other"}}, 422, "override_settings.sd_vae"),  # sd-vae lists none
    ],
)
def test_what_would_change_the_picture_is_refused_by_name(
    served: RunningServer, sent: dict[str, Any], status: int, field: str
) -> None:
    assert post(served, "/sdapi/v1/txt2img", TINY | sent, status)["field"] == field


def test_a_null_is_not_sent_where_a_key_compares(served: RunningServer) -> None:
    key = {"Idempotency-Key": "nulls"}
    sent = TINY | {"seed": 1, "steps": 1}
    first, again = (
        httpx2.post(f"{served.url}/sdapi/v1/txt2img", json=one, headers=key, timeout=60)
        for one in (sent, sent | {"styles": None, "override_settings": TINY["override_settings"] | {"sd_vae": None}})
    )
    assert (first.status_code, again.status_code, again.json()["images"]) == (200, 200, first.json()["images"])
    assert again.headers["Idempotency-Replayed"] == "true"


def test_unknown_fields_and_nulls_do_not_fail(served: RunningServer) -> None:
    sent = TINY | {"frobnicate": 1, "hr_scale": 2, "styles": None, "eta": 1.0, "s_noise": 1, "subseed": -1, "steps": 1}
    answer = httpx2.post(f"{served.url}/sdapi/v1/txt2img", json=sent, timeout=60)
    assert (answer.status_code, answer.headers["x-mezzotint-ignored"]) == (200, "frobnicate")
    assert answer.headers["x-session-id"].startswith("ses_")
    told = json.loads(answer.json()["info"])["warnings"]
    assert [one["field"] for one in told] == ["frobnicate"], "of nothing that this dialect adds by itself"


@pytest.mark.parametrize(
    ("path", "sent", "named"),
    [
        ("/sdapi/v1/options", {"randn_source": "CPU", "sd_checkpoint_hash": "x"}, "x"),
        ("/sdapi/v1/options", {"randn_source": "GPU"}, "randn_source,x"),
        ("/sdapi/v1/png-info", {"image": PICTURE}, "x"),
        ("/sdapi/v1/extra-single-image", {"image": PICTURE, "upscale_first": True}, "x"),
        ("/sdapi/v1/extra-batch-images", {"imageList": [{"data": PICTURE, "name": "a", "y": 1}]}, "x,imageList[0].y"),
        ("/controlnet/detect", {"controlnet_input_images": [PICTURE], "low_vram": True, "controlnet_masks": []}, "x"),
        ("/controlnet/detect", {"controlnet_images": [PICTURE], "controlnet_masks": [PICTURE]}, "controlnet_masks,x"),
    ],
)
def test_unknown_fields_of_every_call_are_named(
    served: RunningServer, path: str, sent: dict[str, Any], named: str
) -> None:
    answer = httpx2.post(served.url + path, json=sent | {"x": 1, "z": None}, timeout=60)
    assert (answer.status_code, answer.headers["x-mezzotint-ignored"]) == (200, named)


def test_another_checkpoint_in_the_options_is_loaded_at_once(served: RunningServer) -> None:
    post(served, "/sdapi/v1/options", {"sd_model_checkpoint": "icons"})
    post(served, "/sdapi/v1/reload-checkpoint")  # the options have begun to; what is on its way cannot be let go
    post(served, "/sdapi/v1/unload-checkpoint")
    post(served, "/sdapi/v1/options", {"sd_model_checkpoint": "tiny"})
    post(served, "/sdapi/v1/options", {"sd_model_checkpoint": "icons"})
    assert wait_for(lambda: "icons" in served.client.workers()[0]["resident_models"], 60)


def test_the_checkpoint_of_the_options_is_let_go_and_loaded_again(served: RunningServer) -> None:
    post(served, "/sdapi/v1/options", {"sd_model_checkpoint": "tiny"})
    assert post(served, "/sdapi/v1/reload-checkpoint") == {}
    assert "tiny" in served.client.workers()[0]["resident_models"]
    assert post(served, "/sdapi/v1/unload-checkpoint") == {}
    assert "tiny" not in served.client.workers()[0]["resident_models"]
