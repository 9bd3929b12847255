"""Fields of AUTOMATIC1111's txt2img and img2img put into ours. Pictures stay as they were sent. No I/O here."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mezzotint import a1111_names
from mezzotint.a1111_names import SamplerName
from mezzotint.api import a1111_prompt
from mezzotint.api.a1111_controlnet import Unit, read_unit
from mezzotint.api.a1111_reading import Fields
from mezzotint.catalog import Model
from mezzotint.errors import Fault
from mezzotint.schema import MAX_IMAGES, MAX_PROMPT

MAX_UNITS = 3
MAX_TASK_ID = 128
MAX_SEED = 2**53

_RESIZE = ("stretch", "crop", "pad")
_FREE = (
    "save_images", "do_not_save_samples", "do_not_save_grid", "comments", "image_cfg_scale", "refiner_switch_at",
)  # fmt: skip
_HIRES = (
    "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_additional_modules", "hr_cfg",
)  # fmt: skip
_HIRES_SAME = ("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt")
_OUT = "leave it out"
_ANCESTRAL = frozenset({"euler_ancestral", "kdpm2_ancestral"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A call in our words but for its pictures, and what is said about its answer."""

    body: dict[str, Any]
    prompt: str  # as sent, with its tags
    negative_prompt: str
    sampler: SamplerName | None
    settings: dict[str, Any]
    stores_settings: bool
    sends_images: bool
    echoes_images: bool
    task_id: str | None
    image: str | None
    mask: str | None
    inverts_mask: bool
    rounds_mask: bool
    units: tuple[Unit, ...]
    faults: tuple[Fault, ...]
    warnings: tuple[dict[str, Any], ...]
    ignored: tuple[str, ...]


def read(sent: dict[str, Any], models: Mapping[str, Model], *, has_image: bool) -> Asked:
    """Never raises: what is wrong is in `faults`."""
    fields = Fields(sent)
    warnings: list[dict[str, Any]] = []
    body: dict[str, Any] = {
        "prompt_syntax": "weighted",
        "preview": {"every_steps": a1111_names.PREVIEW_EVERY_STEPS},
        "num_images": fields.whole("batch_size", 1, 1, MAX_IMAGES) * fields.whole("n_iter", 1, 1, MAX_IMAGES),
        "num_inference_steps": fields.whole("steps", 50, 1, 1000),
        "guidance_scale": fields.number("cfg_scale", 7.0, 0, 50),
        "width": fields.whole("width", 512, 1, 65_536),
        "height": fields.whole("height", 512, 1, 65_536),
    }
    if body["num_images"] > MAX_IMAGES:
        fields.wrong("n_iter", f"times batch_size must be at most {MAX_IMAGES}; got {body['num_images']}")
    if fields.flag("cancel_on_disconnect", False):
        body["cancel_on_disconnect"] = True
    seed = fields.whole("seed", -1, -MAX_SEED, MAX_SEED)
    if seed >= 0:
        body["seed"] = seed
    subseed, share = fields.whole("subseed", -1, -MAX_SEED, MAX_SEED), fields.number("subseed_strength", 0.0, 0, 1)
    if share:
        body["variation"] = {"seed": subseed if subseed >= 0 else secrets.randbelow(2**32), "strength": share}
    prompt, negative = fields.text("prompt", ""), fields.text("negative_prompt", "")
    applies = not fields.flag("disable_extra_networks", False)
    for name, text in (("prompt", prompt), ("negative_prompt", negative)):
        if len(text) > MAX_PROMPT:  # tags and all: it is not looked at, and our own reading refuses it
            body[name] = text
            continue
        found = a1111_prompt.read(text, name, models, applies=applies)
        body[name] = found.text
        fields.faults += found.faults
        warnings += found.warnings
        if found.loras:
            body["loras"] = [{"name": lora, "scale": scale} for lora, scale in found.loras.items()]
    sampler = _sampler(fields, body, warnings)
    _neutral(fields)
    image, mask = _picture(fields, body) if has_image else (None, None)
    _hires(fields, body, warnings, has_image=has_image)
    units, ignored = _scripts(fields, models)
    settings = fields.table("override_settings")
    task_id = fields.get("force_task_id")
    if task_id is not None and not (isinstance(task_id, str) and 1 <= len(task_id) <= MAX_TASK_ID):
        fields.wrong("force_task_id", f"must be a text of 1 to {MAX_TASK_ID} characters")
        task_id = None
    asked = Asked(
        body=body,
        prompt=prompt,
        negative_prompt=negative,
        sampler=sampler,
        settings=settings,
        stores_settings=not fields.flag("override_settings_restore_afterwards", True),
        sends_images=fields.flag("send_images", True),
        echoes_images=fields.flag("include_init_images", False),
        task_id=task_id,
        image=image,
        mask=mask,
        inverts_mask=fields.whole("inpainting_mask_invert", 0, 0, 1) == 1,
        rounds_mask=fields.flag("mask_round", True),
        units=units,
        faults=(),
        warnings=tuple(warnings),
        ignored=(),
    )
    return replace(asked, faults=tuple(fields.faults), ignored=(*fields.unknown(), *ignored))


