"""The durable life of every session, in SQL. Must not read a clock, hold progress or decide who runs next."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, delete, func, insert, select, true, update

from mezzotint import failpoints
from mezzotint.api_keys import ApiKey
from mezzotint.errors import ErrorInfo
from mezzotint.events import Event, Events
from mezzotint.request import Request
from mezzotint.session import FINAL, ImageRecord, Session, State, Usage
from mezzotint.store import analytics, api_keys, engines, journal, keys, rows
from mezzotint.store.batches import Batches
from mezzotint.store.changes import (
    ANYWAY,
    IN_TIME,
    OWNED,
    THIS,
    UNCANCELLED,
    Change,
    Work,
    after_running,
    expire,
    find,
    load,
    move,
    moving,
    pictures_of,
    plain,
    searchable,
)
from mezzotint.store.database import Database
from mezzotint.store.intake import Intake
from mezzotint.store.options import Options
from mezzotint.store.outbox import Outbox
from mezzotint.store.rows import Attempt, Once, Transition
from mezzotint.store.tables import images, prompt_of, sessions, transitions

# inside Store, `list` is the method
Sessions = list[Session]
Statistics = list[analytics.Ended]
Transitions = list[Transition]
Names = list[str]
Attempts = list[Attempt]
Replayed = list[Event]
Keys = list[ApiKey]

# Built once, as those of changes.py.
_BEGUN = {
    "attempt": sessions.c.attempt + 1,
    "started_at": func.coalesce(sessions.c.started_at, bindparam("as_of")),
}
_CLAIM = moving(IN_TIME, **_BEGUN)
_LEAVE = moving(OWNED)
_FINISH = moving(OWNED, UNCANCELLED)
_PAUSE = moving(OWNED, UNCANCELLED, sessions.c.pause_requested == true())
_NEVER_BEGAN = moving(sessions.c.attempt == 0)

_RUNNING = THIS, sessions.c.state == State.RUNNING
_STATE = select(sessions.c.state).where(THIS).with_for_update()
_WARNED = select(sessions.c.warnings).where(*_RUNNING, OWNED).with_for_update()
_AT_INDEX = and_(images.c.session_id == sessions.c.id, images.c.idx == bindparam("of_index"))
_DRAWN = (
    select(images.c.sha256)
    .select_from(sessions.outerjoin(images, _AT_INDEX))
    .where(*_RUNNING, UNCANCELLED, OWNED)
    .with_for_update(of=sessions)
)
_IMAGE = insert(images)
_HISTORY = select(transitions).where(transitions.c.session_id == bindparam("of_session")).order_by(transitions.c.seq)

_UNFINISHED = select(sessions.c.id).where(sessions.c.state.in_((State.QUEUED, State.RUNNING)))
_THEIRS = sessions.c.owner == bindparam("of_owner")
_DRAWN_FOR = images.join(sessions, sessions.c.id == images.c.session_id)
_STORED = select(func.sum(images.c.bytes)).select_from(_DRAWN_FOR).where(_THEIRS)


class Store:
    """Rows that outlive the process. What a method returns is committed and, but for a claim, fsynced.

    A method that changes a session returns it as it is afterwards, or None when the change came too late or from an
    attempt that no longer owns the session; then nothing changed, and the caller drops its result. Any method raises
    TryLater, and then nothing changed: `storage_full` when the disk is full (what ends, stops or removes sessions has
    some room of its own), `not_ready` when another process holds the database for 5 s or a server does not answer. A
    caller that is cancelled while it waits leaves the change to happen.
    """

    def __init__(self, database: Database, queue_size: int, events: Events | None) -> None:
        self._database = database
        self._intake = Intake(database, queue_size)
        self.batches = Batches(database, self._intake)
        self._events = events
        self.outbox = Outbox(database)
        self.options = Options(database)

    @classmethod
    async def open(
        cls, url: str, *, queue_size: int = 10_000, events: Events | None = None, wait_s: float = engines.WAIT_S
    ) -> "Store":
        """Open the database and bring its schema up. Raises SetupError; a database it refuses is left untouched.

        Each change is told to `events`, in the order of the commits, and kept for those who come back later. A call
        waits `wait_s` at most for a database that another process holds.
        """
        return cls(Database(await engines.connect(url, wait_s), events), queue_size, events)

    async def close(self) -> None:
        """Let calls under way end, empty the log into the database, release every connection and thread."""
        await self._database.close()

    async def add(
        self,
        session_id: str,
        request: Request,
        *,
        warnings: Sequence[dict[str, Any]],
        now: float,
        batch_id: str | None = None,
        owner: str | None = None,
        once: Once | None = None,
    ) -> Session:
        """Accept a request. Raises TryLater `queue_full`; then nothing is stored. A requeue is never refused.

        With `once`, a key that is known answers its first session, even when the queue is full; Conflict
        `idempotency_mismatch` when that was of another body. Calls made at the same time share a commit, since a disk
        may manage no more than a hundred a second.
        """
        row = rows.of_request(session_id, request, warnings=tuple(warnings), now=now, batch_id=batch_id, owner=owner)
        return await self._database.unbroken(functools.partial(self._intake.add, row, once))

    async def first(self, once: Once) -> Session | None:
        """The session that the key stands for already. Raises Conflict `idempotency_mismatch`."""

        def run(connection: Connection) -> Session | None:
            known = keys.known(connection, [once]).get(once.name)
            if known is None:
                return None
            keys.check(once, known)
            return find(connection, known.session_id)

        return await self._database.read(run)

    async def forget_keys(self, *, before: float, limit: int) -> int:
        """Forget idempotency keys that came before then, the oldest first, `limit` at most. Returns how many."""
        return await self._database.write(lambda work: keys.forget(work.connection, before, limit))

    async def get(self, session_id: str) -> Session | None:
        if not plain(session_id):
            return None
        return await self._database.read(lambda connection: find(connection, session_id))

    async def queued(self) -> Sessions:
        """All that wait, high priority first, then the oldest."""
        query = select(sessions).where(sessions.c.state == State.QUEUED)
        query = query.order_by(sessions.c.priority.desc(), sessions.c.id)
        return await self._database.read(lambda connection: load(connection, query))

    async def unfinished(self) -> Names:
        """Ids of all that wait or run."""
        return await self._database.read(lambda connection: [*connection.scalars(_UNFINISHED)])

    async def stored_by(self, owner: str) -> int:
        """The bytes of all pictures of an API key's sessions."""
        return await self._database.read(lambda connection: int(connection.scalar(_STORED, {"of_owner": owner}) or 0))

    async def api_key(self, key_id: str) -> ApiKey | None:
        return await self._database.read(lambda connection: api_keys.find(connection, key_id))

    async def api_keys(self) -> Keys:
        """All that were ever made, the oldest first."""
        return [*await self._database.read(api_keys.everything)]

    async def any_api_key(self) -> bool:
        """Whether one was ever made, in force or not."""
        return await self._database.read(api_keys.any_made)

    async def transitions(self, session_id: str) -> Transitions:
        """The session's history in order; empty for an unknown one."""
        if not plain(session_id):
            return []
        of = {"of_session": session_id}
        return await self._database.read(lambda connection: [*map(rows.transition, connection.execute(_HISTORY, of))])

    async def attempts(self, session_id: str) -> Attempts:
        """Each attempt with its device, start, end and cause, in order."""
        return rows.attempts(await self.transitions(session_id))

    async def replay(self, session_id: str, *, after: int = 0) -> Replayed:
        """What was told above `after`, oldest first: the last 1,000. Progress and previews are not kept."""
        if not plain(session_id):
            return []
        return await self._database.read(lambda connection: journal.replay(connection, session_id, after))

    async def begin(self, *, now: float) -> None:
        """Count a start of the server: what it tells from now on is numbered above all that was told before."""
        above = await self._database.write(lambda work: journal.begin(work.connection, now))
        if self._events is not None:
            self._events.begin(above)

    async def claim(
        self,
        session_id: str,
        *,
        worker: str,
        device: str,
        now: float,
        steps_resumed: int = 0,
        as_of: float | None = None,
    ) -> Session | None:
        """Queued to running, as a new attempt that goes on from so many steps. What has never started and is past its
        time expires instead: None. `as_of` is by when it has waited, where the clock of `now` may have been set: then
        it starts, so that it was queued from `created_at` to `started_at`.
        """
        as_of = now if as_of is None else as_of
        change = Change(session_id, State.QUEUED, State.RUNNING, "claimed", now, steps_resumed)

        def run(work: Work) -> Session | None:
            claimed = move(work, change, _CLAIM, as_of=as_of, worker=worker, device=device)
            if claimed is None:
                expire(work, session_id, now, as_of)
            elif claimed.attempt > 1:
                journal.trim(work.connection, session_id)
            return claimed

        claimed = await self._database.write(run, unsynced=True)  # a power cut ends the attempt too: it is queued again
        failpoints.reached("claim.after_commit")
        self._intake.left(now)
        return claimed

    async def requeue(
        self,
        session_id: str,
        *,
        attempt: int,
        cause: str,
        losses: int,
        spans: Mapping[str, float],
        now: float,
        usage: Usage | None = None,
    ) -> Session | None:
        """Running back to queued, in its old place; or to where a pending cancel or pause wants it. `usage` of None
        leaves it as it is."""
        values: dict[str, Any] = {"losses": losses, "spans": dict(spans)}
        if usage is not None:
            values["usage"] = usage

        def run(work: Work) -> Session | None:
            after = after_running(work.connection, session_id)
            change = Change(session_id, State.RUNNING, after, cause, now)
            return move(work, change, _LEAVE, of_attempt=attempt, **values)

        return await self._database.write(run)

    async def finish(
        self,
        session_id: str,
        *,
        attempt: int,
        state: State,
        now: float,
        spans: Mapping[str, float],
        usage: Usage,
        image: ImageRecord | None = None,
        warnings: Sequence[dict[str, Any]] = (),
        error: ErrorInfo | None = None,
        cause: str = "",
    ) -> Session | None:
        """Running to its end. A pending cancel wins over success and failure: they come too late.

        `image` is recorded with it, as add_image does. Those `warnings` that the row lacks are added.
        """
        if state not in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
            raise ValueError(f"a running session cannot finish as {state}")
        statement = _LEAVE if state is State.CANCELLED else _FINISH
        change = Change(session_id, State.RUNNING, state, cause or (error.code if error else state.value), now)
        values = {"spans": dict(spans), "usage": usage, "error": error}

        def run(work: Work) -> Session | None:
            if image is not None:
                _record(work, session_id, attempt, image)
            if warnings:  # the outbox may have written one that the caller has not heard of
                known = work.connection.scalar(_WARNED, {"of_session": session_id, "of_attempt": attempt}) or ()
                values["warnings"] = (*known, *(one for one in warnings if one not in known))
            ended = move(work, change, statement, of_attempt=attempt, **values)
            failpoints.reached("store.before_commit")
            return ended

        ended = await self._database.write(run, frees=True)
        failpoints.reached("store.after_commit")
        return ended

    async def end_queued(
        self, session_id: str, *, state: State, now: float, spans: Mapping[str, float], error: ErrorInfo | None
    ) -> Session | None:
        """Queued to expired, which only happens to what has never started, or to failed."""
        if state not in (State.EXPIRED, State.FAILED):
            raise ValueError(f"a queued session cannot end as {state} here")
        statement = _NEVER_BEGAN if state is State.EXPIRED else ANYWAY
        change = Change(session_id, State.QUEUED, state, error.code if error else state.value, now)
        values = {"spans": dict(spans), "error": error}
        ended = await self._database.write(lambda work: move(work, change, statement, **values), frees=True)
        self._intake.left(now)
        return ended

    async def request_cancel(
        self, session_id: str, *, now: float, spans: Mapping[str, float] | None = None
    ) -> Session | None:
        """Queued or paused: cancelled at once. Running: flagged, and asking again is fine. Ended: left as it is.

        Returns the session as it is afterwards, None only when unknown. `spans` are stored if it is cancelled at once.
        """
        if not plain(session_id):
            return None
        failpoints.reached("cancel.before_update")
        of = {"of_session": session_id}

        def run(work: Work) -> tuple[str | None, Session | None]:
            state = work.connection.scalar(_STATE, of)
            if state == State.RUNNING:
                work.connection.execute(update(sessions).where(THIS), of | {"cancel_requested": True})
            elif state in (State.QUEUED, State.PAUSED):
                values = {} if spans is None else {"spans": dict(spans)}
                move(work, Change(session_id, State(state), State.CANCELLED, "cancel", now), ANYWAY, **values)
            return state, find(work.connection, session_id)

        state, found = await self._database.write(run, frees=True)
        if state == State.QUEUED:
            self._intake.left(now)
        return found

    async def request_pause(self, session_id: str) -> Session | None:
        """Running: flagged, unless a cancel is pending, which beats it; asking again is fine. Else: left as it is.

        Returns the session as it is afterwards, None only when unknown.
        """
        if not plain(session_id):
            return None
        asked = {"of_session": session_id, "pause_requested": True}

        def run(work: Work) -> Session | None:
            work.connection.execute(update(sessions).where(*_RUNNING, UNCANCELLED), asked)
            return find(work.connection, session_id)

        return await self._database.write(run, frees=True)

    async def paused(
        self, session_id: str, *, attempt: int, spans: Mapping[str, float], usage: Usage, now: float
    ) -> Session | None:
        """Running to paused, if that was asked for and no cancel is pending. Its checkpoint must be on disk before."""
        change = Change(session_id, State.RUNNING, State.PAUSED, "pause", now)
        values = {"of_attempt": attempt, "spans": dict(spans), "usage": usage}
        return await self._database.write(lambda work: move(work, change, _PAUSE, **values), frees=True)

    async def resume(self, session_id: str, *, now: float, spans: Mapping[str, float] | None = None) -> Session | None:
        """Paused to queued, in its old place by age. Never refused for a full queue: it was accepted once."""
        if not plain(session_id):
            return None
        values = {} if spans is None else {"spans": dict(spans)}
        change = Change(session_id, State.PAUSED, State.QUEUED, "resume", now)
        return await self._database.write(lambda work: move(work, change, ANYWAY, **values))

    async def add_image(self, session_id: str, *, attempt: int, image: ImageRecord) -> bool:
        """Record a picture of the running attempt. Repeating one is fine; another picture at its index is refused.

        False, too, once a cancel is pending: nothing appears after its answer.
        """
        return await self._database.write(lambda work: _record(work, session_id, attempt, image))

    async def add_warning(self, session_id: str, *, attempt: int, warning: dict[str, Any]) -> bool:
        """Record a warning of the running attempt. False when it is known, or comes too late."""
        of = {"of_session": session_id, "of_attempt": attempt}

        def run(work: Work) -> bool:
            known = work.connection.scalar(_WARNED, of)
            if known is None or warning in known:
                return False
            work.connection.execute(update(sessions).where(*_RUNNING, OWNED), of | {"warnings": (*known, warning)})
            work.tell(session_id, "warning", warning)
            return True

        return await self._database.write(run)

    async def delete(self, session_id: str) -> bool:
        """Forget an ended session, its pictures' records and its history. False when unknown or not ended."""
        ended = delete(sessions).where(sessions.c.id == session_id, sessions.c.state.in_(FINAL))
        forget = ended.returning(sessions.c.id)
        return await self._database.write(lambda work: work.connection.scalar(forget) is not None, frees=True)

    async def prune(self, *, before: float, limit: int) -> Names:
        """Forget sessions that ended before then, the oldest first, `limit` at most. Returns their ids; files stay."""

        def run(work: Work) -> Names:
            ids = [*work.connection.scalars(_ended_before(before, limit))]
            work.connection.execute(delete(sessions).where(sessions.c.id.in_(ids)))
            return ids

        return await self._database.write(run, frees=True)

    async def pictures(self, session_ids: Collection[str]) -> dict[str, frozenset[str] | None]:
        """The digests of each session's pictures, None of one that has not ended; unknown ids are left out."""
        return await self._database.read(lambda connection: pictures_of(connection, session_ids))

    async def recover(self, *, now: float) -> dict[State, int]:
        """The restart rule: what was running goes where its flags send it. Counts by new state. No worker may be up.

        The time that the earlier process did not get to write counts as queued.
        """
        running = select(sessions.c.id, sessions.c.created_at, sessions.c.spans).where(
            sessions.c.state == State.RUNNING
        )

        def run(work: Work) -> dict[State, int]:
            moved: dict[State, int] = {}
            for session_id, created_at, spans in work.connection.execute(running).all():
                after = after_running(work.connection, session_id)
                untold = max(0.0, now - created_at - sum(spans.values()))
                told = spans | {"queued": spans.get("queued", 0.0) + untold}
                move(work, Change(session_id, State.RUNNING, after, "restart", now), ANYWAY, spans=told)
                moved[after] = moved.get(after, 0) + 1
            return moved

        return await self._database.write(run)

    async def ended(self, *, since: float, owner: str | None, limit: int) -> Statistics:
        """Of the sessions that ended since then what statistics need, the latest first, `limit` at most."""
        return await self._database.read(lambda connection: analytics.ended(connection, since, owner, limit))

    async def list(
        self,
        *,
        states: Collection[State] = (),
        type: str | None = None,  # noqa: A002  the contract's word
        model: str | None = None,
        device: str | None = None,
        batch_id: str | None = None,
        owner: str | None = None,
        text: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[Sessions, str | None]:
        """One page, newest first, and the cursor of the next, None at the end; `text` is looked for in the prompts.

        Sessions that come or go between two pages neither repeat nor hide others. A cursor that could not be an id
        ends the walk.
        """
        wanted = {"type": type, "model": model, "device": device, "batch_id": batch_id, "owner": owner}
        if not searchable(text) or not all(plain(value) for value in (cursor, *wanted.values())):
            return [], None
        query = select(sessions).where(
            *(sessions.c[name] == value for name, value in wanted.items() if value is not None)
        )
        if states:
            query = query.where(sessions.c.state.in_(states))
        if text:
            query = query.where(prompt_of(sessions.c.request).icontains(text, autoescape=True))
        if cursor is not None:
            query = query.where(sessions.c.id < cursor)
        query = query.order_by(sessions.c.id.desc()).limit(limit + 1)
        page = await self._database.read(lambda connection: load(connection, query))
        return page[:limit], page[limit - 1].id if len(page) > limit else None


def _ended_before(moment: float, limit: int) -> Select[tuple[str]]:
    old = select(sessions.c.id).where(sessions.c.state.in_(FINAL), sessions.c.ended_at < moment)
    return old.order_by(sessions.c.ended_at).limit(limit)


def _record(work: Work, session_id: str, attempt: int, image: ImageRecord) -> bool:
    of = {"of_session": session_id, "of_attempt": attempt, "of_index": image.index}
    drawn = work.connection.execute(_DRAWN, of).one_or_none()
    if drawn is None:
        return False
    if drawn.sha256 is not None:
        return bool(drawn.sha256 == image.sha256)
    work.connection.execute(_IMAGE, rows.of_image(session_id, image))
    work.tell(session_id, "image", image)
    return True
