"""Answers that a caller may hold already: files and bodies with an ETag. Must not decide who may have them."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from mezzotint.capabilities import etag
from mezzotint.errors import CallerError, NotFound

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.IGNORECASE)


async def kept(request: Request, path: Path, *, sha256: str, media_type: str, filename: str | None = None) -> Response:
    """A file that never changes, by its digest; 304 when the caller has it. With `filename`, as an attachment.

    One that is removed meanwhile is sent whole, or NotFound is raised before anything is sent.
    """
    headers = {
        "ETag": f'"{sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Opened(path, media_type=media_type, filename=filename, headers=headers)


class Opened(FileResponse):
    """Has its file open before the headers leave: what they promise cannot be removed any more.

    Sends one range of it; of several, or of another unit, the whole (RFC 9110). Raises NotFound, or CallerError
    `range_not_satisfiable`, before anything is sent.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            file = await asyncio.to_thread(open, self.path, "rb")
        except FileNotFoundError:
            raise NotFound("the picture is not on disk any more", code="image_not_found") from None
        with file:
            self.path = f"/dev/fd/{file.fileno()}"  # the same file, whatever becomes of its name
            await super().__call__(self._ranged(scope, os.fstat(file.fileno()).st_size), receive, send)

    def _ranged(self, scope: Scope, size: int) -> Scope:
        headers = Headers(scope=scope)
        sent = headers.get("range", "")
        is_meant = sent.lower().startswith("bytes=") and "," not in sent
        if not is_meant or headers.get("if-range") not in (None, self.headers.get("etag")):
            return {**scope, "headers": [one for one in scope["headers"] if one[0] != b"range"]}
        if not _is_within(sent, size):
            scope["state"]["headers"] = {"Content-Range": f"bytes */{size}"}
            message = (
                f"Range must be bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT of these {size} bytes; got {sent[:64]!r}"
            )
            raise CallerError(message, code="range_not_satisfiable", field="Range")
        return scope


def _is_within(text: str, size: int) -> bool:
    found = _RANGE.fullmatch(text)
    if found is None:
        return False
    first, last, count = found.groups()
    return int(count) > 0 if count else int(first) < size and (not last or int(first) <= int(last))


def current(request: Request, body: dict[str, Any]) -> Response:
    """A body that changes with the world; 304 when the caller has it as it is."""
    headers = {"ETag": etag(body), "Cache-Control": "private, no-cache"}
    return (
        Response(status_code=304, headers=headers)
        if is_known(request, headers["ETag"])
        else JSONResponse(body, headers=headers)
    )


def is_known(request: Request, tag: str) -> bool:
    """Whether `If-None-Match` names this tag, by the weak comparison of RFC 9110."""
    sent = request.headers.get("if-none-match", "")
    return any(one.strip().removeprefix("W/") in (tag.removeprefix("W/"), "*") for one in sent.split(","))
