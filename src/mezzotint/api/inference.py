"""Native routes of sessions. Turns HTTP into `Operations` and back; must not hold a rule of its own."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from mezzotint import answers, bodies
from mezzotint.api import events, files
from mezzotint.api.document import CHECKED, takes, tells
from mezzotint.api.fields import case_for
from mezzotint.api.reading import IdempotencyKey, read_json
from mezzotint.errors import Fault
from mezzotint.inputs import MAX_WAIT_S, ReasonInput, read
from mezzotint.operations import Operations
from mezzotint.rules import SESSION_ID
from mezzotint.schema import RequestInput

router = APIRouter(prefix="/api/inference/sessions", tags=["sessions"])

REQUEST = takes(RequestInput)


async def operations(request: Request) -> Operations:  # what is not async waits for a thread
    found: Operations = request.app.state.operations
    return found


Ops = Annotated[Operations, Depends(operations)]


@router.post("", status_code=202, openapi_extra=REQUEST, **tells(answers.Session, 202, 200))
async def create(
    request: Request,
    ops: Ops,
    prefer: Annotated[str | None, Header(max_length=256)] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a request. It is on disk before this answers. `Prefer: wait=N` waits up to N seconds for the end.

    The same `Idempotency-Key` and body again answer the first session.
    """
    faults: list[Fault] = []
    wait_s = _wait(prefer, faults)
    session = await ops.create(read_json(await request.body()), idempotency_key, beside=faults)
    if wait_s is not None:
        with leaving(request) as left:
            session = await ops.wait(session, wait_s, left)
    headers = {"Location": f"{bodies.SESSIONS}/{session.id}", "Cache-Control": "no-store"}
    body = msgspec.json.encode(bodies.session(session))  # a fifth of json's time, and every accept pays it
    return Response(body, 200 if session.ended else 202, headers, media_type="application/json")


@contextlib.contextmanager
def leaving(request: Request) -> Iterator[asyncio.Future[None]]:
    """Done when the caller has left. For after the body was read."""
    left = asyncio.ensure_future(_left(request))
    try:
        yield left
    finally:
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get("", **tells(answers.Sessions))
async def listed(
    ops: Ops,
    active: bool | None = None,
    state: Annotated[str | None, Query(max_length=64)] = None,
    type: Annotated[str | None, Query(max_length=64)] = None,  # noqa: A002  the contract's word
    model: Annotated[str | None, Query(max_length=256)] = None,
    device: Annotated[str | None, Query(max_length=64)] = None,
    batch: Annotated[str | None, Query(max_length=64)] = None,
    text: Annotated[str | None, Query(max_length=1000, description="words in the prompt")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=SESSION_ID, description="next_cursor of a page")] = None,
) -> dict[str, Any]:
    """Sessions, newest first."""
    sessions, next_cursor = await ops.list(
        active=active,
        state=state,
        type=type,
        model=model,
        device=device,
        batch=batch,
        text=text,
        limit=limit,
        cursor=cursor,
    )
    return {"sessions": [bodies.session(session) for session in sessions], "next_cursor": next_cursor}


@router.get("/{session_id}", **tells(answers.Session))
async def get(session_id: str, ops: Ops) -> dict[str, Any]:
    return bodies.session(await ops.get(session_id))


@router.post("/{session_id}/cancel", openapi_extra=takes(ReasonInput, required=False), **tells(answers.Session))
async def cancel(session_id: str, request: Request, ops: Ops) -> dict[str, Any]:
    """Stop it within one denoising step. Answers at once; the session ends cancelled. The reason is not kept."""
    body = await request.body()
    read(read_json(body) if body else {}, ReasonInput)
    return bodies.session(await ops.cancel(session_id))


@router.post("/{session_id}/pause", **tells(answers.Session))
async def pause(session_id: str, ops: Ops) -> dict[str, Any]:
    """Stop it at the next step, its state kept and its memory freed. Answers at once."""
    return bodies.session(await ops.pause(session_id))


@router.post("/{session_id}/resume", **tells(answers.Session))
async def resume(session_id: str, ops: Ops) -> dict[str, Any]:
    """Back into the queue, at its old place; it goes on from the step where it stopped."""
    return bodies.session(await ops.resume(session_id))


@router.delete("/{session_id}", status_code=204, **CHECKED)
async def delete(session_id: str, ops: Ops) -> None:
    """Remove an ended session and its pictures."""
    await ops.delete(session_id)


@router.get("/{session_id}/events", **CHECKED)
async def follow(
    session_id: str, request: Request, ops: Ops, last_event_id: Annotated[int, Header(ge=0, le=2**62)] = 0
) -> Response:
    """Server-sent events until the session ends: state, progress, image, warning, end."""
    events.check_room()
    return events.stream(session_id, await ops.events(session_id, last_event_id), case_for(request))


@router.get("/{session_id}/trace", **tells(answers.Trace))
async def trace(session_id: str, ops: Ops) -> dict[str, Any]:
    """Where its time went, every attempt at it, and how many rows shared its model calls."""
    return bodies.trace(*await ops.trace(session_id))


@router.get("/{session_id}/images/{index}", **CHECKED)
async def image(
    session_id: str, index: int, request: Request, ops: Ops, size: Literal["full", "thumb"] = "full"
) -> Response:
    """A finished picture. `thumb` is a WebP of at most 256 px, or the picture itself when it is no larger."""
    if size == "full":
        record, path = await ops.image(session_id, index)
    else:
        record, path, small = await ops.thumbnail(session_id, index)
        if small is not None:
            return await files.kept(request, small, sha256=f"{record.sha256}-thumb", media_type="image/webp")
    return await files.kept(request, path, sha256=record.sha256, media_type=f"image/{record.format}")


feed = APIRouter(prefix="/api/inference", tags=["sessions"])


@feed.get("/events", **CHECKED)
async def follow_all(request: Request, ops: Ops) -> Response:
    """Server-sent events of all sessions from now on, each with its `session_id`. Nothing is replayed: list first."""
    events.check_room()
    return events.stream_of_all(ops.everything(), case_for(request))


def _wait(prefer: str | None, faults: list[Fault]) -> int | None:
    """Seconds of `Prefer: wait=N`; other preferences, and its parameters, are ignored, as RFC 7240 has it."""
    for part in (prefer or "").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = value.strip().strip('"')
            if re.fullmatch("[0-9]{1,3}", value) and 1 <= int(value) <= MAX_WAIT_S:
                return int(value)
            message = f"Prefer: wait must be a whole number from 1 to {MAX_WAIT_S}; got {value[:32]!r}"
            faults.append(Fault(field="Prefer", code="invalid_value", message=message))
    return None
