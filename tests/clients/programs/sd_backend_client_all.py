# mypy: ignore-errors
"""Run by the environment of sd-backend-client, the strictest reader of types, against the address given."""

import sys

import numpy as np
from PIL import Image
from sd_backend_client.api.detect import connect_to_backend
from sd_backend_client.api.webui.diffusion_request_body import DiffusionRequestBody

url, folder = sys.argv[1:3]
backend = connect_to_backend(url)
found = backend.get_capabilities()
assert (found.controlnet, found.scheduler, found.interrogate) == (True, True, False)
assert {one.name for one in backend.list_checkpoints()} >= {"tiny", "icons"}
assert {one.name for one in backend.list_loras()} == {"ink", "blob", "monochrome", "quick"}
assert [one.name for one in backend.list_upscalers()] == ["Lanczos", "Nearest"]
assert backend.list_samplers()
assert backend.list_schedulers()
assert len(backend.list_controlnet_models()) == 2
assert backend.list_vaes() == backend.list_hypernetworks() == []
assert backend.get_controlnet_type_categories()
assert backend.get_script_info()
assert backend.get_embeddings() if hasattr(backend, "get_embeddings") else True
assert backend.progress_check().progress == 0.0

tiny = {"sd_model_name": "tiny", "width": 16, "height": 16, "steps": 3, "seed": 5, "prompt": "a boat"}
handle = backend.submit_txt2img(DiffusionRequestBody(**tiny))
result = handle.wait()
images = result["images"] if isinstance(result, dict) else result.images
assert [image.size for image in images] == [(16, 16)]

image = Image.open(f"{folder}/image.png").convert("RGB")
drawn = backend.img2img(image, None, DiffusionRequestBody(**tiny))
assert drawn["images"][0].size == (16, 16)
assert drawn["info"].all_seeds == [5]
mask = Image.open(f"{folder}/mask.png")
body = DiffusionRequestBody(**tiny, mask_blur=0, inpaint_full_res=True, denoising_strength=1.0)
inpainted = backend.img2img(image, mask, body)["images"][0].convert("RGB")
where = np.asarray(mask.convert("L")) > 127
changed = np.abs(np.asarray(inpainted).astype(int) - np.asarray(image).astype(int)).max(axis=2)
assert inpainted.size == image.size
assert changed[~where].max() == 0
assert changed[where].mean() > 5

assert backend.upscale(image, 64, 48)["images"][0].size == (64, 48)
canny = next(one for one in backend.get_controlnet_preprocessors() if one.name == "canny")
assert backend.controlnet_preprocessor_preview(image, None, canny).size[1] == 512
