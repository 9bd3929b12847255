"""Bodies in: JSON as the routes read it. Must not know a field."""

from typing import Annotated, Any

import msgspec
from fastapi import Header

from mezzotint.errors import CallerError

IdempotencyKey = Annotated[str | None, Header(pattern="^[ -~]{1,255}$")]


def read_json(body: bytes) -> Any:
    """Raises CallerError `invalid_json`."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CallerError(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from error
