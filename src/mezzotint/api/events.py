"""The only writer of server-sent events: a session's events as a stream. Must not decide which events there are."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, ClassVar

import msgspec
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

from mezzotint import bodies
from mezzotint.errors import TryLater
from mezzotint.events import Event
from mezzotint.fieldnames import Case, spelt

PING_S = 15.0
MAX_STREAMS = 1000  # that one server tells at a time
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def check_room() -> None:
    """Raises TryLater when MAX_STREAMS are open. Asked before anything is accepted that is to be told in a stream."""
    if _Stream.open_ones >= MAX_STREAMS:
        message = f"{MAX_STREAMS} streams of events are open, as many as this server tells; ask for the state instead"
        raise TryLater(message, code="quota_exceeded", retry_after_s=10)


def stream(session_id: str, events: AsyncIterator[Event], case: Case) -> StreamingResponse:
    return streamed(_lines(session_id, events, case))


def streamed(frames: AsyncGenerator[bytes, None], after: BackgroundTask | None = None) -> StreamingResponse:
    """Frames of any dialect, with a comment every PING_S while none comes, so that nobody between cuts the line.

    `after` is run when all are told, or when who listened has left.
    """
    return _Stream(frames, after)


class _Stream(StreamingResponse):
    """Closes what it reads from as soon as its reader has left, also amid a line: Starlette leaves that to the garbage
    collector, and until then they would be told."""

    open_ones: ClassVar[int] = 0

    def __init__(self, frames: AsyncGenerator[bytes, None], after: BackgroundTask | None) -> None:
        self._frames = _pinged(frames)
        super().__init__(self._frames, media_type="text/event-stream", headers=_HEADERS, background=after)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _Stream.open_ones += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            _Stream.open_ones -= 1
            await self._frames.aclose()


def frame(kind: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


async def _pinged(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    coming: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(frames, None))
            done, _ = await asyncio.wait({coming}, timeout=PING_S)
            if not done:
                yield b": ping\n\n"
                continue
            found, coming = coming.result(), None
            if found is None:
                return
            yield found
    finally:
        if coming is not None and not coming.done():
            coming.cancel()  # which ends them
        else:
            await frames.aclose()


async def _lines(session_id: str, events: AsyncIterator[Event], case: Case) -> AsyncGenerator[bytes, None]:
    async for event in events:
        data = msgspec.json.encode(spelt(bodies.event(session_id, event), case))
        yield b"id: %d\nevent: %b\ndata: %b\n\n" % (event.id, event.kind.encode(), data)


def stream_of_all(told: AsyncIterator[Sequence[tuple[str, Event]]], case: Case) -> StreamingResponse:
    return streamed(_lines_of_all(told, case))


async def _lines_of_all(told: AsyncIterator[Sequence[tuple[str, Event]]], case: Case) -> AsyncGenerator[bytes, None]:
    """Without `id` lines: nothing can be replayed, and numbers of different sessions mean nothing together."""
    yield b": from now on\n\n"
    async for bundle in told:
        yield b"".join(_line_of_all(session_id, event, case) for session_id, event in bundle)


def _line_of_all(session_id: str, event: Event, case: Case) -> bytes:
    def write() -> bytes:
        return frame(event.kind, spelt({"session_id": session_id} | bodies.event(session_id, event), case))

    return event.shared(case, write)
