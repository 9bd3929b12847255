"""What a caller asks: `RequestInput` (as sent) becomes a `Request` (complete), or every fault at once.

Must not do I/O: all it knows of models is the `Model` facts it is handed. Below `resolve` nothing is optional and no
default is chosen again.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from annotated_types import Ge, Gt, Le, MaxLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from mezzotint.catalog import Model
from mezzotint.errors import Fault, InvalidRequest
from mezzotint.families.table import FAMILIES, SCHEDULER_OPTIONS, SCHEDULERS

T = TypeVar("T")

MAX_SEED = 2**63 - 1
MAX_METADATA_BYTES = 16 * 1024

Type = Literal["text2img", "img2img", "inpainting", "controlnet", "lora"]
Scheduler = Literal[
    "ddim", "ddpm", "dpm_multistep", "dpm_singlestep", "dpm_sde", "euler", "euler_ancestral",
    "heun", "lms", "kdpm2", "kdpm2_ancestral", "pndm", "unipc", "lcm",
]  # fmt: skip
assert get_args(Scheduler) == tuple(SCHEDULERS)  # noqa: S101  invariant: one list, spelt twice for the type checker

# Names of the contract that this version does not run yet. A request that uses one is refused by name, never ignored.
NOT_YET = frozenset(
    {
        "cancel_on_disconnect",
        "controlnets",
        "hires",
        "image",
        "loras",
        "mask",
        "mask_blur",
        "mask_fill",
        "padding_mask_crop",
        "preview",
        "resize_mode",
        "strength",
        "variation",
        "webhook",
    }
)

ALIASES: dict[str, str] = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "n": "num_images",
    "batch_size": "num_images",
}


class OutputInput(BaseModel):
    """How pictures are encoded."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Field(ge=1, le=100, description="of jpeg and webp; png is lossless")] = 95
    embed_metadata: Annotated[bool, Field(description="write the parameters into the file")] = True


class SchedulerOptionsInput(BaseModel):
    """What a scheduler may be told beyond its name. Options left out stay as the model's own scheduler has them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    karras_sigmas: bool | None = None
    exponential_sigmas: bool | None = None
    beta_sigmas: bool | None = None
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = None
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] | None = None
    solver_order: Annotated[int | None, Field(ge=1, le=3)] = None


class RequestInput(BaseModel):
    """A request as a caller sends it. Every field may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str | None, Field(max_length=256, description="catalog id; default: the configured model")] = None
    type: Annotated[Type | None, Field(description="inferred when absent")] = None
    prompt: Annotated[str, Field(max_length=10_000)] = ""
    negative_prompt: Annotated[str, Field(max_length=10_000)] = ""
    prompt_syntax: Annotated[
        Literal["plain", "weighted"], Field(description="weighted: (word:1.2), ((word)), [word], BREAK")
    ] = "plain"
    width: Annotated[int | None, Field(ge=1, le=65_536, description="px; default: the model's own")] = None
    height: Annotated[int | None, Field(ge=1, le=65_536, description="px; default: the model's own")] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=1000, description="alias: steps")] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=50, description="alias: cfg_scale; at most 1 means no guidance and half the work")
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
    num_images: Annotated[int, Field(ge=1, le=64, description="aliases: n, batch_size")] = 1
    clip_skip: Annotated[int | None, Field(ge=1, le=64, description="text encoder layers to skip")] = None
    output: OutputInput = OutputInput()
    priority: Annotated[int, Field(ge=0, le=9, description="higher first")] = 5
    timeout_s: Annotated[float | None, Field(gt=0, le=604_800, description="running longer fails")] = None
    expires_s: Annotated[float | None, Field(gt=0, le=31_536_000, description="not started by then: expired")] = None
    device: Annotated[str | None, Field(max_length=64, description="pin to a device id")] = None
    deterministic: Annotated[bool, Field(description="bit-equal anywhere; runs alone in its model calls")] = False
    metadata: Annotated[dict[str, Any], Field(description="yours, returned as sent; 16 KiB of JSON")] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    format: str
    quality: int
    embed_metadata: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the caller asked, validated and complete. Crosses to the worker and is stored as it is."""

    model: str
    type: str
    prompt: str
    negative_prompt: str
    prompt_syntax: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    scheduler_options: dict[str, Any]  # those that were given
    eta: float
    seed: int
    num_images: int
    clip_skip: int | None
    output: Output
    priority: int
    timeout_s: float | None
    expires_s: float | None
    device: str | None
    deterministic: bool
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    request: Request
    warnings: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The facts that a request is checked against, as they are now."""

    models: Mapping[str, Model]
    default_model: str
    devices: frozenset[str]
    max_pixels: int


