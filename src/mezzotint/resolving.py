"""`resolve` turns a `RequestInput` into a complete `Request`, or tells every fault at once.

Must not do I/O: all it knows of models and pictures is the facts it is handed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mezzotint import advice, preprocessors
from mezzotint.catalog import LoraDefaults, Model, fitting
from mezzotint.errors import Fault, InvalidRequest
from mezzotint.families import mentions
from mezzotint.families.table import SCHEDULER_OPTIONS, SCHEDULER_STEPS
from mezzotint.request import (
    ControlNetUse,
    Hires,
    LoraUse,
    Output,
    PreviewUse,
    Request,
    Resolved,
    Variation,
    WebhookUse,
)
from mezzotint.schema import (
    DEFAULT_STRENGTH,
    MAX_EMBEDDINGS,
    MAX_SEED,
    MAX_STEPS,
    ControlNetInput,
    PreviewInput,
    RequestInput,
    WebhookInput,
    metadata_fault,
    nearest,
)
from mezzotint.webhook_rules import Policy

T = TypeVar("T")

MAX_SIDE = {"jpeg": 65_500, "webp": 16_383}  # px, of the formats that end somewhere near


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A caller's picture after it was decoded and kept."""

    id: str
    width: int  # px
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The facts that a request is checked against, as they are now."""

    models: Mapping[str, Model]
    default_model: str
    devices: frozenset[str]
    max_pixels: int
    own: Mapping[str, Model] = field(default_factory=dict)  # the same without what was set for them
    webhooks: Policy = Policy()  # noqa: RUF009  frozen


def resolve(
    sent: RequestInput,
    faults: Sequence[Fault],
    pictures: Mapping[str, Picture],
    world: World,
    draw_seed: Callable[[], int],
) -> Resolved:
    """Complete a request against the facts. Raises InvalidRequest with every fault, those already found first.

    `pictures`: those that could be kept, by field. One that is not among them has its fault in `faults`. What has a
    fault there stands at a default in `sent`, and is not told another one that comes of that.
    """
    found = list(faults)
    model = _find_model(sent.model, world, found)
    kind = _kind(sent, found)
    if model is not None and kind not in model.types:
        can = ", ".join(model.types)
        message = f"type {kind!r} is not what model {model.id!r} can run; it can run: {can}"
        found.append(Fault(field="type", code="unsupported_type", message=message))
    if sent.device is not None and sent.device not in world.devices:
        known = ", ".join(sorted(world.devices))
        message = f"device {sent.device!r} is not here; devices: {known}"
        found.append(Fault(field="device", code="device_not_found", message=message))
    if (fault := metadata_fault(sent.metadata)) is not None:
        found.append(fault)
    if sent.seed is not None and sent.seed + sent.num_images - 1 > MAX_SEED:
        message = f"seed + num_images - 1 is above {MAX_SEED}; use a smaller seed"
        found.append(Fault(field="seed", code="seed_overflow", message=message))
    if sent.variation is not None and sent.variation.seed + sent.num_images - 1 > MAX_SEED:
        message = f"variation.seed + num_images - 1 is above {MAX_SEED}; use a smaller seed"
        found.append(Fault(field="variation.seed", code="seed_overflow", message=message))
    _check_pictures(sent, pictures, found)
    if sent.webhook is not None and (why := world.webhooks.refusal(sent.webhook.url)) is not None:
        found.append(Fault(field="webhook.url", code="webhook_refused", message=why))
    options = sent.scheduler_options.model_dump(exclude_none=True)
    _check_spacings(options, found)
    _check_hires(sent, found)
    controlnets = [
        _controlnet(one, f"controlnets[{index}].", pictures, model, world, found)
        for index, one in enumerate(sent.controlnets)
    ]
    for index, one in enumerate(sent.loras):
        _check_lora(one.name, f"loras[{index}].name", model, world, found)
    embeddings = _embeddings(sent, model, world, found)
    if model is None:
        if sent.width is not None and sent.height is not None:
            _check_pixels(sent.width, sent.height, world.max_pixels, found)
        if sent.scheduler is not None:
            _check_scheduler(sent.scheduler, options, _given(sent.num_inference_steps, 1), found)
            if sent.hires is not None:
                _check_scheduler(sent.scheduler, {}, _given(sent.hires.steps, 1), found, "hires.steps")
        raise InvalidRequest(_without_invented(found, faults))

    width, height = _size(sent, model, pictures.get("image"))
    _check_size(width, height, model, world.max_pixels, found)
    if sent.clip_skip is not None and sent.clip_skip >= model.text_layers:
        message = (
            f"clip_skip {sent.clip_skip} leaves nothing of {model.text_layers} layers; at most {model.text_layers - 1}"
        )
        found.append(Fault(field="clip_skip", code="invalid_value", message=message))
    own = _lora_defaults(sent, world.models)
    scheduler = _given(sent.scheduler, _given(own.scheduler, model.scheduler))
    steps = _given(sent.num_inference_steps, own_steps(sent, model, world.models))
    if not _is_faulty("scheduler", found):
        _check_scheduler(scheduler, options, steps, found)
    hires = _hires(sent, model, (width, height), steps)
    if hires is not None:
        _check_size(hires.width, hires.height, model, world.max_pixels, found, "hires.")
        if not _is_faulty("scheduler", found):
            _check_scheduler(scheduler, {}, hires.steps, found, "hires.steps")
    drawn = (width, height) if hires is None else (hires.width, hires.height)
    _check_format(sent, drawn, pictures.get("image"), found)
    if found:
        raise InvalidRequest(_without_invented(found, faults))

    request = Request(
        model=model.id,
        type=kind,
        prompt=sent.prompt,
        negative_prompt=sent.negative_prompt,
        prompt_syntax=sent.prompt_syntax,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=_given(sent.guidance_scale, _given(own.guidance_scale, model.guidance_scale)),
        scheduler=scheduler,
        scheduler_options=options,
        eta=sent.eta,
        seed=draw_seed() if sent.seed is None else sent.seed,
        num_images=sent.num_images,
        clip_skip=sent.clip_skip,
        image=_asset(pictures.get("image")),
        mask=_asset(pictures.get("mask")),
        strength=None if sent.image is None else _given(sent.strength, DEFAULT_STRENGTH),
        mask_blur=sent.mask_blur,
        mask_fill=sent.mask_fill,
        padding_mask_crop=sent.padding_mask_crop,
        resize_mode=sent.resize_mode,
        controlnets=tuple(one for one in controlnets if one is not None),
        loras=tuple(LoraUse(name=one.name, scale=one.scale) for one in sent.loras),
        output=Output(**sent.output.model_dump()),
        priority=sent.priority,
        timeout_s=sent.timeout_s,
        expires_s=sent.expires_s,
        device=sent.device,
        deterministic=sent.deterministic,
        metadata=sent.metadata,
        variation=_variation(sent),
        hires=hires,
        webhook=None if sent.webhook is None else _webhook(sent.webhook),
        preview=_preview(sent.preview),
        cancel_on_disconnect=sent.cancel_on_disconnect,
        embeddings=embeddings,
    )
    own_model = world.own.get(model.id, model)
    return Resolved(request=request, warnings=tuple(advice.warnings(sent, request, own_model, world.models)))


def own_steps(sent: RequestInput, model: Model, models: Mapping[str, Model]) -> int:
    """What `num_inference_steps` is where a request does not say."""
    return _given(_lora_defaults(sent, models).num_inference_steps, model.num_inference_steps)


def _is_within(field: str | None, outer: str | None) -> bool:
    """Whether a path is another one, or of a part of it."""
    if field is None or outer is None:
        return False
    return field == outer or field.startswith((f"{outer}.", f"{outer}["))


def _is_faulty(field: str, faults: Sequence[Fault]) -> bool:
    """Whether it, or a part of it, was sent and is wrong: nothing follows from what stands there now."""
    return any(_is_within(fault.field, field) for fault in faults)


def _without_invented(found: Sequence[Fault], first: Sequence[Fault]) -> list[Fault]:
    """Those found first, and of the others what is not about a field of these, which was checked at its default."""
    others = found[len(first) :]
    return [*first, *(one for one in others if not any(_is_within(one.field, told.field) for told in first))]


def _find_model(sent: str | None, world: World, faults: list[Fault]) -> Model | None:
    if _is_faulty("model", faults):
        return None
    wanted = _given(sent, world.default_model)
    checkpoints = {name: model for name, model in world.models.items() if model.kind == "checkpoint"}
    model = checkpoints.get(wanted)
    if model is None:
        near = nearest(wanted, checkpoints)
        known = f"the nearest is {near!r}" if near else f"models: {', '.join(sorted(checkpoints)) or 'none'}"
        faults.append(Fault(field="model", code="model_not_found", message=f"model {wanted!r} is not here; {known}"))
        return None
    if model.state == "invalid":
        message = f"model {wanted!r} cannot be used: {model.reason}"
        faults.append(Fault(field="model", code="model_invalid", message=message))
        return None
    return model


def _kind(sent: RequestInput, faults: list[Fault]) -> str:
    """The type as told, or by the fields. A type that is told needs its own field."""
    given = {
        "inpainting": sent.mask is not None or _is_faulty("mask", faults),
        "img2img": sent.image is not None or _is_faulty("image", faults),
        "controlnet": bool(sent.controlnets) or _is_faulty("controlnets", faults),
        "lora": bool(sent.loras) or _is_faulty("loras", faults),
        "text2img": True,
    }
    if sent.type is None:
        return next(kind for kind, there in given.items() if there)
    if not given[sent.type]:
        field = {"inpainting": "mask", "img2img": "image", "controlnet": "controlnets", "lora": "loras"}[sent.type]
        faults.append(Fault(field=field, code="missing_field", message=f"type {sent.type!r} needs {field}"))
    too_much = {"text2img": "image", "img2img": "mask"}.get(sent.type)
    if too_much is not None and given["img2img" if too_much == "image" else "inpainting"]:
        better = "img2img" if too_much == "image" else "inpainting"
        message = f"type {sent.type!r} takes no {too_much}; leave type out, or say {better!r}"
        faults.append(Fault(field="type", code="invalid_value", message=message))
    return sent.type


def _check_pictures(sent: RequestInput, pictures: Mapping[str, Picture], faults: list[Fault]) -> None:
    """What image, mask and the fields that belong to them say of one another."""
    image, mask = pictures.get("image"), pictures.get("mask")
    lacks_image = sent.image is None and not _is_faulty("image", faults)
    lacks_mask = sent.mask is None and not _is_faulty("mask", faults)
    if lacks_image and (sent.mask is not None or sent.type == "inpainting"):
        lacks_image = False  # one fault tells it
        faults.append(Fault(field="image", code="missing_field", message="mask needs image: what it is laid over"))
    if image is not None and mask is not None and (image.width, image.height) != (mask.width, mask.height):
        message = f"mask is {mask.width}x{mask.height}, image {image.width}x{image.height}; send them in one size"
        faults.append(Fault(field="mask", code="invalid_value", message=message))
    if sent.strength is not None and lacks_image:
        message = "strength says how far from an image, and there is none; send image or leave it out"
        faults.append(Fault(field="strength", code="invalid_value", message=message))
    lacks_padding = sent.padding_mask_crop is None and not _is_faulty("padding_mask_crop", faults)
    if sent.resize_mode == "original" and (lacks_mask or lacks_padding):
        message = "resize_mode 'original' draws a part of the image, so it needs mask and padding_mask_crop"
        faults.append(Fault(field="resize_mode", code="invalid_value", message=message))
    if lacks_mask:
        for field in ("mask_blur", "mask_fill", "padding_mask_crop"):
            if field in sent.model_fields_set and getattr(sent, field) != RequestInput.model_fields[field].default:
                message = f"{field} needs mask; send one or leave it out"
                faults.append(Fault(field=field, code="invalid_value", message=message))


def _size(sent: RequestInput, model: Model, image: Picture | None) -> tuple[int, int]:
    """As told, else the image's size made legal, else the model's own."""
    if image is None:
        return _given(sent.width, model.width), _given(sent.height, model.height)
    return _given(sent.width, _legal(image.width, model)), _given(sent.height, _legal(image.height, model))


def _legal(size: int, model: Model) -> int:
    multiple = model.size_multiple
    return max(model.min_size, (size + multiple // 2) // multiple * multiple)


def _check_size(width: int, height: int, model: Model, max_pixels: int, faults: list[Fault], path: str = "") -> None:
    multiple, least = model.size_multiple, model.min_size
    near = _nearest_size(width, height, model, max_pixels)
    is_told = not _is_faulty(f"{path}width", faults) and not _is_faulty(f"{path}height", faults)
    for name, size in (("width", width), ("height", height)):
        if size % multiple or size < least:
            message = f"{path}{name} {size} must be a multiple of {multiple}, {least} or more; try {near}"
            faults.append(Fault(field=path + name, code="unsupported_size", message=message))
    if is_told:
        _check_pixels(width, height, max_pixels, faults, path, f"; try {near}")


def _nearest_size(width: int, height: int, model: Model, max_pixels: int) -> str:
    """One that the model can draw and that has no more pixels than are drawn here, of nearly the same shape."""
    width, height = _legal(width, model), _legal(height, model)
    if width * height > max_pixels:
        shrunk = round(min(width, height) * math.sqrt(max_pixels / (width * height)))
        short = _legal(shrunk, model)
        long = min(max(width, height), max_pixels // short // model.size_multiple * model.size_multiple)
        width, height = (short, long) if width < height else (long, short)
    return f"{width}x{height}"


def _check_pixels(
    width: int, height: int, max_pixels: int, faults: list[Fault], path: str = "", hint: str = ""
) -> None:
    if width * height > max_pixels:
        message = f"{width}x{height} is {width * height} pixels; this server draws at most {max_pixels}{hint}"
        faults.append(Fault(field=f"{path}width", code="unsupported_size", message=message))


def _lora_defaults(sent: RequestInput, models: Mapping[str, Model]) -> LoraDefaults:
    """Of the first LoRA at work that says any."""
    there = [models[one.name] for one in sent.loras if one.scale and one.name in models]
    return next((one.lora_defaults for one in there if one.lora_defaults != LoraDefaults()), LoraDefaults())


def _check_scheduler(
    scheduler: str, options: dict[str, Any], steps: int, faults: list[Fault], field: str = "num_inference_steps"
) -> None:
    if steps > (most := SCHEDULER_STEPS.get(scheduler, MAX_STEPS)):
        message = f"scheduler {scheduler!r} runs at most {most} steps; got {steps}"
        faults.append(Fault(field=field, code="invalid_value", message=message))
    can = SCHEDULER_OPTIONS[scheduler]
    for name in options.keys() - can:
        message = f"scheduler {scheduler!r} cannot do {name}; it can: {', '.join(sorted(can))}"
        faults.append(Fault(field=f"scheduler_options.{name}", code="unsupported_field", message=message))


def _check_spacings(options: dict[str, Any], faults: list[Fault]) -> None:
    spacings = [name for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas") if options.get(name)]
    if len(spacings) > 1:
        message = f"{' and '.join(spacings)} exclude one another; send one"
        faults.append(Fault(field="scheduler_options", code="invalid_value", message=message))


def _check_hires(sent: RequestInput, faults: list[Fault]) -> None:
    asked = sent.hires
    if asked is None:
        return
    if sent.image is not None or _is_faulty("image", faults):
        message = "hires is the second pass of a picture drawn from noise; leave out image, or draw it larger itself"
        faults.append(Fault(field="hires", code="invalid_value", message=message))
    if asked.scale is not None and (asked.width is not None or asked.height is not None):
        message = "hires.scale and hires.width or hires.height exclude one another; send one"
        faults.append(Fault(field="hires.scale", code="invalid_value", message=message))


def _hires(sent: RequestInput, model: Model, size: tuple[int, int], steps: int) -> Hires | None:
    """By `scale`, or by what is told of width and height: the other then follows the picture's shape."""
    asked = sent.hires
    if asked is None:
        return None
    scale = max(_given(asked.width, 0) / size[0], _given(asked.height, 0) / size[1]) or _given(asked.scale, 2.0)
    width, height = (_legal(round(side * scale), model) for side in size)
    return Hires(
        width=_given(asked.width, width),
        height=_given(asked.height, height),
        upscaler=asked.upscaler,
        strength=asked.strength,
        steps=_given(asked.steps, steps),
    )


