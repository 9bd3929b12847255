"""Answers of txt2img and img2img: pictures in base64 and the whole `info`. Must not fetch anything."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mezzotint import __version__, infotext
from mezzotint.api import foreign
from mezzotint.api.a1111_fields import Asked
from mezzotint.catalog import Model
from mezzotint.session import Session, State

_PICTURES = frozenset({"init_images", "mask"})


def echo(sent: Mapping[str, Any], *, with_pictures: bool) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if with_pictures or name not in _PICTURES}


def info(
    session: Session,
    asked: Asked,
    model: Model | None,
    digest: str | None,
    hashes: infotext.Hashes,
    vae: tuple[str, str],
) -> str:
    """JSON text with every key that strict clients demand; one entry of each list for each picture that is there."""
    request, count = session.request, len(session.images)
    seeds = [image.seed for image in session.images]
    size = session.images[0] if session.images else request
    said = replace(request, prompt=asked.prompt, negative_prompt=asked.negative_prompt, loras=())
    varied = request.variation
    made_with = {"model": {"sha256": digest or ""}, "versions": {"mezzotint": __version__}}
    told: dict[str, Any] = {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * count,
        "negative_prompt": asked.negative_prompt,
        "all_negative_prompts": [asked.negative_prompt] * count,
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": varied.seed if varied else -1,
        "all_subseeds": [varied.seed + image.index if varied else -1 for image in session.images],
        "subseed_strength": varied.strength if varied else 0.0,
        "width": size.width,
        "height": size.height,
        "sampler_name": asked.sampler.name if asked.sampler else "",
        "cfg_scale": float(request.guidance_scale),
        "steps": request.num_inference_steps,
        "batch_size": request.num_images,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": (digest or "")[:10],
        "sd_vae_name": vae[0] or None,
        "sd_vae_hash": vae[1][:10] or None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.hires.strength if request.hires else request.strength,
        "extra_generation_params": infotext.adapted(request) | infotext.enlarged(request) | infotext.hashed(hashes),
        "index_of_first_image": 0,
        "infotexts": [
            infotext.write(said.alone(image.index), image.seed, made_with, hashes, vae) for image in session.images
        ],
        "styles": [],
        "job_timestamp": timestamp(session),
        "clip_skip": (request.clip_skip or 0) + 1,
        "is_using_inpainting_conditioning": model is not None and model.types == ("inpainting",),
        "version": f"mezzotint {__version__}",
        "session_id": session.id,
        "interrupted": session.state is State.CANCELLED,
        "warnings": foreign.warnings(session),
    }
    return json.dumps(told)


def timestamp(session: Session) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(session.created_at))
