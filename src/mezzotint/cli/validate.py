"""`mezzotint validate`: what a request would do, without doing it. Must not draw."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli import ask, fields
from mezzotint.cli.flags import BAD_USE, Json, Models, Server
from mezzotint.errors import CallerError


def validate(
    request: Annotated[str, typer.Argument(metavar="FILE", help="a request as JSON; - reads standard input")],
    models: Models = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Check a request: every fault, how it would be completed, time and memory. Exit code 2 when it is not valid.

    Without --server the models on disk are looked at, and time is unknown: nothing has run.
    """
    body = _read(request)
    told: dict[str, Any] = ask.either(
        server,
        lambda client: client.validate(**body),
        lambda m: m.validate_request(**body),
        await_ready=False,
        models=models,
    )
    typer.echo(json.dumps(told) if as_json else "\n".join(_lines(told)))
    if not told["valid"]:
        raise typer.Exit(BAD_USE)


def _read(name: str) -> dict[str, Any]:
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CallerError(f"{name} cannot be read: {error.strerror}", code="invalid_value") from error
    body = fields.read(name, text)
    if not isinstance(body, dict):
        raise CallerError(f"{name} must hold one JSON object: the fields of a request", code="invalid_value")
    return body


def _lines(told: dict[str, Any]) -> list[str]:
    lines = ["valid" if told["valid"] else f"not valid: {len(told['errors'])} faults"]
    for name in ("errors", "warnings", "recommendations"):
        lines += [f"  {name[:-1]}: {one['message']}" for one in told[name]]
    if (found := told["estimate"]) is not None:
        lines.append(f"  device    {found['device']}")
        lines.append(f"  memory    {ask.size(found['peak_memory_bytes'])}")
        for name, shown in (("duration_s", "duration"), ("queue_s", "in queue")):
            lines.append(f"  {shown:9} {'unknown' if found[name] is None else f'{found[name]:.2f} s'}")
        lines.append(f"  basis     {found['basis']}")
        lines += [f"  {name}: unknown, {why}" for name, why in found["unknown"].items()]
    return lines
