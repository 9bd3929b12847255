"""Asks a server, or an engine that runs for the question only. Must not print."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mezzotint.client import AsyncClient, Client


def either(
    server: str | None, of_client: Any, of_mezzotint: Any, *, await_ready: bool, models: list[Path] | None = None
) -> Any:
    """What a running server says, or without one an engine that is started for it; `of_mezzotint` is awaited."""
    if server is not None:
        with client(server) as there:
            return of_client(there)
    import asyncio
    import tempfile

    from mezzotint.telemetry import configure_logs

    configure_logs("error")

    async def run() -> Any:
        from mezzotint.server import Mezzotint

        with tempfile.TemporaryDirectory(prefix="mezzotint-") as data:
            async with Mezzotint(settings=alone(Path(data), models)) as mezzotint:
                if await_ready:
                    await mezzotint.supervisor.until_ready()
                return await of_mezzotint(mezzotint)

    return asyncio.run(run())


def client(server: str) -> "Client":
    """With the key of MEZZOTINT_API_KEY: other users of a machine can read command lines, so there is no flag."""
    from mezzotint.client import Client

    return Client(server, os.environ.get("MEZZOTINT_API_KEY"))


def async_client(server: str) -> "AsyncClient":
    from mezzotint.client import AsyncClient

    return AsyncClient(server, os.environ.get("MEZZOTINT_API_KEY"))


def settings(**given: Any) -> Any:
    from mezzotint.config import load_settings

    return load_settings(**given)


def alone(data: Path, models: list[Path] | None) -> Any:
    """Of a command that runs by itself in a folder of its own: what the environment says of where a server keeps its
    sessions, for how long and whom it calls is not for it. Else it would take the server's database over."""
    given = settings(data=data, models=tuple(models or ()) or None, drain_s=0.0)
    not_ours = dict.fromkeys(("database", "retention_days", "webhook_secrets"))
    return given.model_copy(update=not_ours | {"webhook_hosts": (), "webhook_networks": ()})


def size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
