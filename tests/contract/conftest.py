"""Databases for the suites of the store. A second kind is a second value of `backend`."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mezzotint.store.sql import Store
from tests.contract.stores import Backend


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mezzotint.db"

    async def make() -> None:
        await (await Store.open(f"sqlite+aiosqlite:///{path}")).close()

    asyncio.run(make())
    return path


@pytest.fixture(params=["sqlite"])
def backend(template: Path, tmp_path: Path) -> Backend:
    """A database with the schema and no rows."""
    return Backend(Path(shutil.copy(template, tmp_path / "mezzotint.db")))


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    opened = await Store.open(backend.url)
    yield opened
    await opened.close()
