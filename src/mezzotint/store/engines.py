"""Opens a database of any kind we know and says what its errors mean. Must not know a table."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mezzotint.errors import SetupError, TryLater
from mezzotint.store import postgres, schema, sqlite

RETRY_AFTER_S = 10
WAIT_S = 5.0  # for what another process holds


class Kind(Protocol):
    """What one kind of database does in its own way. Everything else is the same SQL."""

    def address(self, url: URL) -> URL:
        """The address with its driver. Raises SetupError when sessions cannot be kept there. Opens nothing."""

    def open(self, url: URL, wait_s: float) -> tuple[AsyncEngine, AsyncEngine]:
        """One writer whose commits are fsynced, and readers whose transactions see one instant and cannot write.

        Each waits so long for what another process holds.
        """

    def open_beside(self, url: URL, wait_s: float) -> AsyncEngine:
        """For a few rows written by another process than the server's, which it does not disturb."""

    def meaning(self, error: BaseException) -> tuple[str, str] | None:
        """Code and message of what waiting can mend. None: a bug, or a broken disk."""

    def reason(self, error: BaseException) -> str | None:
        """Why the database cannot be opened, for the operator; without secrets. None: not for that."""

    async def back_up(self, url: URL, name: str) -> None:
        """Keep a copy under this name before the schema changes, in place of earlier ones; where files are ours."""

    async def mend(self, writer: AsyncEngine) -> None:
        """After a write that failed in an unknown way: raises until all that is committed is on the disk again."""

    def broke(self, error: BaseException) -> bool:
        """Whether it is not known any more what of the database is on the disk."""

    async def mark(self, connection: AsyncConnection) -> str | None:
        """Begin a transaction; a mark to ask for its fate by, None where a failed commit is never in doubt."""

    async def committed(self, connection: AsyncConnection, mark: str) -> bool:
        """Whether the marked transaction, which can go on no more, was committed."""

    async def tidy(self, writer: AsyncEngine) -> None:
        """Leave the files as small as they can be. The last use of the writer."""


# The name in the address -> how. A third kind is a third row, and has the contract suite to pass.
KINDS: dict[str, Kind] = {"sqlite": sqlite, "postgresql": postgres}
EXAMPLES = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    kind: Kind
    writer: AsyncEngine
    readers: AsyncEngine

    async def release(self) -> None:
        """Close every connection, the writer's last: SQLite lets the last one clear the log away."""
        await self.readers.dispose()
        await self.writer.dispose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what waiting can mend into TryLater."""
        try:
            yield
        except Exception as error:
            meaning = self.kind.meaning(error)
            if meaning is None:
                raise
            code, message = meaning
            raise TryLater(message, code=code, retry_after_s=RETRY_AFTER_S) from error


async def connect(url: str, wait_s: float) -> Engines:
    """Open the database, make its file when absent, bring its schema up. Raises SetupError; then nothing stays open."""
    parsed = _parsed(url)
    kind = KINDS[parsed.get_backend_name()]
    address = kind.address(parsed)
    ready = False
    try:
        writer, readers = kind.open(address, wait_s)
    except OSError as error:
        raise _unusable(address, error.strerror) from error
    engines = Engines(kind=kind, writer=writer, readers=readers)
    try:
        await _bring_up(engines, address)
        ready = True
    except Exception as error:
        reason = kind.reason(error)
        if reason is None:
            raise
        raise _unusable(address, reason) from error
    finally:
        if not ready:
            await engines.release()
    return engines


@asynccontextmanager
async def beside(url: str) -> AsyncIterator[AsyncConnection]:
    """A transaction of a command, also while a server owns the database; its body commits. Raises SetupError."""
    parsed = _parsed(url)
    kind = KINDS[parsed.get_backend_name()]
    address = kind.address(parsed)
    try:
        engine = kind.open_beside(address, WAIT_S)
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()
    except SetupError:
        raise
    except Exception as error:
        reason = kind.reason(error)
        if reason is None:
            raise
        raise _unusable(address, reason) from error


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    except ArgumentError as error:  # it may hold a password, so it is not shown
        raise SetupError(f"the address of the database cannot be read; use {EXAMPLES}") from error
    if parsed.get_backend_name() not in KINDS:
        raise SetupError(f"databases of kind {parsed.get_backend_name()!r} are not supported; use {EXAMPLES}")
    return parsed


def _unusable(url: URL, reason: str | None) -> SetupError:
    name = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    return SetupError(f"cannot open the database {name}: {reason}")


async def _bring_up(engines: Engines, address: URL) -> None:
    async with engines.readers.connect() as connection:  # not the writer: its first pragma already changes a file
        found = await schema.revision(connection)
    if found != schema.HEAD:
        schema.check(found)
        if found is not None:
            await engines.kind.back_up(address, f"before-{schema.HEAD}")
        async with engines.writer.begin() as connection:
            await connection.run_sync(schema.upgrade)
    else:
        async with engines.writer.connect():  # taken now, so that a second owner is refused at its start
            pass
