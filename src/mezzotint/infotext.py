"""A request as the text that AUTOMATIC1111 and its readers put into `parameters`. Must not import a decoder."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint import a1111_names
from mezzotint.request import ControlNetUse, Request

# Ids with a SHA-256, empty where it is not known: "Lora hashes" of LoRAs' tensors, "TI hashes" of embeddings' files.
Hashes = Mapping[str, Sequence[tuple[str, str]]]


def write(
    request: Request,
    seed: int,
    made_with: dict[str, Any],
    hashes: Hashes,
    vae: tuple[str, str] = ("", ""),
    own_spacing: str = "",
) -> str:
    """`made_with` holds at least the model's digest and Mezzotint's version.

    `vae`: the file name of another autoencoder than the model's own and its SHA-256, each empty where there is none.
    `own_spacing`: of the timesteps of the model's own scheduler, where it says one.
    """
    tags = "".join(f" <lora:{lora.name}:{lora.scale:g}>" for lora in request.loras)
    lines = [request.prompt + tags]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    strength = request.hires.strength if request.hires else request.strength
    sampler, schedule = a1111_names.of(request.scheduler, request.scheduler_options, own_spacing)
    pairs = {
        "Steps": request.num_inference_steps,
        "Sampler": sampler,
        **({"Schedule type": schedule} if schedule else {}),
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": made_with["model"]["sha256"][:10],
        "Model": request.model,
        "VAE hash": vae[1][:10],
        "VAE": vae[0],
        **({} if strength is None else {"Denoising strength": f"{strength:g}"}),
        **({"Clip skip": request.clip_skip + 1} if request.clip_skip else {}),
        **varied(request),
        **adapted(request),
        **enlarged(request),
        **hashed(hashes),
        "RNG": "CPU",
        "Version": f"mezzotint {made_with['versions']['mezzotint']}",
    }
    told = {key: str(value) for key, value in pairs.items() if value != ""}
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in told.items()))
    return "\n".join(lines)


def varied(request: Request) -> dict[str, str]:
    if request.variation is None:
        return {}
    return {
        "Variation seed": str(request.variation.seed),
        "Variation seed strength": f"{request.variation.strength:g}",
    }


def adapted(request: Request) -> dict[str, str]:
    """What is told of masks and ControlNets."""
    pairs = {"Mask blur": str(request.mask_blur)} if request.mask_blur else {}
    if request.padding_mask_crop is not None:
        pairs |= {"Inpaint area": "Only masked", "Masked area padding": str(request.padding_mask_crop)}
    return pairs | {f"ControlNet {index}": _control(use) for index, use in enumerate(request.controlnets)}


def enlarged(request: Request) -> dict[str, str]:
    """What is told of a second pass."""
    hires = request.hires
    if hires is None:
        return {}
    scale = hires.width / request.width
    size = {"Hires upscale": f"{scale:g}"} if f"{scale:g}" == f"{hires.height / request.height:g}" else {}
    return {
        **(size or {"Hires resize": f"{hires.width}x{hires.height}"}),
        "Hires steps": str(request.passes[1].steps),
        "Hires upscaler": next(name for name, ours in a1111_names.UPSCALERS.items() if ours == hires.upscaler),
    }


def hashed(hashes: Hashes) -> dict[str, str]:
    """Those that are known, as AUTOMATIC1111 shortens them."""
    known = {key: [f"{name}: {sha256[:12]}" for name, sha256 in pairs if sha256] for key, pairs in hashes.items()}
    return {key: ", ".join(told) for key, told in known.items() if told}


def _control(use: ControlNetUse) -> str:
    return (
        f"Module: {use.preprocessor}, Model: {use.model}, Weight: {use.scale:g}, "
        f"Guidance Start: {use.start:g}, Guidance End: {use.end:g}"
    )


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
