"""A session as the stream of OpenAI Images: each picture as it is done. Must not decide what is drawn."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from mezzotint import bodies
from mezzotint.api import events, foreign
from mezzotint.api.openai_fields import Asked
from mezzotint.errors import STATUS, MezzotintError
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


async def _frames(ops: Operations, session: Session, asked: Asked, kind: str) -> AsyncIterator[bytes]:
    partials = 0
    async for event in await ops.events(session.id):
        if event.kind == "preview" and event.data.image_index == 0:
            name = f"{kind}.partial_image"
            told = _partial(session, event.data, asked) | {"partial_image_index": partials}
            partials += 1
            yield events.frame(name, {"type": name, **told})
        if event.kind == "image":
            name = f"{kind}.completed"
            told = await _picture(ops, session, event.data, asked)
            yield events.frame(name, {"type": name, **told, "usage": _NO_TOKENS})
    ended = await ops.get(session.id)
    if ended.state is not State.SUCCEEDED:
        yield events.frame("error", _error(foreign.failure(ended)))
        return
    yield b"data: [DONE]\n\n"


async def _picture(ops: Operations, session: Session, data: Any, asked: Asked) -> dict[str, Any]:
    """`data` is the image of the event, as it happened or as it was stored."""
    index = data.index if isinstance(data, ImageRecord) else data["index"]
    record, path = await ops.image(session.id, index)
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
    return {"error": bodies.problem(error, STATUS[error.code], "")["error"]}
