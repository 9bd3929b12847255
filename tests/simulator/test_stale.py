"""What a worker says of an attempt that is over, in virtual time: it changes nothing, whatever it is."""

import asyncio
from pathlib import Path
from typing import Any

from mezzotint.request import Resolved
from mezzotint.session import State, Usage
from mezzotint.workers import wire
from tests.requests import request
from tests.simulator.clock import in_virtual_time
from tests.simulator.server import Server
from tests.simulator.worker import drawn
from tests.simulator.world import calm_world

ID = "ses_1"
ASKED = request(num_inference_steps=40)


def test_messages_of_an_earlier_attempt_are_dropped(tmp_path: Path) -> None:
    async def play() -> None:
        world = calm_world()
        server = Server(tmp_path, world, ("cpu:0",))
        await server.start()
        await server.dispatcher.accept(ID, Resolved(request=ASKED, warnings=()))

        async def until(state: State, step: int = 0) -> None:
            async with asyncio.timeout(60):
                while True:
                    found = await server.store.get(ID)
                    assert found is not None
                    if found.state is state and server.dispatcher.view(found).progress.step >= step:
                        return
                    await asyncio.sleep(0.1)

        await until(State.RUNNING, 5)
        await server.dispatcher.pause(ID)
        await until(State.PAUSED)
        await server.dispatcher.resume(ID)
        await until(State.RUNNING, 15)
        (worker,) = [one for one in world.workers if one is not server.spare]
        stale: dict[str, Any] = {"session_id": ID, "attempt": 1, "usage": Usage()}
        for message in (
            wire.Checkpoint(**stale, index=0, step=1),
            wire.ImageDone(**stale, index=0, seed=7, width=8, height=8, format="png", thumbnail_bytes=0),
            wire.Paused(**stale),
            wire.Ended(**stale, outcome="succeeded", error=None),
        ):
            worker.say(message, drawn(request(prompt="another"), 0) if isinstance(message, wire.ImageDone) else b"")
            await asyncio.sleep(0.5)
        await until(State.SUCCEEDED)
        ended = await server.store.get(ID)
        assert ended is not None
        assert ended.attempt == 2
        (image,) = ended.images
        assert (tmp_path / "sessions" / ID / image.sha256).read_bytes() == drawn(ASKED, 0)
        moves = [one.to_state for one in await server.store.transitions(ID)]
        assert moves == ["queued", "running", "paused", "queued", "running", "succeeded"]
        await server.stop(0.0)

    in_virtual_time(play())
