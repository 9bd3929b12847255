"""The rows of API keys. Must not begin a transaction, or see a secret."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.api_keys import ApiKey
from mezzotint.store.tables import api_keys

_NAMES = [column.name for column in api_keys.columns]


async def find(connection: AsyncConnection, key_id: str) -> ApiKey | None:
    row = (await connection.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()
    return None if row is None else _key(row)


async def everything(connection: AsyncConnection) -> Sequence[ApiKey]:
    """All that were ever made, the oldest first."""
    rows = await connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
    return [_key(row) for row in rows]


async def any_made(connection: AsyncConnection) -> bool:
    return bool(await connection.scalar(select(exists().select_from(api_keys))))


async def add(connection: AsyncConnection, key: ApiKey) -> None:
    await connection.execute(insert(api_keys).values({name: getattr(key, name) for name in _NAMES}))


async def revoke(connection: AsyncConnection, key_id: str, now: float) -> bool:
    """From now on it opens nothing; its row stays, for the sessions that name it. False when there is none in force."""
    row = api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)
    changed = update(api_keys).where(*row).values(revoked_at=now).returning(api_keys.c.id)
    return await connection.scalar(changed) is not None


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(**{name: getattr(row, name) for name in _NAMES})
