"""Keeps other sites' pages from driving a server on loopback. Fails closed; must not look at bodies.

A browser tells where a request comes from (Origin, Sec-Fetch-Site) and which name it used (Host). A page of another
site can send requests here, and DNS can point its name at 127.0.0.1; neither passes.
"""

import re
from collections.abc import Sequence

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.api.fields import HEADER, NATIVE, case_of
from mezzotint.api.problems import problem
from mezzotint.errors import CallerError
from mezzotint.fieldnames import CASES

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"([a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
_MAX_DIGITS = 20  # of a length: more than any number of bytes has
_JSON = frozenset({"application/json"})
_CHARSETS = (b"", b"utf-8", b"utf8")

# Paths whose bodies are or hold pictures: what they may be sent as. Their bodies may be larger than others.
UPLOADS = {
    "/api/assets": frozenset({"multipart/form-data", "image/png", "image/jpeg", "image/webp"}),
    "/api/inference/sessions": _JSON,
    "/api/inference/validate": _JSON,
    "/api/inference/batches": _JSON,
    "/api/inference/operations": _JSON,
    "/v1/images/generations": _JSON,
    "/v1/images/edits": frozenset({"multipart/form-data"}),
    **dict.fromkeys(
        (
            "/sdapi/v1/txt2img",
            "/sdapi/v1/img2img",
            "/sdapi/v1/png-info",
            "/sdapi/v1/extra-single-image",
            "/sdapi/v1/extra-batch-images",
            "/controlnet/detect",
        ),
        _JSON,
    ),
}


class Gate:
    """Refuses what no route should see: foreign hosts and pages, other media types, bodies compressed or too large."""

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_upload_bytes: int,
        hosts: frozenset[str],
        routes: Sequence[BaseRoute],
    ) -> None:
        self._hosts = LOOPBACK | hosts
        self._app, self._max_body_bytes, self._max_upload_bytes = app, max_body_bytes, max_upload_bytes
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, self._counted(scope, receive), send)
        else:
            await problem(error, Request(scope).state.request_id)(scope, receive, send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """For bodies that do not say how long they are: raises CallerError `body_too_large` where one is."""
        count, most = 0, self._most(scope)

        async def receive_within() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                raise _too_large(most)
            return message

        return receive_within

    def _most(self, scope: Scope) -> int:
        return self._max_upload_bytes if scope["path"] in UPLOADS else self._max_body_bytes

    def _refusal(self, scope: Scope) -> CallerError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if host is None:
            return CallerError("send one Host header, a name or address with or without a port", code="malformed_host")
        if host[1] not in self._hosts:
            return CallerError("this server does not answer to that name; see the setting hosts", code="bad_host")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.partition("://")[2] != hosts[0]:
            return CallerError("pages of other origins may not use this server", code="cross_site")
        if site not in (None, "same-origin", "none"):
            return CallerError("pages of other sites may not use this server", code="cross_site")
        if scope["path"].startswith(NATIVE) and case_of(headers) is None:
            message = f"X-Field-Case must be {' or '.join(CASES)}; got {headers[HEADER][:32]!r}"
            return CallerError(message, code="invalid_value", field="X-Field-Case")
        length = headers.get("content-length", "0")
        is_number = length.isascii() and length.isdigit() and len(length) <= _MAX_DIGITS
        if not is_number or int(length) > self._most(scope):
            return _too_large(self._most(scope))
        if scope["method"] in ("POST", "PUT", "PATCH") and ("transfer-encoding" in headers or int(length)):
            coding = headers.get("content-encoding", "identity").strip().lower()
            if coding not in ("", "identity") and self._is_routed(scope):
                message = f"the body must not be compressed; send it as it is, without Content-Encoding: {coding[:32]}"
                return CallerError(message, code="unsupported_media_type", field="Content-Encoding")
            media = headers.get("content-type", "").partition(";")[0].strip().lower()
            taken = UPLOADS.get(scope["path"], _JSON)
            if media not in taken and self._is_routed(scope):
                message = f"send {', '.join(sorted(taken))}; got {media[:64] or 'no Content-Type'!r}"
                return CallerError(message, code="unsupported_media_type")
            if media == "multipart/form-data" and media in taken:
                # as starlette's reader finds it, which takes any of Python's codecs: some take minutes, or fail
                charset = parse_options_header(headers["content-type"])[1].get(b"charset", b"")
                if charset.lower() not in _CHARSETS:
                    message = "a form's names and texts must be UTF-8; send no charset"
                    return CallerError(message, code="unsupported_media_type", field="Content-Type")
        return None

    def _is_routed(self, scope: Scope) -> bool:
        """What no route takes is the router's to refuse: clients look for what is not here, and need its 404."""
        return any(route.matches(scope)[0] is not Match.NONE for route in self._routes)


def _too_large(most: int) -> CallerError:
    return CallerError(f"the body is over {most} bytes", code="body_too_large")