def _check_format(sent: RequestInput, size: tuple[int, int], image: Picture | None, faults: list[Fault]) -> None:
    """`size`: of what is drawn last. With resize_mode original it is pasted into the image, which keeps its own."""
    width, height = (image.width, image.height) if image and sent.resize_mode == "original" else size
    name = sent.output.format
    most = MAX_SIDE.get(name)
    if most is not None and max(width, height) > most:
        message = (
            f"{name} holds at most {most} px a side, and the picture is {width}x{height}; use png or a smaller size"
        )
        faults.append(Fault(field="output.format", code="invalid_value", message=message))


def _controlnet(
    sent: ControlNetInput,
    path: str,
    pictures: Mapping[str, Picture],
    model: Model | None,
    world: World,
    faults: list[Fault],
) -> ControlNetUse | None:
    there = _fitting("controlnet", model, world)
    if sent.model is None and sent.type is None and not _is_faulty(f"{path}type", faults):
        message = f"{path}model is missing; ControlNets{_for(model)}: {_list(there)}"
        faults.append(Fault(field=f"{path}model", code="missing_field", message=message))
    net = there.get(sent.model or "")
    if sent.model is not None and net is None:
        _tell_unfit("controlnet", sent.model, f"{path}model", there, model, world, faults)
    if sent.model is None and sent.type is not None:
        net = next((one for one in there.values() if one.control_type == sent.type), None)
        if net is None:
            kinds = sorted({one.control_type for one in there.values() if one.control_type})
            message = f"no ControlNet of type {sent.type!r}{_for(model)} is here; types: {_list(kinds)}"
            faults.append(Fault(field=f"{path}type", code="controlnet_not_found", message=message))
    if net is not None and net.control_type and sent.type not in (None, net.control_type):
        message = f"{path}type {sent.type!r} is not that of {net.id!r}, which is {net.control_type!r}; leave one out"
        faults.append(Fault(field=f"{path}type", code="invalid_value", message=message))
    if sent.image is None:
        faults.append(Fault(field=f"{path}image", code="missing_field", message=f"{path}image is missing"))
    if sent.start > sent.end:
        message = f"{path}start {sent.start:g} is after end {sent.end:g}; it would never be at work"
        faults.append(Fault(field=f"{path}start", code="invalid_value", message=message))
    is_read = not _is_faulty(f"{path}preprocessor", faults)
    wrong = preprocessors.faults(sent.preprocessor, sent.options, path) if is_read else []
    picture = pictures.get(f"{path}image")
    if not wrong and picture is not None:
        fault = preprocessors.size_fault(sent.options, (picture.width, picture.height), path)
        wrong = [fault] if fault is not None else []
    faults += wrong
    if net is None or picture is None or wrong:
        return None
    return ControlNetUse(
        model=net.id,
        image=f"asset:{picture.id}",
        preprocessor=sent.preprocessor,
        options=preprocessors.complete(sent.preprocessor, sent.options),
        scale=sent.scale,
        start=sent.start,
        end=sent.end,
        resize_mode=sent.resize_mode,
        control_mode=sent.control_mode,
    )


