"""Clients of a running server, for programs: the verbs of the contract over HTTP. Imports nothing heavy.

`Client` blocks, `AsyncClient` is awaited; both say the same verbs (verbs.py) and differ in nothing else.
"""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx2

from mezzotint import verbs
from mezzotint.errors import CallerError, MezzotintError, ServerUnreachable, TryLater
from mezzotint.verbs import Call, EventLines, error_of, pause_s

if TYPE_CHECKING:
    from mezzotint import answers

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:7801"
RETRIES = 2
RECONNECTS = 6  # of an event stream, in a row: sixteen seconds, longer than a server takes to start again
QUIET_S = 45.0  # of an event stream whose server pings three times as often: longer, and the line is dead

# The connection was there and is lost, or a proxy's to the server: the server may have heard us.
_LOST = (httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.WriteError, ServerUnreachable)
_MAY_PASS = (httpx2.TransportError, ServerUnreachable, TryLater)


class _Base:
    """The address, the key and the patience of both clients."""

    def __init__(
        self, url: str = DEFAULT_URL, api_key: str | None = None, *, timeout_s: float = 30.0, retries: int = RETRIES
    ) -> None:
        """`retries`: how often a call is sent again when the server says when (429, 503), or when the connection, or a
        proxy's, is lost and a repeat cannot do it twice. 0: every refusal is raised at once.
        """
        if not url.lower().startswith(("http://", "https://")):
            message = f"a server's address begins with http:// or https://; got {url[:96]!r}"
            raise CallerError(message, code="invalid_value", field="server")
        has_host = False
        with contextlib.suppress(httpx2.InvalidURL):
            has_host = bool(httpx2.URL(url).host)
        if not has_host:
            message = f"a server's address is http://HOST or http://HOST:PORT; got {url[:96]!r}"
            raise CallerError(message, code="invalid_value", field="server")
        if api_key and not re.fullmatch("[!-~]+", api_key):  # never shown: an error may end up in a log
            message = "the API key holds a space, a line end or another character that no key has"
            raise CallerError(message, code="invalid_api_key")
        self._url, self._retries = url, retries
        self._patience = httpx2.Timeout(timeout_s, read=QUIET_S)  # of an event stream
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": timeout_s,
            "trust_env": False,
            "limits": httpx2.Limits(max_connections=None),  # each session that is followed has one to itself
            # reading every certificate authority takes as long as drawing a step; plain HTTP needs none. SSL_CERT_FILE
            # and SSL_CERT_DIR name others than the system's
            "verify": not url.lower().startswith("http://") and httpx2.create_ssl_context(),
        }

    def _try_again(self, call: Call[Any], error: Exception, tried: int) -> float:
        """Seconds until the next try. Raises when there is to be none."""
        may = isinstance(error, TryLater) or (isinstance(error, _LOST) and call.repeats)
        return self._pause_s(error, self._retries if may else 0, tried)

    def _connect_again(self, error: Exception, begun: bool, tried: int) -> float:
        """The same for an event stream, which goes on behind the last event that was heard."""
        tries = self._retries if isinstance(error, TryLater) else 0
        if begun and self._retries:
            tries = max(tries, RECONNECTS)
        return self._pause_s(error, tries, tried)

    def _pause_s(self, error: Exception, tries: int, tried: int) -> float:
        known = error if isinstance(error, MezzotintError) else None
        if tried < tries:
            return pause_s(known, tried)
        raise known or self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        message = f"no server answers at {self._url} ({error}); start one with `mezzotint serve`"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            message = (
                f"the certificate of {self._url} is not to be trusted here ({error}); where its authority is your own, "
                "name its file in SSL_CERT_FILE"
            )
        return ServerUnreachable(message)


