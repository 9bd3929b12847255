"""How much each API key takes up, against its limits. Must not know what a key may do, or of HTTP."""

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mezzotint.callers import Caller
from mezzotint.errors import TryLater
from mezzotint.request import Request
from mezzotint.store.sql import Store

MAX_WAIT_S = 59  # clients give up on more
MAX_NAMES = 10_000


class Buckets:
    """So much a minute for each name, the first minute's at once. Who has any left may take more, and owes it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}  # what was left, and when

    def take(self, name: str, amount: float, per_minute: float) -> int | None:
        """None: taken. Else nothing was, and some is left in so many seconds."""
        now = self._clock()
        level, since = self._levels.pop(name, (per_minute, now))
        level = min(per_minute, level + (now - since) * per_minute / 60)
        taken = level > 0
        self._levels[name] = (level - amount if taken else level, now)  # at the end: the least used stand first
        if len(self._levels) > MAX_NAMES:
            del self._levels[next(iter(self._levels))]
        return None if taken else math.floor(-level * 60 / per_minute) + 1

    def give_back(self, name: str, amount: float) -> None:
        if name in self._levels:
            level, since = self._levels[name]
            self._levels[name] = (level + amount, since)


class Quotas:
    """Refuses what is over a key's limits. Callers without a key have none."""

    def __init__(self, store: Store, waiting: Callable[[str], int]) -> None:
        """`waiting`: how many sessions of a key wait, each from the moment on in which its acceptance is over."""
        self._store, self._waiting = store, waiting
        self._requests, self._steps = Buckets(), Buckets()
        self._coming: Counter[str] = Counter()  # sessions by key that are being accepted

    def count_request(self, caller: Caller) -> None:
        """Raises TryLater `quota_exceeded`."""
        if caller.key is not None and caller.limits is not None:
            most = caller.limits.requests_per_minute
            _check("requests_per_minute", most, self._requests.take(caller.key, 1, most))

    @asynccontextmanager
    async def room_for(self, caller: Caller, requests: Sequence[Request]) -> AsyncIterator[None]:
        """Around the acceptance of these, all or none; a refusal of it costs nothing.

        Raises TryLater `quota_exceeded` naming the limit.
        """
        if caller.key is None or caller.limits is None:
            yield
            return
        key, limits = caller.key, caller.limits
        if await self._store.stored_by(key) >= limits.stored_bytes:
            _check("stored_bytes", limits.stored_bytes, MAX_WAIT_S)
        # from here to the acceptance nothing waits, or two would both find the last place taken, or free
        if len(requests) > limits.queued:
            message = (
                f"these are {len(requests)} sessions, and this API key's limit is queued={limits.queued}; "
                f"send {limits.queued} at most at a time, or ask for a higher limit"
            )
            raise TryLater(message, code="quota_exceeded", retry_after_s=MAX_WAIT_S)
        if self._waiting(key) + self._coming[key] + len(requests) > limits.queued:
            _check("queued", limits.queued, 10)
        cost = sum(one.width * one.height * one.steps * one.num_images for sent in requests for one in sent.passes)
        most = limits.pixel_steps_per_minute
        _check("pixel_steps_per_minute", most, self._steps.take(key, cost, most))
        self._coming[key] += len(requests)
        try:
            yield
        except Exception:  # a caller who only leaves is accepted all the same
            self._steps.give_back(key, cost)
            raise
        finally:
            self._coming[key] -= len(requests)
            if not self._coming[key]:
                del self._coming[key]


def _check(limit: str, most: float, wait_s: int | None) -> None:
    if wait_s is not None:
        message = f"this API key's limit {limit}={most:g} is reached; send it again later, or ask for a higher limit"
        raise TryLater(message, code="quota_exceeded", retry_after_s=min(MAX_WAIT_S, max(1, wait_s)))
