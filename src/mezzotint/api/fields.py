"""Answers of native routes in the case that `X-Field-Case` asks for. Must not touch the dialects' own bodies."""

import msgspec
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.fieldnames import CASES, Case, spelt

HEADER = "x-field-case"
NATIVE = "/api/"

_JSON = ("application/json", "application/problem+json")


def case_of(headers: Headers) -> Case | None:
    """The case asked for; None for one that does not exist."""
    asked = headers.get(HEADER, "snake").strip().lower()
    return asked if asked in CASES else None


def case_for(request: Request) -> Case:
    return case_of(request.headers) or "snake"


class FieldCase:
    """Spells JSON bodies of native routes, errors too, and says in `Vary` what an answer depends on.

    Streams are left alone: their writer spells each event itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(NATIVE):
            await self._app(scope, receive, send)
            return
        case = case_of(Headers(scope=scope)) or "snake"
        start: Message | None = None
        body = bytearray()

        async def send_spelt(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.add_vary_header("X-Field-Case")
                headers.add_vary_header("Authorization")
                if case != "snake" and headers.get("content-type", "").partition(";")[0] in _JSON:
                    start = message  # its length is not known yet
                    return
            elif start is not None and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if message.get("more_body", False):
                    return
                told = msgspec.json.encode(spelt(msgspec.json.decode(body), case)) if body else b""
                MutableHeaders(scope=start)["content-length"] = str(len(told))
                await send(start)
                message = {"type": "http.response.body", "body": told}
            await send(message)

        await self._app(scope, receive, send_spelt)
