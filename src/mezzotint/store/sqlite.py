"""SQLite the one safe way: one writer that fsyncs, a few readers that cannot write. Must not know a table."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError

from mezzotint.disk import draft_of, sync_folder
from mezzotint.errors import SetupError, TryLater
from mezzotint.store.kinds import UNSYNCED, Engine

READERS = 4
RESERVE_BYTES = 1 << 20
PIECE_BYTES = 1 << 16  # what is given up at a time, since others take what a write leaves of it
ENOUGH_BYTES = 4 * RESERVE_BYTES

T = TypeVar("T")

_COMMON = ("PRAGMA foreign_keys=ON",)
_WRITER = (*_COMMON, "PRAGMA journal_mode=WAL")
# invariant: only the writer checkpoints; SQLite before 3.51.3 can corrupt when two connections do so at one instant
_BESIDE = (*_COMMON, "PRAGMA wal_autocheckpoint=0")
_READER = (*_COMMON, "PRAGMA wal_autocheckpoint=0", "PRAGMA query_only=ON")

_WRITES = "BEGIN IMMEDIATE"

_GONE = ("not_ready", "the file of the database was removed or replaced; put it back, or restart the server")
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


class _Gone(Exception):
    """The path of the database leads to another file than the one that is open, or to none."""


class Threads:
    """So many connections, and a thread for each: a transaction takes two turns of the threads, not two a statement."""

    def __init__(self, url: URL, *, size: int, pragmas: tuple[str, ...], begin: str) -> None:
        # isolation_level None: the driver begins nothing by itself, so that BEGIN below is the only one
        given = {"isolation_level": None, "check_same_thread": False}
        self._engine = create_engine(url, pool_size=size, max_overflow=0, hide_parameters=True, connect_args=given)
        self._size = size
        self._threads = ThreadPoolExecutor(size, "sqlite")

        @event.listens_for(self._engine, "connect")
        def set_up(connection: Any, record: Any) -> None:
            record.info["file"] = _file(url)
            connection.create_function("lower", 1, _lower, deterministic=True)
            cursor = connection.cursor()
            for pragma in pragmas:
                cursor.execute(pragma)
                answer = cursor.fetchone()
                if pragma == "PRAGMA journal_mode=WAL" and (answer is None or answer[0] != "wal"):
                    raise SetupError(f"the disk of {url.database} cannot hold a write-ahead log; use a local one")
            cursor.close()

        @event.listens_for(self._engine, "begin")
        def open_transaction(connection: Connection) -> None:
            if begin == _WRITES and _file(url) != connection.info["file"]:
                raise _Gone  # what is written now goes with the last one who has the file open
            driver: Any = connection.connection.driver_connection
            if begin == _WRITES:
                level = "NORMAL" if connection.get_execution_options().get(UNSYNCED) else "FULL"
                driver.execute(f"PRAGMA synchronous={level}")
            driver.execute(begin)

    async def run(self, body: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, body)

    def _run(self, body: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            return body(connection)

    async def dispose(self) -> None:
        threads, self._threads = self._threads, ThreadPoolExecutor(self._size, "sqlite")  # it starts none before a run
        await asyncio.get_running_loop().run_in_executor(threads, self._engine.dispose)
        threads.shutdown(wait=False)


def address(url: URL) -> URL:
    if url.database in (None, "", ":memory:") or url.query:
        raise SetupError("sessions must outlive the process; give the database a path: sqlite:///PATH")
    return url.set(drivername="sqlite")


def open(url: URL, wait_s: float) -> tuple[Engine, Engine]:  # noqa: A001  Kind's word
    _touch(str(url.database))
    writer = Threads(url, size=1, pragmas=(_wait(wait_s), *_WRITER), begin=_WRITES)
    return writer, Threads(url, size=READERS, pragmas=(_wait(wait_s), *_READER), begin="BEGIN")


def open_beside(url: URL, wait_s: float) -> Engine:
    _touch(str(url.database))
    return Threads(url, size=1, pragmas=(_wait(wait_s), *_BESIDE), begin=_WRITES)


def meaning(error: BaseException) -> tuple[str, str] | None:
    return _GONE if isinstance(error, _Gone) else _WAIT.get(_code(error))


def reason(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return error.strerror
    origin = error.orig if isinstance(error, DBAPIError) else error
    return str(origin) if isinstance(origin, sqlite3.Error) else None


async def back_up(url: URL, name: str) -> None:
    await asyncio.to_thread(_copy, Path(str(url.database)), name)


async def mend(writer: Engine) -> None:
    """Open it anew and move the log into the database: what the disk may have dropped from the log is written again."""
    await writer.dispose()  # readers stay, and with them the knowledge of what in the log was committed
    if await writer.run(_emptied):
        raise TryLater("another process holds the database; try again", code="not_ready", retry_after_s=10)


def broke(error: BaseException) -> bool:
    return _code(error) == sqlite3.SQLITE_IOERR


def mark(connection: Connection) -> str | None:
    return None  # a commit that fails is rolled back, and says so


def committed(connection: Connection, mark: str) -> bool:
    raise NotImplementedError("no transaction here is ever in doubt")


async def set_aside(url: URL, writer: Engine) -> bool:
    is_whole = await asyncio.to_thread(_set_aside, _reserve(url))
    if not is_whole:
        with suppress(sqlite3.Error, DBAPIError):  # then what is written next has its room in the log
            await writer.run(lambda connection: _checkpoint(connection, "PASSIVE"))
    return is_whole


async def draw_on(url: URL) -> bool:
    return await asyncio.to_thread(_draw_on, _reserve(url))


async def tidy(writer: Engine) -> None:
    """Move the log into the database and cut it to nothing, as far as other processes' reading allows."""
    with suppress(sqlite3.OperationalError):  # a full disk: the log stays, as durable as the database
        await writer.run(_emptied)


