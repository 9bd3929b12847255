"""How a picture was made, as a request: from the text in its file, whichever program wrote it. Must not look at pixels.

The first source that parses wins: Mezzotint's own, InvokeAI's, AUTOMATIC1111's text, ComfyUI's graph.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mezzotint import a1111_names, comfyui, metadata
from mezzotint.schema import RequestInput, parse

# Texts are of any length: what is repeated gives nothing back (`*+`), so that each is read in linear time.
# A name without a colon is a match, too, so that it is not looked at again from its second letter.
_PAIR = re.compile(r'([A-Za-z][\w \-/]*+)(?::\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$))?')
_LORA = re.compile(r"<lora:([^:<>]++)([^<>]*+)>", re.IGNORECASE)
_WEIGHT = re.compile(r"(?:te=|unet=)?(-?(?:\d+\.?\d*|\.\d+))")
MIN_PAIRS = 3
MAX_WARNINGS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A body for a request, names of models as the source has them. `models`: what to look for, the surest first."""

    source: str  # mezzotint, invokeai, a1111, comfyui
    body: dict[str, Any]
    models: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # fields whose pictures went into it, which its file does not hold
    warnings: tuple[str, ...] = field(default=())


def of_picture(data: bytes) -> Recipe | None:
    """From a PNG, JPEG or WebP; None when it says nothing that can be read. Never raises."""
    return of_texts(metadata.texts(data))


def of_texts(texts: Mapping[str, str]) -> Recipe | None:
    readers = (
        ("mezzotint", _mezzotint),
        ("invokeai_metadata", _invokeai),
        ("parameters", _a1111),
        ("prompt", _comfyui),
    )
    for name, reader in readers:
        if name in texts:
            try:
                found = reader(texts[name])
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
                continue
            if found is not None:
                return _possible(found)
    return None


def _possible(recipe: Recipe) -> Recipe:
    """Without values that no request may have, which warnings name. Prompts stay: they are the picture."""
    body, warnings = dict(recipe.body), list(recipe.warnings)
    for fault in parse(body)[1]:
        name = re.split(r"[.\[]", fault.field or "")[0]
        if name not in ("prompt", "negative_prompt"):
            body.pop(name, None)
            warnings.append(f"{fault.message}; its {name} is left out")
    if len(warnings) > MAX_WARNINGS:
        rest = len(warnings) - MAX_WARNINGS + 1
        warnings[MAX_WARNINGS - 1 :] = [f"{rest} more warnings are not told"]
    return replace(recipe, body=body, warnings=tuple(warnings))


def with_models(recipe: Recipe, checkpoints: Mapping[str, str | None]) -> Recipe:
    """The body with a model that is here, when one fits: by digest, by the start of one, by name in any letter case.

    `checkpoints`: digests by id, None where not known.
    """
    for wanted in recipe.models:
        plain = wanted.removesuffix(".safetensors").removesuffix(".ckpt").lower()
        for name, sha256 in checkpoints.items():
            digest = sha256 or ""
            if name.lower() == plain or (len(plain) >= 10 and digest.startswith(plain)):
                return replace(recipe, body=recipe.body | {"model": name})
    if not recipe.models:
        return recipe
    warning = f"its model {recipe.models[-1][:64]!r} is not here; the default one is used"
    body = {name: value for name, value in recipe.body.items() if name != "model"}
    return replace(recipe, body=body, warnings=(*recipe.warnings, warning))


def png_info(data: bytes) -> dict[str, Any]:
    """AUTOMATIC1111's view of a picture file: its text, its other chunks, its parameters by name."""
    texts = metadata.texts(data)
    text = texts.pop("parameters", "")
    split = _split(text)
    return {"info": text, "items": texts, "parameters": {} if split is None else _named(*split)}


# ---- Mezzotint


def _mezzotint(text: str) -> Recipe | None:
    chunk = metadata.shallow_json(text)
    request, model = chunk["request"], chunk["model"]
    if chunk["v"] != 1 or not isinstance(request, dict):
        return None
    body = {
        name: value
        for name, value in request.items()
        if name in RequestInput.model_fields and value is not None and name != "type"
    }
    body["seed"] = int(chunk["seed"])
    needs = {
        "image": request.get("strength") is not None,
        "mask": request.get("type") == "inpainting",
        "controlnets": bool(request.get("controlnets")),
    }
    names = tuple(str(one) for one in (model.get("sha256"), model.get("id")) if one)
    return Recipe(source="mezzotint", body=body, models=names, needs=tuple(name for name, one in needs.items() if one))


