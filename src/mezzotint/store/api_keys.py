"""The rows of API keys. Must not begin a transaction, or see a secret."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, exists, insert, select, update

from mezzotint.api_keys import ApiKey
from mezzotint.store.tables import api_keys

_NAMES = [column.name for column in api_keys.columns]
_FOUND = select(api_keys).where(api_keys.c.id == bindparam("of_key"))  # every call looks for its key: built once


def find(connection: Connection, key_id: str) -> ApiKey | None:
    row = connection.execute(_FOUND, {"of_key": key_id}).one_or_none()
    return None if row is None else _key(row)


def everything(connection: Connection) -> Sequence[ApiKey]:
    """All that were ever made, the oldest first."""
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
    return [_key(row) for row in rows]


def any_made(connection: Connection) -> bool:
    return bool(connection.scalar(select(exists().select_from(api_keys))))


def add(connection: Connection, key: ApiKey) -> None:
    connection.execute(insert(api_keys).values({name: getattr(key, name) for name in _NAMES}))


def revoke(connection: Connection, key_id: str, now: float) -> bool:
    """From now on it opens nothing; its row stays, for the sessions that name it. False when there is none in force."""
    row = api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)
    changed = update(api_keys).where(*row).values(revoked_at=now).returning(api_keys.c.id)
    return connection.scalar(changed) is not None


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(**{name: getattr(row, name) for name in _NAMES})