def _reserve(url: URL) -> Path:
    return Path(f"{url.database}.reserve")


def _set_aside(reserve: Path) -> bool:
    with suppress(OSError):
        if reserve.exists() and reserve.stat().st_size >= RESERVE_BYTES:
            return True
        if shutil.disk_usage(reserve.parent).free >= ENOUGH_BYTES:
            reserve.write_bytes(os.urandom(RESERVE_BYTES))  # not zeros, for which a disk may keep no room
            return True
    return False


def _draw_on(reserve: Path) -> bool:
    with suppress(OSError):
        if (left := reserve.stat().st_size) > 0:
            os.truncate(reserve, max(0, left - PIECE_BYTES))
            return True
    return False


def _emptied(connection: Connection) -> bool:
    """Whether another process kept the log from being moved."""
    return _checkpoint(connection, "TRUNCATE")


def _checkpoint(connection: Connection, how: str) -> bool:
    """Whether it was kept from being done. Below SQLAlchemy, since no transaction may be open."""
    driver: Any = connection.connection.driver_connection
    ((busy, _, _),) = driver.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
    return bool(busy)


def _code(error: BaseException) -> int:
    origin = error.orig if isinstance(error, DBAPIError) else error
    code: int = getattr(origin, "sqlite_errorcode", 0)
    return code & 0xFF  # the extended codes carry more above


def _file(url: URL) -> tuple[int, int] | None:
    """Which file the path leads to."""
    try:
        found = os.stat(str(url.database))
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lower(text: str | None) -> str | None:
    """In place of SQLite's own, which knows the letters of English only."""
    return None if text is None else text.lower()


def _wait(seconds: float) -> str:
    return f"PRAGMA busy_timeout={round(seconds * 1000)}"


def _touch(path: str) -> None:
    """Make the file readable by its owner only; SQLite gives its log the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _copy(path: Path, name: str) -> None:
    """All that is committed, in one file, on the disk before it takes its name; then the older copies go."""
    for stray in path.parent.glob(f".{path.name}.*.tmp"):
        stray.unlink()
    copy = path.with_name(f"{path.name}.{name}")
    with draft_of(copy) as draft:
        _touch(str(draft))
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(draft)) as target:
            source.backup(target)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(path.parent)
    for older in path.parent.glob(f"{path.name}.before-*"):
        if older != copy:
            older.unlink()
