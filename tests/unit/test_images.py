import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mezzotint import images
from mezzotint.metadata import texts
from mezzotint.request import ControlNetUse, LoraUse, Output, Request
from tests.requests import request

MADE_WITH: dict[str, Any] = {
    "model": {"id": "tiny", "family": "sd", "sha256": "ab" * 32},
    "versions": {"mezzotint": "0.1.0", "diffusers": "0", "torch": "0"},
    "device_kind": "cpu",
    "dtype": "float32",
    "executor": "torch",
}
PIXELS = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def encoded(asked: Request, seed: int = 7) -> Image.Image:
    return Image.open(io.BytesIO(images.encode(PIXELS, asked, seed, MADE_WITH, {})))


def output(**changes: Any) -> Output:
    fields: dict[str, Any] = {"format": "png", "quality": 90, "embed_metadata": True}
    return Output(**(fields | changes))


def test_png_keeps_every_pixel_and_tells_how_it_was_made() -> None:
    picture = encoded(request(prompt="a, b: c", negative_prompt="dark", clip_skip=1))
    assert np.array_equal(np.asarray(picture), PIXELS)
    lines = picture.info["parameters"].split("\n")
    assert lines[:2] == ["a, b: c", "Negative prompt: dark"]
    assert lines[2].startswith("Steps: 6, Sampler: DDIM, CFG scale: 5, Seed: 7, Size: 16x16, Model hash: ababababab")
    assert "Clip skip: 2" in lines[2]
    record = json.loads(picture.info["mezzotint"])
    assert record["seed"] == 7
    assert record["request"]["prompt"] == "a, b: c"
    assert record["model"]["sha256"] == "ab" * 32


def test_adapters_and_pictures_in_are_told_without_the_pictures() -> None:
    use = ControlNetUse(
        model="edges", image="asset:secret", preprocessor="canny", options={"low_threshold": 9}, scale=0.5, start=0.0,
        end=0.8, resize_mode="stretch", control_mode="balanced",
    )  # fmt: skip
    asked = request(
        image="asset:a", mask="asset:b", strength=0.6, mask_blur=4, padding_mask_crop=8, controlnets=(use,),
        loras=(LoraUse(name="ink", scale=0.7),),
    )  # fmt: skip
    picture = encoded(asked)
    line = picture.info["parameters"].split("\n")[-1]
    assert "Denoising strength: 0.6, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 8" in line
    assert 'ControlNet 0: "Module: canny, Model: edges, Weight: 0.5, Guidance Start: 0, Guidance End: 0.8"' in line
    record = json.loads(picture.info["mezzotint"])["request"]
    assert record["loras"] == [{"name": "ink", "scale": 0.7}]
    assert record["controlnets"][0]["options"] == {"low_threshold": 9}
    assert "asset" not in picture.info["mezzotint"]


def test_loras_and_embeddings_are_told_with_their_hashes_in_the_text_alone() -> None:
    loras = [("ink", "0123456789abcdef" * 4), ("fog", ""), ("oil", "fedcba9876543210" * 4)]
    hashes = {"Lora hashes": loras, "TI hashes": [("bad-hands", "00112233445566778899" * 3)]}
    file = images.encode(PIXELS, request(), 7, MADE_WITH, hashes)
    info = Image.open(io.BytesIO(file)).info
    told = ', Lora hashes: "ink: 0123456789ab, oil: fedcba987654", TI hashes: "bad-hands: 001122334455", RNG: CPU'
    assert told in info["parameters"]
    assert info["mezzotint"] == encoded(request()).info["mezzotint"]
    assert "Lora hashes" not in encoded(request()).info["parameters"]


def test_another_autoencoder_is_told_with_its_hash_in_the_text_alone() -> None:
    for vae, words in {
        ("clear.safetensors", "0123456789abcdef" * 4): "Model: tiny, VAE hash: 0123456789, VAE: clear.safetensors, ",
        ("clear", ""): "Model: tiny, VAE: clear, ",
    }.items():
        info = Image.open(io.BytesIO(images.encode(PIXELS, request(), 7, MADE_WITH, {}, vae))).info
        assert words in info["parameters"]
        assert info["mezzotint"] == encoded(request()).info["mezzotint"]
    assert "VAE" not in encoded(request()).info["parameters"]


INK = (LoraUse(name="ink", scale=0.7),)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"loras": INK, "type": "lora"}, {"loras": INK}),
        ({"image": "asset:a", "strength": 0.5, "loras": INK, "type": "lora"},
         {"image": "asset:a", "strength": 0.5, "loras": INK, "type": "img2img"}),
        ({"resize_mode": "crop"}, {}),
        ({"scheduler": "euler", "eta": 0.5}, {"scheduler": "euler"}),
    ],
)  # fmt: skip
def test_requests_that_draw_the_same_pixels_make_the_same_file(one: dict[str, Any], other: dict[str, Any]) -> None:
    files = [images.encode(PIXELS, request(**fields), 7, MADE_WITH, {}) for fields in (one, other)]
    assert files[0] == files[1]


@pytest.mark.parametrize("fields", [{"eta": 0.5}, {"image": "asset:a", "strength": 0.5, "resize_mode": "crop"}])
def test_what_has_an_effect_is_told(fields: dict[str, Any]) -> None:
    told = json.loads(encoded(request(**fields)).info["mezzotint"])["request"]
    assert {name: value for name, value in fields.items() if name != "image"}.items() <= told.items()


def test_a_thumbnail_is_a_small_webp_of_a_picture_that_is_larger() -> None:
    large = np.random.default_rng(1).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    small = Image.open(io.BytesIO(images.thumbnail(large)))
    assert (small.format, small.size) == ("WEBP", (256, 128))
    assert images.thumbnail(PIXELS) == b""


def test_what_does_not_change_the_picture_does_not_change_the_file() -> None:
    first = images.encode(PIXELS, request(), 7, MADE_WITH, {})
    other = request(metadata={"user": 1}, priority=9, timeout_s=3.0, device="cpu:0", cancel_on_disconnect=True)
    assert images.encode(PIXELS, other, 7, MADE_WITH, {}) == first
    assert images.encode(PIXELS, request(prompt="other"), 7, MADE_WITH, {}) != first


def test_text_outside_latin_1_survives() -> None:
    assert encoded(request(prompt="дом 家 🏠")).info["parameters"].startswith("дом 家 🏠")


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_jpeg_and_webp_carry_it_in_exif(name: str) -> None:
    picture = encoded(request(prompt="дом", output=output(format=name)))
    assert picture.format == name.upper()
    exif = picture.getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[8:].decode("utf-16-be").startswith("дом\nSteps: 6")
    assert json.loads(exif[0x010E].removeprefix("mezzotint:"))["seed"] == 7


@pytest.mark.parametrize(("name", "keeps"), [("png", True), ("jpeg", False), ("webp", True)])
def test_a_prompt_longer_than_a_jpegs_exif_does_not_lose_the_picture(name: str, keeps: bool) -> None:
    longest = "🏠" * 10_000
    asked = request(prompt=longest, negative_prompt=longest, output=output(format=name))
    file = images.encode(PIXELS, asked, 7, MADE_WITH, {})
    assert Image.open(io.BytesIO(file)).size == (24, 16)
    assert ("parameters" in texts(file)) == keeps


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_metadata_can_be_left_out(name: str) -> None:
    picture = encoded(request(output=output(format=name, embed_metadata=False)))
    assert "parameters" not in picture.info
    assert not picture.getexif()