def _check_lora(name: str, field: str, model: Model | None, world: World, faults: list[Fault]) -> None:
    there = _fitting("lora", model, world)
    if name not in there:
        _tell_unfit("lora", name, field, there, model, world, faults)


def _embeddings(sent: RequestInput, model: Model | None, world: World, faults: list[Fault]) -> tuple[str, ...]:
    """Those that the prompts name, of those that fit or, where the request says which, of these."""
    there = _fitting("embedding", model, world)
    for index, name in enumerate(sent.embeddings or []):
        if name not in there:
            _tell_unfit("embedding", name, f"embeddings[{index}]", there, model, world, faults)
    chosen = [one for one in there.values() if sent.embeddings is None or one.id in sent.embeddings]
    names = mentions.names((one.id, one.trained_as) for one in chosen)
    used = mentions.ids((sent.prompt, sent.negative_prompt), names)
    if len(used) > MAX_EMBEDDINGS:
        message = (
            f"the prompts name {len(used)} embeddings; at most {MAX_EMBEDDINGS} may be used, and embeddings says which"
        )
        faults.append(Fault(field="embeddings", code="invalid_value", message=message))
    return tuple(used)


def _fitting(kind: str, model: Model | None, world: World) -> dict[str, Model]:
    """By id, those of a kind that go with the model; all that can be used while there is none."""
    those = [one for one in world.models.values() if one.kind == kind and one.state == "ready"]
    return {one.id: one for one in those if model is None or fitting(one, [model])}


