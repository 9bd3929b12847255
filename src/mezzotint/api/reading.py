"""What comes in: JSON as the routes read it, and the names in a URL's query. Must not know a field."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from fastapi import Header, Request
from fastapi.routing import APIRoute

from mezzotint.errors import CallerError, Fault, InvalidRequest
from mezzotint.rules import PRINTABLE
from mezzotint.schema import nearest

MAX_DEPTH = 32
MAX_MARKS = 500_000  # of lists, objects and their parts, each of which takes memory and time; base64 has none

IdempotencyKey = Annotated[str | None, Header(pattern=PRINTABLE)]


def read_json(body: bytes) -> Any:
    """Strictly: no NaN, no numbers too large for any use, no lone surrogates, no name twice, MAX_DEPTH levels, and
    MAX_MARKS brackets, braces and commas at most.

    Raises CallerError `invalid_json`.
    """
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_MARKS:
        message = f"the body holds over {MAX_MARKS} brackets, braces and commas; send less at a time"
        raise CallerError(message, code="invalid_json")
    try:
        json.loads(body, object_pairs_hook=_once_each)  # what it gives is dropped before the body is read again
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from error
    level, depth = [value], 0
    while level := [one for holder in level for one in _inside(holder)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise CallerError(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
    return value


async def check_query(request: Request) -> None:
    """A dependency of a route. Raises InvalidRequest for each parameter that the route does not take, or that comes
    twice: a filter that does nothing would answer what was not asked for."""
    if not request.scope["query_string"]:
        return
    route: APIRoute = request.scope["route"]
    known = [one.alias for one in route.dependant.query_params]
    given = Counter(name for name, _ in request.query_params.multi_items())
    faults = [_unknown(name[:64], known) for name in given if name not in known]
    for name in (name for name, times in given.items() if times > 1 and name in known):
        faults.append(Fault(field=name, code="duplicate_field", message=f"{name} comes {given[name]} times; give one"))
    if faults:
        raise InvalidRequest(faults)


def _unknown(name: str, known: list[str]) -> Fault:
    near = nearest(name.lower(), known)
    hint = f"did you mean {near}? " if near else ""
    message = f"{name} is not a parameter of this URL; {hint}parameters: {', '.join(known) or 'none'}"
    return Fault(field=name, code="unknown_field", message=message)


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
