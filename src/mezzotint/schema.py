"""What a caller may send: `RequestInput`, read from JSON in any of the three spellings, with every fault it has.

Must not know of models or devices: whether a value fits this server is decided in resolving.py.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from mezzotint.errors import MAX_FAULTS, Fault
from mezzotint.families.table import MAX_GUIDANCE, SCHEDULERS
from mezzotint.families.table import MAX_STEPS as MAX_STEPS
from mezzotint.fieldnames import fold
from mezzotint.rules import WITHOUT_NUL, broken

MAX_SEED = 2**63 - 1
MAX_IMAGES = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_BATCH = 1000  # requests of one batch
MAX_BATCH_RECEIVERS = 16  # URLs that are told of its end: each is sent the whole of it
MAX_EMBEDDINGS = 16
MAX_PROMPT = 10_000  # characters
MAX_NAME = 256  # characters: no model, and no field, has a longer one

Type = Literal["text2img", "img2img", "inpainting", "controlnet", "lora"]
ResizeMode = Literal["stretch", "crop", "pad"]
ImageResizeMode = Literal["stretch", "crop", "pad", "original"]
Scheduler = Literal[
    "ddim", "ddpm", "dpm_multistep", "dpm_singlestep", "dpm_sde", "euler", "euler_ancestral",
    "heun", "lms", "kdpm2", "kdpm2_ancestral", "pndm", "unipc", "lcm",
]  # fmt: skip
assert get_args(Scheduler) == tuple(SCHEDULERS)  # noqa: S101  invariant: one list, spelt twice for the type checker

WebhookEvent = Literal[
    "session.succeeded", "session.failed", "session.cancelled", "session.expired", "session.started", "batch.ended",
]  # fmt: skip
Upscaler = Literal[
    "latent", "latent_antialiased", "latent_bicubic", "latent_bicubic_antialiased", "latent_nearest",
    "latent_nearest_exact", "lanczos", "nearest",
]  # fmt: skip
MAX_PREVIEW_PX = 8192
DEFAULT_STRENGTH = 0.8
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)  # the ends, told unless others are named; the rest

ALIASES: dict[str, str] = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "n": "num_images",
    "batch_size": "num_images",
}


class OutputInput(BaseModel):
    """How pictures are encoded."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)  # a default that is not copied every time

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Field(ge=1, le=100, description="of jpeg and webp; png is lossless")] = 95
    embed_metadata: Annotated[bool, Field(description="write the parameters into the file")] = True


class ControlNetInput(BaseModel):
    """One ControlNet: which, the picture it is to follow, and how far."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str | None, Field(max_length=256)] = None
    type: Annotated[str | None, Field(max_length=64)] = None  # in place of a model: the first of that control type
    image: str | None = None
    preprocessor: Annotated[str, Field(max_length=64)] = "none"
    options: dict[str, Any] = {}
    scale: Annotated[float, Field(ge=0, le=4)] = 1.0
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    end: Annotated[float, Field(ge=0, le=1)] = 1.0
    resize_mode: ResizeMode = "stretch"
    control_mode: Literal["balanced", "prompt", "control"] = "balanced"


class LoraInput(BaseModel):
    """One LoRA and how strongly it works."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(max_length=256)]
    scale: Annotated[float, Field(ge=-4, le=4)] = 1.0


class WebhookInput(BaseModel):
    """Who is to be told of the session's course, and of the end of its batch."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, Field(max_length=2048)]
    events: Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WEBHOOK_EVENTS))] = list(
        WEBHOOK_EVENTS[:4]
    )


class SchedulerOptionsInput(BaseModel):
    """What a scheduler may be told beyond its name. Options left out stay as the model's own scheduler has them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    karras_sigmas: bool | None = None
    exponential_sigmas: bool | None = None
    beta_sigmas: bool | None = None
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] | None = None
    solver_order: Annotated[int | None, Field(ge=1, le=3)] = None


