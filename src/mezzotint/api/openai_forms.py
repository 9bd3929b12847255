"""A form of OpenAI's edits as the fields that JSON would have, and its pictures. Must not decode one.

Everything in a form is text. Both OpenAI clients spell what is nested as `metadata[a]`, `xs[]`, `loras[][name]`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request
from starlette.datastructures import UploadFile

from mezzotint.errors import Fault, InvalidRequest
from mezzotint.fieldnames import fold
from mezzotint.schema import TEXT_FIELDS, field_of

MAX_FILES = 64
MAX_FIELDS = 256
MAX_IMAGES = 16

_NAME = re.compile(r"([^\[\]]{1,64})((?:\[[^\[\]]{0,64}\]){0,4})")
_INDEX = re.compile(r"image\[\d{0,4}\]")
_TEXT = TEXT_FIELDS | {
    *("size", "quality", "responseformat", "outputformat", "background", "moderation", "style", "user"),
    *("safetyidentifier", "inputfidelity", "complexity", "prompt"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    fields: dict[str, Any]
    images: list[bytes]
    mask: bytes | None


async def read(request: Request, max_part_bytes: int) -> Form:
    """Raises InvalidRequest for names that cannot be read, pictures left out or too many."""
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=max_part_bytes) as form:
        pictures: dict[str, list[bytes]] = {"image": [], "mask": []}
        texts: list[tuple[str, str]] = []
        for name, value in form.multi_items():
            kind = "image" if name == "image" or _INDEX.fullmatch(name) else name
            if kind in pictures:
                pictures[kind].append(await _bytes(value))
            elif isinstance(value, UploadFile):
                texts.append((name, ""))  # a file where none is known: its name says enough
            else:
                texts.append((name, value))
    faults = _picture_faults(pictures)
    fields = nested(texts, faults)
    if faults:
        raise InvalidRequest(faults)
    return Form(fields=fields, images=pictures["image"], mask=next(iter(pictures["mask"]), None))


async def _bytes(value: UploadFile | str) -> bytes:
    """Of a part without a file name the reader has made text, and Latin-1 of what is not UTF-8."""
    if isinstance(value, UploadFile):
        return await value.read()
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode()


def _picture_faults(pictures: dict[str, list[bytes]]) -> list[Fault]:
    faults = []
    images, masks = len(pictures["image"]), len(pictures["mask"])
    if not images:
        faults.append(Fault(field="image", code="missing_field", message="image is missing: a file part of that name"))
    if images > MAX_IMAGES:
        message = f"image: at most {MAX_IMAGES} files are taken; got {images}"
        faults.append(Fault(field="image", code="unsupported_field", message=message))
    elif images > 1:
        message = f"image: models here begin at one picture; got {images}, send one"
        faults.append(Fault(field="image", code="unsupported_field", message=message))
    if masks > 1:
        faults.append(Fault(field="mask", code="unsupported_field", message="mask: send one file"))
    return faults


def nested(texts: list[tuple[str, str]], faults: list[Fault]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    lists: dict[tuple[str, ...], list[Any]] = {}  # of `xs[]` and `a[xs][]`, by what stands before the brackets
    tables: dict[str, dict[tuple[str, ...], list[Any]]] = {}  # of `xs[][key]`: name -> key -> its values, in order
    for name, text in texts:
        found = _NAME.fullmatch(name)
        if found is None:
            if not _is_known(name.partition("[")[0]):
                fields[name[:64]] = text  # a field that nobody knows does not fail
                continue
            faults.append(_bad(name[:64], f"the name {name[:64]!r} is not a field, metadata[a], xs[] or loras[][name]"))
            continue
        top, keys = found[1], re.findall(r"\[([^\[\]]*)\]", found[2])
        own_name = next((key for key in reversed(keys) if key), top)
        if "[object Object]" in text and fold(own_name) not in _TEXT:
            faults.append(_bad(top, f"{top} arrived as [object Object]; send it as JSON text"))
            continue
        value = _value(own_name, text)
        if keys[-1:] == [""] and "" not in keys[:-1]:
            lists.setdefault((top, *keys[:-1]), []).append(value)
        elif keys[:1] == [""] and "" not in keys[1:]:
            tables.setdefault(top, {}).setdefault(tuple(keys[1:]), []).append(value)
        elif "" in keys:
            faults.append(_bad(top, f"{name[:64]} is a list within a list; send {top} as JSON text"))
        elif not _put(fields, (top, *keys), value):
            faults.append(_bad(top, f"{name[:64]} is sent twice; send one"))
    whole: list[tuple[tuple[str, ...], list[Any]]] = list(lists.items())
    for top, columns in tables.items():
        counts = {len(values) for values in columns.values()}
        rows: list[dict[str, Any]] = [{} for _ in range(min(counts))]
        cells = [(row, key, value) for key, values in columns.items() for row, value in zip(rows, values, strict=False)]
        if len(counts) > 1 or not all(_put(*cell) for cell in cells):
            faults.append(_bad(top, f"{top}[]: every key must come equally often; or send {top} as JSON text"))
        whole.append(((top,), rows))
    for path, values in whole:
        if not _put(fields, path, values):
            faults.append(_bad(path[0], f"{path[0]} is sent twice; send one"))
    return fields


def _put(fields: dict[str, Any], path: Sequence[str], value: Any) -> bool:
    """False when something stands there already."""
    for key in path[:-1]:
        inner = fields.setdefault(key, {})
        if not isinstance(inner, dict):
            return False
        fields = inner
    if path[-1] in fields:
        return False
    fields[path[-1]] = value
    return True


def _is_known(name: str) -> bool:
    return field_of(name) is not None or fold(name) in _TEXT


def _value(name: str, text: str) -> Any:
    """Text stays text where text is asked for; elsewhere it is read as JSON, and stays text if it is none."""
    if fold(name) in _TEXT:
        return text
    if text == "":
        return None  # as both clients write null
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _bad(name: str, message: str) -> Fault:
    return Fault(field=name, code="invalid_value", message=message)
