"""What a picture's file says of how it was made, whichever program wrote it; bad files give less, never an error."""

import io
import json
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint import images, infotext, metadata, recipes
from mezzotint.request import Hires, Output
from mezzotint.schema import RequestInput, parse
from tests.pictures import picture, png_chunk
from tests.requests import request

MADE_WITH: dict[str, Any] = {
    "model": {"id": "icons", "family": "sd", "sha256": "ab" * 32},
    "loras": [],
    "versions": {"mezzotint": "0", "diffusers": "0", "torch": "0"},
}
A1111 = """a <lora:ink:0.5> boat, "at sea"
second line
Negative prompt: fog
and rain
Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 512x768, \
Model hash: abababab12, Model: icons, Denoising strength: 0.4, Clip skip: 2, RNG: CPU, Lora hashes: "ink: aa, b: cc"\
"""


def png(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    picture().save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize("name", ["parameters", "invokeai_metadata", "prompt"])
def test_half_of_a_surrogate_pair_is_a_question_mark(name: str) -> None:
    texts = {
        "parameters": 'x\nSteps: 1, Sampler: "\\ud800", CFG scale: 7, Seed: 1',
        "invokeai_metadata": '{"positive_prompt": "\\ud800", "seed": 1}',
        "prompt": '{"1": {"class_type": "KSampler\\ud800", "inputs": {"seed": 1, "steps": 2}}}',
    }
    repr(recipes.of_picture(png(**{name: texts[name]}))).encode()
    assert metadata.shallow_json('["\\ud800", "\\ud83d\\ude00", NaN]')[:2] == ["?", "\U0001f600"]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_our_own_files_give_back_the_request(form: str) -> None:
    output = Output(format=form, quality=95, embed_metadata=True)
    asked = request(prompt="é, 猫", seed=3, output=output, scheduler="euler")
    data = images.encode(np.zeros((16, 16, 3), np.uint8), asked, 8, MADE_WITH, {})
    found = recipes.of_picture(data)
    assert found is not None
    assert (found.source, found.body["prompt"], found.body["seed"]) == ("mezzotint", "é, 猫", 8)
    assert found.models == ("ab" * 32, "icons")
    sent, faults = parse(found.body)
    assert faults == []
    assert (sent.scheduler, sent.num_inference_steps) == ("euler", asked.num_inference_steps)
    text = metadata.texts(data)["parameters"]
    assert text.startswith("é, 猫\n")
    assert f"Seed: 8, Size: {asked.width}x{asked.height}" in text


@pytest.mark.parametrize("source", ["mezzotint", "parameters"])
def test_a_second_pass_comes_back_from_either_text(source: str) -> None:
    hires = Hires(width=40, height=40, upscaler="lanczos", strength=0.3, steps=20)
    asked = request(hires=hires)
    data = images.encode(np.zeros((40, 40, 3), np.uint8), asked, 8, MADE_WITH, {})
    found = recipes.of_texts({source: metadata.texts(data)[source]})
    assert found is not None
    sent, faults = parse(found.body)
    assert (faults, sent.strength) == ([], None)
    assert sent.hires is not None
    assert (sent.hires.upscaler, sent.hires.strength, sent.hires.steps) == ("lanczos", 0.3, 20)
    assert sent.hires.scale == 2.5 if source == "parameters" else sent.hires.width == 40


def test_the_text_of_automatic1111_is_read_whole() -> None:
    found = recipes.of_picture(png(parameters=A1111))
    assert found is not None
    assert (found.source, found.models, found.warnings) == ("a1111", ("abababab12", "icons"), ())
    assert found.body == {
        "prompt": 'a  boat, "at sea"\nsecond line',
        "prompt_syntax": "weighted",
        "negative_prompt": "fog\nand rain",
        "loras": [{"name": "ink", "scale": 0.5}],
        "num_inference_steps": 20,
        "seed": 42,
        "guidance_scale": 6.5,
        "strength": 0.4,
        "width": 512,
        "height": 768,
        "clip_skip": 1,
        "scheduler": "dpm_multistep",
        "scheduler_options": {"karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    }
    assert parse(found.body)[1] == []
    named = recipes.png_info(png(parameters=A1111, other="x"))
    assert named["items"] == {"other": "x"}
    assert (named["parameters"]["Size-1"], named["parameters"]["Size-2"]) == ("512", "768")
    assert named["parameters"]["Lora hashes"] == "ink: aa, b: cc"
    assert recipes.of_picture(png(parameters="just words, no parameters")) is None


@pytest.mark.parametrize(
    ("tag", "scale", "is_all"),
    [
        ("<lora:ink>", 1.0, True),
        ("<lora:ink:0.5>", 0.5, True),
        ("<lora:ink:-.5:-0.5>", -0.5, True),
        ("<lora:ink:te=0.5:unet=0.5>", 0.5, True),
        ("<lora:ink:te=0.5:unet=0.7>", 0.5, False),
        ("<lora:ink:0.5:dyn=8>", 0.5, False),
        ("<lora:ink:nan>", 1.0, False),
    ],
)
def test_the_weights_of_a_lora_are_read_in_every_form_or_warned_of(tag: str, scale: float, is_all: bool) -> None:
    found = recipes.of_texts({"parameters": A1111.replace("<lora:ink:0.5>", tag)})
    assert found is not None
    assert found.body["loras"] == [{"name": "ink", "scale": scale}]
    assert [tag in warning for warning in found.warnings] == [True] * (not is_all)


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-16"])
@pytest.mark.parametrize("text", [A1111, "猫 " + A1111, "一" * 400 + A1111, "猫 and nothing more"])
def test_a_user_comment_is_read_in_either_byte_order(encoding: str, text: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(encoding)
    file = io.BytesIO()
    picture().save(file, "JPEG", exif=exif)
    assert metadata.texts(file.getvalue())["parameters"] == text


@pytest.mark.parametrize(
    "piece", ["a", "lorem ipsum dolor sit amet ", " ", "a:", 'a:"', 'a:"\\\\', "<lora:a", "<lora:", "a, ", "Steps: 1, "]
)
def test_a_megabyte_of_any_text_is_read_at_once(piece: str) -> None:
    for start in ("", "<lora:"):
        text = start + piece * ((1 << 20) // len(piece) - 10)
        began = time.perf_counter()
        recipes.png_info(png(parameters=text))
        recipes.of_texts({"parameters": f"{text}\n{A1111}"})
        assert time.perf_counter() - began < 8, "a bound, far under the minutes that a quadratic reading takes"


def test_invokeai_is_read() -> None:
    told = {
        "positive_prompt": "a boat", "negative_prompt": "", "width": 512, "height": 512, "seed": 1, "steps": 9,
        "cfg_scale": 7.5, "scheduler": "dpmpp_2m_k", "clip_skip": 0, "model": {"name": "icons"},
        "loras": [{"lora": {"model_name": "ink"}, "weight": 0.7}],
        "controlnets": [{"control_model": {"model_name": "c"}, "control_weight": 0.5, "end_step_percent": 0.8}],
    }  # fmt: skip
    found = recipes.of_picture(png(invokeai_metadata=json.dumps(told)))
    assert found is not None
    assert (found.source, found.models) == ("invokeai", ("icons",))
    assert found.body == {
        "prompt": "a boat", "width": 512, "height": 512, "seed": 1, "num_inference_steps": 9, "guidance_scale": 7.5,
        "scheduler": "dpm_multistep", "scheduler_options": {"karras_sigmas": True},
        "loras": [{"name": "ink", "scale": 0.7}],
        "controlnets": [{"model": "c", "scale": 0.5, "start": 0.0, "end": 0.8}],
    }  # fmt: skip


def comfy(**sampler: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/icons.safetensors"}},
        "2": {
            "class_type": "LoraLoader",
            "inputs": {"model": ["1", 0], "lora_name": "ink.safetensors", "strength_model": 0.6},
        },
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": ["2", 1]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["2", 1]}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 1}},
        "6": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 5, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0,
                "model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], **sampler,
            },
        },
    }  # fmt: skip


def of_graph(graph: dict[str, Any]) -> recipes.Recipe:
    found = recipes.of_texts({"prompt": json.dumps(graph)})
    assert found is not None
    return found


def test_a_graph_of_comfyui_is_followed_to_its_ends() -> None:
    text = json.dumps(comfy()).replace('"denoise": 1.0', '"denoise": NaN')
    found = recipes.of_picture(png(prompt=text))
    assert found is not None
    assert (found.source, found.models) == ("comfyui", ("icons.safetensors",))
    assert found.body == {
        "prompt": "a boat", "negative_prompt": "fog", "seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0,
        "width": 64, "height": 32, "scheduler": "euler", "scheduler_options": {"karras_sigmas": True},
        "loras": [{"name": "ink", "scale": 0.6}],
    }  # fmt: skip
    circle = comfy() | {"2": {"class_type": "LoraLoader", "inputs": {"model": ["2", 0], "lora_name": "a"}}}
    assert of_graph(circle).body["loras"] == [{"name": "a", "scale": 1.0}]  # ends all the same


def test_a_graph_of_comfyui_with_more_than_is_read_says_so() -> None:
    graph = comfy()
    empty = next(node for node in graph.values() if node["class_type"] == "EmptyLatentImage")
    empty["inputs"]["width"] = ["90", 0]
    graph["91"] = comfy(denoise=0.5)[next(name for name, node in graph.items() if node["class_type"] == "KSampler")]
    found = recipes.of_texts({"prompt": json.dumps(graph)})
    assert found is not None
    assert ("width" in found.body, found.body["height"]) == (False, 32)
    assert any("another node" in warning for warning in found.warnings)
    assert any("2 samplers" in warning for warning in found.warnings)


def test_a_value_that_comfyui_keeps_in_a_node_of_its_own_is_read_or_warned_of() -> None:
    graph = comfy(seed=["7", 0], steps=["8", 0], cfg=["90", 0])
    graph["3"]["inputs"]["text"], graph["4"]["inputs"]["text"] = ["9", 0], ["10", 0]
    graph |= {
        "7": {"class_type": "PrimitiveInt", "inputs": {"value": 77, "control_after_generate": "fixed"}},
        "8": {"class_type": "INTConstant", "inputs": {"value": 6}},
        "9": {"class_type": "PrimitiveString", "inputs": {"value": "a ship"}},
        "10": {"class_type": "StringConcatenate", "inputs": {"string_a": ["9", 0], "string_b": "rain"}},
    }
    found = of_graph(graph)
    assert (found.body["seed"], found.body["num_inference_steps"], found.body["prompt"]) == (77, 6, "a ship")
    assert {"guidance_scale", "negative_prompt"}.isdisjoint(found.body)
    told = [warning for warning in found.warnings if "another node" in warning]
    assert ["its cfg" in told[0], "its negative_prompt" in told[1], len(told)] == [True, True, 2]


@pytest.mark.parametrize(
    ("kind", "inputs", "body", "needs", "warns"),
    [
        ("EmptySD3LatentImage", {"width": 96, "height": 32}, {"width": 96, "height": 32}, (), False),
        ("VAEEncode", {"pixels": ["8", 0]}, {"strength": 0.6}, ("image",), False),
        ("VAEEncodeForInpaint", {"pixels": ["8", 0]}, {"strength": 0.6}, ("image", "mask"), False),
        ("LatentUpscale", {"width": 96, "height": 32}, {}, (), True),
    ],
)
def test_what_a_graph_of_comfyui_begins_at_is_told(
    kind: str, inputs: dict[str, Any], body: dict[str, Any], needs: tuple[str, ...], warns: bool
) -> None:
    found = of_graph(comfy(denoise=0.6) | {"5": {"class_type": kind, "inputs": inputs}})
    assert {name: found.body.get(name) for name in ("width", "height", "strength") if name in found.body} == body
    assert (found.needs, any(f"node {kind!r} is not known" in one for one in found.warnings)) == (needs, warns)


def test_the_texts_behind_controlnets_of_a_graph_are_read_and_their_pictures_asked_for() -> None:
    graph = comfy(positive=["21", 0], negative=["21", 1])
    graph["20"] = {"class_type": "ControlNetApply", "inputs": {"conditioning": ["3", 0], "image": ["8", 0]}}
    both = {"positive": ["20", 0], "negative": ["4", 0], "image": ["8", 0]}
    graph["21"] = {"class_type": "ControlNetApplyAdvanced", "inputs": both}
    found = of_graph(graph)
    assert (found.body["prompt"], found.body["negative_prompt"], found.needs) == ("a boat", "fog", ("controlnets",))
    assert not any("not known" in warning for warning in found.warnings)
    both["positive"] = ["21", 0]  # a circle
    assert "prompt" not in of_graph(graph).body
    both["positive"] = ["21", 7]
    assert recipes.of_texts({"prompt": json.dumps(graph)}) is None


def test_what_no_request_may_have_is_left_out_of_a_recipe_and_warned_of() -> None:
    found = of_graph(comfy(cfg=float("nan"), seed=2**64 - 1, steps=5.0, sampler_name="ddim"))
    assert {"guidance_scale", "seed", "scheduler", "scheduler_options"}.isdisjoint(found.body)
    assert found.body["num_inference_steps"] == 5
    assert parse(found.body)[1] == []
    for part in ("guidance_scale", "seed", "sampler 'ddim' with scheduler 'karras'"):
        assert any(part in warning for warning in found.warnings)
    long = recipes.of_texts({"parameters": "x" * 20_000 + "\n" + A1111})
    assert long is not None
    assert [fault.field for fault in parse(long.body)[1]] == ["prompt"]


@pytest.mark.parametrize("blur", [0, 4])
def test_a_mask_of_automatic1111s_text_is_asked_for_and_used_as_it_was(blur: int) -> None:
    asked = request(strength=0.5, mask_blur=blur, padding_mask_crop=12)
    found = recipes.of_texts({"parameters": infotext.write(asked, 8, MADE_WITH, {})})
    assert found is not None
    assert found.needs == ("image", "mask")
    assert (found.body.get("mask_blur", 0), found.body["padding_mask_crop"]) == (blur, 12)
    assert found.body["resize_mode"] == "original"


def test_what_automatic1111s_text_cannot_bring_here_is_said() -> None:
    hires = 'Hires upscale: 2, Hires steps: 150, Hires upscaler: 4x-UltraSharp, ControlNet 1: "Module: canny"'
    found = recipes.of_texts({"parameters": A1111.replace("strength: 0.4", f"strength: 0.1, {hires}")})
    assert found is not None
    assert found.needs == ("controlnets",)
    assert ["of 150 steps" in found.warnings[0], "4x-UltraSharp" in found.warnings[1]] == [True, True]


@pytest.mark.parametrize(
    ("sampler", "eta", "taken", "warns"),
    [
        ("DDIM", "Eta: 0.4", 0.4, False),
        ("DDIM", "Eta DDIM: 0.4", 0.4, False),
        ("DDIM", "Eta: 7", None, True),
        ("Euler a", "Eta: 0.4", None, True),
        ("Euler a", "Eta: 1.0", None, False),
    ],
)
def test_the_eta_of_automatic1111s_text_is_used_or_warned_of(
    sampler: str, eta: str, taken: float | None, warns: bool
) -> None:
    text = f"a boat\nSteps: 20, Sampler: {sampler}, {eta}, Seed: 1, RNG: CPU"
    found = recipes.of_texts({"parameters": text})
    assert found is not None
    assert (found.body.get("eta"), any("eta" in one for one in found.warnings)) == (taken, warns)


def test_a_megabyte_of_loras_is_read_at_once_and_only_the_first_warnings_are_told() -> None:
    begun = time.process_time()
    tags = "".join(f"<lora:a{at}:1:2>" for at in range(70_000))
    found = recipes.of_texts({"parameters": A1111.replace("<lora:ink:0.5>", tags)})
    assert found is not None
    assert len(found.warnings) == recipes.MAX_WARNINGS
    assert time.process_time() - begun < 3
    own = {"v": 1, "request": {"hires": {f"field{at}": 1 for at in range(100)}}, "model": {}, "seed": 1}
    found = recipes.of_texts({"mezzotint": json.dumps(own)})
    assert found is not None
    assert (found.body, len(found.warnings)) == ({"seed": 1}, recipes.MAX_WARNINGS)
    assert found.warnings[-1].startswith("51 more")


def test_many_bombs_of_text_cost_no_more_than_a_few() -> None:
    bomb = zlib.compress(b"x" * (metadata.MAX_TEXT_BYTES + 1))
    known = b"".join(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 900_000)) for _ in range(1000))
    refused = b"".join(png_chunk(b"zTXt", b"b%d\0\0" % at + bomb) for at in range(1000))
    begun = time.process_time()
    assert list(metadata.texts(b"\x89PNG\r\n\x1a\n" + known + refused)) == ["a"]
    assert time.process_time() - begun < 0.5


def test_tags_that_point_at_one_place_are_not_copied_each() -> None:
    place = b"\x0e\x01\x02\0" + (1 << 20).to_bytes(4, "little") + (8).to_bytes(4, "little")
    tags = b"".join((at + 1).to_bytes(2, "little") + place[2:] for at in range(256))
    data = b"II*\0\x08\0\0\0\0\x01" + tags + b"x" * (1 << 20)
    webp = b"RIFF\0\0\0\0WEBPEXIF" + len(data).to_bytes(4, "little") + data
    tracemalloc.start()
    metadata.texts(webp)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 << 20


def test_a_bomb_of_text_is_left_out() -> None:
    packed = b"parameters\0\0" + zlib.compress(b"x" * (64 << 20))
    head = png()[:33]
    assert metadata.texts(head + png_chunk(b"zTXt", packed) + png_chunk(b"tEXt", b"a\0b")) == {"a": "b"}
    deep = "[" * 40 + "]" * 40
    with pytest.raises(ValueError, match="deeply"):
        metadata.shallow_json(deep)
    assert recipes.of_texts({"mezzotint": deep, "invokeai_metadata": "[]", "prompt": "{}"}) is None


@given(st.binary(max_size=300), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"RIFF\0\0\0\0WEBPEXIF"]))
def test_no_bytes_make_it_fail(body: bytes, start: bytes) -> None:
    recipes.png_info(start + body)
    recipes.of_picture(start + body)


@given(st.dictionaries(st.sampled_from(["mezzotint", "invokeai_metadata", "parameters", "prompt"]), st.text()))
def test_no_text_makes_it_fail(texts: dict[str, str]) -> None:
    found = recipes.of_texts(texts)
    assert found is None or set(found.body) <= set(RequestInput.model_fields)
