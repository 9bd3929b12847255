"""Transactions on an opened database: one writer at a time, and no guess about a commit. Must not know a table."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from mezzotint.errors import TryLater
from mezzotint.events import Events
from mezzotint.store import engines, journal, kinds
from mezzotint.store.changes import Work

log = structlog.get_logger(__name__)

ASK_AGAIN_S = 0.2

T = TypeVar("T")


class Database:
    """Raises TryLater for what waiting mends; then nothing changed. What is written is told to `events` after it is."""

    def __init__(self, opened: engines.Engines, events: Events | None) -> None:
        self._engines = opened
        self._events = events
        self.posted = asyncio.Event()  # set after a commit that put something into the outbox
        self.writing = asyncio.Lock()  # first come, first served, however long the line
        self._calls: set[asyncio.Future[Any]] = set()
        self._in_doubt = False
        self._broken = False  # a write failed such that the disk must first be seen to hold what is committed
        self._is_set_aside = False  # whether room for when the disk is full is whole; seen to after each write
        self._closed = False

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

    async def unbroken(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Let it run to its end even when its caller is cancelled: a transaction cut in two costs the connection."""
        if self._closed:
            raise RuntimeError("the store is closed")
        running = asyncio.ensure_future(call())
        self._calls.add(running)
        running.add_done_callback(self._calls.discard)
        return await asyncio.shield(running)

    async def write(self, body: Callable[[Work], T], *, unsynced: bool = False, frees: bool = False) -> T:
        """One transaction, committed unless the body raises. The body runs in a thread, or between two waits.

        `unsynced`: what it changes may be lost with the machine's power. `frees`: it stops or removes something, so
        that on a full disk it has the room set aside; then the body runs again.
        """

        async def run() -> T:
            self.check_doubt()
            async with self.writing:
                answer = await (self._freeing(body) if frees else self.transaction(body, unsynced=unsynced))
                if not self._is_set_aside:
                    self._is_set_aside = await self._engines.kind.set_aside(self._engines.address, self._engines.writer)
                return answer

        return await self.unbroken(run)

    async def _freeing(self, body: Callable[[Work], T]) -> T:
        while True:
            try:
                return await self.transaction(body)
            except TryLater as error:
                if error.code != "storage_full" or not await self._engines.kind.draw_on(self._engines.address):
                    raise
                self._is_set_aside = False

    async def transaction(self, body: Callable[[Work], T], *, unsynced: bool = False) -> T:
        """Owns the database from its first statement; commits unless the body raises. Only inside `writing`.

        What the body has to tell is written with it and told once it is committed.
        """
        with contextlib.ExitStack() as held:
            with self._engines.translated(), self._watched():
                if self._broken:
                    await self._engines.kind.mend(self._engines.writer)
                    self._broken = False
                    log.info("the database's disk takes writes again")
                done = await self._engines.writer.run(functools.partial(self._written, body, held, unsynced))
            if done.in_doubt is not None:
                await self._settle(done.in_doubt)
            if done.work.posted:
                self.posted.set()
            if self._events is not None:
                for told in done.work.told:
                    self._events.tell(*told)
            return done.answer

    def _written(
        self, body: Callable[[Work], T], held: contextlib.ExitStack, unsynced: bool, connection: Connection
    ) -> "_Done[T]":
        connection = connection.execution_options(**{kinds.UNSYNCED: unsynced})
        mark = self._engines.kind.mark(connection)
        work = Work(connection)
        answer = body(work)
        if self._events is not None:
            held.enter_context(self._events.held({session_id for session_id, _, _ in work.told}))
            journal.keep(connection, work.told, self._events)
        try:
            connection.commit()
        except Exception as error:
            refused = isinstance(error, DBAPIError) and not error.connection_invalidated
            if mark is None or refused:
                raise
            connection.invalidate()  # no answer in time: it may still be committing
            return _Done(answer, work, in_doubt=mark)
        return _Done(answer, work)

    async def read(self, body: Callable[[Connection], T]) -> T:
        """One snapshot: all that the body reads is of the same instant. It runs as that of `write` does."""

        async def run() -> T:
            with self._engines.translated():
                try:
                    return await self._engines.readers.run(body)
                except DBAPIError as error:
                    if not error.connection_invalidated:
                        raise
                return await self._engines.readers.run(body)  # the connection was cut; a new one may be had

        return await self.unbroken(run)

    def check_doubt(self) -> None:
        if self._in_doubt:
            raise TryLater("the database does not answer; try again", code="not_ready", retry_after_s=1)

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
        """A commit was not answered: ask what became of it until the database says. Raises if it was undone.

        Nothing else is written meanwhile. To answer before it is known would leave a change that nobody acts upon.
        """
        self._in_doubt = True
        try:
            while not self._closed:
                try:
                    with self._engines.translated():
                        asked = functools.partial(self._engines.kind.committed, mark=mark)
                        done = await self._engines.writer.run(asked)
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


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """What came of a transaction."""

    answer: T
    work: Work
    in_doubt: str | None = None  # its mark, when it is not known whether the commit was done