class Client(_Base):
    """Talks to one server. Not for use from two threads at once.

    Every method raises ServerUnreachable when nothing answers, and the server's own errors as InvalidRequest, TryLater,
    or MezzotintError with its code.
    """

    def __init__(
        self, url: str = DEFAULT_URL, api_key: str | None = None, *, timeout_s: float = 30.0, retries: int = RETRIES
    ) -> None:
        super().__init__(url, api_key, timeout_s=timeout_s, retries=retries)
        self._http = httpx2.Client(**self._options)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, /, *, idempotency_key: str | None = None, **request: Any) -> "answers.Session":
        """Accept a request; returns the session. It is on the server's disk when this returns. Said again with the same
        `idempotency_key` it returns the first; of its own it has a new one each time, for its retries."""
        return self._do(verbs.submit(request, idempotency_key))

    def validate(self, /, **request: Any) -> "answers.Validation":
        """A dry run: every fault, what it would be resolved to, and what it would take."""
        return self._do(verbs.validate(request))

    def session(self, session_id: str) -> "answers.Session":
        return self._do(verbs.session(session_id))

    def sessions(self, /, **filters: Any) -> "Iterator[answers.Session]":
        """All sessions that match, newest first, page by page. Filters as in the contract: active, state, model, ..."""
        while True:
            page = self._do(verbs.sessions(filters))
            yield from page["sessions"]
            if page["next_cursor"] is None:
                return
            filters["cursor"] = page["next_cursor"]

    def cancel(self, session_id: str) -> "answers.Session":
        return self._do(verbs.change(session_id, "cancel"))

    def pause(self, session_id: str) -> "answers.Session":
        return self._do(verbs.change(session_id, "pause"))

    def resume(self, session_id: str) -> "answers.Session":
        return self._do(verbs.change(session_id, "resume"))

    def delete(self, session_id: str) -> None:
        self._do(verbs.delete(session_id))

    def events(self, session_id: str, after: int = 0) -> "Iterator[answers.Event]":
        """Each event until the session ends. A connection that is lost or dead is made again, behind the last event."""
        from mezzotint.answers import Event

        lines, tried, begun = EventLines(after), 0, False
        while True:
            path, headers = verbs.events_path(session_id), lines.headers()
            try:
                with self._http.stream("GET", path, headers=headers, timeout=self._patience) as answer:
                    if not verbs.tells_events(answer):
                        answer.read()
                        raise error_of(answer)
                    begun = True
                    for line in answer.iter_lines():
                        if (event := lines.read(line)) is not None:
                            tried = 0
                            yield Event(*event)
                            if event[1] == "end":
                                return
                lost: Exception = EOFError("the stream of events ended early")
            except _MAY_PASS as error:
                lost = error
            time.sleep(self._connect_again(lost, begun, tried))
            tried += 1

    def image(self, session_id: str, index: int = 0) -> bytes:
        return self._do(verbs.image(session_id, index))

    def trace(self, session_id: str) -> "answers.Trace":
        """Where the session's time went, and the batches it ran in."""
        return self._do(verbs.trace(session_id))

    def wait(self, session_id: str) -> "answers.Session":
        """Block until the session has ended; returns it."""
        for event in self.events(session_id):
            if event.kind == "end":
                return cast("answers.Session", event.data)
        return self.session(session_id)

    def create_batch(self, /, requests: Sequence[dict[str, Any]], **options: Any) -> "answers.Batch":
        """Up to 1,000 requests at once. `options`: defaults, skip_invalid, stop_on_first_error, metadata."""
        return self._do(verbs.create_batch(requests, options))

    def batch(self, batch_id: str) -> "answers.Batch":
        return self._do(verbs.batch(batch_id))

    def cancel_batch(self, batch_id: str) -> "answers.Batch":
        return self._do(verbs.cancel_batch(batch_id))

    def upload(self, picture: bytes) -> "answers.Asset":
        """Keep a picture on the server; `asset:{id}` stands for it in requests."""
        return self._do(verbs.upload(picture))

    def capabilities(self, device_id: str | None = None) -> "answers.Capabilities":
        return self._do(verbs.capabilities(device_id))

    def supported_types(self, device_id: str | None = None) -> "answers.SupportedTypes":
        return self._do(verbs.supported_types(device_id))

    def devices(self) -> "list[answers.Device]":
        return self._do(verbs.devices())

    def workers(self) -> "list[answers.Worker]":
        return self._do(verbs.workers())

    def models(self) -> "list[answers.Model]":
        return self._do(verbs.models())

    def model(self, model_id: str) -> "answers.Model":
        return self._do(verbs.model(model_id))

    def load_model(self, model_id: str, device: str | None = None) -> "answers.Model":
        return self._do(verbs.placed(model_id, "load", device))

    def unload_model(self, model_id: str, device: str | None = None) -> "answers.Model":
        return self._do(verbs.placed(model_id, "unload", device))

    def rescan_models(self) -> "answers.Models":
        return self._do(verbs.rescan())

    def _do(self, call: Call[T]) -> T:
        tried = 0
        while True:
            try:
                answer = self._http.request(call.method, call.path, **call.options)
                return verbs.result(call, answer)
            except _MAY_PASS as error:
                time.sleep(self._try_again(call, error, tried))
                tried += 1