def _tell_unfit(
    kind: str,
    name: str,
    field: str,
    fitting: Mapping[str, Model],
    model: Model | None,
    world: World,
    faults: list[Fault],
) -> None:
    other = world.models.get(name)
    if other is not None and other.kind == kind and other.state == "invalid":
        message = f"{kind} {name!r} cannot be used: {other.reason}"
        faults.append(Fault(field=field, code="model_invalid", message=message))
        return
    if other is not None and other.kind == kind and model is not None:
        message = (
            f"{kind} {name!r} is made for another architecture than {model.id!r}; those that fit: {_list(fitting)}"
        )
        faults.append(Fault(field=field, code="model_mismatch", message=message))
        return
    near = nearest(name, fitting)
    hint = f"the nearest is {near!r}" if near else f"those{_for(model)}: {_list(fitting)}"
    faults.append(Fault(field=field, code=f"{kind}_not_found", message=f"{kind} {name[:64]!r} is not here; {hint}"))


def _for(model: Model | None) -> str:
    return "" if model is None else f" for {model.id!r}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _asset(picture: Picture | None) -> str | None:
    return None if picture is None else f"asset:{picture.id}"


def _variation(sent: RequestInput) -> Variation | None:
    """None also for one of no strength: it is the picture itself."""
    asked = sent.variation
    return None if asked is None or not asked.strength else Variation(seed=asked.seed, strength=asked.strength)


def _webhook(sent: WebhookInput) -> WebhookUse:
    return WebhookUse(url=sent.url, events=tuple(dict.fromkeys(sent.events)))


def _preview(sent: PreviewInput | None) -> PreviewUse | None:
    """None when no step shows one."""
    if sent is None or not (sent.every_steps or sent.at_steps):
        return None
    return PreviewUse(every_steps=sent.every_steps, at_steps=tuple(sent.at_steps), max_px=sent.max_px)


def _given(sent: T | None, otherwise: T) -> T:
    return otherwise if sent is None else sent
