"""What is told to a reader over HTTP, and what is left of one that goes."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from starlette.types import Message

from mezzotint.api import events as sse
from mezzotint.events import Events
from mezzotint.session import Preview

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("behind", [1, 5])
async def test_of_a_reader_that_leaves_amid_a_line_no_listener_stays(behind: int) -> None:
    events, full, leaves = Events(), asyncio.Event(), asyncio.Event()

    async def receive() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            full.set()
            await leaves.wait()  # to one that has left, uvicorn sends without a word

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}  # uvicorn's
    reading = asyncio.create_task(sse.stream("s", events.follow("s"), "snake")(scope, receive, send))
    listeners = events._log("s").listeners
    while not listeners:
        await asyncio.sleep(0)
    preview = Preview(image_index=0, step=1, steps=9, width=8, height=8, format="webp", b64_json=b"")
    for _ in range(behind):
        events.tell("s", "preview", preview)
    await full.wait()
    leaves.set()
    await reading
    for _ in range(10):
        await asyncio.sleep(0)
    assert not listeners
