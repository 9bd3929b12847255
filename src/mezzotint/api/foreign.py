"""What the foreign dialects share: a request in our words is accepted as a session. Must not know their fields."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from fastapi import Request

from mezzotint.errors import ErrorInfo, RunFailure
from mezzotint.operations import Foreign, Operations
from mezzotint.schema import field_of
from mezzotint.session import Session, State

MAX_IGNORED_CHARACTERS = 1024
MAX_LEVELS = 8  # below a field, in which nulls are looked for: no field that is known lies deeper


def without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """null is the same as not sent, at any level; what `metadata` holds is the caller's own."""
    return {
        name: value if field_of(name) == "metadata" else _without_nulls(value, MAX_LEVELS)
        for name, value in fields.items()
        if value is not None
    }


def _without_nulls(value: Any, levels: int) -> Any:
    if levels and isinstance(value, dict):
        return {name: _without_nulls(one, levels - 1) for name, one in value.items() if one is not None}
    if levels and isinstance(value, list):
        return [_without_nulls(one, levels - 1) for one in value]
    return value


async def accept(
    request: Request, ops: Operations, body: Mapping[str, Any], foreign: Foreign, idempotency_key: str | None
) -> Session:
    """A session of a translated body. What the answer's headers are to say of it is noted on the request."""
    session = await ops.create(dict(body), idempotency_key, foreign)
    names = (one["field"] for one in session.warnings if one["code"] == "ignored_field" and one["field"])
    headers = {"X-Session-Id": session.id} | ignored(names)
    if session.ended:  # a new one has not: the key brought back an earlier one
        headers["Idempotency-Replayed"] = "true"
    request.state.headers = headers
    return session


def ignored(names: Iterable[str]) -> dict[str, str]:
    """The header that names fields which changed nothing; none without any."""
    told = ",".join(quote(name, "[]._") for name in names)[:MAX_IGNORED_CHARACTERS]
    return {"X-Mezzotint-Ignored": told} if told else {}


def failure(session: Session) -> RunFailure:
    """Of a session that ended without all its pictures. Names it, for what it has can be fetched by our own routes."""
    why = session.error or ErrorInfo(code="cancelled", message="was cancelled")
    message = f"session {session.id} {'' if session.error is None else f'{session.state}: '}{why.message}"
    if session.images:
        message += f"; {len(session.images)} of its {session.request.num_images} pictures are done"
    return RunFailure(replace(why, message=message))


def warnings(session: Session) -> list[dict[str, Any]]:
    """Of an ended session, with why it has fewer pictures than were asked for."""
    told = list(session.warnings)
    if session.state is not State.SUCCEEDED:
        why = failure(session)
        told.append({"code": why.code, "message": why.message, "field": None})
    return told
