"""`mezzotint sessions`: what a server was asked for, and how it stands. Must not draw."""

import itertools
import json
from typing import Annotated, Any

import typer

from mezzotint.cli import ask, progress
from mezzotint.cli.flags import FAILED, Json, Server
from mezzotint.errors import MezzotintError

Id = Annotated[str, typer.Argument(help="id of the session, ses_...")]


def listed(
    active: Annotated[bool, typer.Option("--active", help="only those that have not ended")] = False,
    state: Annotated[str | None, typer.Option(help="queued, running, paused, succeeded, ...")] = None,
    model: Annotated[str | None, typer.Option(help="catalog id")] = None,
    limit: Annotated[int, typer.Option(min=1, help="how many at most")] = 50,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """The sessions, newest first."""
    filters = {"active": True if active else None, "state": state, "model": model, "limit": min(limit, 200)}
    with _client(server) as client:
        matching = client.sessions(**{name: value for name, value in filters.items() if value is not None})
        found = list(itertools.islice(matching, limit))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        typer.echo(_line(one))


def show(session: Id, server: Server = None, as_json: Json = False) -> None:
    """One session, as JSON; with --json on one line."""
    with _client(server) as client:
        typer.echo(json.dumps(client.session(session), indent=None if as_json else 2))


def watch(session: Id, server: Server = None, as_json: Json = False) -> None:
    """Follow a session to its end; exit code 1 when it did not succeed. Ctrl-C leaves it running."""
    end: dict[str, Any] | None = None
    with _client(server) as client, progress.bar(quiet=as_json) as tell:
        for _, kind, data in client.events(session):
            tell(kind, data)
            if as_json:
                typer.echo(json.dumps({"event": kind, "data": data}))
            if kind == "end":
                end = data
        end = end or client.session(session)
    if not as_json:
        typer.echo(_line(end))
    if end["state"] != "succeeded":
        raise typer.Exit(FAILED)


def cancel(session: Id, server: Server = None, as_json: Json = False) -> None:
    """Stop a session within one step."""
    _change("cancel", session, server, as_json)


def pause(session: Id, server: Server = None, as_json: Json = False) -> None:
    """Stop a running session at its next step, to go on from there when it is resumed."""
    _change("pause", session, server, as_json)


def resume(session: Id, server: Server = None, as_json: Json = False) -> None:
    """Put a paused session back into the queue."""
    _change("resume", session, server, as_json)


def _change(verb: str, session: str, server: str | None, as_json: bool) -> None:
    with _client(server) as client:
        found = getattr(client, verb)(session)
    typer.echo(json.dumps(found) if as_json else _line(found))


def _client(server: str | None) -> Any:
    """Raises MezzotintError `unreachable` when no server is named: sessions live on one."""
    if server is None:
        raise MezzotintError("name the server with --server URL or MEZZOTINT_SERVER", code="unreachable")
    return ask.client(server)


def _line(session: dict[str, Any]) -> str:
    at = session["progress"]
    steps = f"{at['step']}/{at['steps']}" if at["step"] is not None else "-"
    why = f"  {session['error']['message']}" if session["error"] else ""
    return (
        f"{session['id']}  {session['state']}  {session['model']}  {steps}  {session['request']['prompt'][:60]!r}{why}"
    )
