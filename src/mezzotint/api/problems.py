"""The one shape of an error answer. Must not decide what is an error."""

from fastapi import Response
from fastapi.responses import JSONResponse

from mezzotint import bodies
from mezzotint.errors import STATUS, MezzotintError, NotFound, TryLater


def problem(error: MezzotintError, request_id: str, status: int | None = None) -> Response:
    """RFC 9457. The status is that of the code, 404 for an id in a path, or the one given."""
    if status is None:
        status = 404 if isinstance(error, NotFound) else STATUS[error.code]
    retry = isinstance(error, TryLater) and error.code != "storage_full"
    headers = {"Cache-Control": "no-store", "x-should-retry": str(retry).lower()}  # as OpenAI's clients ask
    if isinstance(error, TryLater):
        headers["Retry-After"] = str(min(59, max(1, error.retry_after_s)))  # some clients give up at 60
    body = bodies.problem(error, status, request_id)
    return JSONResponse(body, status, headers, media_type="application/problem+json")
