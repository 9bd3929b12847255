"""Looks at the model folders every few seconds, so that what comes, changes or goes is known without a restart.

Must not stop anything: sessions under way keep the model that they began with.
"""

import asyncio
import time

import structlog

from mezzotint.catalog import Catalog

log = structlog.get_logger(__name__)

EVERY_S = 2.0
SHARE = 0.05  # of the time, at most, that looking may take: a slow disk is looked at less often


class Watcher:
    """Polls: names, sizes and times of files are cheap to read, and folders on a network tell no events."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="watcher")

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            started = time.monotonic()
            try:
                if await asyncio.to_thread(self._catalog.scan):
                    log.info("models have changed", models=len(self._catalog.models))
            except OSError as error:
                log.warning("the model folders cannot be read", reason=error.strerror)
            except Exception:
                log.exception("looking at the model folders failed")  # the next look may find them mended
            pause_s = max(EVERY_S, (time.monotonic() - started) / SHARE)
