"""One way in around the store for each kind of database. Must not use the store."""

import asyncio
import contextlib
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Backend(Protocol):
    """A database: how to open a store on it and how to go around the store."""

    url: str
    refusals: tuple[type[Exception], ...]  # what going against a constraint raises

    def raw(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement, committed, with `?` for values, which are text."""


class Sqlite:
    refusals: tuple[type[Exception], ...] = (sqlite3.IntegrityError,)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def raw(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=5)) as connection, connection:
            return connection.execute(statement, values).fetchall()


class Postgres:
    def __init__(self, folder: Path, name: str) -> None:
        import asyncpg

        self.folder, self.name = folder, name
        self.url = f"postgresql://postgres:canary-secret@/{name}?host={folder}"
        self.refusals: tuple[type[Exception], ...] = (asyncpg.IntegrityConstraintViolationError,)

    def raw(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        parts = statement.split("?")
        numbered = parts[0] + "".join(f"${i}{part}" for i, part in enumerate(parts[1:], 1))

        async def run() -> list[tuple[Any, ...]]:
            connection = await self.connect()
            try:
                return [tuple(row) for row in await connection.fetch(numbered, *values)]
            finally:
                await connection.close()

        return _apart(run())

    async def connect(self) -> Any:
        import asyncpg

        return await asyncpg.connect(host=str(self.folder), user="postgres", database=self.name)


class PostgresServer:
    """A server of our own in a temporary folder, on a socket in it, run by who is not root."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="mezzotint-pg-"))
        self.run_as: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self.run_as = ["runuser", "-u", "postgres", "--"]
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "--no-instructions")

    @classmethod
    def programs(cls) -> Path | None:
        """Where initdb and pg_ctl of the newest version are, None when there are none."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
        on_path = shutil.which("initdb")
        return found[-1].parent if found else Path(on_path).parent if on_path else None

    def start(self, *, port: int | None = None) -> None:
        """`port`: to listen on at 127.0.0.1, too."""
        # fsync off: these tests kill processes, not machines
        listens = "listen_addresses=" if port is None else f"listen_addresses=127.0.0.1 -p {port}"
        options = f"-k {self.folder} -c {listens} -c fsync=off -c max_connections=60"
        self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self.folder}/log", "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: every connection breaks, and the next start recovers."""
        self._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *options: str) -> None:
        command = [*self.run_as, str(self._programs / program), f"--pgdata={self.folder}/data", *options]
        subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL)


def _apart(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own, also where a loop runs."""
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  handed over
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
