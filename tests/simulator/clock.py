"""An event loop in which time jumps to whatever happens next, and nothing ever runs in another thread.

What would (files, SQLite) runs at once instead, and its caller hears of it some drawn time later: so a seed decides the
order of everything, and a minute takes milliseconds. Knows nothing of Mezzotint.
"""

import asyncio
import logging
import random
import selectors
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from sqlalchemy import Connection

from mezzotint.store.sqlite import Threads

EPOCH = 1_800_000_000.0  # of the wall clock
DISK_S = 0.002  # that a call of the disk or the database takes on average
SLOW_DISK_S, SLOW = 1.0, 0.01  # the most that one in a hundred takes


class Loop(asyncio.SelectorEventLoop):
    """`now` is virtual and only rises. Raises RuntimeError when everything waits for what will never come."""

    def __init__(self, now: float, chance: random.Random) -> None:
        self.now, self.chance = now, chance
        self.database_full_until = 0.0  # no transaction of a writer begins before
        super().__init__(_Instant(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, call: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """At once, in this very thread; told later."""
        future = self.create_future()
        tell: Callable[[Any], None]
        try:
            told, tell = call(*args), future.set_result
        except Exception as error:  # noqa: BLE001  whatever it is, it is the caller's
            told, tell = error, future.set_exception
        slow = self.chance.random() < SLOW
        delay_s = self.chance.uniform(0, SLOW_DISK_S) if slow else self.chance.expovariate(1 / DISK_S)
        self.call_later(delay_s, _tell, future, tell, told)
        return future


def _tell(future: "asyncio.Future[Any]", tell: Callable[[Any], None], told: Any) -> None:
    if not future.done():  # else whoever asked has gone
        tell(told)


class _Instant(selectors.SelectSelector):
    """Waits for nothing outside: instead of waiting, the clock is put on."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing is left to happen")
        self._loop.now += max(0.0, timeout)
        return []


_run = Threads._run


def _transaction(threads: Threads, body: Callable[[Connection], Any]) -> Any:
    """Writers have one thread, readers several."""
    loop = asyncio._get_running_loop()
    if threads._size == 1 and isinstance(loop, Loop) and loop.now < loop.database_full_until:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error
    return _run(threads, body)


@contextmanager
def simulated() -> Iterator[None]:
    """Clocks and chance are those of the loop that runs, and a database can be full."""
    monotonic = time.monotonic
    chance = random.random

    def drawn() -> float:
        loop = asyncio._get_running_loop()
        return loop.chance.random() if isinstance(loop, Loop) else chance()

    def now() -> float:
        loop = asyncio._get_running_loop()
        return loop.now if isinstance(loop, Loop) else monotonic()

    def wall() -> float:
        return EPOCH + now()

    with (
        mock.patch.object(time, "monotonic", now),
        mock.patch.object(time, "time", wall),
        mock.patch.object(random, "random", drawn),
        mock.patch.object(Threads, "_run", _transaction),
    ):
        yield


def in_virtual_time(play: Coroutine[Any, Any, None], seed: int = 1) -> None:
    """One play, to its end."""
    loop = Loop(0.0, random.Random(seed))
    with simulated():
        loop.run_until_complete(play)
        loop.close()


def abandon(loop: Loop, close: Callable[[], Any]) -> None:
    """Stop all that runs in it without a chance to say or write anything that counts, then `close` and the loop."""

    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it may say that a connection was cut off
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    loop.chance = random.Random(0)  # in whatever order they end, the seed's own goes on where it was

    async def end() -> None:
        me = asyncio.current_task()
        for _ in range(20):
            left = [one for one in asyncio.all_tasks() if one is not me]
            if not left:
                break
            for one in left:
                one.cancel()
            await asyncio.wait(left, timeout=1)
        await close()

    loop.run_until_complete(end())
    loop.close()
