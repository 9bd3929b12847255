"""Bodies in: JSON as the routes read it. Must not know a field."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from fastapi import Header

from mezzotint.errors import CallerError

MAX_DEPTH = 32

IdempotencyKey = Annotated[str | None, Header(pattern="^[ -~]{1,255}$")]


def read_json(body: bytes) -> Any:
    """Strictly: no NaN, no numbers too large for any use, no lone surrogates, no name twice, MAX_DEPTH levels at most.

    Raises CallerError `invalid_json`.
    """
    try:
        value = msgspec.json.decode(body)
        json.loads(body, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from error
    level, depth = [value], 0
    while level := [one for holder in level for one in _inside(holder)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise CallerError(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the name {name[:64]!r} comes twice in one object")
        seen.add(name)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