# ---- AUTOMATIC1111


def _a1111(text: str) -> Recipe | None:
    split = _split(text)
    if split is None:
        return None
    prompt, negative, pairs = split
    loras: dict[str, float] = {}
    warnings: list[str] = []
    for tag in _LORA.finditer(prompt):
        scale, is_all = _scale(tag[2])
        loras[tag[1]] = loras.get(tag[1], 0.0) + scale
        if not is_all:
            warnings.append(f"{tag[0][:128]} says more than one weight; its scale is {scale:g} here")
    body: dict[str, Any] = {"prompt": _LORA.sub("", prompt).strip(), "prompt_syntax": "weighted"}
    if negative:
        body["negative_prompt"] = negative
    if loras:
        body["loras"] = [{"name": name, "scale": scale} for name, scale in loras.items()]
    body |= _numbers(pairs, {"Steps": ("num_inference_steps", int), "Seed": ("seed", int)})
    body |= _numbers(pairs, {"CFG scale": ("guidance_scale", float), "Denoising strength": ("strength", float)})
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", "")):
        body |= {"width": int(size[1]), "height": int(size[2])}
    if "Variation seed" in pairs:
        varied = _numbers(pairs, {"Variation seed": ("seed", int), "Variation seed strength": ("strength", float)})
        body["variation"] = varied
    if any(name.startswith("Hires ") for name in pairs):
        body["hires"], told = _hires(pairs, body)
        warnings += told
    if (layers := int(pairs.get("Clip skip", 1))) > 1:
        body["clip_skip"] = layers - 1
    if "Sampler" in pairs:
        try:
            sampler, options = a1111_names.find(pairs["Sampler"], pairs.get("Schedule type"))
            body |= {"scheduler": sampler.scheduler, "scheduler_options": options}
        except (a1111_names.UnknownName, a1111_names.Unfit) as error:
            warnings.append(str(error))
    eta = pairs.get("Eta DDIM", pairs.get("Eta"))
    if eta is not None and body.get("scheduler") == "ddim":
        body["eta"] = float(eta)
    elif eta is not None and float(eta) != 1:  # 1 is what samplers with noise use here
        warnings.append(f"its eta {eta[:64]} is left out: eta is for scheduler 'ddim'")
    if pairs.get("RNG") != "CPU":
        warnings.append("its noise was drawn on a GPU; the same seed draws another picture here")
    names = tuple(pairs[name] for name in ("Model hash", "Model") if pairs.get(name))
    is_masked = "strength" in body and not {"Mask blur", "Masked content", "Inpaint area"}.isdisjoint(pairs)
    if is_masked:
        body |= _masked(pairs)
    needs = {
        "image": "strength" in body,
        "mask": is_masked,
        "controlnets": any(name.startswith("ControlNet ") for name in pairs),
    }
    needed = tuple(name for name, one in needs.items() if one)
    return Recipe(source="a1111", body=body, models=names, needs=needed, warnings=tuple(warnings))


def _scale(rest: str) -> tuple[float, bool]:
    """Of `:0.8`, `:0.8:0.8`, `:te=0.8:unet=0.8`; and whether it says no more than that."""
    said = rest.split(":")[1:]
    weights = [float(found[1]) for part in said if (found := _WEIGHT.fullmatch(part.strip()))]
    return weights[0] if weights else 1.0, len(set(weights)) <= 1 and len(weights) == len(said)


def _masked(pairs: Mapping[str, str]) -> dict[str, Any]:
    """How its mask was used: what is drawn alone comes back at the size of the picture that it began at."""
    found = _numbers(pairs, {"Mask blur": ("mask_blur", int)})
    if pairs.get("Inpaint area") == "Only masked":
        found |= {"padding_mask_crop": int(pairs.get("Masked area padding", 0)), "resize_mode": "original"}
    return found