class VariationInput(BaseModel):
    """A second noise that is mixed into the first: 0 is the picture of `seed`, 1 that of this seed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    strength: Annotated[float, Field(ge=0, le=1)]


class HiresInput(BaseModel):
    """A second pass: the picture is enlarged and drawn on at that size."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    scale: Annotated[float | None, Field(ge=1, le=8, description="of width and height")] = None
    width: Annotated[int | None, Field(ge=1, le=65_536, description="px, in place of scale")] = None
    height: Annotated[int | None, Field(ge=1, le=65_536, description="px, in place of scale")] = None
    upscaler: Upscaler = "latent"
    strength: Annotated[float, Field(ge=0, le=1, description="how far from the enlarged picture")] = 0.7
    steps: Annotated[int | None, Field(ge=1, le=MAX_STEPS, description="as num_inference_steps, of this pass")] = None


class PreviewInput(BaseModel):
    """Pictures of an image on its way: which steps show one, and how large at most."""

    model_config = ConfigDict(extra="forbid", strict=True)

    every_steps: Annotated[int, Field(ge=0, le=MAX_STEPS, description="0: none but those of at_steps")] = 0
    at_steps: Annotated[list[Annotated[int, Field(ge=1, le=MAX_STEPS)]], Field(max_length=64)] = []
    max_px: Annotated[int, Field(ge=16, le=MAX_PREVIEW_PX, description="of the longer side")] = 256


class RequestInput(BaseModel):
    """A request as a caller sends it. Every field may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str | None, Field(max_length=256, description="catalog id; default: the configured model")] = None
    type: Annotated[Type | None, Field(description="inferred when absent")] = None
    prompt: Annotated[str, Field(max_length=MAX_PROMPT, pattern=WITHOUT_NUL)] = ""
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT, pattern=WITHOUT_NUL)] = ""
    prompt_syntax: Annotated[
        Literal["plain", "weighted"], Field(description="weighted: (word:1.2), ((word)), [word], BREAK")
    ] = "plain"
    width: Annotated[int | None, Field(ge=1, le=65_536, description="px; default: the model's own")] = None
    height: Annotated[int | None, Field(ge=1, le=65_536, description="px; default: the model's own")] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=MAX_STEPS, description="alias: steps")] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=MAX_GUIDANCE, description="alias: cfg_scale; at most 1 means no guidance and half the work"),
    ] = None
    scheduler: Annotated[Scheduler | None, Field(description="alias: sampler; default: the model's own")] = None
    scheduler_options: Annotated[
        SchedulerOptionsInput,
        Field(
            description="karras_sigmas, exponential_sigmas, beta_sigmas, timestep_spacing, algorithm_type, solver_order"
        ),
    ] = SchedulerOptionsInput()
    eta: Annotated[float, Field(ge=0, le=1, description="noise of ddim")] = 0.0
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="drawn when absent; image i uses seed+i")] = None
    variation: Annotated[
        VariationInput | None,
        Field(description="seed, strength; image i mixes in seed+i of it, and all begin at the request's seed"),
    ] = None
    hires: Annotated[
        HiresInput | None,
        Field(description="scale, or width and height; upscaler, strength, steps: a second pass at a larger size"),
    ] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="aliases: n, batch_size")] = 1
    clip_skip: Annotated[int | None, Field(ge=1, le=64, description="text encoder layers to skip")] = None
    image: Annotated[str | None, Field(description="base64, a data URL or asset:ID; drawing begins at it")] = None
    mask: Annotated[str | None, Field(description="as image, of its size; white is drawn anew")] = None
    strength: Annotated[
        float | None, Field(ge=0, le=1, description="how far from the image, default 0.8; steps run = steps x strength")
    ] = None
    mask_blur: Annotated[int, Field(ge=0, le=256, description="px, softens the edge of the mask")] = 0
    mask_fill: Annotated[
        Literal["original", "fill"], Field(description="what the masked area begins as; fill: the colours around it")
    ] = "original"
    padding_mask_crop: Annotated[
        int | None, Field(ge=0, le=4096, description="px; draws only the masked area and so much around it, enlarged")
    ] = None
    resize_mode: Annotated[
        ImageResizeMode,
        Field(description="how image and mask come to width x height; original: not, with padding_mask_crop"),
    ] = "stretch"
    controlnets: Annotated[
        list[ControlNetInput],
        Field(
            max_length=8,
            description="model or type, image, preprocessor, options, scale, start, end, resize_mode, control_mode",
        ),
    ] = []
    loras: Annotated[list[LoraInput], Field(max_length=8, description="name, scale (alias: weight)")] = []
    embeddings: Annotated[
        list[Annotated[str, Field(max_length=256)]] | None,
        Field(max_length=MAX_EMBEDDINGS, description="those that may be named; default: all that the prompts name"),
    ] = None
    output: OutputInput = OutputInput()
    preview: Annotated[
        PreviewInput | None, Field(description="every_steps, at_steps[], max_px; pictures on the way, in the events")
    ] = None
    priority: Annotated[int, Field(ge=0, le=9, description="higher first, also before what runs already")] = 5
    timeout_s: Annotated[float | None, Field(gt=0, le=604_800, description="running longer fails")] = None
    expires_s: Annotated[float | None, Field(gt=0, le=31_536_000, description="not started by then: expired")] = None
    device: Annotated[str | None, Field(max_length=64, description="pin to a device id")] = None
    deterministic: Annotated[bool, Field(description="bit-equal anywhere; runs alone in its model calls")] = False
    cancel_on_disconnect: Annotated[
        bool, Field(description="a caller who waits for the end (`Prefer: wait`) and leaves cancels it")
    ] = False
    webhook: Annotated[WebhookInput | None, Field(description="url and events: who is told how it ends")] = None
    metadata: Annotated[dict[str, Any], Field(description="yours, returned as sent; 16 KiB of JSON")] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A picture of a request as it was sent: base64, a data URL or `asset:ID`."""

    field: str
    text: str
    role: Literal["image", "mask"]