def _sampler(fields: Fields, body: dict[str, Any], warnings: list[dict[str, Any]]) -> SamplerName | None:
    name = fields.text("sampler_name", "", "sampler_index") or "Euler"
    schedule = fields.text("scheduler", "")
    try:
        found, options = a1111_names.find(name, schedule)
    except a1111_names.UnknownName as error:
        field = "scheduler" if isinstance(error, a1111_names.UnknownSchedule) else "sampler_name"
        fields.faults.append(Fault(field=field, code="sampler_not_found", message=str(error)))
        return None
    except a1111_names.Unfit as error:
        fields.faults.append(Fault(field="scheduler", code="unsupported_field", message=str(error)))
        return None
    body["scheduler"] = found.scheduler
    if options:
        body["scheduler_options"] = options
    if found.name == "DPM++ 2S a":
        message = "DPM++ 2S a is drawn with DPM-Solver++ in single steps: close to AUTOMATIC1111's, not equal"
        warnings.append({"code": "sampler_close", "message": message, "field": "sampler_name"})
    if found.scheduler == "ddim":
        body["eta"] = fields.number("eta", 0.0, 0, 1)
    elif found.scheduler in _ANCESTRAL:
        fields.neutral(("eta",), lambda value: value == 1, "ancestral samplers run with 1.0; leave it out")
    else:
        fields.free("eta")
    return found


def _neutral(fields: Fields) -> None:
    out = _OUT
    fields.neutral(("s_churn", "s_tmin", "s_tmax", "s_min_uncond"), lambda value: value == 0, out)
    fields.neutral(("s_noise", "initial_noise_multiplier"), lambda value: value in (0, 1), out)
    fields.neutral(("seed_resize_from_w", "seed_resize_from_h"), lambda value: _at_most_zero(value), out)
    fields.neutral(("styles",), lambda value: value == [], out)
    fields.neutral(("infotext",), lambda value: value == "", "send its fields; png-info reads them")
    fields.neutral(("restore_faces", "tiling"), lambda value: value is False, out)
    fields.neutral(("refiner_checkpoint",), lambda value: value in ("", "None"), out)
    fields.free(*_FREE)


def _at_most_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value <= 0


def _hires(fields: Fields, body: dict[str, Any], warnings: list[dict[str, Any]], *, has_image: bool) -> None:
    """The second, larger pass of txt2img. What belongs to it is not read while it is off."""
    fields.neutral(("firstphase_width", "firstphase_height", "firstpass_image"), lambda value: value in (0, ""), _OUT)
    if has_image:
        fields.neutral(("enable_hr",), lambda value: value is False, "img2img has no second pass; send false")
    if has_image or not fields.flag("enable_hr", False):
        fields.free(*_HIRES)
        if not has_image:
            fields.free("denoising_strength")  # of the second pass
        return
    strength = fields.number("denoising_strength", 0.75, 0, 1)
    steps = fields.whole("hr_second_pass_steps", 0, 0, 1000) or body["num_inference_steps"]
    hires: dict[str, Any] = {"strength": strength, "steps": a1111_names.asked_steps(steps, strength)}
    if told := a1111_names.cut(steps, strength):
        warnings.append({"code": "steps_cut", "message": told, "field": "hr_second_pass_steps"})
    sides = {name: fields.whole(f"hr_resize_{axis}", 0, 0, 65_536) for axis, name in (("x", "width"), ("y", "height"))}
    scale = fields.number("hr_scale", 2.0, 1, 8)
    given: dict[str, Any] = {name: side for name, side in sides.items() if side}
    hires |= given or {"scale": scale}
    try:
        hires["upscaler"] = a1111_names.upscaler(fields.text("hr_upscaler", "") or "Latent")
    except a1111_names.UnknownName as error:
        fields.faults.append(Fault(field="hr_upscaler", code="upscaler_not_found", message=str(error)))
    same = "the second pass runs as the first; leave it out"
    fields.neutral(_HIRES_SAME, _is_same, same)
    fields.neutral(("hr_cfg",), lambda value: value in (0, body["guidance_scale"]), same)
    fields.neutral(("hr_additional_modules",), lambda value: value in ([], ["Use same choices"]), same)
    body["hires"] = hires


