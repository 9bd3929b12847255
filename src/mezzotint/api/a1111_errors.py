"""Our errors as AUTOMATIC1111's callers get them: 404 for names, 422 for values. Must not raise one."""

import re

from mezzotint.api.a1111_fields import Asked
from mezzotint.errors import InvalidRequest, MezzotintError

PREFIXES = ("/sdapi/v1/", "/controlnet/", "/internal/")

_NAMES = frozenset(
    {
        "model_not_found",
        "lora_not_found",
        "embedding_not_found",
        "controlnet_not_found",
        "sampler_not_found",
        "upscaler_not_found",
    }
)


# our field -> theirs; of hires and of ControlNets see below
_FIELDS = {
    "num_images": "batch_size",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "strength": "denoising_strength",
    "image": "init_images[0]",
    "loras": "prompt",
    "scheduler_options": "scheduler",
    "variation": "subseed",
    "padding_mask_crop": "inpaint_full_res_padding",
    "mask_fill": "inpainting_fill",
    "scheduler": "sampler_name",
    "hires.width": "hr_resize_x",
    "hires.height": "hr_resize_y",
    "hires.strength": "denoising_strength",
    "hires.steps": "hr_second_pass_steps",
    "hires": "hr_scale",
}
_UNIT = {"scale": "weight", "start": "guidance_start", "end": "guidance_end", "preprocessor": "module"}


def sent_as(field: str | None, asked: Asked) -> str | None:
    """What a field of our request was called in the call that it came from."""
    top, _, inner = (field or "").partition(".")
    if (unit := re.fullmatch(r"controlnets\[(\d+)\]", top)) and int(unit[1]) < len(asked.units):
        return asked.units[int(unit[1])].path + _UNIT.get(inner, inner)
    if top == "hires" and "scale" in asked.body["hires"] and inner in ("width", "height"):
        return "hr_scale"
    return _FIELDS.get(field or "") or _FIELDS.get(top.partition("[")[0], field)


def translate(error: MezzotintError) -> tuple[MezzotintError, int | None]:
    """The error and its status; None: that of our own routes."""
    named = isinstance(error, InvalidRequest) and any(fault.code in _NAMES for fault in error.faults)
    if named or error.code in _NAMES:
        return error, 404
    return error, 422 if isinstance(error, InvalidRequest) else None
