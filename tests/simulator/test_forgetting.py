"""What is forgotten while somebody sets the clock, in virtual time."""

import asyncio
import time
from pathlib import Path
from unittest import mock

from mezzotint.events import Events
from mezzotint.retention import DAY_S, PERIOD_S, Retention
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from tests.requests import request
from tests.simulator.clock import in_virtual_time


def test_a_clock_that_is_years_ahead_for_a_moment_makes_nothing_old(tmp_path: Path) -> None:
    async def whole() -> None:
        store = await Store.open(f"sqlite:///{tmp_path}/mezzotint.db")
        retention = Retention(store, Blobs(tmp_path / "sessions"), Events(), retention_days=7)
        for session_id, age in {"ses_old": 6.9, "ses_new": 0.0}.items():
            await store.add(session_id, request(), warnings=[], now=0.0)
            await store.request_cancel(session_id, now=time.time() - age * DAY_S)
        retention.start()
        await asyncio.sleep(PERIOD_S / 2)
        right = time.time

        def ahead() -> float:
            return right() + 3650 * DAY_S

        with mock.patch.object(time, "time", ahead):
            await asyncio.sleep(PERIOD_S)
        await asyncio.sleep(PERIOD_S)
        assert [session.id for session in (await store.list())[0]] == ["ses_old", "ses_new"]
        await asyncio.sleep(0.2 * DAY_S)
        assert [session.id for session in (await store.list())[0]] == ["ses_new"]
        await retention.stop()
        await store.close()

    in_virtual_time(whole())
