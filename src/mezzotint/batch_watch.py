"""Stops batches that are to stop on the first error. Must not end a session itself: the dispatcher cancels."""

import asyncio

import structlog

from mezzotint.dispatcher import Dispatcher
from mezzotint.errors import TryLater
from mezzotint.session import FINAL, State
from mezzotint.store.sql import Store

log = structlog.get_logger(__name__)

LOOK_S = 0.5
_FAILED = frozenset({State.FAILED, State.EXPIRED})


class BatchWatch:
    """Looks at each such batch twice a second while it runs, and takes up those of an earlier process."""

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self._store, self._dispatcher = store, dispatcher
        self._watched: set[str] = set()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._watched |= set(await self._store.batches.stopping())
        self._loop = asyncio.create_task(self._run(), name="batches")

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    def watch(self, batch_id: str) -> None:
        """From now on. Only for a batch that is stored."""
        self._watched.add(batch_id)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait() if not self._watched else await asyncio.sleep(LOOK_S)
            self._wake.clear()
            try:
                for batch_id in list(self._watched):
                    await self._look(batch_id)
            except TryLater as error:
                log.warning("cannot look at batches", code=error.code)
            except Exception:
                log.exception("looking at batches failed")  # the loop must outlive any single fault

    async def _look(self, batch_id: str) -> None:
        found = await self._store.batches.get(batch_id)
        sessions = found[1] if found is not None else {}
        active = [session_id for session_id, one in sessions.items() if one.state not in FINAL]
        if active and any(one.state in _FAILED for one in sessions.values()):
            await self._dispatcher.cancel_all(active)
        elif not active:
            self._watched.discard(batch_id)
