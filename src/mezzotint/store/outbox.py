"""What is still to be told by webhooks: rows that were written with the change they tell of. Must not call anybody."""

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, not_, or_, select, true, update

from mezzotint.batches import Batch, Standing
from mezzotint.session import Session
from mezzotint.store.changes import BATCH_ENDED, WEBHOOK_OFF, Work
from mezzotint.store.database import Database
from mezzotint.store.tables import outbox, sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class Post:
    """One event for one receiver, as it was when it happened."""

    id: str  # equal however often it is sent
    session_id: str  # one of the batch's, when it is of a batch
    type: str
    url: str
    at: float
    tries: int
    data: Session | tuple[Batch, Mapping[str, Standing]]


class Outbox:
    """Committed when a method returns. Any method raises TryLater; then nothing changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def posted(self) -> asyncio.Event:
        """Set whenever something was added; a caller sets it when it has room for more."""
        return self._database.posted

    async def due(
        self, now: float, limit: int, *, without: Collection[str] = (), busy: Collection[str] = ()
    ) -> list[Post]:
        """Those to be sent by then, the longest due first; none of these ids, and none to these receivers."""
        columns = outbox.c
        query = select(outbox).where(columns.next_at <= now, _others(without, busy))
        query = query.order_by(columns.next_at, columns.id).limit(limit)

        def run(connection: Connection) -> list[Post]:
            return [_post(row) for row in connection.execute(query)]

        return await self._database.read(run)

    async def next_at(self, *, without: Collection[str] = (), busy: Collection[str] = ()) -> float | None:
        """When the next one of these is due, None when there is none."""
        query = select(func.min(outbox.c.next_at)).where(_others(without, busy))

        def run(connection: Connection) -> float | None:
            found: float | None = connection.scalar(query)
            return found

        return await self._database.read(run)

    async def done(self, post_id: str) -> None:
        """It has arrived."""
        await self._write(delete(outbox).where(outbox.c.id == post_id))

    async def put_off(self, post_id: str, until: float) -> None:
        """It has not, once more."""
        changed = update(outbox).where(outbox.c.id == post_id)
        await self._write(changed.values(tries=outbox.c.tries + 1, next_at=until))

    async def drop(self, post: Post, warning: dict[str, Any]) -> None:
        """Given up: it is in the session's warnings instead, and so is whatever else was to be told of that session."""
        row = sessions.c.id == post.session_id

        def run(work: Work) -> None:
            known = work.connection.scalar(select(sessions.c.warnings).where(row).with_for_update())
            if known is not None:
                work.connection.execute(update(sessions).where(row).values(warnings=(*known, warning)))
            gone = outbox.c.session_id == post.session_id if warning["code"] == WEBHOOK_OFF else outbox.c.id == post.id
            work.connection.execute(delete(outbox).where(gone))

        await self._database.write(run)

    async def _write(self, statement: Any) -> None:
        def run(work: Work) -> None:
            work.connection.execute(statement)

        await self._database.write(run)


def receiver(url: str) -> str:
    """The part of a URL that says who is called."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?]', rest, maxsplit=1)[0]}"


def _others(without: Collection[str], busy: Collection[str]) -> ColumnElement[bool]:
    url = outbox.c.url
    theirs = [or_(url == one, *(url.startswith(one + end, autoescape=True) for end in "/?")) for one in busy]
    return and_(true(), outbox.c.id.not_in(without), *map(not_, theirs))


def _post(row: Any) -> Post:
    of: Any = tuple[Batch, dict[str, Standing]] if row.type == BATCH_ENDED else Session
    return Post(
        id=row.id,
        session_id=row.session_id,
        type=row.type,
        url=row.url,
        at=row.at,
        tries=row.tries,
        data=msgspec.json.decode(row.session, type=of),
    )
