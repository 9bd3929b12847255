import asyncio

import pytest

from mezzotint.events import BACKLOG, BACKLOG_OF_ALL, KEPT_ENDED, Event, Events
from mezzotint.session import Preview

pytestmark = pytest.mark.anyio


async def told(events: Events, after: int = 0) -> list[tuple[int, str]]:
    return [(event.id, event.kind) async for event in events.follow("s", after)]


async def test_a_late_listener_gets_what_is_stored_and_not_old_progress() -> None:
    events = Events()
    for kind in ("state", "progress", "progress", "image", "end"):
        events.tell("s", kind, {})
    assert await told(events) == [(1, "state"), (4, "image"), (5, "end")]
    assert await told(events, after=4) == [(5, "end")]


async def test_a_listener_sees_everything_from_when_it_came_until_the_end() -> None:
    events = Events()
    events.tell("s", "state", {})
    listening = asyncio.create_task(told(events))
    await asyncio.sleep(0)
    for kind in ("progress", "image", "end"):
        events.tell("s", kind, {})
    assert await listening == [(1, "state"), (2, "progress"), (3, "image"), (4, "end")]


async def test_who_waits_for_the_end_hears_of_nothing_else() -> None:
    events = Events()
    over = asyncio.create_task(events.over("s"))
    for kind in ("state", "progress", "image"):
        events.tell("s", kind, {})
        await asyncio.sleep(0)
    assert not over.done()
    events.tell("s", "end", {"state": "succeeded"})
    assert await asyncio.wait_for(over, 1.0) == {"state": "succeeded"}
    assert await asyncio.wait_for(events.over("s"), 1.0) == {"state": "succeeded"}


async def test_a_slow_listener_loses_progress_but_no_stored_event() -> None:
    events = Events()
    events.tell("s", "state", {})
    stream = events.follow("s")
    assert (await anext(stream)).kind == "state"
    pending = asyncio.ensure_future(_rest(stream))
    await asyncio.sleep(0)
    for _ in range(BACKLOG * 2):
        events.tell("s", "progress", {})
    await asyncio.sleep(0)
    events.tell("s", "end", {})
    assert (await pending)[-1].kind == "end"


async def test_a_listener_that_never_reads_is_dropped_and_can_replay() -> None:
    events = Events()
    events.tell("s", "state", {})
    stream = events.follow("s")
    await anext(stream)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for _ in range(BACKLOG + 5):
        events.tell("s", "image", {})
    await first
    seen = [event.id async for event in stream]
    assert len(seen) < BACKLOG + 5
    events.tell("s", "end", {})
    again = [number for number, _ in await told(events, after=seen[-1])]
    assert [(await first).id, *seen, *again] == list(range(2, BACKLOG + 8)), "none is lost between the two"


@pytest.mark.parametrize("more", [1, BACKLOG + 5])
async def test_what_is_told_while_a_replay_is_being_read_comes_after_it(more: int) -> None:
    events = Events()
    events.tell("s", "state", {})
    stream = events.follow("s")
    await anext(stream)
    for _ in range(more):
        events.tell("s", "image", {})
    events.tell("s", "end", {})
    assert [event.kind async for event in stream] == ["image"] * more + ["end"]


async def test_a_listener_that_reads_its_replay_slowly_hears_what_comes_after_it() -> None:
    events = Events()
    events.tell("s", "state", {})
    stream = events.follow("s")
    await anext(stream)
    for _ in range(BACKLOG + 5):
        events.tell("s", "image", {})
    rest = asyncio.create_task(_rest(stream))
    await asyncio.sleep(0)
    events.tell("s", "end", {})
    assert len(await rest) == BACKLOG + 6


async def test_numbers_go_on_above_those_of_an_earlier_process() -> None:
    events = Events()
    events.begin(above=100)
    events.tell("s", "end", {})
    assert await told(events, after=7) == [(101, "end")]


async def test_of_ended_sessions_the_oldest_are_forgotten_and_none_that_waits() -> None:
    events = Events()
    events.tell("waits", "state", {})
    for number in range(KEPT_ENDED + 1):
        events.tell(str(number), "end", {})
    assert not events.knows("0")
    assert events.knows("1")
    assert events.knows("waits")


async def test_while_a_stored_event_is_written_progress_does_not_take_its_number() -> None:
    events = Events()
    with events.held({"s"}):
        number = events.last_id("s") + 1
        events.tell("s", "progress", {})
        events.tell("other", "progress", {})
        events.tell("s", "end", {})
    assert await told(events) == [(number, "end")]
    assert events.last_id("other") == 1


async def _rest(stream: object) -> list[Event]:
    return [event async for event in stream]  # type: ignore[attr-defined]


async def test_one_listener_hears_all_sessions_from_when_it_came() -> None:
    events = Events()
    events.tell("a", "state", {})
    everything = events.everything()
    first = asyncio.ensure_future(anext(everything))
    await asyncio.sleep(0)
    events.tell("b", "progress", {})
    events.tell("a", "end", {})
    assert [(session_id, event.kind) for session_id, event in await first] == [("b", "progress"), ("a", "end")]


async def test_a_bundle_holds_only_the_newest_preview_of_an_image() -> None:
    events = Events()
    first = asyncio.ensure_future(anext(events.everything()))
    await asyncio.sleep(0)
    for step in (1, 2):
        for index in (0, 1):
            events.tell("a", "preview", preview(index, step))
    events.tell("b", "preview", preview(0, 1))
    told = [(session_id, event.data.image_index, event.data.step) for session_id, event in await first]
    assert told == [("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]


def preview(index: int, step: int) -> Preview:
    return Preview(image_index=index, step=step, steps=9, width=8, height=8, format="webp", b64_json=b"")


def test_an_event_is_written_once_for_all_its_readers() -> None:
    written = []

    def write() -> bytes:
        written.append(1)
        return b"line"

    event = Event(id=1, kind="progress", data={})
    assert [event.shared("snake", write), event.shared("snake", write), event.shared("camel", write)] == [b"line"] * 3
    assert len(written) == 2


async def test_a_listener_of_all_that_never_reads_is_dropped() -> None:
    events = Events()
    everything = events.everything()
    first = asyncio.ensure_future(anext(everything))
    await asyncio.sleep(0)
    for _ in range(BACKLOG_OF_ALL + 5):
        events.tell("a", "image", {})
    assert len(await first) == BACKLOG_OF_ALL
    assert [bundle async for bundle in everything] == []
