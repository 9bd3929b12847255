"""SQLite the one safe way: one writer that fsyncs, a few readers that cannot write. Must not know a table."""

import asyncio
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mezzotint.errors import SetupError, TryLater

READERS = 4

_COMMON = ("PRAGMA foreign_keys=ON",)
_WRITER = (*_COMMON, "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")
# invariant: only the writer checkpoints; SQLite before 3.51.3 can corrupt when two connections do so at one instant
_BESIDE = (*_COMMON, "PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=FULL")
_READER = (*_COMMON, "PRAGMA wal_autocheckpoint=0", "PRAGMA query_only=ON")

# What waiting can mend, by SQLite's primary result code. Anything else is a bug or a broken disk and stays as it is.
_WAIT = {
    sqlite3.SQLITE_FULL: ("storage_full", "the disk that holds the database is full; free some space"),
    sqlite3.SQLITE_IOERR: (
        "not_ready",
        "the disk that holds the database failed; nothing is accepted until it is mended",
    ),
    sqlite3.SQLITE_READONLY: ("not_ready", "the disk that holds the database takes no writes"),
    sqlite3.SQLITE_BUSY: ("not_ready", "another process holds the database; try again"),
}


def address(url: URL) -> URL:
    if url.database in (None, "", ":memory:") or url.query:
        raise SetupError("sessions must outlive the process; give the database a path: sqlite:///PATH")
    return url.set(drivername="sqlite+aiosqlite")


def open(url: URL, wait_s: float) -> tuple[AsyncEngine, AsyncEngine]:  # noqa: A001  Kind's word
    _touch(str(url.database))
    writer = _engine(url, size=1, pragmas=(_wait(wait_s), *_WRITER), begin="BEGIN IMMEDIATE")
    return writer, _engine(url, size=READERS, pragmas=(_wait(wait_s), *_READER), begin="BEGIN")


def open_beside(url: URL, wait_s: float) -> AsyncEngine:
    _touch(str(url.database))
    return _engine(url, size=1, pragmas=(_wait(wait_s), *_BESIDE), begin="BEGIN IMMEDIATE")


def meaning(error: BaseException) -> tuple[str, str] | None:
    return _WAIT.get(_code(error))


def reason(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return error.strerror
    origin = error.orig if isinstance(error, DBAPIError) else error
    return str(origin) if isinstance(origin, sqlite3.Error) else None


async def back_up(url: URL, name: str) -> None:
    await asyncio.to_thread(_copy, Path(str(url.database)), name)


async def mend(writer: AsyncEngine) -> None:
    """Open it anew and move the log into the database: what the disk may have dropped from the log is written again."""
    await writer.dispose()  # readers stay, and with them the knowledge of what in the log was committed
    async with writer.connect() as connection:
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        ((busy, _, _),) = await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    if busy:
        raise TryLater("another process holds the database; try again", code="not_ready", retry_after_s=10)


def broke(error: BaseException) -> bool:
    return _code(error) == sqlite3.SQLITE_IOERR


async def mark(connection: AsyncConnection) -> str | None:
    return None  # a commit that fails is rolled back, and says so


async def committed(connection: AsyncConnection, mark: str) -> bool:
    raise NotImplementedError("no transaction here is ever in doubt")


async def tidy(writer: AsyncEngine) -> None:
    """Move the log into the database and cut it to nothing, as far as other processes' reading allows."""
    async with writer.connect() as connection:
        raw = await connection.get_raw_connection()  # below SQLAlchemy: a checkpoint must stand outside a transaction
        driver: Any = raw.driver_connection
        with suppress(sqlite3.OperationalError):  # a full disk: the log stays, as durable as the database
            await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")


def _code(error: BaseException) -> int:
    origin = error.orig if isinstance(error, DBAPIError) else error
    code: int = getattr(origin, "sqlite_errorcode", 0)
    return code & 0xFF  # the extended codes carry more above


def _engine(url: URL, *, size: int, pragmas: tuple[str, ...], begin: str) -> AsyncEngine:
    # isolation_level None: the driver begins nothing by itself, so that BEGIN below is the only one
    given = {"isolation_level": None}
    engine = create_async_engine(url, pool_size=size, max_overflow=0, hide_parameters=True, connect_args=given)

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


def _wait(seconds: float) -> str:
    return f"PRAGMA busy_timeout={round(seconds * 1000)}"


def _touch(path: str) -> None:
    """Make the file readable by its owner only; SQLite gives its log the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _copy(path: Path, name: str) -> None:
    """All that is committed, in one file, on the disk before it takes its name; then the older copies go."""
    copy, temporary = path.with_name(f"{path.name}.{name}"), path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    _touch(str(temporary))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(temporary)) as target:
        source.backup(target)
    for synced in (temporary, path.parent):
        descriptor = os.open(synced, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(descriptor)
        os.close(descriptor)
        if synced is temporary:
            temporary.rename(copy)
    for older in path.parent.glob(f"{path.name}.before-*"):
        if older != copy:
            older.unlink()
