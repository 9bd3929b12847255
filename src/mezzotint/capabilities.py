"""What this server can do now, as one answer, from the models on disk and the devices as they are. Must not fetch them.

Nothing here is a promise of what could be: a type stands under `types` when a model on disk can run it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from mezzotint import __version__
from mezzotint.catalog import TYPES, Model, fitting
from mezzotint.families.table import SCHEDULER_OPTIONS, SCHEDULER_STEPS, SCHEDULERS
from mezzotint.measurements import Point
from mezzotint.preprocessors import PREPROCESSORS
from mezzotint.schema import MAX_IMAGES, MAX_STEPS
from mezzotint.workers.wire import Work

# Ways to talk to a server -> where their routes begin.
DIALECTS = {"mezzotint": "/api/", "openai": "/v1/", "automatic1111": "/sdapi/v1/"}

# What a request of a type must hold.
_FIELDS = {
    "text2img": (),
    "img2img": ("image",),
    "inpainting": ("image", "mask"),
    "controlnet": ("controlnets",),
    "lora": ("loras",),
}
_ADAPTERS = {"controlnet": "ControlNet", "lora": "LoRA"}

# What changes from moment to moment: shown, and left out of what the ETag stands for.
_LIVE = frozenset({"queue_free", "utilization", "temperature_c", "available_bytes", "used_by_mezzotint_bytes"})
_MEMORY_STEPS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the answer is made of."""

    models: Mapping[str, Model]
    own: Mapping[str, Model] = field(default_factory=dict)  # the same without what was set for them
    default_model: str  # of requests that name none; perhaps not there
    resident: Mapping[str, Sequence[str]]  # device -> models loaded there
    room: Mapping[str, int | None]  # device -> bytes that its worker may take; None: it has not told
    devices: Sequence[dict[str, Any]]  # as the contract shows them
    limits: Mapping[str, int]
    batching: Mapping[str, Any]


def body(facts: Facts) -> dict[str, Any]:
    """`Capabilities` of the contract."""
    ready = [model for model in facts.models.values() if model.state == "ready"]
    checkpoints = [model for model in ready if model.kind == "checkpoint"]
    nets = [model for model in ready if model.kind == "controlnet"]
    loras = [model for model in ready if model.kind == "lora"]
    embeddings = [model for model in ready if model.kind == "embedding"]
    fits = {model.id: fitting(model, checkpoints) for model in (*nets, *loras, *embeddings)}
    return {
        "devices": [_device(one) for one in facts.devices],
        **types(facts),
        "models": [_model(model, facts, fits) for model in checkpoints],
        "default_model": next((one.id for one in checkpoints if one.id == facts.default_model), None),
        "schedulers": [_scheduler(name) for name in SCHEDULERS],
        "controlnets": [{"id": net.id, "control_type": net.control_type or None, "fits": fits[net.id]} for net in nets],
        "preprocessors": [_preprocessor(name) for name in PREPROCESSORS],
        "loras": _by_family(loras, fits, facts.models),
        "embeddings": [{"id": one.id, "fits": fits[one.id], "tokens": one.tokens} for one in embeddings],
        "limits": dict(facts.limits) | {"max_images": MAX_IMAGES, "max_steps": MAX_STEPS},
        "batching": dict(facts.batching),
        "dialects": [{"name": name, "prefix": prefix} for name, prefix in DIALECTS.items()],
        "version": __version__,
    }


def batching(
    models: Mapping[str, Model], ids: Mapping[str, str], points: Mapping[str, Mapping[Work, Point]]
) -> dict[str, Any]:
    """How many rows share a model call at most, by model and shape; a picture with guidance takes two.

    `ids`: of models by digest. `points`: what was measured, by device.
    """
    shapes: dict[tuple[str, str, str, str, int, int], list[Point]] = {}
    for device, measured in points.items():
        for work, point in measured.items():
            model = models.get(ids.get(work.model, ""))
            if work.what == "step" and point.cap and model is not None and not work.nets and not work.loras:
                size = work.width * model.size_multiple, work.height * model.size_multiple
                shapes.setdefault((device, model.id, work.executor, work.dtype, *size), []).append(point)
    told = [
        {
            "device": device,
            "model": model_id,
            "executor": executor,
            "dtype": dtype,
            "width": width,
            "height": height,
            "rows": max(seen, key=lambda point: point.seen_at).cap,
            "rows_timed": sorted({point.work.rows for point in seen if point.recent_s}),
        }
        for (device, model_id, executor, dtype, width, height), seen in sorted(shapes.items())
    ]
    unknown = {} if told else {"max_batch": "it is learned as models run, and none has run here yet"}
    return {"max_batch": told or None, "unknown": unknown}


