"""What AUTOMATIC1111 writes into a prompt beside words: LoRA tags, and editing that is not done. Must not do I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.api import a1111_models
from mezzotint.catalog import Model
from mezzotint.errors import Fault

_TAG = re.compile(r"<(lora|lyco|hypernet):([^:<>]{1,256})((?::[^:<>]{0,64})*)>", re.IGNORECASE)
_BRACKETS = re.compile(r"\[([^\[\]]*+)\]|\sAND\s")  # `*+` gives nothing back: linear in any text
_PART = re.compile(r"[\d.]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt without its tags, and what they said."""

    text: str
    loras: dict[str, float]
    faults: tuple[Fault, ...]
    warnings: tuple[dict[str, Any], ...]


def read(text: str, field: str, models: Mapping[str, Model], *, applies: bool) -> Prompt:
    """With `applies` false, tags are taken out and not looked at further."""
    loras: dict[str, float] = {}
    faults: list[Fault] = []
    warnings: list[dict[str, Any]] = []
    tags = list(_TAG.finditer(text))
    if tags and field == "negative_prompt":
        message = "LoRA tags in the negative prompt change nothing; put them into the prompt"
        warnings.append({"code": "lora_in_negative_prompt", "message": message, "field": field})
    elif applies:
        for tag in tags:
            _take(tag, field, models, loras, faults)
    edited = [found[0].strip() for found in _BRACKETS.finditer(text) if _is_editing(found[1])]
    if edited:
        message = f"prompt editing is not done; the words stay as they are: {', '.join(edited)[:200]}"
        warnings.append({"code": "prompt_editing", "message": message, "field": field})
    return Prompt(text=_TAG.sub("", text), loras=loras, faults=tuple(faults), warnings=tuple(warnings))


def _is_editing(inside: str | None) -> bool:
    """Of `a:b:0.5`, `a|b`, and of AND, which has no brackets."""
    if inside is None or "|" in inside:
        return True
    parts = inside.rsplit(":", 2)
    return len(parts) == 3 and _PART.fullmatch(parts[2]) is not None


def _take(
    tag: re.Match[str], field: str, models: Mapping[str, Model], loras: dict[str, float], faults: list[Fault]
) -> None:
    kind, name, rest = tag[1].lower(), tag[2].strip(), tag[3]
    if kind == "hypernet":
        faults.append(Fault(field=field, code="unsupported_field", message="hypernetworks are not supported here"))
        return
    found = a1111_models.named_loras(name, models)
    if len(found) > 1:
        message = f"LoRA {name[:64]!r} is the training name of {', '.join(found)[:200]}; say which of them"
        faults.append(Fault(field=field, code="invalid_value", message=message))
        return
    if not found:
        there = ", ".join(one.id for one in models.values() if one.kind == "lora") or "none"
        message = f"LoRA {name[:64]!r} is not here; there are: {there[:200]}"
        faults.append(Fault(field=field, code="lora_not_found", message=message))
        return
    try:
        scale = _scale(rest)
    except ValueError as error:
        faults.append(Fault(field=field, code="invalid_value", message=f"{tag[0][:128]}: {error}"))
        return
    loras[found[0]] = loras.get(found[0], 0.0) + scale


def _scale(rest: str) -> float:
    """Of `:0.8`, `:0.8:0.8`, `:te=0.8:unet=0.8`. Raises ValueError."""
    values = set()
    for part in rest.split(":")[1:]:
        name, _, value = part.rpartition("=")
        if name not in ("", "te", "unet"):
            raise ValueError(f"{name!r} is not a part that has a weight of its own")
        try:
            values.add(float(value))
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
    if len(values) > 1:
        raise ValueError("text encoder and UNet have one weight here; send them equal")
    return values.pop() if values else 1.0
