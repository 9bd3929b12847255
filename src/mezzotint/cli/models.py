"""`mezzotint models`: the models on disk. Must not open one."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mezzotint.cli import ask
from mezzotint.cli.flags import FAILED, Device, Json, Models, Server, Threads


def models_list(server: Server = None, models: Models = None, as_json: Json = False) -> None:
    """Every model on disk, usable or not, with the reason."""
    from mezzotint.operations import offline_models

    if server is not None:
        with ask.client(server) as client:
            found: Sequence[Mapping[str, Any]] = client.models()
    else:
        found = offline_models(ask.settings(models=tuple(models) if models else None))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        if one["state"] == "invalid":
            typer.echo(f"{one['id']}  {one['kind']}  invalid: {one['reason']}")
        elif one["kind"] != "checkpoint":
            typer.echo(
                f"{one['id']}  {one['kind']}  for {', '.join(one['fits']) or 'no model here'}  {ask.size(one['bytes'])}"
            )
        else:
            size = f"{one['width']}x{one['height']}"
            typer.echo(f"{one['id']}  {one['kind']}  {one['family']}  {size}  {ask.size(one['bytes'])}")


def models_show(
    model: Annotated[str, typer.Argument(help="catalog id")],
    server: Server = None,
    models: Models = None,
    as_json: Json = False,
) -> None:
    """Everything that is known of one model, as JSON; with --json on one line."""
    from mezzotint.operations import offline_model

    if server is not None:
        with ask.client(server) as client:
            found: Mapping[str, Any] = client.model(model)
    else:
        found = offline_model(ask.settings(models=tuple(models) if models else None), model)
    typer.echo(json.dumps(found, indent=None if as_json else 2))


def models_add(
    source: Annotated[
        str, typer.Argument(help="a folder, a file, or OWNER/NAME or OWNER/NAME/FILE.safetensors of a hub")
    ],
    name: Annotated[str | None, typer.Option(help="id that it is to have; default: its own name")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of the hub's repository")] = None,
    models: Models = None,
    as_json: Json = False,
) -> None:
    """Copy or download a model into the first model folder. A running server knows it within seconds."""
    from mezzotint.operations import add_model

    found = add_model(ask.settings(models=tuple(models) if models else None), source, name, revision)
    typer.echo(json.dumps(found) if as_json else f"{found['id']}  {found['kind']}  {ask.size(found['bytes'])}")


def models_verify(
    model: Annotated[str, typer.Argument(help="catalog id")], models: Models = None, as_json: Json = False
) -> None:
    """Hash every file of a model anew and compare it with what it was when it was first used."""
    from mezzotint.operations import verify

    found, checked = verify(ask.settings(models=tuple(models) if models else None), model)
    sound = found.state == "ready" and all(one.ok for one in checked)
    if as_json:
        files = [{"file": one.file, "sha256": one.sha256, "before": one.before, "ok": one.ok} for one in checked]
        typer.echo(json.dumps({"id": found.id, "ok": sound, "reason": found.reason, "files": files}))
    else:
        for one in checked:
            typer.echo(f"{'ok     ' if one.ok else 'CHANGED'}  {one.sha256}  {one.file}")
        if found.reason is not None:
            typer.echo(f"{found.id} cannot be used: {found.reason}")
    if not sound:
        raise typer.Exit(FAILED)


def models_tune(
    model: Annotated[str, typer.Argument(help="catalog id")],
    models: Models = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure what runs a model fastest here, and keep the answer. A running server adopts it when it is idle."""
    import asyncio

    from mezzotint import profiles
    from mezzotint.operations import tune

    settings = ask.settings(
        models=tuple(models) if models else None, devices=tuple(device) if device else None, threads=threads
    )
    measured = asyncio.run(tune(settings, model))
    if as_json:
        typer.echo(json.dumps([profiles.built(profile) for profile in measured]))
        return
    for profile in measured:
        typer.echo(f"{model} on {profile.device}, {profile.machine}, {profile.threads} threads")
        typer.echo(f"  {'':20} {'ms a step':>10} {'each of 4':>10} {'difference':>11}")
        for one in profile.ranking:
            name = f"{one.executor} {one.dtype}"
            if one.ms_per_step is None or one.difference is None:
                typer.echo(f"  {name:20} {one.reason}")
                continue
            at_4 = "-" if one.ms_per_step_at_4 is None else f"{one.ms_per_step_at_4:.1f}"
            figures = f"{one.ms_per_step:10.1f} {at_4:>10} {one.difference:11.2f}"
            note = "  chosen" if one is profile.ranking[0] else f"  {one.reason}" if one.reason else ""
            typer.echo(f"  {name:20} {figures}{note}")
