"""What becomes of a picture that the disk does not take, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mezzotint.reports import AGAIN_S, STORING_S
from mezzotint.request import Resolved
from mezzotint.session import Session, State, Usage
from mezzotint.workers import wire
from tests.requests import request
from tests.simulator.clock import SLOW_DISK_S, in_virtual_time
from tests.simulator.server import Server
from tests.simulator.world import calm_world

ID = "ses_1"


class Storing:
    """A server whose one session is drawn and cannot be stored."""

    def __init__(self, data: Path, pictures: int) -> None:
        self.pictures = pictures
        self.world = calm_world()
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


def while_storing(data: Path, play: Callable[[Storing], Awaitable[None]], pictures: int = 2) -> None:
    async def whole() -> None:
        storing = Storing(data, pictures)
        await storing.begin()
        await play(storing)
        await storing.server.stop(0.0)

    in_virtual_time(whole())


@pytest.mark.parametrize("pictures", [1, 2])  # the last is recorded with the end
def test_a_picture_waits_for_a_full_disk(tmp_path: Path, pictures: int) -> None:
    async def play(storing: Storing) -> None:
        storing.world.full_until = storing.world.now + STORING_S / 2
        ended, _ = await storing.end()
        assert (ended.state, len(ended.images), ended.attempt) == (State.SUCCEEDED, pictures, 1)
        assert ended.spans["storing"] >= STORING_S / 2

    while_storing(tmp_path, play, pictures)


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_picture_for_which_the_disk_stays_full_fails_its_session(tmp_path: Path, pictures: int) -> None:
    async def play(storing: Storing) -> None:
        ended, after_s = await storing.end()
        assert ended.state is State.FAILED
        assert ended.error is not None
        assert (ended.error.code, ended.error.phase, ended.error.retryable) == ("storage_full", "storing", True)
        assert STORING_S - 2.0 <= after_s <= STORING_S + 2.0

    while_storing(tmp_path, play, pictures)


@pytest.mark.parametrize("given_up", [False, True])
def test_the_last_picture_ends_well_only_what_lost_none_before(tmp_path: Path, given_up: bool) -> None:
    async def whole() -> None:
        world = calm_world()
        server = Server(tmp_path, world, ("cpu:0",))
        await server.start()
        asked = request(num_images=2, num_inference_steps=100_000)
        await server.dispatcher.accept(ID, Resolved(request=asked, warnings=()))
        while not server.dispatcher.running_on("cpu:0"):
            await asyncio.sleep(0.1)
        (worker,) = [one for one in world.workers if one is not server.spare]
        world.full_until = float("inf") if given_up else 0.0
        for index, wait_s in enumerate((STORING_S + 5.0, 0.0)):
            image = wire.ImageDone(
                session_id=ID, attempt=1, index=index, seed=0, width=8, height=8, format="png", thumbnail_bytes=0,
                usage=Usage(steps_run=index),
            )  # fmt: skip
            worker.say(image, b"a picture")
            await asyncio.sleep(wait_s)
        worker.say(wire.Ended(session_id=ID, attempt=1, outcome="succeeded", usage=Usage(steps_run=9), error=None))
        await asyncio.sleep(2.0)
        world.full_until = 0.0
        await asyncio.sleep(5.0)
        ended = await server.store.get(ID)
        assert ended is not None
        code = ended.error.code if ended.error else None
        assert (ended.state, code) == ((State.FAILED, "storage_full") if given_up else (State.SUCCEEDED, None))
        assert ended.usage.steps_run == 9
        await server.stop(0.0)

    in_virtual_time(whole())


def test_a_cancel_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    async def play(storing: Storing) -> None:
        await storing.server.dispatcher.cancel(ID)
        ended, after_s = await storing.end()
        assert ended.state is State.CANCELLED
        assert after_s <= AGAIN_S + SLOW_DISK_S

    while_storing(tmp_path, play)


def test_a_worker_that_is_lost_while_the_disk_is_full_costs_nothing(tmp_path: Path) -> None:
    async def play(storing: Storing) -> None:
        await asyncio.sleep(1.0)
        storing.world.workers[0].die()
        await asyncio.sleep(10.0)
        storing.world.full_until = 0.0
        ended, _ = await storing.end()
        assert (ended.state, len(ended.images), ended.attempt) == (State.SUCCEEDED, 2, 1)

    while_storing(tmp_path, play)
