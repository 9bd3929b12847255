"""Finds sessions that wait or run by their rows and that nobody has in hand: there must be none. Changes none."""

import time
from collections.abc import Callable

import structlog

from mezzotint.store.sql import Store

log = structlog.get_logger(__name__)

EVERY_S = 10.0


class Astray:
    """`found`: those that two looks in a row found in nobody's hands. One look alone may fall between two steps."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.found: frozenset[str] = frozenset()
        self._missed: frozenset[str] = frozenset()
        self._last = time.monotonic()

    async def look(self, is_held: Callable[[str], bool]) -> None:
        """Every `EVERY_S`; between them at once. Raises TryLater."""
        if time.monotonic() - self._last < EVERY_S:
            return
        self._last = time.monotonic()
        missed = frozenset(one for one in await self._store.unfinished() if not is_held(one))
        found, self._missed = missed & self._missed, missed
        for session_id in sorted(found - self.found):
            log.error("a session is in nobody's hands; a restart of the server takes it up", session=session_id)
        self.found = found
