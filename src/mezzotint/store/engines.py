"""Opens SQLite the one safe way: one writer that fsyncs, a few readers that cannot write. Must not know a table."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mezzotint.errors import SetupError, TryLater
from mezzotint.store import schema

READERS = 4

_COMMON = ("PRAGMA busy_timeout=5000", "PRAGMA foreign_keys=ON")
_WRITER = (*_COMMON, "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")
# invariant: only the writer checkpoints; SQLite before 3.51.3 can corrupt when two connections do so at one instant
_READER = (*_COMMON, "PRAGMA wal_autocheckpoint=0", "PRAGMA query_only=ON")

# What waiting can mend, by SQLite's primary result code. Anything else is a bug or a broken disk and stays as it is.
_WAIT = {
    sqlite3.SQLITE_FULL: ("storage_full", "the disk that holds the database is full; free some space"),
    sqlite3.SQLITE_BUSY: ("not_ready", "another process holds the database; try again"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    writer: AsyncEngine
    readers: AsyncEngine

    async def release(self) -> None:
        """Close every connection, the writer's last: SQLite lets the last one clear the log away."""
        await self.readers.dispose()
        await self.writer.dispose()


async def connect(url: str) -> Engines:
    """Open the database, make it when absent, bring its schema up. Raises SetupError; then nothing stays open."""
    parsed = _parsed(url)
    engines = Engines(
        writer=_engine(parsed, size=1, pragmas=_WRITER, begin="BEGIN IMMEDIATE"),
        readers=_engine(parsed, size=READERS, pragmas=_READER, begin="BEGIN"),
    )
    ready = False
    try:
        _touch(str(parsed.database))
        await _bring_up(engines)
        ready = True
    except (OSError, DBAPIError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error.strerror
        raise SetupError(f"cannot open the database {parsed.database}: {reason}") from error
    finally:
        if not ready:
            await engines.release()
    return engines


async def checkpoint(writer: AsyncEngine) -> None:
    """Move the log into the database and cut it to nothing, as far as other processes' reading allows."""
    async with writer.connect() as connection:
        raw = await connection.get_raw_connection()  # below SQLAlchemy: a checkpoint must stand outside a transaction
        driver: Any = raw.driver_connection
        with suppress(sqlite3.OperationalError):  # a full disk: the log stays, as durable as the database
            await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def translated() -> Iterator[None]:
    """Turn what waiting can mend into TryLater."""
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the extended codes carry more above
        if code not in _WAIT:
            raise
        name, message = _WAIT[code]
        raise TryLater(message, code=name, retry_after_s=10) from error


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SetupError(f"the database address {url!r} cannot be read; use sqlite+aiosqlite:///PATH") from error
    if parsed.get_backend_name() != "sqlite":
        raise SetupError(
            f"databases of kind {parsed.get_backend_name()!r} are not supported; use sqlite+aiosqlite:///PATH"
        )
    if parsed.database in (None, "", ":memory:") or parsed.query:
        raise SetupError("sessions must outlive the process; give the database a path: sqlite+aiosqlite:///PATH")
    return parsed.set(drivername="sqlite+aiosqlite")


def _engine(url: URL, *, size: int, pragmas: tuple[str, ...], begin: str) -> AsyncEngine:
    # isolation_level None: the driver begins nothing by itself, so that BEGIN below is the only one
    engine = create_async_engine(url, pool_size=size, max_overflow=0, connect_args={"isolation_level": None})

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
            answer = cursor.fetchone()
            if pragma == "PRAGMA journal_mode=WAL" and (answer is None or answer[0] != "wal"):
                raise SetupError(f"the disk of {url.database} cannot hold a write-ahead log; use a local one")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def open_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _touch(path: str) -> None:
    """Make the file readable by its owner only; SQLite gives its log the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


async def _bring_up(engines: Engines) -> None:
    async with engines.readers.connect() as connection:  # not the writer: its first pragma already changes the file
        found = await schema.revision(connection)
    if found != schema.HEAD:
        schema.check(found)
        async with engines.writer.begin() as connection:
            await connection.run_sync(schema.upgrade)
