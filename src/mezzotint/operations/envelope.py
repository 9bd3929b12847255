"""Every operation by name, in one envelope: {type, data, request_id} -> {success, data or error, request_id}.

Must not hold a rule of its own: each name is a verb that has its own route too.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mezzotint import bodies
from mezzotint.callers import Scope, asking
from mezzotint.errors import CallerError, ErrorInfo, Fault, InvalidRequest, MezzotintError, NotFound, RunFailure
from mezzotint.inputs import (
    CancelInput,
    DeviceIdInput,
    EnvelopeInput,
    ModelIdInput,
    NothingInput,
    SessionIdInput,
    WaitInput,
    read,
    without,
)
from mezzotint.schema import nearest
from mezzotint.session import Session, State

if TYPE_CHECKING:
    from mezzotint.operations import Operations

Data = dict[str, Any]

_ROUTE = "operations"  # idempotency keys count apart from those of other routes


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What comes with an envelope and is not in it."""

    key: str | None = None  # for idempotency, of what makes a session or batch
    leaving: asyncio.Future[None] | None = None  # done when who asks has left


Operation = Callable[["Operations", Data, Call], Awaitable[Data]]


async def handle(operations: "Operations", message: Any, call: Call) -> dict[str, Any]:
    """Run one operation. What goes wrong is told in the envelope, never raised; a bug is."""
    request_id = _request_id(message)
    try:
        sent = read(message, EnvelopeInput)
        if sent.type not in OPERATIONS:
            raise _unknown(sent.type)
        needed, operation = OPERATIONS[sent.type]
        asking.get().check(needed)
        data = await operation(operations, sent.data, call)
    except MezzotintError as error:
        return {"success": False, "error": bodies.operation_error(error), "request_id": request_id}
    return {"success": True, "data": data, "request_id": request_id}


def _request_id(message: Any) -> str | None:
    """As sent, also when the rest of the envelope is faulty."""
    _, taken = without(message, "request_id") if isinstance(message, dict) else ({}, {})
    found = next(iter(taken.values()), None)
    return found if isinstance(found, str) and len(found) <= 256 else None


def _unknown(name: str) -> CallerError:
    near = nearest(name, OPERATIONS)
    hint = f"did you mean {near!r}? " if near else ""
    message = f"operation {name[:64]!r} does not exist; {hint}operations: {', '.join(OPERATIONS)}"
    return CallerError(message, code="unknown_operation", field="type")


def _generate(kind: str) -> Operation:
    async def run(operations: "Operations", data: Data, call: Call) -> Data:
        body, told = without(data, "wait_s")
        wait_s, faults = None, list[Fault]()
        try:
            wait_s = read(told, WaitInput, "data.").wait_s
        except InvalidRequest as error:
            faults += error.faults
        body, types = without(body, "type")
        for said in types.values():
            if said not in (None, kind):
                message = f"type {str(said)[:64]!r} is not that of inference.{kind}; leave it out"
                faults.append(Fault(field="type", code="invalid_value", message=message))
        typed = dict.fromkeys(types or ("type",), kind) | body
        session = await operations.create(typed, call.key, route=_ROUTE, beside=faults)
        if wait_s is not None:
            session = await operations.wait(session, wait_s, call.leaving)
        return _told(session)

    return run


def _told(session: Session) -> Data:
    """A session that is under way or has succeeded. Raises RunFailure for any other end."""
    if session.ended and session.state is not State.SUCCEEDED:
        code, message = str(session.state), f"session {session.id} was {session.state}"
        raise RunFailure(session.error or ErrorInfo(code=code, message=message))
    return bodies.session(session)


async def _batch(operations: "Operations", data: Data, call: Call) -> Data:
    body, told = without(data, "wait_s")
    wait_s = read(told, WaitInput, "data.").wait_s
    batch = await operations.create_batch(body, call.key, route=_ROUTE)
    deadline = time.monotonic() + (wait_s or 0)
    for item in batch["items"]:
        left = deadline - time.monotonic()
        if item["session_id"] is not None and left > 0:
            with contextlib.suppress(NotFound):  # it ended and was removed meanwhile
                await operations.wait(await operations.get(item["session_id"]), left, call.leaving)
    batch = await operations.batch(batch["id"])
    if batch["state"] in ("failed", "cancelled"):
        raise RunFailure(ErrorInfo(code=_first_error(batch), message=f"batch {batch['id']} {batch['state']}"))
    return batch


def _first_error(batch: Data) -> str:
    return next((str(item["error"]["code"]) for item in batch["items"] if item["error"]), "cancelled")


async def _pipeline_info(operations: "Operations", data: Data, _call: Call) -> Data:
    return operations.model(read(data, ModelIdInput, "data.").model or operations.default_model)


async def _status(operations: "Operations", data: Data, _call: Call) -> Data:
    read(data, NothingInput, "data.")
    return operations.status()


async def _capabilities(operations: "Operations", data: Data, _call: Call) -> Data:
    return await operations.capabilities(read(data, DeviceIdInput, "data.").device_id)


async def _types(operations: "Operations", data: Data, _call: Call) -> Data:
    return await operations.supported_types(read(data, DeviceIdInput, "data.").device_id)


async def _validate(operations: "Operations", data: Data, _call: Call) -> Data:
    return await operations.validate(data)


async def _session_status(operations: "Operations", data: Data, _call: Call) -> Data:
    return bodies.session(await operations.get(read(data, SessionIdInput, "data.").session_id))


async def _cancel(operations: "Operations", data: Data, _call: Call) -> Data:
    return bodies.session(await operations.cancel(read(data, CancelInput, "data.").session_id))


async def _active(operations: "Operations", data: Data, _call: Call) -> Data:
    read(data, NothingInput, "data.")
    return {"sessions": [bodies.session(session) for session in await operations.active()]}


# With the scope that its own route asks for.
OPERATIONS: Mapping[str, tuple[Scope, Operation]] = {
    "inference.text2img": ("submit", _generate("text2img")),
    "inference.img2img": ("submit", _generate("img2img")),
    "inference.inpainting": ("submit", _generate("inpainting")),
    "inference.controlnet": ("submit", _generate("controlnet")),
    "inference.lora": ("submit", _generate("lora")),
    "inference.batch_process": ("submit", _batch),
    "inference.get_pipeline_info": ("read-own", _pipeline_info),
    "inference.get_status": ("read-own", _status),
    "inference.get_capabilities": ("read-own", _capabilities),
    "inference.get_supported_types": ("read-own", _types),
    "inference.validate_request": ("submit", _validate),
    "inference.get_session_status": ("read-own", _session_status),
    "inference.cancel_session": ("submit", _cancel),
    "inference.get_active_sessions": ("read-own", _active),
}
