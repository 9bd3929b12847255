"""Flags of `generate` as fields of a request. Must not judge them: the request's own rules do."""

import base64
import os
from pathlib import Path
from typing import Any

from mezzotint.errors import CallerError

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def image_format(output: Path | None) -> str | None:
    """By the suffix. Raises CallerError for a file that could not be written in the end."""
    folder = Path() if output is None else output.parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        message = f"the folder {folder.absolute()} cannot be written; name another file with -o"
        raise CallerError(message, code="invalid_value", field="output")
    if output is None:
        return None
    if output.is_dir():
        raise CallerError(f"{output} is a folder; name another file with -o", code="invalid_value", field="output")
    if output.suffix.lower() not in _FORMATS:
        raise CallerError(f"{output} must end in {', '.join(_FORMATS)}", code="invalid_value", field="output")
    if not output.absolute().parent.is_dir():
        raise CallerError(f"the folder {output.parent} does not exist", code="invalid_value", field="output")
    return _FORMATS[output.suffix.lower()]


def json_object(name: str, text: str) -> Any:
    return read(f"--{name.replace('_', '-')}", os.fsencode(text), field=name)


def read(what: str, text: bytes, field: str | None = None) -> Any:
    """JSON as a server reads it. Raises CallerError `invalid_json`, which names `what`."""
    from mezzotint.api.reading import read_json

    try:
        return read_json(text)
    except CallerError as error:
        message = error.message.replace("the body", what, 1)
        raise CallerError(message, code="invalid_json", field=field) from None


def picture(name: str, file: Path) -> str:
    """A file's bytes as a request carries them."""
    try:
        return base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        message = f"--{name} {file} cannot be read: {error.strerror}"
        raise CallerError(message, code="invalid_image", field=name) from None


def lora(text: str) -> dict[str, Any]:
    name, colon, scale = text.rpartition(":")
    try:
        return {"name": name, "scale": float(scale)} if colon else {"name": text}
    except ValueError:
        message = f"--loras {text!r} must be NAME or NAME:SCALE"
        raise CallerError(message, code="invalid_value", field="loras") from None


def controlnet(text: str) -> Any:
    given = json_object("controlnets", text)
    if isinstance(given, dict) and isinstance(file := given.get("image"), str):
        given["image"] = picture("controlnets", Path(file))
    return given
