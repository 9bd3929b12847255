# mypy: ignore-errors
"""Run by the environment of webuiapi: uses the unmodified client for all it can, against the address given."""

import sys

import numpy as np
import webuiapi
from PIL import Image

url, folder = sys.argv[1:3]
api = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", sampler="Euler a", steps=3)
assert api.has_controlnet

tiny = {"override_settings": {"sd_model_checkpoint": "tiny"}, "width": 16, "height": 16, "seed": 5}
names = ("samplers", "schedulers", "sd_vae", "upscalers", "latent_upscale_modes", "loras", "sd_models", "hypernetworks")
for name in (*names, "face_restorers", "realesrgan_models", "prompt_styles"):
    assert isinstance(getattr(api, f"get_{name}")(), list), name
for name in ("cmd_flags", "embeddings", "memory", "scripts", "options", "progress"):
    assert isinstance(getattr(api, f"get_{name}")(), dict), name

drawn = api.txt2img(prompt="a (red) apple<lora:ink:0.5>", batch_size=2, **tiny)
assert [image.size for image in drawn.images] == [(16, 16)] * 2
assert drawn.info["all_seeds"] == [5, 6]
assert api.txt2img(prompt="x", **tiny).image.size == (16, 16)

image = Image.open(f"{folder}/image.png").convert("RGB")
assert api.img2img([image], prompt="x", **tiny).image.size == (16, 16)
mask = Image.open(f"{folder}/mask.png")
inpainted = api.img2img([image], mask_image=mask, mask_blur=0, inpainting_fill=1, denoising_strength=1.0, **tiny)
inpainted.image.convert("RGB").save(f"{folder}/webuiapi.png")
where = np.asarray(mask.convert("L")) > 127
changed = np.abs(np.asarray(inpainted.image.convert("RGB")).astype(int) - np.asarray(image).astype(int)).max(axis=2)
assert changed[~where].max() == 0
assert changed[where].mean() > 5

(net,) = (one for one in api.controlnet_model_list() if one.startswith("tiny-canny"))
assert "canny" in api.controlnet_module_list()
assert api.controlnet_version() == 2
unit = webuiapi.ControlNetUnit(image=image, module="canny", model=net)
plain, guided, after = (
    np.asarray(api.txt2img(prompt="x", controlnet_units=units, **tiny).image).astype(int) for units in ([], [unit], [])
)
assert np.abs(plain - guided).mean() > 1
assert np.array_equal(plain, after)  # the last call's units are not sent again
assert api.controlnet_detect(images=[image], module="canny").image.size[1] == 512

assert api.extra_single_image(image, upscaler_1="Lanczos", upscaling_resize=2).image.size == (64, 48)
assert len(api.extra_batch_images([image, image], upscaler_1=webuiapi.Upscaler.Nearest).images) == 2
assert api.png_info(drawn.images[0]).info.startswith("a (red) apple")

before = api.util_get_current_model()
(title,) = [one for one in api.util_get_model_names() if one.startswith("tiny")]
api.util_set_model(title)
assert api.util_get_current_model().startswith("tiny")
api.set_options({"sd_model_checkpoint": before})
api.util_wait_for_ready(check_interval=0.1)
assert api.interrupt() == {}
assert api.skip() == {}
assert api.refresh_checkpoints() is None
