"""How long a caller may take to say what it wants, and in how many headers. Must not look at what is said."""

import asyncio
import time
import uuid
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mezzotint import bodies
from mezzotint.errors import STATUS, CallerError

MAX_HEADERS, MAX_HEADER_BYTES = 64, 16 << 10
HEADERS_S = 10.0  # from the first byte of a connection, or of its next request, to the end of the headers
BODY_S = 10.0  # that a body may take beyond what its bytes take at the least rate
LEAST_BYTES_A_SECOND = 8 << 10


class Connection(HttpToolsProtocol):
    """uvicorn's, which would take headers without end, for ever."""

    _count = _bytes = _unread = 0
    _is_read = False
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._count = self._bytes = 0
        self._is_read = True
        self._wait()

    def on_url(self, url: bytes) -> None:
        self._spend(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        self._spend(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._is_read = True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._is_read = False
        super().data_received(data)
        # the parser keeps a line without an end, of headers or after a body in chunks, and says nothing of it
        self._unread = 0 if self._is_read else self._unread + len(data)
        if self._unread > MAX_HEADER_BYTES:
            self._refuse()
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._patience is None:
            self._wait()  # else a byte that begins no request would end uvicorn's own waiting, for ever

    def _spend(self, count: int) -> None:
        self._is_read = True
        self._bytes += count
        if self._count > MAX_HEADERS or self._bytes > MAX_HEADER_BYTES:
            self._refuse()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_too_large())
            self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(HEADERS_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _too_large() -> bytes:
    """The whole answer: no application has seen the call."""
    message = f"the headers are more than {MAX_HEADERS}, or over {MAX_HEADER_BYTES} bytes with the URL; send fewer"
    error, request_id = CallerError(message, code="headers_too_large"), f"req_{uuid.uuid4().hex}"
    status = STATUS[error.code]
    body = msgspec.json.encode(bodies.problem(error, status, request_id))
    head = (
        f"HTTP/1.1 {status} Request Header Fields Too Large\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class PatientBodies:
    """Ends a call whose body drips: `body_too_slow`. Waiting for a caller to leave is not limited."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, count, more = time.monotonic(), 0, True

        async def receive_in_time() -> Message:
            nonlocal count, more
            if not more:
                return await receive()
            left = BODY_S + count / LEAST_BYTES_A_SECOND - (time.monotonic() - began)
            try:
                async with asyncio.timeout(max(0.0, left)):
                    message = await receive()
            except TimeoutError as error:
                message_text = f"the body came slower than {LEAST_BYTES_A_SECOND} bytes a second"
                raise CallerError(message_text, code="body_too_slow") from error
            count += len(message.get("body", b""))
            more = message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)
