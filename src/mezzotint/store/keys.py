"""Which session an idempotency key stands for. Must not begin a transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_

from mezzotint.errors import Conflict
from mezzotint.store.rows import Once
from mezzotint.store.tables import idempotency_keys

Name = tuple[str, str]

_NAME = tuple_(idempotency_keys.c.scope, idempotency_keys.c.key)
_KNOWN = select(idempotency_keys).where(_NAME.in_(bindparam("names", expanding=True)))
_KEEP = insert(idempotency_keys)


@dataclass(frozen=True, slots=True)
class Known:
    """What a key stands for; a session without a key stands for itself."""

    session_id: str
    fingerprint: str | None


def known(connection: Connection, asked: Sequence[Once]) -> dict[Name | None, Known]:
    """What is known of these, by name."""
    if not asked:
        return {}
    found = connection.execute(_KNOWN, {"names": [*{once.name for once in asked}]})
    return {(row.scope, row.key): Known(row.session_id, row.fingerprint) for row in found}


def keep(connection: Connection, accepted: Sequence[tuple[Once | None, dict[str, Any]]]) -> None:
    values = [
        {
            "scope": once.scope,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "session_id": row["id"],
            "created_at": row["created_at"],
        }
        for once, row in accepted
        if once is not None
    ]
    if values:
        connection.execute(_KEEP, values)


def check(once: Once | None, first: Known) -> None:
    """Raises Conflict when the key was first sent with another body."""
    if once is not None and once.fingerprint != first.fingerprint:
        message = "this Idempotency-Key came with another body before; send a new key, or the first body"
        raise Conflict(message, code="idempotency_mismatch", field="Idempotency-Key")


def forget(connection: Connection, before: float, limit: int) -> int:
    columns = idempotency_keys.c
    oldest = select(columns.scope, columns.key).where(columns.created_at < before).order_by(columns.created_at)
    names = [tuple(row) for row in connection.execute(oldest.limit(limit))]
    connection.execute(delete(idempotency_keys).where(_NAME.in_(names)))
    return len(names)
