"""`mezzotint keys`: who may use a server. Writes the rows itself, beside a server. Must not show a key twice."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.api_keys import SCOPES, USUAL, ApiKey, Limits, Scope
from mezzotint.cli import ask
from mezzotint.cli.flags import Data, Json
from mezzotint.errors import CallerError, SetupError

DAY_S = 86_400
MAX_DAYS = 36_500
_LIMITS = Limits()
Database = Annotated[str | None, typer.Option(help="postgresql://USER:PASSWORD@HOST/NAME; default: SQLite")]


def create(
    name: Annotated[str, typer.Argument(help="what it is for, to know it by in the list")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SCOPES)}; may be given several times; default: {', '.join(USUAL)}"),
    ] = None,
    expires_days: Annotated[float | None, typer.Option(help="days; default: for ever")] = None,
    running: Annotated[int, typer.Option(min=1, help="sessions that run at one time")] = _LIMITS.running,
    queued: Annotated[int, typer.Option(min=1, help="sessions that wait")] = _LIMITS.queued,
    requests_per_minute: Annotated[int, typer.Option(min=1)] = _LIMITS.requests_per_minute,
    pixel_steps_per_minute: Annotated[
        int, typer.Option(min=1, help="width x height x steps x images")
    ] = _LIMITS.pixel_steps_per_minute,
    stored_bytes: Annotated[int, typer.Option(min=1, help="all its pictures")] = _LIMITS.stored_bytes,
    data: Data = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make an API key and print it, this once. Servers ask for keys as soon as one was made."""
    from mezzotint.store import beside

    scopes = tuple(_scope(text) for text in scope) if scope else USUAL
    limits = Limits(
        running=running,
        queued=queued,
        requests_per_minute=requests_per_minute,
        pixel_steps_per_minute=pixel_steps_per_minute,
        stored_bytes=stored_bytes,
    )
    if not name.isprintable():
        raise CallerError(f"a key's name is one line of printable text; got {name[:64]!r}", code="invalid_value")
    if expires_days is not None and not 0 < expires_days <= MAX_DAYS:  # so neither is NaN
        message = f"--expires-days must be above 0 and at most {MAX_DAYS}; got {expires_days:g}"
        raise CallerError(message, code="invalid_value", field="expires_days")
    expires_at = None if expires_days is None else time.time() + expires_days * DAY_S
    with _database(data, database) as url:
        key, text = asyncio.run(beside.create_key(url, name=name, scopes=scopes, limits=limits, expires_at=expires_at))
    if as_json:
        typer.echo(json.dumps(_body(key) | {"key": text}))
        return
    typer.echo(text)
    typer.echo(f"id {key.id}, may {', '.join(key.scopes)}; it is not shown again", err=True)


def listed(data: Data = None, database: Database = None, as_json: Json = False) -> None:
    """Every key that was ever made: its beginning, what it may do, whether it is in force."""
    from mezzotint.store import beside

    with _database(data, database) as url:
        keys = asyncio.run(beside.list_keys(url))
    if as_json:
        typer.echo(json.dumps([_body(key) for key in keys]))
        return
    for key in keys:
        typer.echo(f"{key.id}  mz_{key.id}_...  {_state(key)}  {','.join(key.scopes)}  {key.name}".rstrip())


def revoke(
    key_id: Annotated[str, typer.Argument(help="the id, as `keys list` shows it")],
    data: Data = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Let a key open nothing any more. A running server knows within a second."""
    from mezzotint.store import beside

    with _database(data, database) as url:
        revoked = asyncio.run(beside.revoke_key(url, key_id))
    if not revoked:
        raise CallerError(f"no key {key_id[:64]!r} is in force; see `mezzotint keys list`", code="invalid_value")
    typer.echo(json.dumps({"id": key_id, "state": "revoked"}) if as_json else f"{key_id} is revoked")


@contextmanager
def _database(data: Path | None, database: str | None) -> Iterator[str]:
    """The address of the database, its schema made where no server has done so yet."""
    from mezzotint.server import own
    from mezzotint.store import beside

    settings = ask.settings(data=data, database=database)
    with ExitStack() as held:
        in_use = None
        try:
            held.enter_context(own(settings.data))
        except SetupError as error:
            in_use = error
        if not asyncio.run(beside.is_current(settings.database_url)):
            if in_use is not None:
                raise in_use
            asyncio.run(beside.bring_up(settings.database_url))
        yield settings.database_url


def _scope(text: str) -> Scope:
    found = next((scope for scope in SCOPES if scope == text), None)
    if found is None:
        from mezzotint.schema import nearest

        near = nearest(text, SCOPES)
        hint = f"did you mean {near}?" if near else f"scopes: {', '.join(SCOPES)}"
        raise CallerError(f"--scope {text[:64]!r} does not exist; {hint}", code="invalid_value", field="scope")
    return found


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "in force" if key.usable(time.time()) else "expired"


def _body(key: ApiKey) -> dict[str, Any]:
    import msgspec

    from mezzotint import bodies

    body: dict[str, Any] = msgspec.to_builtins(key)
    times = {name: bodies.time(body[name]) for name in ("created_at", "expires_at", "revoked_at")}
    return {"id": key.id, "state": _state(key)} | {k: v for k, v in body.items() if k != "sha256"} | times