class AsyncClient(_Base):
    """As Client, awaited; `sessions` and `events` are asynchronous iterators. For one event loop."""

    def __init__(
        self, url: str = DEFAULT_URL, api_key: str | None = None, *, timeout_s: float = 30.0, retries: int = RETRIES
    ) -> None:
        super().__init__(url, api_key, timeout_s=timeout_s, retries=retries)
        self._http = httpx2.AsyncClient(**self._options)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(self, /, *, idempotency_key: str | None = None, **request: Any) -> "answers.Session":
        """Accept a request; returns the session. It is on the server's disk when this returns. Said again with the same
        `idempotency_key` it returns the first; of its own it has a new one each time, for its retries."""
        return await self._do(verbs.submit(request, idempotency_key))

    async def validate(self, /, **request: Any) -> "answers.Validation":
        """A dry run: every fault, what it would be resolved to, and what it would take."""
        return await self._do(verbs.validate(request))

    async def session(self, session_id: str) -> "answers.Session":
        return await self._do(verbs.session(session_id))

    async def sessions(self, /, **filters: Any) -> "AsyncIterator[answers.Session]":
        """All sessions that match, newest first, page by page. Filters as in the contract: active, state, model, ..."""
        while True:
            page = await self._do(verbs.sessions(filters))
            for one in page["sessions"]:
                yield one
            if page["next_cursor"] is None:
                return
            filters["cursor"] = page["next_cursor"]

    async def cancel(self, session_id: str) -> "answers.Session":
        return await self._do(verbs.change(session_id, "cancel"))

    async def pause(self, session_id: str) -> "answers.Session":
        return await self._do(verbs.change(session_id, "pause"))

    async def resume(self, session_id: str) -> "answers.Session":
        return await self._do(verbs.change(session_id, "resume"))

    async def delete(self, session_id: str) -> None:
        await self._do(verbs.delete(session_id))

    async def events(self, session_id: str, after: int = 0) -> "AsyncIterator[answers.Event]":
        """Each event until the session ends. A connection that is lost or dead is made again, behind the last event."""
        import asyncio

        from mezzotint.answers import Event

        lines, tried, begun = EventLines(after), 0, False
        while True:
            path, headers = verbs.events_path(session_id), lines.headers()
            try:
                async with self._http.stream("GET", path, headers=headers, timeout=self._patience) as answer:
                    if not verbs.tells_events(answer):
                        await answer.aread()
                        raise error_of(answer)
                    begun = True
                    async for line in answer.aiter_lines():
                        if (event := lines.read(line)) is not None:
                            tried = 0
                            yield Event(*event)
                            if event[1] == "end":
                                return
                lost: Exception = EOFError("the stream of events ended early")
            except _MAY_PASS as error:
                lost = error
            await asyncio.sleep(self._connect_again(lost, begun, tried))
            tried += 1

    async def image(self, session_id: str, index: int = 0) -> bytes:
        return await self._do(verbs.image(session_id, index))

    async def trace(self, session_id: str) -> "answers.Trace":
        """Where the session's time went, and the batches it ran in."""
        return await self._do(verbs.trace(session_id))

    async def wait(self, session_id: str) -> "answers.Session":
        """Until the session has ended; returns it."""
        async for event in self.events(session_id):
            if event.kind == "end":
                return cast("answers.Session", event.data)
        return await self.session(session_id)

    async def create_batch(self, /, requests: Sequence[dict[str, Any]], **options: Any) -> "answers.Batch":
        """Up to 1,000 requests at once. `options`: defaults, skip_invalid, stop_on_first_error, metadata."""
        return await self._do(verbs.create_batch(requests, options))

    async def batch(self, batch_id: str) -> "answers.Batch":
        return await self._do(verbs.batch(batch_id))

    async def cancel_batch(self, batch_id: str) -> "answers.Batch":
        return await self._do(verbs.cancel_batch(batch_id))

    async def upload(self, picture: bytes) -> "answers.Asset":
        """Keep a picture on the server; `asset:{id}` stands for it in requests."""
        return await self._do(verbs.upload(picture))

    async def capabilities(self, device_id: str | None = None) -> "answers.Capabilities":
        return await self._do(verbs.capabilities(device_id))

    async def supported_types(self, device_id: str | None = None) -> "answers.SupportedTypes":
        return await self._do(verbs.supported_types(device_id))

    async def devices(self) -> "list[answers.Device]":
        return await self._do(verbs.devices())

    async def workers(self) -> "list[answers.Worker]":
        return await self._do(verbs.workers())

    async def models(self) -> "list[answers.Model]":
        return await self._do(verbs.models())

    async def model(self, model_id: str) -> "answers.Model":
        return await self._do(verbs.model(model_id))

    async def load_model(self, model_id: str, device: str | None = None) -> "answers.Model":
        return await self._do(verbs.placed(model_id, "load", device))

    async def unload_model(self, model_id: str, device: str | None = None) -> "answers.Model":
        return await self._do(verbs.placed(model_id, "unload", device))

    async def rescan_models(self) -> "answers.Models":
        return await self._do(verbs.rescan())

    async def _do(self, call: Call[T]) -> T:
        import asyncio

        tried = 0
        while True:
            try:
                answer = await self._http.request(call.method, call.path, **call.options)
                return verbs.result(call, answer)
            except _MAY_PASS as error:
                await asyncio.sleep(self._try_again(call, error, tried))
                tried += 1
