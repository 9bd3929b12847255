"""The rows of batches: accepted with their sessions in one transaction. Must not change a session that is there."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, exists, insert, select, update

from mezzotint.batches import Batch, Standing
from mezzotint.request import Resolved
from mezzotint.session import FINAL, Session
from mezzotint.store import keys, rows
from mezzotint.store.changes import Work, find_batch, load, plain
from mezzotint.store.database import Database
from mezzotint.store.intake import Intake
from mezzotint.store.rows import Once
from mezzotint.store.tables import batches, sessions, transitions


class Batches:
    """Raises TryLater as the store does. What a method returns is committed and fsynced."""

    def __init__(self, database: Database, intake: Intake) -> None:
        self._database, self._intake = database, intake

    async def add(
        self, batch: Batch, accepted: Mapping[str, Resolved], *, once: Once | None = None
    ) -> tuple[Batch, Sequence[Session]]:
        """Accept a batch with its sessions, by id: all of them, or none and TryLater `queue_full`.

        With `once`, a key that is known answers its first batch and no sessions; Conflict `idempotency_mismatch`.
        """
        new = [
            rows.of_request(
                session_id,
                resolved.request,
                warnings=resolved.warnings,
                now=batch.created_at,
                batch_id=batch.id,
                owner=batch.owner,
            )
            for session_id, resolved in accepted.items()
        ]

        def run(work: Work) -> tuple[Batch, Sequence[Session]]:
            if once is not None and (known := _named(work.connection, once)) is not None:
                return known, ()
            if len(new) > (room := self._intake.room(work.connection)):
                raise self._intake.full(batch.created_at, room=room, asked=len(new))
            work.connection.execute(insert(batches).values(_row(batch, once)))
            if not new:
                return batch, ()
            work.connection.execute(insert(sessions), new)
            work.connection.execute(insert(transitions), [rows.of_acceptance(row) for row in new])
            stored = load(work.connection, select(sessions).where(sessions.c.batch_id == batch.id))
            for session in stored:
                work.tell(session.id, "state", session)
                for warning in session.warnings:
                    work.tell(session.id, "warning", warning)
            return batch, stored

        return await self._database.write(run)

    async def first(self, once: Once) -> Batch | None:
        """The batch that the key stands for already. Raises Conflict `idempotency_mismatch`."""
        return await self._database.read(lambda connection: _named(connection, once))

    async def get(self, batch_id: str) -> tuple[Batch, Mapping[str, Standing]] | None:
        """A batch, and how those of its sessions stand that were not removed; of one instant."""
        if not plain(batch_id):
            return None

        return await self._database.read(lambda connection: find_batch(connection, batch_id))

    async def stopping(self) -> Sequence[str]:
        """Batches that stop on the first error and have not ended."""
        active = exists().where(sessions.c.batch_id == batches.c.id, sessions.c.state.not_in(FINAL))
        query = select(batches.c.id).where(batches.c.stop_on_first_error, active)
        return await self._database.read(lambda connection: connection.scalars(query).all())

    async def forget(self, *, before: float) -> int:
        """Forget batches from before then whose sessions are all gone, and the others' keys. Returns how many went."""
        old, empty = batches.c.created_at < before, ~exists().where(sessions.c.batch_id == batches.c.id)
        gone = delete(batches).where(old, empty).returning(batches.c.id)
        unnamed = update(batches).where(old, batches.c.key.is_not(None)).values(scope=None, key=None, fingerprint=None)

        def run(work: Work) -> int:
            count = len(work.connection.scalars(gone).all())
            work.connection.execute(unnamed)
            return count

        return await self._database.write(run)


def _named(connection: Connection, once: Once) -> Batch | None:
    query = select(batches).where(batches.c.scope == once.scope, batches.c.key == once.key)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    keys.check(once, keys.Known(row.id, row.fingerprint))
    return rows.batch(row)


def _row(batch: Batch, once: Once | None) -> dict[str, Any]:
    msgspec.json.encode(batch.metadata)  # text that no row can hold fails before anything is written
    return {
        "id": batch.id,
        "created_at": batch.created_at,
        "stop_on_first_error": batch.stop_on_first_error,
        "metadata": batch.metadata,
        "items": batch.items,
        "owner": batch.owner,
        "scope": once.scope if once else None,
        "key": once.key if once else None,
        "fingerprint": once.fingerprint if once else None,
    }
