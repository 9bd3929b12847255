"""AUTOMATIC1111's options: what of them is used, and how they become part of a request. Must not keep them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.a1111_names import PREVIEW_EVERY_STEPS
from mezzotint.api import a1111_models
from mezzotint.api.a1111_models import Digests
from mezzotint.api.a1111_reading import Fields
from mezzotint.catalog import Model
from mezzotint.errors import Fault

_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
_FIXED = {"live_previews_enable": True, "show_progress_every_n_steps": PREVIEW_EVERY_STEPS, "randn_source": "CPU"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What settings say of a request, in our words; `kept` is what can be stored of them."""

    body: dict[str, Any]
    kept: dict[str, Any]
    faults: tuple[Fault, ...]
    ignored: tuple[str, ...]


def read(sent: dict[str, Any], models: Mapping[str, Model], digests: Digests, path: str = "") -> Settings:
    """Never raises: what is wrong is in `faults`, before whose names stands `path`."""
    fields = Fields(sent, path)
    body: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    name = fields.text("sd_model_checkpoint", "")
    if name:
        found = a1111_models.find(name, models, digests)
        if found is None:
            fields.wrong("sd_model_checkpoint", f"{name[:64]!r} is not here; sd-models lists them", "model_not_found")
        else:
            body["model"] = kept["sd_model_checkpoint"] = found.id
    if fields.get("CLIP_stop_at_last_layers") is not None:
        layers = kept["CLIP_stop_at_last_layers"] = fields.whole("CLIP_stop_at_last_layers", 1, 1, 12)
        # counted from the end there, as skipped here; set for 1 too, which takes back what an option says
        body["clip_skip"] = layers - 1 or None
    output: dict[str, Any] = {}
    if fields.get("samples_format") is not None:
        form = _FORMATS.get(fields.text("samples_format", "png").lower())
        if form is None:
            fields.wrong("samples_format", f"must be one of {', '.join(_FORMATS)}")
        else:
            kept["samples_format"] = fields.get("samples_format")
            output["format"] = form
    if fields.get("enable_pnginfo") is not None:
        output["embed_metadata"] = kept["enable_pnginfo"] = fields.flag("enable_pnginfo", True)
    if output:
        body["output"] = output
    fields.neutral(("sd_vae",), lambda value: value in ("Automatic", "None", ""), 'send "Automatic"')
    fields.neutral(("forge_additional_modules",), lambda value: value == [], "send []")
    fields.neutral(("eta_noise_seed_delta",), lambda value: value == 0, "send 0")
    fields.free("sd_checkpoint_hash", *(name for name, value in _FIXED.items() if sent.get(name) == value))
    return Settings(body=body, kept=kept, faults=tuple(fields.faults), ignored=fields.unknown())


def shown(kept: Mapping[str, Any], default: Model, models: Mapping[str, Model], digests: Digests) -> dict[str, Any]:
    """The whole object that GET answers. A stored checkpoint that is gone shows as the default one."""
    model = models.get(kept.get("sd_model_checkpoint", ""), default)
    return {
        "samples_format": "png",
        "enable_pnginfo": True,
        "CLIP_stop_at_last_layers": 1,
        **kept,
        "sd_model_checkpoint": a1111_models.title(model, digests.get(model.id)),
        "sd_checkpoint_hash": digests.get(model.id) or "",
        "sd_vae": "Automatic",
        "forge_additional_modules": [],
        "eta_noise_seed_delta": 0,
        **_FIXED,
    }
