"""The model folders are looked at for as long as the server runs, whatever one look meets."""

import asyncio
from pathlib import Path

import pytest

from mezzotint import watching
from mezzotint.catalog import Catalog
from mezzotint.watching import Watcher

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("error", [ValueError("of a stranger's file"), PermissionError(13, "Permission denied")])
async def test_a_look_that_fails_is_not_the_last(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, looked = Catalog([tmp_path], tmp_path / "cache"), asyncio.Event()
    loop, errors = asyncio.get_running_loop(), [error]

    def scan() -> bool:
        if errors:
            raise errors.pop()
        loop.call_soon_threadsafe(looked.set)
        return False

    monkeypatch.setattr(catalog, "scan", scan)
    monkeypatch.setattr(watching, "EVERY_S", 0.01)
    monkeypatch.setattr(watching, "SHARE", 1.0)  # to write the first traceback of a process takes part of a second
    watcher = Watcher(catalog)
    watcher.start()
    await asyncio.wait_for(looked.wait(), 30)
    await watcher.stop()
