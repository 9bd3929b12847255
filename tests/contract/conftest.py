"""Databases for the suites of the store: every test that asks for `backend` or `store` runs once for each kind."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mezzotint.store.sql import Store
from tests.contract.backends import Backend, Postgres, PostgresServer, Sqlite

_names = (f"mezzotint_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mezzotint.db"
    _bring_up(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    pytest.importorskip("asyncpg", reason="asyncpg is not installed: pip install 'mezzotint[postgres]'")
    programs = PostgresServer.programs()
    if programs is None:
        pytest.skip("Postgres is not installed: apt-get install postgresql")
    server = PostgresServer(programs)
    server.start()
    Postgres(server.folder, "postgres").raw("CREATE DATABASE template_of_all")
    _bring_up(Postgres(server.folder, "template_of_all").url)
    yield server
    server.remove()


@pytest.fixture
def sqlite(template: Path, tmp_path: Path) -> Sqlite:
    """A database with the schema and no rows."""
    return Sqlite(Path(shutil.copy(template, tmp_path / "mezzotint.db")))


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[Postgres]:
    """The same, in Postgres."""
    keeper, name = Postgres(postgres_server.folder, "postgres"), next(_names)
    keeper.raw(f"CREATE DATABASE {name} TEMPLATE template_of_all")
    yield Postgres(postgres_server.folder, name)
    keeper.raw(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    opened = await Store.open(backend.url)
    yield opened
    await opened.close()


def _bring_up(url: str) -> None:
    async def make() -> None:
        await (await Store.open(url)).close()

    asyncio.run(make())
