"""Accepting: requests that come together share a commit, as far as the queue has room. Must not change a session."""

import functools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select

from mezzotint import failpoints
from mezzotint.errors import Conflict, TryLater
from mezzotint.session import Session, State
from mezzotint.store import keys, rows
from mezzotint.store.changes import Work, load
from mezzotint.store.database import Database
from mezzotint.store.rows import Once
from mezzotint.store.tables import sessions, transitions

SHARED_COMMIT = 64
LEAVES_KNOWN = 64  # the newest, from which the queue's speed is measured
RETRY_AFTER_S = 10  # while that is not known
LONGEST_RETRY_S = 59  # clients ignore or give up at more

_SESSION, _ACCEPTANCE = insert(sessions), insert(transitions)
_QUEUED = select(func.count()).select_from(sessions).where(sessions.c.state == State.QUEUED)

Answer = Session | TryLater | Conflict


class Intake:
    """The line of those that wait to be accepted."""

    def __init__(self, database: Database, queue_size: int) -> None:
        self._database = database
        self._queue_size = queue_size
        self._line: list[_Place] = []
        self._left: deque[float] = deque(maxlen=LEAVES_KNOWN)

    async def add(self, row: dict[str, Any], once: Once | None) -> Session:
        """Commit the row, together with those in line. Raises TryLater, Conflict; then it is not stored."""
        self._database.check_doubt()
        place = _Place(row, once)
        self._line.append(place)
        try:
            async with self._database.writing:
                if place.answer is None:  # else one ahead in the line took this one along
                    await self._accept(self._line[:SHARED_COMMIT])
        finally:
            if place.answer is None:  # it failed; those behind must not meet it again
                self._line.remove(place)
        if isinstance(place.answer, Exception):
            raise place.answer
        assert place.answer is not None  # noqa: S101  invariant: who leaves the line without an error has an answer
        return place.answer

    def left(self, now: float) -> None:
        """One of the queue has left it: it began, or ended without."""
        self._left.append(now)

    def room(self, connection: Connection) -> int:
        """How many more the queue takes."""
        return self._queue_size - (connection.scalar(_QUEUED) or 0)

    async def _accept(self, places: list["_Place"]) -> None:
        """Commit as many of these as the queue has room for. Raising, it answers none: each then tries for itself."""
        meant, stored = await self._database.transaction(functools.partial(self._written, places))
        failpoints.reached("accept.after_commit")
        for place in places:
            place.answer = self._answer(place, meant.get(place.id), stored)
        self._line = [place for place in self._line if place.answer is None]

    def _written(self, places: list["_Place"], work: Work) -> tuple[Mapping[str, keys.Known], Mapping[str, Session]]:
        """What answers each, by its proposed id, and those sessions. Who finds no room has no answer."""
        accepted: list[_Place] = []
        meant: dict[str, keys.Known] = {}
        known = keys.known(work.connection, [place.once for place in places if place.once is not None])
        room = self.room(work.connection)
        for place in places:
            name = place.once.name if place.once else None
            if name in known:
                meant[place.id] = known[name]
            elif len(accepted) < room:
                accepted.append(place)
                meant[place.id] = keys.Known(place.id, place.once.fingerprint if place.once else None)
                if name is not None:
                    known[name] = meant[place.id]
        if accepted:
            work.connection.execute(_SESSION, [place.row for place in accepted])
            work.connection.execute(_ACCEPTANCE, [rows.of_acceptance(one.row) for one in accepted])
            keys.keep(work.connection, [(place.once, place.row) for place in accepted])
        stored = {place.id: rows.accepted(place.row) for place in accepted}
        if earlier := {one.session_id for one in meant.values()} - stored.keys():
            query = select(sessions).where(sessions.c.id.in_(earlier))
            stored |= {session.id: session for session in load(work.connection, query)}
        for one in accepted:
            work.tell(one.id, "state", stored[one.id])
            for warning in stored[one.id].warnings:
                work.tell(one.id, "warning", warning)
        failpoints.reached("accept.before_commit")
        return meant, stored

    def _answer(self, place: "_Place", meant: keys.Known | None, stored: Mapping[str, Session]) -> Answer:
        if meant is None:
            return self.full(place.row["created_at"], room=0)
        try:
            keys.check(place.once, meant)
        except Conflict as error:
            return error
        return stored[meant.session_id]

    def full(self, now: float, *, room: int, asked: int = 1) -> TryLater:
        """What is told to who asks for more places than there are."""
        if asked > self._queue_size:
            message = f"these are {asked} sessions, and this server keeps {self._queue_size}; send fewer at a time"
            return TryLater(message, code="queue_full", retry_after_s=LONGEST_RETRY_S)
        if asked == 1:
            message = f"{self._queue_size} sessions are queued, the most this server keeps; "
        else:
            message = f"the queue has room for {max(room, 0)} of these {asked} sessions; send fewer, or later: "
        spent = now - self._left[0] if len(self._left) > 1 else 0.0
        if spent <= 0:  # nothing measured yet, or the clock was set back
            message += "how fast it moves is not known yet"
            return TryLater(message, code="queue_full", retry_after_s=RETRY_AFTER_S)
        each_s = spent / (len(self._left) - 1)
        message += f"a place comes free about every {each_s:.3g} s"
        wait_s = math.ceil(each_s * (asked - room))
        return TryLater(message, code="queue_full", retry_after_s=min(max(wait_s, 1), LONGEST_RETRY_S))


@dataclass(eq=False, slots=True)
class _Place:
    """One accept in the line: its row, and what became of it."""

    row: dict[str, Any]
    once: Once | None
    answer: Answer | None = None

    @property
    def id(self) -> str:
        return str(self.row["id"])