def parse(body: Any) -> tuple[RequestInput, list[Fault]]:
    """Read a decoded JSON object in snake, camel or Pascal case. Never raises: what cannot be read is a fault and is
    left at its default in the returned input, empty where there is none, so that the caller can look for more."""
    if not isinstance(body, dict):
        return RequestInput(), [Fault(field=None, code="invalid_request", message="the body must be a JSON object")]
    faults: list[Fault] = []
    fields = _fold(body, RequestInput, "", faults)
    for _ in range(2):  # the second pass reads what is left after the faulty values are taken out
        try:
            return RequestInput.model_validate(fields), faults
        except ValidationError as error:
            for item in error.errors(include_url=False):
                faults.append(_fault(item))
                _take_out(item["loc"], fields)
    raise AssertionError("a request without its faulty values is valid")


def sources(sent: RequestInput) -> Iterator[Source]:
    """The pictures of a request, in the order of its fields."""
    if sent.image is not None:
        yield Source(field="image", text=sent.image, role="image")
    if sent.mask is not None:
        yield Source(field="mask", text=sent.mask, role="mask")
    for index, control in enumerate(sent.controlnets):
        if control.image is not None:
            yield Source(field=f"controlnets[{index}].image", text=control.image, role="image")


def metadata_fault(metadata: dict[str, Any]) -> Fault | None:
    """What keeps a caller's own dictionary from being stored and returned as sent."""
    message = "metadata cannot be written as JSON; it may hold text, finite numbers, lists and objects"
    try:
        msgspec.msgpack.encode(metadata)  # as workers are told it
        if len(json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode()) <= MAX_METADATA_BYTES:
            return None
        message = f"metadata is over {MAX_METADATA_BYTES} bytes of JSON; keep it in your own store and send its id"
    except OverflowError:
        message = "metadata may hold whole numbers from -2^63 to 2^64-1; send a number beyond them as text"
    except (TypeError, ValueError, RecursionError):
        pass
    return Fault(field="metadata", code="invalid_value", message=message)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, or None when nothing is close, or for a name too long to be one."""
    if len(name) > MAX_NAME:
        return None
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _names(schema: type[BaseModel]) -> dict[str, str]:
    extra = _ALIASES.get(schema, {})
    return {fold(name): name for name in schema.model_fields} | {fold(alias): name for alias, name in extra.items()}


_ALIASES: dict[type[BaseModel], dict[str, str]] = {
    RequestInput: ALIASES,
    LoraInput: {"weight": "scale", "lora_weight": "scale"},
    ControlNetInput: {"conditioning_scale": "scale", "controlnet_conditioning_scale": "scale"},
}
_NESTED: dict[str, type[BaseModel]] = {
    "hires": HiresInput,
    "output": OutputInput,
    "preview": PreviewInput,
    "scheduler_options": SchedulerOptionsInput,
    "variation": VariationInput,
    "webhook": WebhookInput,
}
_LISTS: dict[str, type[BaseModel]] = {"controlnets": ControlNetInput, "loras": LoraInput}
_SCHEMAS: tuple[type[BaseModel], ...] = (RequestInput, *_NESTED.values(), *_LISTS.values())
_NAMES = {schema: _names(schema) for schema in _SCHEMAS}
# What stands in the place of a value that must be given and cannot be read.
_EMPTY: dict[type[BaseModel], dict[str, Any]] = {
    LoraInput: {"name": ""},
    VariationInput: {"seed": 0, "strength": 0.0},
    WebhookInput: {"url": ""},
}


def _is_text(field: FieldInfo) -> bool:
    if get_origin(field.annotation) is dict:  # whose keys are text
        return False
    parts = [field.annotation, *get_args(field.annotation)]
    return any(part is str or any(isinstance(one, str) for one in get_args(part)) for part in parts)


# Fields of any level that hold text, folded: all that a form sends is text, and the others must be read from it.
TEXT_FIELDS = frozenset(
    fold(name) for schema in _SCHEMAS for name, field in schema.model_fields.items() if _is_text(field)
) | {"sampler"}


def field_of(name: str) -> str | None:
    """The top-level field that a name is a spelling of."""
    return _NAMES[RequestInput].get(fold(name))


def _fold(body: dict[str, Any], schema: type[BaseModel], prefix: str, faults: list[Fault]) -> dict[str, Any]:
    """Rename the keys of one level to the contract's. Faults that are not told are spared the search for a name."""
    names = _NAMES[schema]
    found: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for key, value in body.items():
        name = names.get(fold(key))
        if name is None:
            faults.append(_unknown(key, prefix, names if len(faults) < MAX_FAULTS else {}))
        elif name in found:
            message = f"{prefix}{name} is given twice, as {spelt[name]!r} and {key!r}; send one"
            faults.append(Fault(field=prefix + name, code="duplicate_field", message=message))
        else:
            spelt[name] = key
            found[name] = _fold_inside(name, value, faults) if schema is RequestInput else value
    return found


