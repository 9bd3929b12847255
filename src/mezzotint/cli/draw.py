"""Has a request drawn, on a server or in this process tree, and its pictures written. Must not read flags."""

import contextlib
import uuid
from pathlib import Path
from typing import Any

from mezzotint.cli import ask
from mezzotint.errors import MezzotintError


def on_server(server: str, given: dict[str, Any], output: Path | None, show: Any) -> tuple[Any, list[Path]]:
    with ask.client(server) as client:
        session: Any = None
        key = uuid.uuid4().hex
        try:
            session = client.submit(idempotency_key=key, **given)
            for _, kind, data in client.events(session["id"]):
                show(kind, data)
            session = client.session(session["id"])
        except KeyboardInterrupt:
            with contextlib.suppress(MezzotintError):
                # it may have been accepted, though nobody heard of it
                session = session or client.submit(idempotency_key=key, **given)
                client.cancel(session["id"])
            raise
        check(session)
        pictures = [client.image(session["id"], image["index"]) for image in session["images"]]
    return session, _write(session, pictures, output)


def alone(given: dict[str, Any], output: Path | None, models: list[Path], show: Any) -> tuple[Any, list[Path]]:
    import asyncio
    import tempfile

    from mezzotint.telemetry import configure_logs

    configure_logs("error")

    async def run() -> tuple[Any, list[bytes]]:
        from mezzotint import bodies
        from mezzotint.server import Mezzotint

        with tempfile.TemporaryDirectory(prefix="mezzotint-") as data:
            async with Mezzotint(settings=ask.alone(Path(data), models)) as mezzotint:
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
                check(body)
                found = [await mezzotint.operations.image(session.id, image.index) for image in session.images]
                return body, [path.read_bytes() for _, path in found]

    session, pictures = asyncio.run(run())
    return session, _write(session, pictures, output)


async def _watch(submitted: Any, show: Any) -> None:
    from mezzotint import bodies

    async for event in submitted.events():
        show(event.kind, bodies.event(submitted.id, event))


def check(session: Any) -> None:
    """Raises MezzotintError with the session's own error, when it did not succeed."""
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
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise MezzotintError(f"cannot write {file}: {error.strerror}", code="cannot_write") from error
    return files
