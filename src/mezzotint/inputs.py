"""What may be sent beside a request: a batch, the envelope of operations, and what each operation takes.

In any of the three spellings, with every fault. Must not know of models or devices.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mezzotint.errors import MAX_FAULTS, Fault, InvalidRequest
from mezzotint.fieldnames import fold
from mezzotint.rules import broken
from mezzotint.schema import MAX_BATCH, field_of, metadata_fault, nearest

MAX_WAIT_S = 600

Id = Annotated[str, Field(max_length=256)]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class BatchInput(_Input):
    """Many requests. What `defaults` says counts for each that does not say it itself."""

    requests: Annotated[list[Any], Field(min_length=1, max_length=MAX_BATCH, description="requests")]
    defaults: Annotated[dict[str, Any], Field(description="fields for all that do not have them")] = {}
    skip_invalid: Annotated[bool, Field(description="run the valid ones; else one fault refuses all")] = False
    stop_on_first_error: Annotated[bool, Field(description="cancel the rest when one fails or expires")] = False
    metadata: Annotated[dict[str, Any], Field(description="yours, returned as sent; 16 KiB of JSON")] = {}


class EnvelopeInput(_Input):
    """One operation."""

    type: Annotated[str, Field(max_length=256, description="name of the operation")]
    data: Annotated[dict[str, Any], Field(description="what the operation takes")] = {}
    request_id: Annotated[str | None, Field(max_length=256, description="returned as sent")] = None


class NothingInput(_Input):
    """No fields."""


class SessionIdInput(_Input):
    session_id: Id


class ReasonInput(_Input):
    """Why something is cancelled. For people; it is not kept."""

    reason: Annotated[str | None, Field(max_length=1000)] = None


class CancelInput(ReasonInput):
    session_id: Id


class DeviceIdInput(_Input):
    device_id: Id | None = None


class DeviceInput(_Input):
    """On which device; left out: a model is loaded where most is free, and let go of everywhere."""

    device: Id | None = None


class ModelIdInput(_Input):
    model: Id | None = None


class WaitInput(_Input):
    wait_s: Annotated[float | None, Field(ge=1, le=MAX_WAIT_S)] = None


T = TypeVar("T", bound=_Input)


def read(body: Any, schema: type[T], path: str = "") -> T:
    """The body as that input. `path` goes before the fields of faults. Raises InvalidRequest with every fault."""
    found, faults = checked(body, schema, path)
    if found is None or faults:
        raise InvalidRequest(faults)
    return found


def checked(body: Any, schema: type[T], path: str = "") -> tuple[T | None, list[Fault]]:
    """What is sound of a body as that input, and every fault; None where too little is left of it."""
    if not isinstance(body, dict):
        message = f"{path.rstrip('.') or 'the body'} must be a JSON object"
        return None, [Fault(field=path.rstrip(".") or None, code="invalid_request", message=message)]
    names = {fold(name): name for name in schema.model_fields}
    fields: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in body.items():
        name = names.get(fold(key))
        if name is None:
            faults.append(_unknown(path + key[:64], key, names, searches=len(faults) < MAX_FAULTS))
        elif name in fields:
            message = f"{path}{name} is given twice, in two spellings; send one"
            faults.append(Fault(field=path + name, code="duplicate_field", message=message))
        else:
            fields[name] = value
    if isinstance(metadata := fields.get("metadata"), dict) and (fault := metadata_fault(metadata)) is not None:
        faults.append(fault)
    try:
        return schema.model_validate(fields), faults
    except ValidationError as error:
        items = error.errors(include_url=False)
    faults += [_fault(item, schema, path) for item in items]
    sound = {name: value for name, value in fields.items() if name not in {item["loc"][0] for item in items}}
    try:
        return schema.model_validate(sound), faults
    except ValidationError:
        return None, faults


def with_defaults(request: Any, defaults: Mapping[str, Any]) -> Any:
    """A request with what it does not say itself, whatever the spelling. What is no object is left for its fault."""
    if not isinstance(request, dict):
        return request
    said = {_name(key) for key in request}
    return {key: value for key, value in defaults.items() if _name(key) not in said} | request


def _name(key: str) -> str:
    """The field that a key is a spelling of; of an unknown one its own words."""
    return field_of(key) or fold(key)


def without(body: Mapping[str, Any], *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A body without these fields, and those fields, by any spelling."""
    taken = {key: value for key, value in body.items() if fold(key) in {fold(name) for name in names}}
    return {key: value for key, value in body.items() if key not in taken}, taken


def _unknown(field: str, key: str, names: Mapping[str, str], *, searches: bool) -> Fault:
    near = nearest(fold(key), names) if searches else None
    hint = f"; did you mean {names[near]}?" if near else f"; fields: {', '.join(names.values()) or 'none'}"
    return Fault(field=field, code="unknown_field", message=f"{field} is not a field here{hint}")


def _fault(item: Any, schema: type[_Input], path: str) -> Fault:
    name = str(item["loc"][0])
    field = path + name
    if item["type"] == "missing":
        return Fault(field=field, code="missing_field", message=f"{field} is missing")
    return Fault(field=field, code="invalid_value", message=f"{field} {broken(item, schema.model_fields[name])}")