def _fold_inside(name: str, value: Any, faults: list[Fault]) -> Any:
    """The objects below one field. A user's own dictionaries (metadata, options) are not entered."""
    if (nested := _NESTED.get(name)) is not None and isinstance(value, dict):
        return _fold(value, nested, f"{name}.", faults)
    if (listed := _LISTS.get(name)) is not None and isinstance(value, list):
        return [
            _fold(item, listed, f"{name}[{index}].", faults) if isinstance(item, dict) else item
            for index, item in enumerate(value)
        ]
    return value


def _take_out(path: tuple[Any, ...], fields: dict[str, Any]) -> None:
    """A faulty value, and nothing beside it where it stands in an object below a field."""
    field, *inner = path
    if field in _LISTS and inner and field in fields:
        items, (index, *names), schema = fields[field], inner, _LISTS[field]
        if not names:
            items[index] = {}  # it was no object; those after it keep their places
        holder = items[index]
    elif field in _NESTED and inner:
        holder, names, schema = fields[field], inner, _NESTED[field]
    else:
        fields.pop(field, None)
        return
    for name in names[:1]:
        holder.pop(name, None)
    for name, empty in _EMPTY.get(schema, {}).items():
        holder.setdefault(name, empty)


def _unknown(key: str, prefix: str, names: dict[str, str]) -> Fault:
    near = nearest(fold(key), names)
    hint = f"; did you mean {prefix}{names[near]}?" if near else ""
    shown = prefix + key[:64]
    return Fault(field=shown, code="unknown_field", message=f"{shown} is not a field of a request{hint}")


def _fault(item: Any) -> Fault:
    """Translate one of pydantic's errors: the path, the rule in our words, the value that broke it."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).removeprefix(".")
    if item["type"] == "missing":
        return Fault(field=path, code="missing_field", message=f"{path} is missing")
    return Fault(field=path, code="invalid_value", message=f"{path} {broken(item, _field_at(item['loc']))}")


def _field_at(path: tuple[Any, ...]) -> FieldInfo:
    schema: type[BaseModel] = RequestInput
    names = [part for part in path if isinstance(part, str)]
    for part in names[:-1]:
        schema = _NESTED.get(part) or _LISTS.get(part) or schema
    return schema.model_fields[names[-1]]
