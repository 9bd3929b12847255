"""`mezzotint serve`: settings from flags, then the server. Must not know how it is built."""

from typing import Annotated

import typer

from mezzotint.cli.flags import Data, Device, Models, Threads


def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free port")] = None,
    data: Data = None,
    database: Annotated[str | None, typer.Option(help="postgresql://USER:PASSWORD@HOST/NAME; default: SQLite")] = None,
    models: Models = None,
    device: Device = None,
    threads: Threads = None,
    default_model: Annotated[str | None, typer.Option(help="model of requests that name none")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16")] = None,
    executor: Annotated[str | None, typer.Option(help="auto, torch, openvino")] = None,
    insecure_no_auth: Annotated[
        bool | None, typer.Option("--insecure-no-auth", help="ask nobody for an API key, wherever it listens")
    ] = None,
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
        insecure_no_auth=insecure_no_auth,
        log_level=log_level,
    )
    configure_logs(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings))
