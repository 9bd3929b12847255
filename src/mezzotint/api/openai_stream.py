"""A session as the stream of OpenAI Images: each picture as it is done. Must not decide what is drawn."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from mezzotint import bodies
from mezzotint.api import events, foreign, openai_errors
from mezzotint.api.openai_fields import Asked
from mezzotint.errors import STATUS, MezzotintError
from mezzotint.events import Event, closed
from mezzotint.operations import Operations
from mezzotint.session import ImageRecord, Preview, Session, State

# demanded by the schema of the clients; there are no tokens here
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def stream(ops: Operations, session: Session, asked: Asked, kind: str) -> StreamingResponse:
    """`kind` is image_generation or image_edit. The session is accepted already."""
    return events.streamed(_frames(ops, session, asked, kind), BackgroundTask(ops.left, session))


async def _frames(ops: Operations, session: Session, asked: Asked, kind: str) -> AsyncGenerator[bytes, None]:
    partials = 0
    try:
        async for event in _events(ops, session.id):
            if event.kind == "preview" and event.data.image_index == 0:
                name = f"{kind}.partial_image"
                told = _partial(session, event.data, asked) | {"partial_image_index": partials}
                partials += 1
                yield events.frame(name, {"type": name, **told})
            if event.kind == "image":
                name = f"{kind}.completed"
                told = await _picture(ops, session, event.data, asked)
                yield events.frame(name, {"type": name, **told, "usage": _NO_TOKENS})
            if event.kind == "end" and event.data.state is not State.SUCCEEDED:
                raise foreign.failure(event.data)
    except MezzotintError as error:  # the status has left
        yield events.frame("error", _error(error))
        return
    yield b"data: [DONE]\n\n"


async def _events(ops: Operations, session_id: str) -> AsyncIterator[Event]:
    """Up to the end. Who reads too slowly is dropped, and comes back here for what is stored: no picture is missed.

    Raises TryLater when the server stops first.
    """
    last, kind = 0, ""
    while kind != "end":
        before = last
        async for event in await ops.events(session_id, last):
            last, kind = event.id, event.kind
            yield event
        if last == before:
            raise closed()


async def _picture(ops: Operations, session: Session, image: ImageRecord, asked: Asked) -> dict[str, Any]:
    record, path = await ops.image(session.id, image.index)
    return {
        "b64_json": base64.b64encode(await asyncio.to_thread(path.read_bytes)).decode(),
        "created_at": int(session.created_at),
        "size": f"{record.width}x{record.height}",
        "quality": asked.quality,
        "background": "opaque",
        "output_format": record.format,
        "image_index": record.index,
        "seed": record.seed,
    }


def _partial(session: Session, preview: Preview, asked: Asked) -> dict[str, Any]:
    return {
        "b64_json": base64.b64encode(preview.b64_json).decode(),
        "created_at": int(session.created_at),
        "size": f"{preview.width}x{preview.height}",
        "quality": asked.quality,
        "background": "opaque",
        "output_format": preview.format,
        "image_index": 0,
        "seed": session.request.seed,
    }


def _error(error: MezzotintError) -> dict[str, Any]:
    told, status = openai_errors.translate(error)
    return {"error": bodies.problem(told, status or STATUS[told.code], "")["error"]}