def types(facts: Facts) -> dict[str, Any]:
    """The types that a model can run now, with the fields that each needs; and of the others what is missing."""
    told = {kind: _runners(kind, facts) for kind in TYPES}
    return {
        "types": [
            {"type": kind, "models": models, "needs": list(_FIELDS[kind])}
            for kind, (models, _) in told.items()
            if models
        ],
        "unsupported": [{"type": kind, "needs": needs} for kind, (models, needs) in told.items() if not models],
    }


def etag(answer: Any) -> str:
    """Equal as long as nothing but what lives from moment to moment has changed; memory counts in sixteenths."""
    return f'W/"{hashlib.sha256(msgspec.json.encode(_lasting(answer), order="sorted")).hexdigest()[:32]}"'


def _runners(kind: str, facts: Facts) -> tuple[list[str], list[str]]:
    """The models that can run a type, and what is missing when none can."""
    ready = [model for model in facts.models.values() if model.state == "ready"]
    able = [model for model in ready if model.kind == "checkpoint" and kind in model.types]
    if not able:
        return [], [f"a checkpoint in a model folder that can run {kind}"]
    held = [model for model in able if any(_holds(facts.room[device], model) for device in facts.room)]
    if not held:
        least = min(able, key=lambda model: model.bytes)
        most = max((room for room in facts.room.values() if room is not None), default=0)
        return [], [f"{least.bytes} bytes of memory for the weights of {least.id}; a worker may take {most} here"]
    if (word := _ADAPTERS.get(kind)) is None:
        return [model.id for model in held], []
    fits = {name for adapter in ready if adapter.kind == kind for name in fitting(adapter, held)}
    names = ", ".join(model.id for model in held)
    return [model.id for model in held if model.id in fits], [f"a {word} in a model folder that fits one of: {names}"]


def _holds(room: int | None, model: Model) -> bool:
    return room is None or model.bytes <= room


def _model(model: Model, facts: Facts, fits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    def going_with(kind: str) -> list[str]:
        return [name for name, models in fits.items() if facts.models[name].kind == kind and model.id in models]

    own = facts.own.get(model.id, model)
    return {
        "id": model.id,
        "kind": model.kind,
        "family": model.family,
        "resident_on": [device for device, models in facts.resident.items() if model.id in models],
        "native_size": {"width": own.width, "height": own.height},
        "defaults": {
            "width": model.width,
            "height": model.height,
            "num_inference_steps": model.num_inference_steps,
            "guidance_scale": model.guidance_scale,
            "scheduler": model.scheduler,
        },
        "size": {
            "multiple": model.size_multiple,
            "min": model.min_size,
            "max_pixels": facts.limits["max_pixels"],
        },
        "supports": {
            "types": list(model.types),
            "controlnets": going_with("controlnet"),
            "loras": going_with("lora"),
            "embeddings": going_with("embedding"),
            "max_clip_skip": model.text_layers - 1,
        },
    }


def _scheduler(name: str) -> dict[str, Any]:
    most = min(SCHEDULER_STEPS.get(name, MAX_STEPS), MAX_STEPS)
    return {"name": name, "options": sorted(SCHEDULER_OPTIONS[name]), "max_steps": most}


def _preprocessor(name: str) -> dict[str, Any]:
    known = PREPROCESSORS[name]
    options = [
        {"name": key, "default": one.default, "min": one.low, "max": one.high, "whole": one.whole}
        for key, one in known.options.items()
    ]
    return {"name": name, "makes": known.makes, "options": options}


def _by_family(
    loras: Iterable[Model], fits: Mapping[str, Sequence[str]], models: Mapping[str, Model]
) -> list[dict[str, Any]]:
    """LoRAs by the family of the checkpoints that they fit; None for those that fit none here."""
    found: dict[str | None, list[dict[str, Any]]] = {}
    for lora in loras:
        one = {
            "id": lora.id,
            "fits": fits[lora.id],
            "trigger_words": list(lora.trigger_words),
            "lora_defaults": asdict(lora.lora_defaults),
        }
        families: list[str | None] = [*sorted({models[name].family for name in fits[lora.id]})]
        for family in families or [None]:
            found.setdefault(family, []).append(one)
    return [{"family": family, "loras": those} for family, those in found.items()]


def _device(one: Mapping[str, Any]) -> dict[str, Any]:
    """A device without what it is doing just now."""
    return {name: value for name, value in one.items() if name not in ("sessions", "queue_depth")}


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _lasting(inner) for name, inner in value.items() if name not in _LIVE}
        total, free = value.get("total_bytes"), value.get("available_bytes")
        return kept | {"free": free * _MEMORY_STEPS // total} if total and free is not None else kept
    return [_lasting(inner) for inner in value] if isinstance(value, (list, tuple)) else value
