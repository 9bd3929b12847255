"""Opens a database of any kind we know and says what its errors mean. Must not know a table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from mezzotint.errors import SetupError, TryLater
from mezzotint.store import postgres, schema, sqlite
from mezzotint.store.kinds import Engine, Kind

RETRY_AFTER_S = 10
WAIT_S = 5.0  # for what another process holds

T = TypeVar("T")


# The name in the address -> how. A third kind is a third row, and has the contract suite to pass.
KINDS: dict[str, Kind] = {"sqlite": sqlite, "postgresql": postgres}
EXAMPLES = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    kind: Kind
    address: URL
    writer: Engine
    readers: Engine

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
    engines = Engines(kind=kind, address=address, writer=writer, readers=readers)
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


async def beside(url: str, body: Callable[[Connection], T]) -> T:
    """A transaction of a command, also while a server owns the database; the body commits. Raises SetupError."""
    parsed = _parsed(url)
    kind = KINDS[parsed.get_backend_name()]
    address = kind.address(parsed)
    try:
        engine = kind.open_beside(address, WAIT_S)
        try:
            return await engine.run(body)
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
    if url.get_backend_name() == "sqlite":
        return SetupError(f"cannot open the database {url.database}: {reason}; this user must own it and its folder")
    return SetupError(f"cannot open the database {url.render_as_string(hide_password=True)}: {reason}")


async def _bring_up(engines: Engines, address: URL) -> None:
    found = await engines.readers.run(schema.revision)  # not the writer: its first pragma already changes a file
    if found != schema.HEAD:
        schema.check(found)
        if found is not None:
            await engines.kind.back_up(address, f"before-{schema.HEAD}")
        await engines.writer.run(schema.upgrade)
    else:
        await engines.writer.run(lambda connection: None)  # taken now, so that a second owner is refused at its start
