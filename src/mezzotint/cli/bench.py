"""`mezzotint bench`: how fast this machine, or a server, draws. Prints what it measured and nothing else."""

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli import ask
from mezzotint.cli.flags import Json, Models, Server
from mezzotint.errors import MezzotintError

ALONE = 3  # of its timings the median counts

Draw = Callable[[int], Coroutine[Any, Any, Any]]


def bench(
    model: Annotated[str | None, typer.Option(help="catalog id")] = None,
    width: Annotated[int | None, typer.Option(help="px")] = None,
    height: Annotated[int | None, typer.Option(help="px")] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    images: Annotated[int, typer.Option("--images", "-n", min=1, max=500, help="drawn at once")] = 8,
    models: Models = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Draw one picture, then several at once, and tell how long each took. Needs a device that does nothing else."""
    asked = {"model": model, "width": width, "height": height, "steps": steps, "prompt": "a slice of pizza"}
    request = {name: value for name, value in asked.items() if value is not None}
    found = asyncio.run(_measure(request, images, server, models))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{found['model']}, {found['width']}x{found['height']}, {found['steps']} steps on {found['device']}, ")
    typer.echo(f"  {found['executor']} {found['dtype']}, peak memory {ask.size(found['peak_memory_bytes'])}")
    typer.echo(f"  first picture, its model loaded for it  {found['first_s']:8.2f} s")
    typer.echo(f"  one picture                             {found['alone_s']:8.2f} s")
    typer.echo(f"  {images:3} at once                             {found['together_s']:8.2f} s")
    typer.echo(f"  pictures a minute, so many at once      {found['pictures_per_minute']:8.1f}")
    typer.echo(f"  times as many as one after the other    {found['gain']:8.2f}")


async def _measure(
    request: dict[str, Any], images: int, server: str | None, models: list[Path] | None
) -> dict[str, Any]:
    async with _served(server, request) if server else _embedded(models, request) as draw:
        began = time.perf_counter()
        first = await draw(0)
        first_s = time.perf_counter() - began
        alone = []
        for seed in range(1, 1 + ALONE):
            began = time.perf_counter()
            await draw(seed)
            alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:  # when one fails, the others are cancelled, and waited for
                drawing = [group.create_task(draw(seed)) for seed in range(100, 100 + images)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        ended = [one.result() for one in drawing]
        together_s = time.perf_counter() - began
    usage, drawn = ended[-1]["usage"], first["images"][0]
    alone_s = statistics.median(alone)
    peaks = [one["usage"]["peak_memory_bytes"] for one in ended]
    return {
        "model": first["model"],
        "device": first["device"],
        "width": drawn["width"],
        "height": drawn["height"],
        "steps": first["progress"]["steps"],
        "images": images,
        "executor": usage["executor"],
        "dtype": usage["dtype"],
        "first_s": round(first_s, 4),
        "alone_s": round(alone_s, 4),
        "together_s": round(together_s, 4),
        "pictures_per_minute": round(60 * images / together_s, 2),
        "gain": round(alone_s * images / together_s, 3),
        "peak_memory_bytes": max((one for one in peaks if one is not None), default=None),
    }


@contextlib.asynccontextmanager
async def _served(server: str, request: dict[str, Any]) -> AsyncIterator[Draw]:
    from mezzotint.cli.draw import check

    async with ask.async_client(server) as client:

        async def draw(seed: int) -> Any:
            sending = asyncio.create_task(client.submit(**request, seed=seed))
            try:
                ended = await client.wait((await asyncio.shield(sending))["id"])
            except asyncio.CancelledError:
                with contextlib.suppress(MezzotintError):
                    await client.cancel((await sending)["id"])  # it may have been accepted, though nobody heard of it
                raise
            check(ended)
            return ended

        yield draw


@contextlib.asynccontextmanager
async def _embedded(models: list[Path] | None, request: dict[str, Any]) -> AsyncIterator[Draw]:
    from mezzotint import bodies
    from mezzotint.server import Mezzotint
    from mezzotint.telemetry import configure_logs

    configure_logs("error")
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as data:
        async with Mezzotint(settings=ask.alone(Path(data), models)) as m:
            await m.supervisor.until_ready()

            async def draw(seed: int) -> Any:
                result = await (await m.submit(**request, seed=seed)).result()
                return bodies.session(result.session)

            yield draw
