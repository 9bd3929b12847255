"""`mezzotint devices` and `doctor`: what the machine has. Must not measure anything itself."""

import json

import typer

from mezzotint.cli import ask
from mezzotint.cli.flags import FAILED, Data, Json, Models, Server


def devices(server: Server = None, as_json: Json = False) -> None:
    """The devices and how they stand. Without --server a short-lived worker looks."""
    found = ask.either(server, lambda client: client.devices(), lambda m: m.operations.devices(), await_ready=True)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        memory = one["memory"]
        typer.echo(f"{one['id']}  {one['name']}  {one['state']}")
        typer.echo(f"  memory  {ask.size(memory['available_bytes'])} free of {ask.size(memory['total_bytes'])}")
        typer.echo(f"  dtypes  {', '.join(dtype['name'] for dtype in one['dtypes'] or [])}")
        typer.echo(f"  threads {one['threads']}")
        for name, why in one["unknown"].items():
            typer.echo(f"  {name}: unknown, {why}")


def doctor(data: Data = None, models: Models = None, as_json: Json = False) -> None:
    """Check what a server would need, and say how to mend what is missing."""
    from mezzotint.doctor import examine

    findings = examine(ask.settings(data=data, models=tuple(models) if models else None))
    if as_json:
        typer.echo(json.dumps([{"check": one.check, "ok": one.ok, "found": one.found} for one in findings]))
    else:
        for one in findings:
            typer.echo(f"{'ok ' if one.ok else 'BAD'}  {one.check}: {one.found}")
    if not all(one.ok for one in findings):
        raise typer.Exit(FAILED)
