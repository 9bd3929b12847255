"""What was set for single models while the server runs (PATCH), checked and kept in one file of the data folder.

Must not decide what a request gets: the catalog lays it over the model's own facts.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mezzotint.disk import draft_of, sync_folder, write_new
from mezzotint.errors import Fault, InvalidRequest, SetupError, not_taken
from mezzotint.facts import RULES, Model, fitting
from mezzotint.families.table import MAX_STEPS, SCHEDULER_STEPS
from mezzotint.fieldnames import fold
from mezzotint.schema import nearest

DTYPES = ("auto", "float32", "bfloat16", "float16")
FIELDS = ("width", "height", "num_inference_steps", "guidance_scale", "scheduler", "dtype", "vae")

_NAMES = {fold(name): name for name in FIELDS}


class Preferences:
    """Settings by model id. Reads its file once; every change is on disk when `set` returns."""

    def __init__(self, file: Path | None) -> None:
        """Without a file nothing is kept. Raises SetupError for a file that cannot be read or is not ours."""
        self._file = file
        self._setting = threading.Lock()
        self._set: dict[str, dict[str, Any]] = {}
        if file is not None and file.exists():
            self._set = _read(file)

    def of(self, model_id: str) -> Mapping[str, Any]:
        return self._set.get(model_id, {})

    def set(self, model_id: str, changes: Mapping[str, Any]) -> None:
        """None takes a setting back. Blocks on the disk, and on other threads that set.

        Raises TryLater when the disk does not take it; then nothing has changed.
        """
        with self._setting:
            after = _after(self.of(model_id), changes)
            others = {name: value for name, value in self._set.items() if name != model_id}
            changed = others | {model_id: after} if after else others
            if self._file is not None:
                try:
                    _write(self._file, changed)
                except OSError as error:
                    raise not_taken("settings of models", error) from error
            self._set = changed


def _write(target: Path, settings: Mapping[str, Any]) -> None:
    with draft_of(target) as draft:
        write_new(draft, json.dumps(settings, indent=2).encode())
    sync_folder(target.parent)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"the settings of models in {file} cannot be read: {error}; mend or remove it") from error
    if not isinstance(read, dict) or not all(
        isinstance(one, dict) and one.keys() <= set(FIELDS) for one in read.values()
    ):
        raise SetupError(f"{file} must hold, by a model's id, some of {', '.join(FIELDS)}; mend or remove it")
    return read


def _after(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**before, **changes}.items() if value is not None}


def check(body: Any, own: Model, before: Mapping[str, Any], models: Iterable[Model], max_pixels: int) -> dict[str, Any]:
    """The settings that a body asks for, by their names here. `own`: the model without the settings it has, `before`.

    Raises InvalidRequest with every fault.
    """
    if not isinstance(body, dict):
        raise InvalidRequest([Fault(field=None, code="invalid_request", message="the body must be a JSON object")])
    faults: list[Fault] = []
    found: dict[str, Any] = {}
    for key, value in body.items():
        name = _NAMES.get(fold(str(key)))
        if name is None:
            near = nearest(str(key), FIELDS)
            hint = f"did you mean {near!r}?" if near else f"settings: {', '.join(FIELDS)}"
            message = f"{str(key)[:64]!r} is not a setting of models; {hint}"
            faults.append(Fault(field=str(key)[:64], code="unknown_field", message=message))
        elif name in found:
            message = f"{name} is given twice, in two spellings; send one"
            faults.append(Fault(field=name, code="duplicate_field", message=message))
        else:
            found[name] = value
            if value is not None and (rule := _broken(name, value, own, list(models))) is not None:
                shown = repr(value)[:64]
                faults.append(Fault(field=name, code="invalid_value", message=f"{name} must be {rule}; got {shown}"))
    if faults:
        raise InvalidRequest(faults)
    after = replace(own, **_after(before, found))
    if after.width * after.height > max_pixels:
        message = f"{after.width}x{after.height} is over {max_pixels} pixels; choose a smaller size"
        faults.append(Fault(field="width", code="unsupported_size", message=message))
    if after.num_inference_steps > (most := most_steps(after)):
        message = f"{after.scheduler} can do at most {most} steps; num_inference_steps is {after.num_inference_steps}"
        faults.append(Fault(field="num_inference_steps", code="invalid_value", message=message))
    if faults:
        raise InvalidRequest(faults)
    return found


def can_draw(model: Model, side: Any) -> bool:
    """Whether it is a width or height of pictures that the model draws."""
    return type(side) is int and side >= model.min_size and side % model.size_multiple == 0


def most_steps(model: Model) -> int:
    """That the scheduler which it uses by default can do."""
    return SCHEDULER_STEPS.get(model.scheduler, MAX_STEPS)


def _broken(name: str, value: Any, model: Model, models: list[Model]) -> str | None:
    """The rule that a value breaks, or None."""
    if name in ("width", "height"):
        return None if can_draw(model, value) else f"a multiple of {model.size_multiple}, {model.min_size} or more"
    if name == "dtype":
        return None if value in DTYPES else f"one of {', '.join(DTYPES)}"
    if name == "vae":
        there = [other.id for other in models if other.kind == "vae" and model.id in fitting(other, [model])]
        return None if value in there else f"an autoencoder that fits: {', '.join(there) or 'none is here'}"
    is_legal, rule = RULES[name]
    return None if is_legal(value) else rule
