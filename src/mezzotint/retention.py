"""Forgets what is old, ended sessions with their pictures and idempotency keys, and files that no row tells of.

Must not touch what has not ended.
"""

import asyncio
import time

import structlog

from mezzotint.errors import TryLater
from mezzotint.events import Events
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store

log = structlog.get_logger(__name__)

DAY_S = 86_400
KEYS_KEPT_S = DAY_S + 3600  # promised: 24 hours
PERIOD_S = 600
SET_S = 300.0  # a clock that has moved by more beside the other was set, or the machine slept
SLICE = 100  # rows of one commit, so that nobody waits long behind it


class Retention:
    """Runs beside the server, a slice at a time."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, retention_days: float | None) -> None:
        self._store, self._blobs, self._events, self._days = store, blobs, events, retention_days
        self._folders: list[str] = []
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Before anything is accepted: only folders that are there by now are looked through for strays."""
        self._folders = self._blobs.folders()
        self._loop = asyncio.create_task(self._run(), name="retention")

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def sweep(self, now: float) -> int:
        """Forget all that is old by then. Returns how many sessions. Raises TryLater; what is left waits."""
        count = 0
        while self._days is not None:
            gone = await self._store.prune(before=now - self._days * DAY_S, limit=SLICE)
            for session_id in gone:
                await self._blobs.delete(session_id)
                self._events.forget(session_id)
            count += len(gone)
            if len(gone) < SLICE:
                break
        while await self._store.forget_keys(before=now - KEYS_KEPT_S, limit=SLICE) == SLICE:
            pass
        await self._store.batches.forget(before=now - KEYS_KEPT_S)
        return count

    async def sweep_files(self) -> int:
        """Remove what a kill left of sessions that were never accepted, and pictures that were never recorded.

        Returns how many folders and pictures. Raises TryLater; what is left waits.
        """
        count = 0
        while self._folders:
            some = self._folders[-SLICE:]
            known = await self._store.pictures(some)
            for session_id in some:
                if session_id not in known:
                    await self._blobs.delete(session_id)
                    count += 1
                elif (kept := known[session_id]) is not None:
                    count += await self._blobs.keep_only(session_id, kept)
            del self._folders[-SLICE:]
        return count

    async def _run(self) -> None:
        apart_s = _clocks_apart_s()
        while True:
            before_s, apart_s = apart_s, _clocks_apart_s()
            try:
                if count := await self.sweep_files():
                    log.info("removed files that no session tells of", count=count)
                if abs(apart_s - before_s) > SET_S:  # all would be old, if only for a moment
                    log.warning("the clock was set; what is old is forgotten later", by_s=round(apart_s - before_s))
                elif count := await self.sweep(time.time()):
                    log.info("forgot old sessions", count=count)
            except TryLater as error:
                log.warning("cannot forget old sessions", code=error.code)
            except Exception:
                log.exception("forgetting failed")  # the loop must outlive any single fault
            await asyncio.sleep(PERIOD_S)


def _clocks_apart_s() -> float:
    """Changes when the wall clock is set."""
    return time.time() - time.monotonic()