def parse(body: Any) -> tuple[RequestInput, list[Fault]]:
    """Read a decoded JSON object in snake, camel or Pascal case. Never raises: what cannot be read is a fault and is
    left at its default in the returned input, so that the caller can go on looking for more."""
    if not isinstance(body, dict):
        return RequestInput(), [Fault(field=None, code="invalid_request", message="the body must be a JSON object")]
    faults: list[Fault] = []
    fields = _fold(body, RequestInput, "", faults)
    for _ in range(2):  # the second pass reads what is left after the faulty fields are taken out
        try:
            return RequestInput.model_validate(fields), faults
        except ValidationError as error:
            for item in error.errors(include_url=False):
                faults.append(_fault(item))
                fields.pop(str(item["loc"][0]), None)
    raise AssertionError("a request without its faulty fields is valid")


def resolve(body: Any, world: World, draw_seed: Callable[[], int]) -> Resolved:
    """Complete a request against the facts. Raises InvalidRequest with every fault."""
    sent, faults = parse(body)
    model = _find_model(sent.model, world, faults)
    kind = sent.type or "text2img"
    if model is not None and kind not in FAMILIES[model.family].types:
        can = ", ".join(FAMILIES[model.family].types)
        message = f"type {kind!r} is not supported by this version for model {model.id!r}; it can run: {can}"
        faults.append(Fault(field="type", code="unsupported_type", message=message))
    if sent.device is not None and sent.device not in world.devices:
        known = ", ".join(sorted(world.devices))
        message = f"device {sent.device!r} is not here; devices: {known}"
        faults.append(Fault(field="device", code="device_not_found", message=message))
    if len(json.dumps(sent.metadata).encode()) > MAX_METADATA_BYTES:
        message = f"metadata is over {MAX_METADATA_BYTES} bytes of JSON; keep it in your own store and send its id"
        faults.append(Fault(field="metadata", code="invalid_value", message=message))
    if sent.seed is not None and sent.seed + sent.num_images - 1 > MAX_SEED:
        message = f"seed + num_images - 1 is above {MAX_SEED}; use a smaller seed"
        faults.append(Fault(field="seed", code="seed_overflow", message=message))
    if model is None:
        raise InvalidRequest(faults)

    width = model.width if sent.width is None else sent.width
    height = model.height if sent.height is None else sent.height
    _check_size(width, height, model, world.max_pixels, faults)
    if sent.clip_skip is not None and sent.clip_skip >= model.text_layers:
        message = (
            f"clip_skip {sent.clip_skip} leaves nothing of {model.text_layers} layers; at most {model.text_layers - 1}"
        )
        faults.append(Fault(field="clip_skip", code="invalid_value", message=message))
    scheduler = _given(sent.scheduler, model.scheduler)
    options = sent.scheduler_options.model_dump(exclude_none=True)
    _check_options(scheduler, options, faults)
    if faults:
        raise InvalidRequest(faults)

    request = Request(
        model=model.id,
        type=kind,
        prompt=sent.prompt,
        negative_prompt=sent.negative_prompt,
        prompt_syntax=sent.prompt_syntax,
        width=width,
        height=height,
        num_inference_steps=_given(sent.num_inference_steps, model.num_inference_steps),
        guidance_scale=_given(sent.guidance_scale, model.guidance_scale),
        scheduler=scheduler,
        scheduler_options=options,
        eta=sent.eta,
        seed=draw_seed() if sent.seed is None else sent.seed,
        num_images=sent.num_images,
        clip_skip=sent.clip_skip,
        output=Output(**sent.output.model_dump()),
        priority=sent.priority,
        timeout_s=sent.timeout_s,
        expires_s=sent.expires_s,
        device=sent.device,
        deterministic=sent.deterministic,
        metadata=sent.metadata,
    )
    return Resolved(request=request, warnings=tuple(_warnings(request, model)))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _given(sent: T | None, otherwise: T) -> T:
    return otherwise if sent is None else sent


def _find_model(sent: str | None, world: World, faults: list[Fault]) -> Model | None:
    wanted = _given(sent, world.default_model)
    model = world.models.get(wanted)
    if model is None:
        near = nearest(wanted, world.models)
        known = f"the nearest is {near!r}" if near else f"models: {', '.join(sorted(world.models)) or 'none'}"
        faults.append(Fault(field="model", code="model_not_found", message=f"model {wanted!r} is not here; {known}"))
        return None
    if model.state == "invalid":
        message = f"model {wanted!r} cannot be used: {model.reason}"
        faults.append(Fault(field="model", code="model_invalid", message=message))
        return None
    return model


