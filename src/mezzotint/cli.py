"""The commands. Must not hold rules: each turns flags into a call of Client or Mezzotint, and the answer into lines.

What only some commands need they import themselves: a command's start is a good part of what a person waits.

Exit codes: 0 done, 1 failed, 2 bad use or invalid request, 3 server not reachable, 130 interrupted.
"""

import base64
import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from mezzotint import __version__
from mezzotint.errors import BadSetting, CallerError, InvalidRequest, MezzotintError

if TYPE_CHECKING:
    from mezzotint.client import Client

DONE, FAILED, BAD_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    help="An image-generation server that batches at every denoising step and never loses a session.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The models on disk.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Server = Annotated[str | None, typer.Option(envvar="MEZZOTINT_SERVER", help="URL of a running server")]
Data = Annotated[Path | None, typer.Option(help="data folder")]
Models = Annotated[list[Path] | None, typer.Option(help="folder of models; may be given several times")]


def main() -> None:
    """The entry point: every error of ours becomes one line and an exit code."""
    try:
        code = app(standalone_mode=False)
        raise SystemExit(code if isinstance(code, int) else DONE)
    except TyperException as error:
        _complain(_usage(error))
        raise SystemExit(BAD_USE) from None
    except typer.Abort:
        raise SystemExit(INTERRUPTED) from None
    except InvalidRequest as error:
        for fault in error.faults:
            _complain(fault.message)
        raise SystemExit(BAD_USE) from None
    except MezzotintError as error:
        _complain(error.message)
        raise SystemExit(_exit_code(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mezzotint {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    pass


_CONTROLNET_HELP = 'JSON object, such as {"model": "edges", "image": "file.png"}; may be given several times'


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="file; its suffix sets the format")] = None,
    model: Annotated[str | None, typer.Option(help="catalog id")] = None,
    type: Annotated[str | None, typer.Option(help="inferred when absent")] = None,  # noqa: A002  the contract's word
    negative_prompt: Annotated[str | None, typer.Option(help="what to keep out")] = None,
    prompt_syntax: Annotated[str | None, typer.Option(help="plain")] = None,
    width: Annotated[int | None, typer.Option(help="px")] = None,
    height: Annotated[int | None, typer.Option(help="px")] = None,
    num_inference_steps: Annotated[int | None, typer.Option("--num-inference-steps", "--steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale", "--cfg-scale")] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", "--sampler")] = None,
    scheduler_options: Annotated[str | None, typer.Option(help="JSON object")] = None,
    eta: Annotated[float | None, typer.Option(help="noise of ddim")] = None,
    seed: Annotated[int | None, typer.Option(help="drawn when absent; image i uses seed+i")] = None,
    num_images: Annotated[int | None, typer.Option("--num-images", "-n")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="text encoder layers to skip")] = None,
    image: Annotated[Path | None, typer.Option(help="file to begin at")] = None,
    mask: Annotated[Path | None, typer.Option(help="file of the image's size; white is drawn anew")] = None,
    strength: Annotated[float | None, typer.Option(help="how far from the image, 0..1")] = None,
    mask_blur: Annotated[int | None, typer.Option(help="px, softens the edge of the mask")] = None,
    mask_fill: Annotated[str | None, typer.Option(help="original, fill")] = None,
    padding_mask_crop: Annotated[int | None, typer.Option(help="px around the masked area")] = None,
    resize_mode: Annotated[str | None, typer.Option(help="stretch, crop, pad")] = None,
    controlnets: Annotated[list[str] | None, typer.Option(help=_CONTROLNET_HELP)] = None,
    loras: Annotated[list[str] | None, typer.Option(help="NAME or NAME:SCALE; may be given several times")] = None,
    quality: Annotated[int | None, typer.Option(help="of jpeg and webp")] = None,
    embed_metadata: Annotated[bool | None, typer.Option(help="write the parameters into the file")] = None,
    priority: Annotated[int | None, typer.Option(help="0..9, higher first")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="running longer fails")] = None,
    expires_s: Annotated[float | None, typer.Option(help="not started by then: expired")] = None,
    device: Annotated[str | None, typer.Option(help="pin to a device id")] = None,
    deterministic: Annotated[bool, typer.Option(help="bit-equal anywhere")] = True,
    metadata: Annotated[str | None, typer.Option(help="JSON object, returned as sent")] = None,
    models: Models = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Draw a picture. Runs by itself; with --server, on that server."""
    given = {name: value for name, value in locals().items() if name not in _NOT_FIELDS and value is not None}
    for name, text in (("metadata", metadata), ("scheduler_options", scheduler_options)):
        if text is not None:
            given[name] = _object(name, text)
    for name, file in (("image", image), ("mask", mask)):
        if file is not None:
            given[name] = _picture(name, file)
    given["loras"] = [_lora(text) for text in loras or []]
    given["controlnets"] = [_controlnet(text) for text in controlnets or []]
    image_format = _format(output)
    options = {"format": image_format, "quality": quality, "embed_metadata": embed_metadata}
    given["output"] = {name: value for name, value in options.items() if value is not None}
    with _progress(quiet=as_json) as show:
        if server is not None:
            session, files = _on_server(server, given, output, show)
        else:
            session, files = _alone(given, output, models or [], show)
    if as_json:
        typer.echo(json.dumps({"session": session, "files": [str(file) for file in files]}))
        return
    took = f"{session['timing']['total_s'] - session['timing']['queued_s']:.2f} s"
    for file, picture in zip(files, session["images"], strict=True):
        typer.echo(f"{file}  seed {picture['seed']}  {took}")


_NOT_FIELDS = frozenset({"output", "models", "server", "as_json", "quality", "embed_metadata"})


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free port")] = None,
    data: Data = None,
    database: Annotated[str | None, typer.Option(help="postgresql://USER:PASSWORD@HOST/NAME; default: SQLite")] = None,
    models: Models = None,
    device: Annotated[list[str] | None, typer.Option(help="device to use; may be given several times")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker")] = None,
    default_model: Annotated[str | None, typer.Option(help="model of requests that name none")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16")] = None,
    executor: Annotated[str | None, typer.Option(help="auto, torch, openvino")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error")] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    import asyncio

    import uvloop

    from mezzotint.config import load_settings
    from mezzotint.server import serve as run
    from mezzotint.telemetry import configure_logs

    settings = load_settings(
        host=host,
        port=port,
        data=data,
        database=database,
        models=tuple(models) if models else None,
        devices=tuple(device) if device else None,
        threads=threads,
        default_model=default_model,
        dtype=dtype,
        executor=executor,
        log_level=log_level,
    )
    configure_logs(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings))


@app.command()
def devices(server: Server = None, as_json: Json = False) -> None:
    """The devices and how they stand. Without --server a short-lived worker looks."""
    found = _ask(server, lambda client: client.devices(), lambda m: m.operations.devices(), await_ready=True)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        memory = one["memory"]
        typer.echo(f"{one['id']}  {one['name']}  {one['state']}")
        typer.echo(f"  memory  {_size(memory['available_bytes'])} free of {_size(memory['total_bytes'])}")
        typer.echo(f"  dtypes  {', '.join(dtype['name'] for dtype in one['dtypes'] or [])}")
        typer.echo(f"  threads {one['threads']}")
        for name, why in one["unknown"].items():
            typer.echo(f"  {name}: unknown, {why}")


@models_app.command("list")
def models_list(server: Server = None, models: Models = None, as_json: Json = False) -> None:
    """Every model on disk, usable or not, with the reason."""
    from mezzotint.operations import offline_models

    if server is not None:
        with _client(server) as client:
            found = client.models()
    else:
        found = offline_models(_settings(models=tuple(models) if models else None))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        if one["state"] == "invalid":
            typer.echo(f"{one['id']}  {one['kind']}  invalid: {one['reason']}")
        elif one["kind"] != "checkpoint":
            typer.echo(
                f"{one['id']}  {one['kind']}  for {', '.join(one['fits']) or 'no model here'}  {_size(one['bytes'])}"
            )
        else:
            size = f"{one['width']}x{one['height']}"
            typer.echo(f"{one['id']}  {one['kind']}  {one['family']}  {size}  {_size(one['bytes'])}")


@models_app.command("tune")
def models_tune(
    model: Annotated[str, typer.Argument(help="catalog id")],
    models: Models = None,
    device: Annotated[list[str] | None, typer.Option(help="device to use; may be given several times")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker")] = None,
    as_json: Json = False,
) -> None:
    """Measure what runs a model fastest here, and keep the answer. A running server adopts it when it is idle."""
    import asyncio

    from mezzotint import profiles
    from mezzotint.operations import tune

    settings = _settings(
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
            if one.ms_per_step is None or one.ms_per_step_at_4 is None or one.difference is None:
                typer.echo(f"  {name:20} {one.reason}")
                continue
            figures = f"{one.ms_per_step:10.1f} {one.ms_per_step_at_4:10.1f} {one.difference:11.2f}"
            note = "  chosen" if one is profile.ranking[0] else f"  {one.reason}" if one.reason else ""
            typer.echo(f"  {name:20} {figures}{note}")


@app.command()
def doctor(data: Data = None, as_json: Json = False) -> None:
    """Check what a server would need, and say how to mend what is missing."""
    from mezzotint.doctor import examine

    findings = examine(_settings(data=data))
    if as_json:
        typer.echo(json.dumps([{"check": one.check, "ok": one.ok, "found": one.found} for one in findings]))
    else:
        for one in findings:
            typer.echo(f"{'ok ' if one.ok else 'BAD'}  {one.check}: {one.found}")
    if not all(one.ok for one in findings):
        raise typer.Exit(FAILED)


# ---- drawing


def _on_server(server: str, given: dict[str, Any], output: Path | None, show: Any) -> tuple[Any, list[Path]]:
    with _client(server) as client:
        session = client.submit(**given)
        try:
            for _, kind, data in client.events(session["id"]):
                show(kind, data)
            session = client.session(session["id"])
        except KeyboardInterrupt:
            with contextlib.suppress(MezzotintError):
                client.cancel(session["id"])
            raise
        _check(session)
        pictures = [client.image(session["id"], image["index"]) for image in session["images"]]
    return session, _write(session, pictures, output)


def _alone(given: dict[str, Any], output: Path | None, models: list[Path], show: Any) -> tuple[Any, list[Path]]:
    import asyncio
    import tempfile

    from mezzotint.telemetry import configure_logs

    configure_logs("error")

    async def run() -> tuple[Any, list[bytes]]:
        from mezzotint import bodies
        from mezzotint.server import Mezzotint

        with tempfile.TemporaryDirectory(prefix="mezzotint-") as data:
            settings = _settings(data=Path(data), models=tuple(models) or None, drain_s=0.0)
            async with Mezzotint(settings=settings) as mezzotint:
                submitted = await mezzotint.submit(**given)
                watching = asyncio.create_task(mezzotint.supervisor.until_hopeless())
                drawing = asyncio.create_task(_watch(submitted, show))
                await asyncio.wait({watching, drawing}, return_when=asyncio.FIRST_COMPLETED)
                if not drawing.done():
                    raise MezzotintError(f"no worker can start: {watching.result()}", code="not_ready")
                watching.cancel()
                drawing.result()
                session = await mezzotint.operations.get(submitted.id)
                body = bodies.session(session)
                _check(body)
                found = [await mezzotint.operations.image(session.id, image.index) for image in session.images]
                return body, [path.read_bytes() for _, path in found]

    session, pictures = asyncio.run(run())
    return session, _write(session, pictures, output)


async def _watch(submitted: Any, show: Any) -> None:
    from mezzotint import bodies

    async for event in submitted.events():
        show(event.kind, bodies.event(submitted.id, event))


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """A bar with step and time left on a terminal; nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda kind, data: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("starting", total=None, left="")

        def show(kind: str, data: dict[str, Any]) -> None:
            if kind == "progress" and data["phase"]:
                left = f"{data['eta_s']:.0f} s left" if data["eta_s"] is not None else ""
                bar.update(line, description=data["phase"], completed=data["step"], total=data["steps"], left=left)

        yield show


