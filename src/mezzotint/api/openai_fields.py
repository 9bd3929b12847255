"""Fields of OpenAI Images put into ours. Pure: reads no picture. Must not do I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.errors import Fault, InvalidRequest
from mezzotint.schema import DEFAULT_STRENGTH, MAX_PREVIEW_PX, MAX_STEPS, field_of, parse

# quality -> steps as a multiple of the model's own
QUALITIES = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 3.0}
_QUALITY_NAMES = {"auto": "medium", "standard": "medium", "hd": "high"}
FEW_STEPS = 8  # a model whose own steps are no more was made for so many

_FORMATS = ("png", "jpeg", "webp")
_STRENGTHS = {"high": 0.5, "low": 0.8}  # by input_fidelity
_FREE = frozenset({"moderation", "style", "user", "safety_identifier"})
_NEUTRAL = ("complexity", "frame_count", "frame_duration_ms", "svg", "markup")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_NOT_OURS = frozenset(
    {"size", "quality", "response_format", "output_format", "output_compression", "background", "stream"}
    | {"partial_images", "n", "input_fidelity", *_NEUTRAL, *_FREE}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request in our words, and what is said about its answer."""

    body: dict[str, Any]
    quality: str
    response_format: str
    stream: bool
    partial_images: int
    safety_identifier: str | None


def translate(fields: Mapping[str, Any], own_steps: int, *, is_edit: bool = False, has_mask: bool = False) -> Asked:
    """Fields that OpenAI does not have go through to our own reading. Raises InvalidRequest with every fault.

    `fields` hold no null, and no picture of an edit. `own_steps` run where nobody says how many.
    """
    faults: list[Fault] = []
    body = {name: value for name, value in fields.items() if name not in _NOT_OURS}
    ours = {field_of(name): name for name in body}  # as they are spelt here
    if "prompt" not in fields:
        faults.append(Fault(field="prompt", code="missing_field", message="prompt is missing"))
    for name, said in (("n", _number(fields, faults)), ("size", _size(fields, faults))):
        faults += [_twice(name, ours[field]) for field in said if field in ours]
        body |= said
    quality = _one_of(fields, "quality", (*QUALITIES, *_QUALITY_NAMES), "auto", faults)
    quality = _QUALITY_NAMES.get(quality, quality)
    if "num_inference_steps" not in ours and own_steps > FEW_STEPS and quality != "medium":
        body["num_inference_steps"] = max(1, int(own_steps * QUALITIES.get(quality, 1.0)))
    body |= _output(fields, faults)
    if _one_of(fields, "background", ("opaque", "auto", "transparent"), "auto", faults) == "transparent":
        faults.append(_unsupported("background", "pictures here are opaque; send opaque or auto"))
    if is_edit and "strength" not in ours:
        fidelity = _one_of(fields, "input_fidelity", tuple(_STRENGTHS), "", faults)
        if has_mask:
            body["strength"] = 1.0
        elif fidelity:
            body["strength"] = _STRENGTHS[fidelity]
    elif not is_edit and "input_fidelity" in fields:
        body["input_fidelity"] = fields["input_fidelity"]  # not of this call: our own reading names it unknown
    for name in _NEUTRAL:
        if name in fields:
            faults.append(_unsupported(name, f"{name} is not supported here; leave it out"))
    asked = Asked(
        body=body,
        quality=quality,
        response_format=_one_of(fields, "response_format", ("b64_json", "url"), "b64_json", faults),
        stream=_flag(fields, "stream", faults),
        partial_images=_whole(fields, "partial_images", 0, 3, faults) or 0,
        safety_identifier=_text(fields.get("safety_identifier")) or _text(fields.get("user")),
    )
    shows = asked.stream and asked.partial_images > 0
    if shows and "preview" in ours:
        faults.append(_twice("partial_images", ours["preview"]))
    if faults:
        raise InvalidRequest(faults)
    if shows:
        body["preview"] = _partials(asked.partial_images, body, own_steps, is_edit=is_edit)
    return asked


def _partials(count: int, body: Mapping[str, Any], own_steps: int, *, is_edit: bool) -> dict[str, Any]:
    """Previews of the full size, evenly over the steps that will run, of both passes of `hires`; fewer when those are
    few.
    """
    sent, _ = parse(body)  # what is wrong there, our own reading names
    steps = sent.num_inference_steps or own_steps
    strength = DEFAULT_STRENGTH if sent.strength is None else sent.strength
    passes = [steps * strength if is_edit or sent.image is not None else steps]
    if sent.hires is not None:
        passes.append((sent.hires.steps or steps) * sent.hires.strength)
    run = sum(max(1, int(one)) for one in passes)
    at = {round((number + 1) * run / (count + 1)) for number in range(count)}
    return {"at_steps": sorted(step for step in at if 0 < step < min(run, MAX_STEPS + 1)), "max_px": MAX_PREVIEW_PX}


def _number(fields: Mapping[str, Any], faults: list[Fault]) -> dict[str, int]:
    number = _whole(fields, "n", 1, 10, faults)
    return {} if number is None else {"num_images": number}


def _size(fields: Mapping[str, Any], faults: list[Fault]) -> dict[str, int]:
    size = fields.get("size", "auto")
    if size == "auto":
        return {}
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        faults.append(_wrong("size", "WIDTHxHEIGHT in pixels, such as 512x512, or auto", size))
        return {}
    return {"width": int(found[1]), "height": int(found[2])}


def _output(fields: Mapping[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """Ours, under what the caller may have said of it in our own words."""
    own = fields.get("output", {})
    if not isinstance(own, dict):
        return {}
    output = dict(own)
    for name, same in (("output_format", "format"), ("output_compression", "quality")):
        if name in fields and same in own:
            faults.append(_twice(name, f"output.{same}"))
    if "output_format" in fields:
        output["format"] = _one_of(fields, "output_format", _FORMATS, "png", faults)
    quality = _whole(fields, "output_compression", 0, 100, faults)
    if quality is not None and output.get("format", "png") != "png":
        output["quality"] = max(1, quality)
    return {"output": output} if output else {}


def _one_of(fields: Mapping[str, Any], name: str, known: tuple[str, ...], default: str, faults: list[Fault]) -> str:
    value = fields.get(name, default)
    if isinstance(value, str) and (value in known or value == default):
        return value
    faults.append(_wrong(name, f"one of {', '.join(known)}", value))
    return default


def _whole(fields: Mapping[str, Any], name: str, low: int, high: int, faults: list[Fault]) -> int | None:
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        return value
    faults.append(_wrong(name, f"a whole number from {low} to {high}", value))
    return None


def _flag(fields: Mapping[str, Any], name: str, faults: list[Fault]) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        faults.append(_wrong(name, "true or false", value))
    return value is True


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _wrong(name: str, rule: str, value: Any) -> Fault:
    return Fault(field=name, code="invalid_value", message=f"{name} must be {rule}; got {str(value)[:64]!r}")


def _twice(name: str, ours: str) -> Fault:
    return Fault(field=name, code="duplicate_field", message=f"{name} and {ours} say the same; send one")


def _unsupported(name: str, message: str) -> Fault:
    return Fault(field=name, code="unsupported_field", message=message)