def _is_same(value: Any) -> bool:
    return isinstance(value, str) and (not value or value.lower().startswith("use same"))


def _picture(fields: Fields, body: dict[str, Any]) -> tuple[str | None, str | None]:
    images = fields.get("init_images")
    image = images[0] if isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) else None
    if image is None:
        fields.wrong("init_images", "must be a list of exactly one picture, as base64")
    body["strength"] = fields.number("denoising_strength", 0.75, 0, 1)
    mode = fields.whole("resize_mode", 0, 0, 3)
    if mode == 3:
        fields.wrong("resize_mode", "3, stretching latents, is not done here; send 0, 1 or 2", "unsupported_field")
    body["resize_mode"] = _RESIZE[min(mode, 2)]
    mask = fields.text("mask", "") or None
    blur, blur_x, blur_y = (
        fields.get("mask_blur"),
        fields.whole("mask_blur_x", 4, 0, 256),
        fields.whole("mask_blur_y", 4, 0, 256),
    )
    fill = fields.whole("inpainting_fill", 0, 0, 3)
    whole_picture = not fields.flag("inpaint_full_res", True)
    padding = fields.whole("inpaint_full_res_padding", 0, 0, 4096)
    if mask is None:
        return image, None
    if blur is not None:
        blur_x = blur_y = fields.whole("mask_blur", 4, 0, 256)
    if blur_x != blur_y:
        fields.wrong("mask_blur_x", "and mask_blur_y must be equal here", "unsupported_field")
    if fill > 1:
        fields.wrong(
            "inpainting_fill", "2 and 3, latent noise and nothing, are not done here; send 0 or 1", "unsupported_field"
        )
    body |= {"mask_blur": blur_x, "mask_fill": "original" if fill else "fill"}
    if not whole_picture:
        body |= {"padding_mask_crop": padding, "resize_mode": "original"}
    return image, mask


def _scripts(fields: Fields, models: Mapping[str, Model]) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """ControlNet units that are on, and the fields of that script that nobody knows."""
    fields.neutral(("script_name",), lambda value: value == "", "scripts are not run here; leave it out")
    fields.free("script_args")
    units: list[Unit] = []
    ignored: list[str] = []
    for name, script in fields.table("alwayson_scripts").items():
        args = script.get("args") if isinstance(script, dict) else script
        path = f"alwayson_scripts.{name[:64]}"
        if name.lower() == "controlnet":
            if args and not isinstance(args, list):
                fields.wrong(f"{path}.args", "must be a list of units")
                continue
            if isinstance(script, dict):
                ignored += (f"{path}.{other}" for other in script if other != "args")
            for index, sent in enumerate(args or []):
                unit = read_unit(sent, f"{path}.args[{index}].", models, fields.faults)
                if unit is not None:
                    units.append(unit)
                    ignored += unit.ignored
        elif not _is_off(args):
            fields.wrong(path, "is a script that is not run here; leave it out", "unsupported_field")
    if len(units) > MAX_UNITS:
        fields.wrong(
            "alwayson_scripts.controlnet", f"takes at most {MAX_UNITS} units that are enabled; got {len(units)}"
        )
    return tuple(units), tuple(ignored)


def _is_off(args: Any) -> bool:
    if args in (None, [], [False], {}):
        return True
    return isinstance(args, list) and all(isinstance(one, dict) and one.get("enabled") is False for one in args)
