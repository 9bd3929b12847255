"""Events as rows, in the transaction of the change they tell of. Must not tell them: that comes after the commit."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from mezzotint.events import KEPT, Event, Events
from mezzotint.store import rows
from mezzotint.store.tables import events, sessions, starts

IDS_OF_A_START = 1_000_000  # more events than a session can have between two starts

_OWN = events.c.session_id == bindparam("of_session")
_KEEP = insert(events)
_NEWEST = select(events.c.id).where(_OWN).order_by(events.c.id.desc())
_TRIM = delete(events).where(_OWN, events.c.id < _NEWEST.offset(KEPT - 1).limit(1).scalar_subquery())
_REQUEST = select(sessions.c.request).where(sessions.c.id == bindparam("of_session"))
_TOLD = select(events).where(_OWN, events.c.id > bindparam("after")).order_by(events.c.id.desc()).limit(KEPT)


def begin(connection: Connection, now: float) -> int:
    """Count a start of the server. Returns the number above which it tells: no earlier one has told so high."""
    count = select(func.coalesce(func.max(starts.c.number) + 1, 0)).scalar_subquery()
    number = connection.scalar(insert(starts).values(number=count, at=now).returning(starts.c.number))
    return int(number or 0) * IDS_OF_A_START


def keep(connection: Connection, told: Iterable[tuple[str, str, Any]], numbers: Events) -> None:
    """Write what is about to be told, under the numbers it will be told by."""
    last: dict[str, int] = {}
    values = []
    for session_id, kind, data in told:
        last[session_id] = last.get(session_id, numbers.last_id(session_id)) + 1
        values.append(rows.of_event(session_id, last[session_id], kind, data))
    if values:
        connection.execute(_KEEP, values)


def trim(connection: Connection, session_id: str) -> None:
    """Keep the newest only: what a session was told in many attempts must not grow for ever."""
    connection.execute(_TRIM, {"of_session": session_id})


def replay(connection: Connection, session_id: str, after: int) -> list[Event]:
    """The newest above `after`, oldest first."""
    request = connection.scalar(_REQUEST, {"of_session": session_id})
    if request is None:
        return []
    newest = connection.execute(_TOLD, {"of_session": session_id, "after": after}).all()
    return [rows.event(row, request) for row in reversed(newest)]
