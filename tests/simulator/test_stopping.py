"""A server that stops while its worker still says things, in virtual time."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from mezzotint.reports import AGAIN_S
from mezzotint.request import Resolved
from mezzotint.session import Usage
from mezzotint.workers import wire
from tests.requests import request
from tests.simulator.clock import in_virtual_time
from tests.simulator.server import Server
from tests.simulator.worker import PlayedWorker
from tests.simulator.world import World, calm_world

IDS = [f"ses_{number}" for number in range(8)]
ASKED = request(num_inference_steps=1000, num_images=2)


def stopped(data: Path, says: Callable[[World, PlayedWorker], None]) -> dict[str, str]:
    """Each session's state after a stop amid which the worker says something; nothing is left running."""
    found: dict[str, str] = {}

    async def play() -> None:
        world = calm_world()
        server = Server(data, world, ("cpu:0",))
        await server.start()
        for session_id in IDS:
            await server.dispatcher.accept(session_id, Resolved(request=ASKED, warnings=()))
        while len(server.dispatcher.running_on("cpu:0")) < len(IDS):
            await asyncio.sleep(0.1)
        (worker,) = [one for one in world.workers if one is not server.spare]
        draining = asyncio.create_task(server.dispatcher.drain(0.0))
        await asyncio.sleep(0.0)
        says(world, worker)
        await draining
        await asyncio.sleep(AGAIN_S / 2)
        assert "write again" not in {one.get_name() for one in asyncio.all_tasks()}
        for session_id in IDS:
            session = await server.store.get(session_id)
            assert session is not None
            found[session_id] = session.state
        await server.stop(0.0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left

    in_virtual_time(play())
    return found


def test_a_session_that_ends_while_the_others_are_sent_back_stops_nothing(tmp_path: Path) -> None:
    def ends(_: World, worker: PlayedWorker) -> None:
        worker.say(wire.Ended(session_id=IDS[-1], attempt=1, outcome="failed", usage=Usage(), error=None))

    states = stopped(tmp_path, ends)
    assert states == dict.fromkeys(IDS, "queued") | {IDS[-1]: "failed"}


def test_a_picture_that_comes_then_is_not_tried_again_on_a_full_disk(tmp_path: Path) -> None:
    def draws(world: World, worker: PlayedWorker) -> None:
        world.full_until = float("inf")
        worker.say(
            wire.ImageDone(
                session_id=IDS[-1], attempt=1, index=0, seed=0, width=8, height=8, format="png", thumbnail_bytes=0,
                usage=Usage(),
            ),
            b"a picture",
        )  # fmt: skip

    assert stopped(tmp_path, draws) == dict.fromkeys(IDS, "queued")