def _check_size(width: int, height: int, model: Model, max_pixels: int, faults: list[Fault]) -> None:
    multiple, least = model.size_multiple, model.min_size

    def legal(size: int) -> int:
        return max(least, (size + multiple // 2) // multiple * multiple)

    near = f"{legal(width)}x{legal(height)}"
    for name, size in (("width", width), ("height", height)):
        if size % multiple or size < least:
            message = f"{name} {size} must be a multiple of {multiple}, {least} or more; try {near}"
            faults.append(Fault(field=name, code="unsupported_size", message=message))
    if width * height > max_pixels:
        message = f"{width}x{height} is {width * height} pixels; this server draws at most {max_pixels}"
        faults.append(Fault(field="width", code="unsupported_size", message=message))


def _check_options(scheduler: str, options: dict[str, Any], faults: list[Fault]) -> None:
    can = SCHEDULER_OPTIONS[scheduler]
    for name in options.keys() - can:
        message = f"scheduler {scheduler!r} cannot do {name}; it can: {', '.join(sorted(can))}"
        faults.append(Fault(field=f"scheduler_options.{name}", code="unsupported_field", message=message))
    spacings = [name for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas") if options.get(name)]
    if len(spacings) > 1:
        message = f"{' and '.join(spacings)} exclude one another; send one"
        faults.append(Fault(field="scheduler_options", code="invalid_value", message=message))


def _warnings(request: Request, model: Model) -> Iterable[dict[str, Any]]:
    ratio = request.width * request.height / (model.width * model.height)
    if not 0.25 <= ratio <= 4:
        message = (
            f"{request.width}x{request.height} is far from the {model.width}x{model.height} that {model.id!r} was "
            "trained at; expect repeated or broken subjects"
        )
        yield {"code": "size_far_from_native", "message": message, "field": "width"}


def _key(name: str) -> str:
    return name.replace("_", "").lower()


def _names(schema: type[BaseModel]) -> dict[str, str]:
    extra = ALIASES if schema is RequestInput else {}
    return {_key(name): name for name in schema.model_fields} | {_key(alias): name for alias, name in extra.items()}


_NESTED: dict[str, type[BaseModel]] = {"output": OutputInput, "scheduler_options": SchedulerOptionsInput}
_SCHEMAS: tuple[type[BaseModel], ...] = (RequestInput, *_NESTED.values())
_NAMES = {schema: _names(schema) for schema in _SCHEMAS}
_NOT_YET_KEYS = {_key(name): name for name in NOT_YET}


def _fold(body: dict[str, Any], schema: type[BaseModel], prefix: str, faults: list[Fault]) -> dict[str, Any]:
    """Rename the keys of one level to the contract's. A user's own dictionaries (metadata) are not entered."""
    names = _NAMES[schema]
    found: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for key, value in body.items():
        name = names.get(_key(key))
        if name is None:
            faults.append(_unknown(key, prefix, names, at_top=schema is RequestInput))
        elif name in found:
            message = f"{prefix}{name} is given twice, as {spelt[name]!r} and {key!r}; send one"
            faults.append(Fault(field=prefix + name, code="duplicate_field", message=message))
        else:
            spelt[name] = key
            nested = _NESTED.get(name) if schema is RequestInput else None
            inside = nested is not None and isinstance(value, dict)
            found[name] = _fold(value, nested, f"{prefix}{name}.", faults) if nested and inside else value
    return found


def _unknown(key: str, prefix: str, names: dict[str, str], *, at_top: bool) -> Fault:
    if at_top and (known := _NOT_YET_KEYS.get(_key(key))):
        message = f"{known} is not supported by this version; leave it out"
        return Fault(field=known, code="unsupported_field", message=message)
    near = nearest(_key(key), names)
    hint = f"; did you mean {prefix}{names[near]}?" if near else ""
    shown = prefix + key[:64]
    return Fault(field=shown, code="unknown_field", message=f"{shown} is not a field of a request{hint}")


def _fault(item: Any) -> Fault:
    """Translate one of pydantic's errors: the path, the rule in our words, the value that broke it."""
    path = ".".join(str(part) for part in item["loc"])
    code = "invalid_value"
    return Fault(field=path, code=code, message=f"{path} must be {_rule(item)}; got {_shown(item['input'])}")


def _rule(item: Any) -> str:
    field = _field_at(item["loc"])
    low = next((f"{m.ge:g}" for m in field.metadata if isinstance(m, Ge)), None)
    above = next((f"above {m.gt:g}" for m in field.metadata if isinstance(m, Gt)), None)
    high = next((_number(m.le) for m in field.metadata if isinstance(m, Le)), None)
    longest = next((m.max_length for m in field.metadata if isinstance(m, MaxLen)), None)
    kind = {
        "int": "a whole number",
        "float": "a number",
        "string": "a text",
        "bool": "true or false",
        "dict": "an object",
    }
    word = next((text for name, text in kind.items() if item["type"].startswith(name)), "")
    if item["type"] == "literal_error":
        return f"one of {item['ctx']['expected']}"
    if high is not None:
        whole = "a whole number " if "int" in str(field.annotation) else "a number "
        return f"{whole}from {low} to {high}" if low is not None else f"{whole}{above} and at most {high}"
    if longest is not None:
        return f"a text of at most {longest} characters"
    return word or "an object"


def _number(value: Any) -> str:
    return "2^63-1" if value == MAX_SEED else f"{value:g}" if isinstance(value, float) else str(value)


def _field_at(path: tuple[Any, ...]) -> FieldInfo:
    schema: type[BaseModel] = RequestInput
    for part in path[:-1]:
        schema = _NESTED.get(str(part), schema)
    return schema.model_fields[str(path[-1])]


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= 80 else text[:77] + "..."
