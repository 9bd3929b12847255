"""What the dispatcher does when a worker goes at an awkward moment; the store is real, the workers are not."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint.catalog import Catalog
from mezzotint.checkpoints import Checkpoints
from mezzotint.dispatcher import Dispatcher
from mezzotint.events import Events
from mezzotint.measurements import Measurements
from mezzotint.refs import Refs
from mezzotint.request import Resolved
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from tests.requests import request

pytestmark = pytest.mark.anyio


class Worker:
    """Dies after so many looks at whether it lives."""

    device = "cpu:0"
    hello = heartbeat = None

    def __init__(self, name: str, looks: int) -> None:
        self.id, self._looks = name, looks
        self.sent: list[wire.ToWorker] = []

    @property
    def alive(self) -> bool:
        self._looks -= 1
        return self._looks >= 0

    def send(self, message: wire.ToWorker, blob: bytes = b"") -> None:
        self.sent.append(message)


async def test_a_session_that_comes_as_its_worker_dies_goes_to_the_next(tmp_path: Path, random_sd: Path) -> None:
    catalog = Catalog([random_sd], tmp_path)
    catalog.scan()
    dying, next_one = Worker("wrk_1", 1), Worker("wrk_2", 1000)
    supervisor: Any = SimpleNamespace(ready=lambda: [dying] if dying._looks > 0 else [dying, next_one])
    store = await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'db'}")
    blobs, choices = Blobs(tmp_path / "sessions"), Choices(tmp_path, 1)
    known = Measurements(tmp_path, 1, keep=False)
    kept = Checkpoints(tmp_path / "checkpoints")
    dispatcher = Dispatcher(store, blobs, kept, Refs(catalog), supervisor, Events(), choices, known)
    await dispatcher.start()
    try:
        await dispatcher.accept("ses_1", Resolved(request=request(), warnings=()))
        async with asyncio.timeout(10):
            while not next_one.sent:
                await asyncio.sleep(0.01)
        (submit,) = next_one.sent
        assert isinstance(submit, wire.Submit)
        assert (submit.session_id, submit.attempt, dying.sent) == ("ses_1", 2, [])
    finally:
        await dispatcher.drain(0)
        await store.close()