def _hires(pairs: Mapping[str, str], body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The second pass, and warnings; the strength was its own, and its steps are told as those that ran."""
    warnings: list[str] = []
    found = _numbers(pairs, {"Hires upscale": ("scale", float)})
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Hires resize", "")):
        found = {name: int(side) for name, side in zip(("width", "height"), size.groups(), strict=True) if int(side)}
    found["strength"] = body.pop("strength", 0.7)
    run = int(pairs.get("Hires steps", 0)) or body.get("num_inference_steps")
    if run:
        found["steps"] = a1111_names.asked_steps(run, found["strength"])
        if told := a1111_names.cut(run, found["strength"]):
            warnings.append(told)
    try:
        found["upscaler"] = a1111_names.upscaler(pairs.get("Hires upscaler", "Latent"))
    except a1111_names.UnknownName as error:
        warnings.append(str(error))
    return found, warnings


def _split(text: str) -> tuple[str, str, dict[str, str]] | None:
    """Prompt, negative prompt, parameters by name; None for what is not such a text."""
    lines = text.strip().split("\n")
    pairs = _pairs(lines[-1])
    if len(pairs) < MIN_PAIRS:
        return None
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in lines[:-1]:
        if negative is None and line.startswith("Negative prompt:"):
            negative = [line.removeprefix("Negative prompt:").strip()]
        else:
            (prompt if negative is None else negative).append(line)
    return "\n".join(prompt).strip(), "\n".join(negative or []).strip(), pairs


def _pairs(line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in (pair.groups() for pair in _PAIR.finditer(line)):
        if value is None:
            continue
        if value.startswith('"') and value.endswith('"'):
            try:
                value = str(metadata.shallow_json(value))
            except ValueError:
                value = value.strip('"')
        found[name.strip()] = value.strip()
    return found


def _named(prompt: str, negative: str, pairs: Mapping[str, str]) -> dict[str, str]:
    named = {"Prompt": prompt, "Negative prompt": negative}
    for name, value in pairs.items():
        if size := re.fullmatch(r"(\d+)x(\d+)", value):
            named |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            named[name] = value
    return named


def _numbers(pairs: Mapping[str, str], known: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    return {ours: kind(pairs[name]) for name, (ours, kind) in known.items() if name in pairs}


# ---- InvokeAI 3 and later

_INVOKE_SAMPLERS = {
    "ddim": "ddim", "ddpm": "ddpm", "dpmpp_2m": "dpm_multistep", "dpmpp_2s": "dpm_singlestep", "dpmpp_sde": "dpm_sde",
    "euler": "euler", "euler_a": "euler_ancestral", "heun": "heun", "lms": "lms", "kdpm_2": "kdpm2",
    "kdpm_2_a": "kdpm2_ancestral", "pndm": "pndm", "unipc": "unipc", "lcm": "lcm",
}  # fmt: skip


def _invokeai(text: str) -> Recipe | None:
    told = metadata.shallow_json(text)
    names = {
        "positive_prompt": "prompt", "negative_prompt": "negative_prompt", "width": "width", "height": "height",
        "seed": "seed", "steps": "num_inference_steps", "cfg_scale": "guidance_scale", "strength": "strength",
        "clip_skip": "clip_skip",
    }  # fmt: skip
    body = {ours: told[theirs] for theirs, ours in names.items() if told.get(theirs) not in (None, "")}
    if body.get("clip_skip") == 0:
        del body["clip_skip"]
    if not body:
        return None
    warnings: tuple[str, ...] = ()
    if scheduler := told.get("scheduler"):
        plain = str(scheduler).removesuffix("_k")
        if plain in _INVOKE_SAMPLERS:
            body["scheduler"] = _INVOKE_SAMPLERS[plain]
            if str(scheduler).endswith("_k"):
                body["scheduler_options"] = {"karras_sigmas": True}
        else:
            warnings = (f"scheduler {str(scheduler)[:64]!r} is not here",)
    model = told.get("model") or {}
    loras = [
        {"name": _model_name(one.get("model") or one.get("lora")), "scale": float(one.get("weight", 1))}
        for one in told.get("loras") or []
    ]
    if loras:
        body["loras"] = loras
    nets = [
        {
            "model": _model_name(one.get("control_model")),
            "scale": float(one.get("control_weight", 1)),
            "start": float(one.get("begin_step_percent", 0)),
            "end": float(one.get("end_step_percent", 1)),
        }
        for one in told.get("controlnets") or []
    ]
    if nets:
        body["controlnets"] = nets
        warnings = (*warnings, "it followed pictures that its file does not hold; send them with the request")
    wanted = _model_name(model)
    return Recipe(source="invokeai", body=body, models=(wanted,) if wanted else (), warnings=warnings)


def _model_name(told: Any) -> str:
    return str(told.get("name") or told.get("model_name") or "") if isinstance(told, dict) else ""


# ---- ComfyUI


def _comfyui(text: str) -> Recipe | None:
    body, model, needs, warnings = comfyui.read(metadata.shallow_json(text))
    models = (model,) if model else ()
    return Recipe(source="comfyui", body=body, models=models, needs=needs, warnings=tuple(warnings))
