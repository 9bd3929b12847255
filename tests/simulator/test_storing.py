"""What becomes of a picture that the disk does not take, in virtual time."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mezzotint.reports import AGAIN_S, STORING_S
from mezzotint.request import Resolved
from mezzotint.session import Session, State
from tests.requests import request
from tests.simulator.clock import SLOW_DISK_S, Loop, simulated
from tests.simulator.server import Server
from tests.simulator.world import World

ID = "ses_1"


class Storing:
    """A server whose one session is drawn and cannot be stored."""

    def __init__(self, data: Path, pictures: int) -> None:
        self.pictures = pictures
        self.world = World(random.Random(1))
        self.world.echoes = self.world.bad_starts = 0.0
        self.server = Server(data, self.world, ("cpu:0",))

    async def begin(self) -> None:
        await self.server.start()
        self.world.full_until = float("inf")
        await self.server.dispatcher.accept(ID, Resolved(request=request(num_images=self.pictures), warnings=()))
        while (await self.now()).progress.phase != "storing":
            await asyncio.sleep(0.1)

    async def now(self) -> Session:
        found = await self.server.store.get(ID)
        assert found is not None
        return self.server.dispatcher.view(found)

    async def end(self) -> tuple[Session, float]:
        """And the seconds until it came."""
        began = self.world.now
        while not (session := await self.now()).ended:
            await asyncio.sleep(0.1)
        return session, self.world.now - began


def in_virtual_time(data: Path, play: Callable[[Storing], Awaitable[None]], pictures: int = 2) -> None:
    async def whole() -> None:
        storing = Storing(data, pictures)
        await storing.begin()
        await play(storing)
        await storing.server.stop(0.0)

    loop = Loop(0.0, random.Random(1))
    with simulated():
        loop.run_until_complete(whole())
        loop.close()


@pytest.mark.parametrize("pictures", [1, 2])  # the last is recorded with the end
def test_a_picture_waits_for_a_full_disk(tmp_path: Path, pictures: int) -> None:
    async def play(storing: Storing) -> None:
        storing.world.full_until = storing.world.now + STORING_S / 2
        ended, _ = await storing.end()
        assert (ended.state, len(ended.images), ended.attempt) == (State.SUCCEEDED, pictures, 1)
        assert ended.spans["storing"] >= STORING_S / 2

    in_virtual_time(tmp_path, play, pictures)


@pytest.mark.parametrize("pictures", [1, 2])
def test_but_not_for_ever(tmp_path: Path, pictures: int) -> None:
    async def play(storing: Storing) -> None:
        ended, after_s = await storing.end()
        assert ended.state is State.FAILED
        assert ended.error is not None
        assert (ended.error.code, ended.error.phase, ended.error.retryable) == ("storage_full", "storing", True)
        assert STORING_S - 2.0 <= after_s <= STORING_S + 2.0

    in_virtual_time(tmp_path, play, pictures)


def test_a_cancel_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    async def play(storing: Storing) -> None:
        await storing.server.dispatcher.cancel(ID)
        ended, after_s = await storing.end()
        assert ended.state is State.CANCELLED
        assert after_s <= AGAIN_S + SLOW_DISK_S

    in_virtual_time(tmp_path, play)


def test_a_worker_that_is_lost_meanwhile_costs_nothing(tmp_path: Path) -> None:
    async def play(storing: Storing) -> None:
        await asyncio.sleep(1.0)
        storing.world.workers[0].die()
        await asyncio.sleep(10.0)
        storing.world.full_until = 0.0
        ended, _ = await storing.end()
        assert (ended.state, len(ended.images), ended.attempt) == (State.SUCCEEDED, 2, 1)

    in_virtual_time(tmp_path, play)