def _check(session: dict[str, Any]) -> None:
    if session["state"] != "succeeded":
        error = session["error"] or {"message": f"session {session['id']} was {session['state']}"}
        raise MezzotintError(error["message"], code=error.get("code", session["state"]))


def _write(session: dict[str, Any], pictures: list[bytes], output: Path | None) -> list[Path]:
    suffix = {"jpeg": "jpg"}.get(session["request"]["output"]["format"], session["request"]["output"]["format"])
    base = output or Path(f"mezzotint-{session['request']['seed']}.{suffix}")
    several = len(pictures) > 1
    files = [base.with_name(f"{base.stem}-{i}{base.suffix}") if several else base for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        draft = file.with_name(f".{file.name}.part")
        try:
            draft.write_bytes(picture)
            draft.replace(file)
        except OSError as error:
            raise MezzotintError(f"cannot write {file}: {error.strerror}", code="cannot_write") from error
    return files


_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def _format(output: Path | None) -> str:
    if output is None:
        return "png"
    if output.suffix.lower() not in _FORMATS:
        raise CallerError(f"{output} must end in {', '.join(_FORMATS)}", code="invalid_value", field="output")
    if not output.absolute().parent.is_dir():
        raise CallerError(f"the folder {output.parent} does not exist", code="invalid_value", field="output")
    return _FORMATS[output.suffix.lower()]


# ---- asking


def _ask(server: str | None, of_client: Any, of_mezzotint: Any, *, await_ready: bool) -> Any:
    if server is not None:
        with _client(server) as client:
            return of_client(client)
    import asyncio
    import tempfile

    from mezzotint.telemetry import configure_logs

    configure_logs("error")

    async def run() -> Any:
        from mezzotint.server import Mezzotint

        with tempfile.TemporaryDirectory(prefix="mezzotint-") as data:
            async with Mezzotint(settings=_settings(data=Path(data), drain_s=0.0)) as mezzotint:
                if await_ready:
                    await mezzotint.supervisor.until_ready()
                return of_mezzotint(mezzotint)

    return asyncio.run(run())


def _client(server: str) -> "Client":
    from mezzotint.client import Client

    return Client(server)


def _settings(**given: Any) -> Any:
    from mezzotint.config import load_settings

    return load_settings(**given)


def _object(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise CallerError(
            f"--{name.replace('_', '-')} must be a JSON object", code="invalid_json", field=name
        ) from None


def _picture(name: str, file: Path) -> str:
    """A file's bytes as a request carries them."""
    try:
        return base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        message = f"--{name} {file} cannot be read: {error.strerror}"
        raise CallerError(message, code="invalid_image", field=name) from None


def _lora(text: str) -> dict[str, Any]:
    name, colon, scale = text.rpartition(":")
    try:
        return {"name": name, "scale": float(scale)} if colon else {"name": text}
    except ValueError:
        message = f"--loras {text!r} must be NAME or NAME:SCALE"
        raise CallerError(message, code="invalid_value", field="loras") from None


def _controlnet(text: str) -> Any:
    given = _object("controlnets", text)
    if isinstance(given, dict) and isinstance(file := given.get("image"), str):
        given["image"] = _picture("controlnets", Path(file))
    return given


def _exit_code(error: MezzotintError) -> int:
    if error.code == "unreachable":
        return UNREACHABLE
    return BAD_USE if isinstance(error, CallerError | BadSetting) else FAILED


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _usage(error: TyperException) -> str:
    """One line; an unknown flag gets the nearest known one."""
    if (name := getattr(error, "option_name", None)) is None:
        return error.format_message()
    near = difflib.get_close_matches(name, getattr(error, "possibilities", None) or [], n=1, cutoff=0.5)
    return f"{name} is not a flag; {f'did you mean {near[0]}?' if near else 'see --help'}"


def _complain(message: str) -> None:
    print(f"mezzotint: {message}", file=sys.stderr)  # noqa: T201  the command line's own voice


if __name__ == "__main__":
    main()
