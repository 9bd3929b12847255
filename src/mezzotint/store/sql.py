"""The durable life of every session, in SQL. Must not read a clock, hold progress or decide who runs next."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import delete, false, func, insert, select, true, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.api_keys import ApiKey
from mezzotint.errors import Conflict, ErrorInfo, TryLater
from mezzotint.events import Event, Events
from mezzotint.request import Request
from mezzotint.session import FINAL, ImageRecord, Session, State, Usage
from mezzotint.store import api_keys, engines, journal, keys, rows
from mezzotint.store.changes import Change, Work, after_running, count_of, find, load, move, owned, plain
from mezzotint.store.rows import Attempt, Once, Transition
from mezzotint.store.tables import images, sessions, transitions

log = structlog.get_logger(__name__)

SHARED_COMMIT = 64
ASK_AGAIN_S = 0.2

P = ParamSpec("P")
T = TypeVar("T")
# inside Store, `list` is the method
Sessions = list[Session]
Transitions = list[Transition]
Names = list[str]
Attempts = list[Attempt]
Replayed = list[Event]
_Line = list["_Place"]
Answer = Session | TryLater | Conflict


def _unbroken(
    method: Callable[Concatenate["Store", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Store", P], Awaitable[T]]:
    """Let the call run to its end even when its caller is cancelled: a transaction cut in two costs the connection."""

    @functools.wraps(method)
    async def run(self: "Store", /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise RuntimeError("the store is closed")
        call = asyncio.ensure_future(method(self, *args, **kwargs))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)

    return run


class Store:
    """Rows that outlive the process. What a method returns is committed and fsynced.

    A method that changes a session returns it as it is afterwards, or None when the change came too late or from an
    attempt that no longer owns the session; then nothing changed, and the caller drops its result. Any method raises
    TryLater, and then nothing changed: `storage_full` when the disk is full, `not_ready` when another process holds
    the database for 5 s or a server does not answer. A caller that is cancelled while it waits leaves the change to
    happen.
    """

    def __init__(self, opened: engines.Engines, queue_size: int, events: Events | None) -> None:
        self._engines = opened
        self._queue_size = queue_size
        self._events = events
        self._writing = asyncio.Lock()  # first come, first served, however long the line
        self._line: _Line = []  # accepts that wait for a commit
        self._calls: set[asyncio.Future[Any]] = set()
        self._in_doubt = False
        self._broken = False  # a write failed such that the disk must first be seen to hold what is committed
        self._closed = False

    @classmethod
    async def open(cls, url: str, *, queue_size: int = 10_000, events: Events | None = None) -> "Store":
        """Open the database and bring its schema up. Raises SetupError; a database it refuses is left untouched.

        Each change is told to `events`, in the order of the commits, and kept for those who come back later.
        """
        return cls(await engines.connect(url), queue_size, events)

    async def close(self) -> None:
        """Let calls under way end, empty the log into the database, release every connection and thread."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*self._calls, return_exceptions=True)
        try:
            with contextlib.suppress(TryLater), self._engines.translated():
                await self._engines.kind.tidy(self._engines.writer)
        finally:
            await self._engines.release()

    @_unbroken
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
        self._check_doubt()
        row = rows.of_request(session_id, request, warnings=tuple(warnings), now=now, batch_id=batch_id, owner=owner)
        place = _Place(row, once)
        self._line.append(place)
        try:
            async with self._writing:
                if place.answer is None:  # else one ahead in the line took this one along
                    await self._accept(self._line[:SHARED_COMMIT])
        finally:
            if place.answer is None:  # it failed; those behind must not meet it again
                self._line.remove(place)
        if isinstance(place.answer, Exception):
            raise place.answer
        assert place.answer is not None  # noqa: S101  invariant: who leaves the line without an error has an answer
        return place.answer

    @_unbroken
    async def first(self, once: Once) -> Session | None:
        """The session that the key stands for already. Raises Conflict `idempotency_mismatch`."""
        async with self._read() as connection:
            known = (await keys.known(connection, [once])).get(once.name)
            if known is None:
                return None
            keys.check(once, known)
            return await find(connection, known.session_id)

    @_unbroken
    async def forget_keys(self, *, before: float, limit: int = 1000) -> int:
        """Forget idempotency keys that came before then, the oldest first, `limit` at most. Returns how many."""
        async with self._write() as work:
            return await keys.forget(work.connection, before, limit)

    @_unbroken
    async def get(self, session_id: str) -> Session | None:
        if not plain(session_id):
            return None
        async with self._read() as connection:
            return await find(connection, session_id)

    @_unbroken
    async def queued(self) -> Sessions:
        """All that wait, high priority first, then the oldest."""
        query = select(sessions).where(sessions.c.state == State.QUEUED)
        async with self._read() as connection:
            return await load(connection, query.order_by(sessions.c.priority.desc(), sessions.c.id))

    @_unbroken
    async def count(self, states: Collection[State]) -> int:
        async with self._read() as connection:
            return await count_of(connection, states)

    @_unbroken
    async def held_by(self, owner: str) -> tuple[int, int]:
        """How many sessions of an API key wait, and the bytes of all its pictures."""
        waiting = select(func.count()).where(sessions.c.owner == owner, sessions.c.state == State.QUEUED)
        theirs = images.join(sessions, sessions.c.id == images.c.session_id)
        stored = select(func.sum(images.c.bytes)).select_from(theirs).where(sessions.c.owner == owner)
        async with self._read() as connection:
            return await connection.scalar(waiting) or 0, int(await connection.scalar(stored) or 0)

    @_unbroken
    async def api_key(self, key_id: str) -> ApiKey | None:
        async with self._read() as connection:
            return await api_keys.find(connection, key_id)

    @_unbroken
    async def any_api_key(self) -> bool:
        """Whether one was ever made, in force or not."""
        async with self._read() as connection:
            return await api_keys.any_made(connection)

    @_unbroken
    async def transitions(self, session_id: str) -> Transitions:
        """The session's history in order; empty for an unknown one."""
        if not plain(session_id):
            return []
        query = select(transitions).where(transitions.c.session_id == session_id).order_by(transitions.c.seq)
        async with self._read() as connection:
            return [rows.transition(row) for row in await connection.execute(query)]

    async def attempts(self, session_id: str) -> Attempts:
        """Each attempt with its device, start, end and cause, in order."""
        return rows.attempts(await self.transitions(session_id))

    @_unbroken
    async def replay(self, session_id: str, *, after: int = 0) -> Replayed:
        """What was told above `after`, oldest first: the last 1,000. Progress and previews are not kept."""
        if not plain(session_id):
            return []
        async with self._read() as connection:
            return await journal.replay(connection, session_id, after)

    @_unbroken
    async def begin(self, *, now: float) -> None:
        """Count a start of the server: what it tells from now on is numbered above all that was told before."""
        async with self._write() as work:
            above = await journal.begin(work.connection, now)
        if self._events is not None:
            self._events.begin(above)

    @_unbroken
    async def claim(self, session_id: str, *, worker: str, device: str, now: float) -> Session | None:
        """Queued to running, as a new attempt."""
        change = Change(session_id, State.QUEUED, State.RUNNING, "claimed", now)
        started_at = func.coalesce(sessions.c.started_at, now)
        values = {"attempt": sessions.c.attempt + 1, "worker": worker, "device": device, "started_at": started_at}
        async with self._write() as work:
            await journal.trim(work.connection, session_id)
            return await move(work, change, **values)

    @_unbroken
    async def requeue(
        self, session_id: str, *, attempt: int, cause: str, losses: int, spans: Mapping[str, float], now: float
    ) -> Session | None:
        """Running back to queued, in its old place; or to where a pending cancel or pause wants it."""
        async with self._write() as work:
            after = await after_running(work.connection, session_id)
            change = Change(session_id, State.RUNNING, after, cause, now)
            return await move(work, change, owned(attempt), losses=losses, spans=dict(spans))

    @_unbroken
    async def finish(
        self,
        session_id: str,
        *,
        attempt: int,
        state: State,
        now: float,
        spans: Mapping[str, float],
        usage: Usage,
        warnings: Sequence[dict[str, Any]] | None = None,
        error: ErrorInfo | None = None,
        cause: str = "",
    ) -> Session | None:
        """Running to its end. A pending cancel wins over success and failure: they come too late.

        `warnings` replaces those of the acceptance; None keeps them.
        """
        if state not in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
            raise ValueError(f"a running session cannot finish as {state}")
        guards = [owned(attempt)]
        if state is not State.CANCELLED:
            guards.append(sessions.c.cancel_requested == false())
        change = Change(session_id, State.RUNNING, state, cause or (error.code if error else state.value), now)
        async with self._write() as work:
            values = {"spans": dict(spans), "usage": usage, "error": error}
            if warnings is not None:
                values["warnings"] = tuple(warnings)
            return await move(work, change, *guards, **values)

    @_unbroken
    async def end_queued(
        self, session_id: str, *, state: State, now: float, spans: Mapping[str, float], error: ErrorInfo | None
    ) -> Session | None:
        """Queued to expired, which only happens to what has never started, or to failed."""
        if state not in (State.EXPIRED, State.FAILED):
            raise ValueError(f"a queued session cannot end as {state} here")
        guards = [sessions.c.attempt == 0] if state is State.EXPIRED else []
        change = Change(session_id, State.QUEUED, state, error.code if error else state.value, now)
        async with self._write() as work:
            return await move(work, change, *guards, spans=dict(spans), error=error)

    @_unbroken
    async def request_cancel(
        self, session_id: str, *, now: float, spans: Mapping[str, float] | None = None
    ) -> Session | None:
        """Queued or paused: cancelled at once. Running: flagged, and asking again is fine. Ended: left as it is.

        Returns the session as it is afterwards, None only when unknown. `spans` are stored if it is cancelled at once.
        """
        if not plain(session_id):
            return None
        async with self._write() as work:
            state = await work.connection.scalar(
                select(sessions.c.state).where(sessions.c.id == session_id).with_for_update()
            )
            if state == State.RUNNING:
                flagged = update(sessions).where(sessions.c.id == session_id).values(cancel_requested=True)
                await work.connection.execute(flagged)
            elif state in (State.QUEUED, State.PAUSED):
                values = {} if spans is None else {"spans": dict(spans)}
                await move(work, Change(session_id, State(state), State.CANCELLED, "cancel", now), **values)
            return await find(work.connection, session_id)

    @_unbroken
    async def request_pause(self, session_id: str) -> Session | None:
        """Running: flagged, unless a cancel is pending, which beats it; asking again is fine. Else: left as it is.

        Returns the session as it is afterwards, None only when unknown.
        """
        if not plain(session_id):
            return None
        row = sessions.c.id == session_id, sessions.c.state == State.RUNNING, sessions.c.cancel_requested == false()
        async with self._write() as work:
            await work.connection.execute(update(sessions).where(*row).values(pause_requested=True))
            return await find(work.connection, session_id)

    @_unbroken
    async def paused(
        self, session_id: str, *, attempt: int, spans: Mapping[str, float], usage: Usage, now: float
    ) -> Session | None:
        """Running to paused, if that was asked for and no cancel is pending. Its checkpoint must be on disk before."""
        change = Change(session_id, State.RUNNING, State.PAUSED, "pause", now)
        guards = owned(attempt), sessions.c.pause_requested == true(), sessions.c.cancel_requested == false()
        async with self._write() as work:
            return await move(work, change, *guards, spans=dict(spans), usage=usage)

    @_unbroken
    async def resume(self, session_id: str, *, now: float, spans: Mapping[str, float] | None = None) -> Session | None:
        """Paused to queued, in its old place by age. Never refused for a full queue: it was accepted once."""
        if not plain(session_id):
            return None
        values = {} if spans is None else {"spans": dict(spans)}
        async with self._write() as work:
            return await move(work, Change(session_id, State.PAUSED, State.QUEUED, "resume", now), **values)

    @_unbroken
    async def add_image(self, session_id: str, *, attempt: int, image: ImageRecord) -> bool:
        """Record a picture of the running attempt. Repeating one is fine; another picture at its index is refused.

        False, too, once a cancel is pending: nothing appears after its answer.
        """
        async with self._write() as work:
            guards = (sessions.c.state == State.RUNNING, sessions.c.cancel_requested == false(), owned(attempt))
            query = select(sessions.c.id).where(sessions.c.id == session_id, *guards)
            if await work.connection.scalar(query.with_for_update()) is None:
                return False
            there = select(images.c.sha256).where(images.c.session_id == session_id, images.c.idx == image.index)
            sha256 = await work.connection.scalar(there)
            if sha256 is not None:
                return bool(sha256 == image.sha256)
            await work.connection.execute(insert(images).values(rows.of_image(session_id, image)))
            work.tell(session_id, "image", image)
            return True

    @_unbroken
    async def add_warning(self, session_id: str, *, attempt: int, warning: dict[str, Any]) -> bool:
        """Record a warning of the running attempt. False when it is known, or comes too late."""
        row = sessions.c.id == session_id, sessions.c.state == State.RUNNING, owned(attempt)
        async with self._write() as work:
            known = await work.connection.scalar(select(sessions.c.warnings).where(*row).with_for_update())
            if known is None or warning in known:
                return False
            await work.connection.execute(update(sessions).where(*row).values(warnings=(*known, warning)))
            work.tell(session_id, "warning", warning)
            return True

    @_unbroken
    async def delete(self, session_id: str) -> bool:
        """Forget an ended session, its pictures' records and its history. False when unknown or not ended."""
        forget = delete(sessions).where(sessions.c.id == session_id, sessions.c.state.in_(FINAL))
        async with self._write() as work:
            return await work.connection.scalar(forget.returning(sessions.c.id)) is not None

    @_unbroken
    async def prune(self, *, before: float, limit: int = 100) -> Names:
        """Forget sessions that ended before then, the oldest first, `limit` at most. Returns their ids; files stay."""
        old = select(sessions.c.id).where(sessions.c.state.in_(FINAL), sessions.c.ended_at < before)
        async with self._write() as work:
            ids = [*(await work.connection.scalars(old.order_by(sessions.c.ended_at).limit(limit))).all()]
            await work.connection.execute(delete(sessions).where(sessions.c.id.in_(ids)))
        return ids

    @_unbroken
    async def recover(self, *, now: float) -> dict[State, int]:
        """The restart rule: what was running goes where its flags send it. Counts by new state. No worker may be up."""
        moved: dict[State, int] = {}
        async with self._write() as work:
            running = await work.connection.scalars(select(sessions.c.id).where(sessions.c.state == State.RUNNING))
            for session_id in running.all():
                after = await after_running(work.connection, session_id)
                await move(work, Change(session_id, State.RUNNING, after, "restart", now))
                moved[after] = moved.get(after, 0) + 1
        return moved

    @_unbroken
    async def list(
        self,
        *,
        states: Collection[State] = (),
        type: str | None = None,  # noqa: A002  the contract's word
        model: str | None = None,
        device: str | None = None,
        batch_id: str | None = None,
        owner: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[Sessions, str | None]:
        """One page, newest first, and the cursor of the next, None at the end. Sessions that come or go between two
        pages neither repeat nor hide others. A cursor that could not be an id ends the walk."""
        wanted = {"type": type, "model": model, "device": device, "batch_id": batch_id, "owner": owner}
        if not all(plain(text) for text in (cursor, *wanted.values())):
            return [], None
        query = select(sessions).where(
            *(sessions.c[name] == value for name, value in wanted.items() if value is not None)
        )
        if states:
            query = query.where(sessions.c.state.in_(states))
        if cursor is not None:
            query = query.where(sessions.c.id < cursor)
        async with self._read() as connection:
            page = await load(connection, query.order_by(sessions.c.id.desc()).limit(limit + 1))
        return page[:limit], page[limit - 1].id if len(page) > limit else None

    async def _accept(self, places: _Line) -> None:
        """Commit as many of these as the queue has room for. Raising, it answers none: each then tries for itself."""
        accepted: _Line = []
        meant: dict[str, keys.Known] = {}  # by proposed id: the session that answers
        async with self._transaction() as work:
            known = await keys.known(work.connection, [place.once for place in places if place.once is not None])
            room = self._queue_size - await count_of(work.connection, (State.QUEUED,))
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
                await work.connection.execute(insert(sessions), [place.row for place in accepted])
                await work.connection.execute(insert(transitions), [rows.of_acceptance(one.row) for one in accepted])
                await keys.keep(work.connection, [(place.once, place.row) for place in accepted])
            ids = {one.session_id for one in meant.values()}
            query = select(sessions).where(sessions.c.id.in_(ids))
            stored = {session.id: session for session in await load(work.connection, query)}
            for one in accepted:
                work.tell(one.id, "state", stored[one.id])
                for warning in stored[one.id].warnings:
                    work.tell(one.id, "warning", warning)
        for place in places:
            place.answer = self._answer(place, meant.get(place.id), stored)
        self._line = [place for place in self._line if place.answer is None]

    def _answer(self, place: "_Place", meant: keys.Known | None, stored: Mapping[str, Session]) -> "Answer":
        if meant is None:
            message = f"{self._queue_size} sessions are queued, the most this server keeps; send it again later"
            return TryLater(message, code="queue_full", retry_after_s=10)
        try:
            keys.check(place.once, meant)
        except Conflict as error:
            return error
        return stored[meant.session_id]

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[Work]:
        self._check_doubt()
        async with self._writing, self._transaction() as work:
            yield work

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Work]:
        """Owns the database from its first statement; commits unless the body raises. Only inside `_writing`.

        What the body has to tell is written with it and told once it is committed.
        """
        lost = False
        with contextlib.ExitStack() as held:
            with self._engines.translated(), self._watched():
                if self._broken:
                    await self._engines.kind.mend(self._engines.writer)
                    self._broken = False
                    log.info("the database's disk takes writes again")
                async with self._engines.writer.connect() as connection:
                    mark = await self._engines.kind.mark(connection)
                    work = Work(connection)
                    yield work
                    if self._events is not None:
                        held.enter_context(self._events.held({session_id for session_id, _, _ in work.told}))
                        await journal.keep(connection, work.told, self._events)
                    try:
                        await connection.commit()
                    except DBAPIError as error:
                        if mark is None or not error.connection_invalidated:
                            raise
                        lost = True
            if mark is not None and lost:
                await self._settle(mark)
            if self._events is not None:
                for told in work.told:
                    self._events.tell(*told)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Nothing is written after a failure of the disk until `mend` has succeeded: success would be a guess."""
        try:
            yield
        except Exception as error:
            if self._engines.kind.broke(error) and not self._broken:
                self._broken = True
                log.error("the database's disk failed; nothing is written until it is mended", error=str(error))
            raise

    async def _settle(self, mark: str) -> None:
        """The connection broke in mid-commit: ask what became of it until the database says. Raises if it was undone.

        Nothing else is written meanwhile. To answer before it is known would leave a change that nobody acts upon.
        """
        self._in_doubt = True
        try:
            while not self._closed:
                try:
                    with self._engines.translated():
                        async with self._engines.writer.connect() as connection:
                            done = await self._engines.kind.committed(connection, mark)
                except TryLater:
                    await asyncio.sleep(ASK_AGAIN_S)
                    continue
                if done:
                    return
                break
        finally:
            self._in_doubt = False
        message = "the connection to the database broke and nothing was changed; try again"
        raise TryLater(message, code="not_ready", retry_after_s=1)

    def _check_doubt(self) -> None:
        if self._in_doubt:
            raise TryLater("the database does not answer; try again", code="not_ready", retry_after_s=1)

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        """One snapshot: all that the body reads is of the same instant."""
        with self._engines.translated():
            async with self._engines.readers.connect() as connection:
                yield connection


@dataclass(eq=False, slots=True)
class _Place:
    """One accept in the line: its row, and what became of it."""

    row: dict[str, Any]
    once: Once | None
    answer: Answer | None = None

    @property
    def id(self) -> str:
        return str(self.row["id"])
