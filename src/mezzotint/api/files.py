"""Answers that a caller may hold already: files and bodies with an ETag. Must not decide who may have them."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from mezzotint.capabilities import etag
from mezzotint.errors import NotFound


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
    return _Opened(path, media_type=media_type, filename=filename, headers=headers)


class _Opened(FileResponse):
    """Has its file open before the headers leave: what they promise cannot be removed any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            file = await asyncio.to_thread(open, self.path, "rb")
        except FileNotFoundError:
            raise NotFound("the picture is not on disk any more", code="image_not_found") from None
        with file:
            self.path = f"/dev/fd/{file.fileno()}"  # the same file, whatever becomes of its name
            await super().__call__(scope, receive, send)


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
