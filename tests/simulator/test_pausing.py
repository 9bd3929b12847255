"""What a pause means while others want something else of its session, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mezzotint import checkpoints
from mezzotint.errors import Conflict, TryLater
from mezzotint.request import Resolved
from mezzotint.session import Session, State
from tests.requests import request
from tests.simulator.clock import SLOW_DISK_S, in_virtual_time
from tests.simulator.server import Server
from tests.simulator.world import calm_world

ID = "ses_1"


async def now(server: Server) -> Session:
    found = await server.store.get(ID)
    assert found is not None
    return server.dispatcher.view(found)


def play(data: Path, seed: int, whole: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
    """With a server on which one session has done some of its steps."""

    async def run() -> None:
        world = calm_world(seed)
        server = Server(data, world, ("cpu:0",))
        await server.start()
        await server.dispatcher.accept(ID, Resolved(request=request(num_inference_steps=60), warnings=()))
        while (await now(server)).progress.step < 10:
            await asyncio.sleep(0.1)
        await whole(server)
        await server.stop(0.0)

    in_virtual_time(run(), seed=seed)


def test_a_cancel_ends_a_session_whose_pause_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise TryLater("the disk is full", code="storage_full", retry_after_s=10)

    async def whole(server: Server) -> None:
        monkeypatch.setattr(checkpoints, "_write", full)
        dispatcher = server.dispatcher
        await dispatcher.pause(ID)
        await asyncio.sleep(5)
        session = await now(server)
        assert (session.state, session.progress.step > 0) == (State.RUNNING, True)
        assert not dispatcher.idle, "it is still to be written"
        await dispatcher.cancel(ID)
        await asyncio.sleep(2 * SLOW_DISK_S)
        assert (await now(server)).state is State.CANCELLED
        assert dispatcher.idle

    play(tmp_path, 1, whole)


@pytest.mark.parametrize("seed", range(4))
def test_a_resume_right_behind_a_pause_keeps_the_times(tmp_path: Path, seed: int) -> None:
    async def whole(server: Server) -> None:
        await server.dispatcher.pause(ID)
        while True:
            try:
                await server.dispatcher.resume(ID)
                break
            except Conflict:
                await asyncio.sleep(0.001)
        while not (session := await now(server)).ended:
            await asyncio.sleep(0.2)
        assert session.ended_at is not None
        assert sum(session.spans.values()) == pytest.approx(session.ended_at - session.created_at, abs=0.05)

    play(tmp_path, seed, whole)
