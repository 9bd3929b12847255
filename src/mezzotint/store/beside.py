"""API keys from a command's side: written beside a server that may be running. Must not take the database from it."""

import time
from collections.abc import Sequence

from sqlalchemy import Connection

from mezzotint.api_keys import ApiKey, Limits, Scope, digest, draw
from mezzotint.store import api_keys, engines, schema
from mezzotint.store.sql import Store


async def is_current(url: str) -> bool:
    """Whether the database has the schema of this code. Raises SetupError when it cannot be opened."""
    return await engines.beside(url, schema.revision) == schema.HEAD


async def bring_up(url: str) -> None:
    """Make the schema, or bring it up, where no server has done so. Raises SetupError when one holds it meanwhile."""
    if not await is_current(url):
        await (await Store.open(url)).close()


async def create_key(
    url: str, *, name: str, scopes: tuple[Scope, ...], limits: Limits, expires_at: float | None
) -> tuple[ApiKey, str]:
    """A new key and its text, which is kept nowhere."""
    key_id, text = draw()
    key = ApiKey(
        id=key_id,
        name=name,
        sha256=digest(text),
        scopes=scopes,
        limits=limits,
        created_at=time.time(),
        expires_at=expires_at,
    )

    def run(connection: Connection) -> None:
        api_keys.add(connection, key)
        connection.commit()

    await engines.beside(url, run)
    return key, text


async def list_keys(url: str) -> Sequence[ApiKey]:
    return await engines.beside(url, api_keys.everything)


async def revoke_key(url: str, key_id: str) -> bool:
    """False when no key of this id is in force."""

    def run(connection: Connection) -> bool:
        revoked = api_keys.revoke(connection, key_id, time.time())
        connection.commit()
        return revoked

    return await engines.beside(url, run)
