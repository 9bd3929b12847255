"""Postgres, owned by one process: who cannot take the lock cannot write. Must not know a table."""

import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError

from mezzotint.errors import SetupError
from mezzotint.store.kinds import Engine

READERS = 4
ANSWER_S = 30.0  # the longest that a statement or a commit may take
OWNER_LOCK = int.from_bytes(b"mezzotin")  # advisory locks are numbers, each database's its own

# The server asks after who is silent, and lets go of those that are gone without a word, with their locks, after half a
# minute: by its own default it would be two hours in which no other server can own the database.
_ASKED_AFTER = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "2"}
_READER = {"default_transaction_isolation": "repeatable read", "default_transaction_read_only": "on"}

_AWAY = ("not_ready", "the database does not answer; try again")
_OWNED = ("not_ready", "another server has taken the database; stop one of the two")
# What waiting can mend, by the first letters of SQLSTATE. Anything else is a bug and stays as it is.
_WAIT = {
    "08": _AWAY,  # connection exceptions
    "53100": ("storage_full", "the disk that holds the database is full; free some space"),
    "53": ("not_ready", "the database is short of memory or connections; try again"),
    "55P03": ("not_ready", "another process holds the database; try again"),
    "40": ("not_ready", "another process changed the same rows of the database; try again"),
    "57": _AWAY,  # it starts or stops, or an operator cut the connection
    "58": ("not_ready", "the database's disk failed; nothing is accepted until it is mended"),
    "25006": ("not_ready", "the database takes no writes now; try again"),
}


T = TypeVar("T")


class Sockets:
    """So many connections of an asynchronous driver, which lets the loop go on while a statement is under way."""

    def __init__(
        self,
        url: URL,
        *,
        size: int,
        settings: dict[str, str],
        set_up: Callable[[DBAPIConnection, object], None] | None = None,
    ) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine  # needs what the driver's extra installs

        named = {"application_name": "mezzotint"}  # of all settings the one that poolers take when a connection starts
        given = {"server_settings": named, "timeout": 5, "command_timeout": ANSWER_S}
        self._engine = create_async_engine(
            url, pool_size=size, max_overflow=0, hide_parameters=True, connect_args=given
        )
        told = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in (_ASKED_AFTER | settings).items())

        @event.listens_for(self._engine.sync_engine, "connect")
        def tell(connection: DBAPIConnection, _record: object) -> None:
            _answer(connection, f"SELECT {told}")

        if set_up is not None:
            event.listen(self._engine.sync_engine, "connect", set_up)

        @event.listens_for(self._engine.sync_engine, "checkout")
        def refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
            if connection.driver_connection.is_closed():  # known without asking the server
                raise DisconnectionError

    async def run(self, body: Callable[[Connection], T]) -> T:
        async with self._engine.connect() as connection:
            return await connection.run_sync(body)

    async def dispose(self) -> None:
        await self._engine.dispose()


class _OwnedByAnother(Exception):
    """Another session holds the lock."""


def address(url: URL) -> URL:
    if not url.database:
        raise SetupError("the address names no database; use postgresql://USER:PASSWORD@HOST/NAME")
    try:
        import asyncpg  # noqa: F401
    except ImportError as error:
        raise SetupError("Postgres needs a driver; pip install 'mezzotint[postgres]'") from error
    return url.set(drivername="postgresql+asyncpg")


def open(url: URL, wait_s: float) -> tuple[Engine, Engine]:  # noqa: A001  Kind's word
    writer = Sockets(url, size=1, settings=_writer(wait_s), set_up=_own)
    return writer, Sockets(url, size=READERS, settings=_READER)


def open_beside(url: URL, wait_s: float) -> Engine:
    return Sockets(url, size=1, settings=_writer(wait_s))


def meaning(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, _OwnedByAnother):
        return _OWNED
    if isinstance(error, OSError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return _AWAY  # refused, or gone; a time-out is an OSError too
    state = _sqlstate(error)
    return next((said for length in (5, 2) if (said := _WAIT.get(state[:length])) is not None), None)


def reason(error: BaseException) -> str | None:
    if isinstance(error, _OwnedByAnother):
        return "it is in use by another server; stop that one or choose another --database"
    if isinstance(error, OSError):
        return error.strerror or "it does not answer"
    return str(_origin(error)).partition("\n")[0] if _sqlstate(error) else None


async def back_up(url: URL, name: str) -> None:
    """Nothing: the server's files are not ours."""


async def mend(writer: Engine) -> None:
    """Nothing: a server whose disk fails ends itself, and recovers from its log."""


def broke(error: BaseException) -> bool:
    return False


def mark(connection: Connection) -> str | None:
    # not the transaction's own number: what a crash did not keep is given again, to anybody
    token = secrets.token_hex(16)
    connection.exec_driver_sql("UPDATE last_commit SET token = $1", (token,))
    return token


def committed(connection: Connection, mark: str) -> bool:
    """Certain: whoever has the writer's connection has the lock, so that the session that began it is over."""
    return bool(connection.exec_driver_sql("SELECT token FROM last_commit").scalar_one() == mark)


async def set_aside(url: URL, writer: Engine) -> bool:
    return True  # the server's disk is not ours


async def draw_on(url: URL) -> bool:
    return False


async def tidy(writer: Engine) -> None:
    """Nothing: the server looks after its own files."""


def _writer(wait_s: float) -> dict[str, str]:
    return {"synchronous_commit": "on", "lock_timeout": f"{round(wait_s * 1000)}ms"}


def _own(connection: DBAPIConnection, _record: object) -> None:
    # invariant: every connection that can write holds the lock, and a lost one has lost it
    if not _answer(connection, f"SELECT pg_try_advisory_lock({OWNER_LOCK})"):
        connection.driver_connection.terminate()
        raise _OwnedByAnother


def _answer(connection: DBAPIConnection, statement: str) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone()
    cursor.close()
    connection.commit()
    return None if row is None else row[0]


def _origin(error: BaseException) -> BaseException:
    """The driver's own error below SQLAlchemy's wrappings."""
    while isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    return error.__cause__ if not hasattr(error, "sqlstate") and error.__cause__ is not None else error


def _sqlstate(error: BaseException) -> str:
    return getattr(_origin(error), "sqlstate", None) or ""
