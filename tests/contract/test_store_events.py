"""What is told is kept with the change it tells of, and told again after a restart. Must not test who listens."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mezzotint.errors import TryLater
from mezzotint.events import KEPT, Events
from mezzotint.session import Session
from mezzotint.store.rows import Attempt
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import (
    CANCELLED,
    ID,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    add,
    claim,
    finish,
    image,
    known,
    request,
    requeue,
    running,
)

pytestmark = pytest.mark.anyio

WARNING = {"code": "prompt_cut", "message": "cut", "field": "prompt"}


@asynccontextmanager
async def started(backend: Backend, queue_size: int = 100) -> AsyncIterator[tuple[Store, Events]]:
    """A store as a server opens it."""
    events = Events()
    store = await Store.open(backend.url, queue_size=queue_size, events=events)
    await store.begin(now=1.0)
    yield store, events
    await store.close()


async def kinds(store: Store, session_id: str = ID, after: int = 0) -> list[tuple[int, str]]:
    return [(event.id, event.kind) for event in await store.replay(session_id, after=after)]


async def heard(events: Events, session_id: str = ID) -> list[tuple[int, str]]:
    """What a listener gets of an ended session."""
    return [(event.id, event.kind) async for event in events.follow(session_id)]


async def test_what_is_told_is_what_is_kept_with_the_same_numbers_and_values(backend: Backend) -> None:
    async with started(backend) as (store, events):
        sent = [WARNING]
        await store.add(ID, request(), warnings=sent, now=1.0)
        await claim(store)
        events.tell(ID, "progress", {"step": 1})
        await store.add_image(ID, attempt=1, image=image())
        assert await store.add_warning(ID, attempt=1, warning=WARNING | {"code": "other"})
        await finish(store, SUCCEEDED)
        told = [event async for event in events.follow(ID)]
        assert told == await store.replay(ID)
        assert [(event.id, event.kind) for event in told] == [
            (1, "state"),
            (2, "warning"),
            (3, "state"),
            (5, "image"),
            (6, "warning"),
            (7, "state"),
            (8, "end"),
        ]
        assert [event.data.state for event in told if isinstance(event.data, Session)] == [
            QUEUED,
            RUNNING,
            SUCCEEDED,
            SUCCEEDED,
        ]
        assert told[-1].data == await known(store)
        assert told[3].data == image()
        assert await kinds(store, after=6) == [(7, "state"), (8, "end")]
        assert await kinds(store, after=8) == []
        assert await store.replay("ses_unknown") == await store.replay("\0") == []


async def test_what_changes_nothing_tells_nothing(backend: Backend) -> None:
    async with started(backend, queue_size=1) as (store, events):
        await running(store)
        await store.add_image(ID, attempt=1, image=image())
        before = await kinds(store)
        await claim(store)
        await requeue(store, attempt=7)
        await store.add_image(ID, attempt=1, image=image())
        await store.add_image(ID, attempt=7, image=image(1))
        await store.request_cancel(ID, now=1.0)  # a flag, not a change of state
        assert not await store.add_warning(ID, attempt=7, warning=WARNING)
        assert await store.add_warning(ID, attempt=1, warning=WARNING)
        assert not await store.add_warning(ID, attempt=1, warning=WARNING), "it is known"
        await add(store, "ses_2")
        with pytest.raises(TryLater):
            await add(store, "ses_3")
        assert await kinds(store) == [*before, (4, "warning")]
        assert await kinds(store, "ses_3") == []
        assert events.last_id(ID) == 4


async def test_a_change_that_cannot_be_committed_is_not_told(backend: Backend) -> None:
    async with started(backend) as (store, events):
        first = await add(store)
        with pytest.raises(Exception, match=r"(?i)unique"):
            await add(store)
        assert await kinds(store) == [(1, "state")]
        assert events.last_id(ID) == 1
        assert await known(store) == first


async def test_after_a_restart_numbers_go_on_above_a_block_and_what_was_missed_is_there(backend: Backend) -> None:
    async with started(backend) as (store, events):
        for session_id in (ID, "ses_cancel", "ses_pause"):
            await running(store, session_id)
        for _ in range(50):
            events.tell(ID, "progress", {})
        await store.request_cancel("ses_cancel", now=2.0)
        await store.request_pause("ses_pause")
        last = events.last_id(ID)
    async with started(backend) as (store, events):
        pass  # a start that tells nothing
    async with started(backend) as (store, events):
        await store.recover(now=3.0)
        block = 2_000_000
        assert await kinds(store, after=last) == [(block + 1, "state")]
        assert await kinds(store, "ses_pause", after=last) == [(block + 1, "state")]
        assert await kinds(store, "ses_cancel", after=2) == [(block + 1, "state"), (block + 2, "end")]
        assert await heard(events, "ses_cancel") == [(block + 1, "state"), (block + 2, "end")]
        events.tell(ID, "progress", {})
        await claim(store)
        await finish(store, SUCCEEDED, attempt=2)
        assert [number for number, _ in await kinds(store)] == [1, 2, *(block + n for n in (1, 3, 4, 5))]
        await add(store, "ses_new")
        assert await kinds(store, "ses_new") == [(block + 1, "state")]


async def test_events_are_told_in_the_order_they_are_kept_in_however_calls_race(backend: Backend) -> None:
    async with started(backend) as (store, events):
        for i in range(20):
            session_id = f"ses_{i}"
            await running(store, session_id)
            calls = [
                store.add_image(session_id, attempt=1, image=image()),
                requeue(store, session_id=session_id),
                store.request_cancel(session_id, now=1.0),
                store.add_warning(session_id, attempt=1, warning=WARNING),
                finish(store, SUCCEEDED, session_id=session_id),
            ]
            await asyncio.gather(*(calls if i % 2 else reversed(calls)))
            if not (await known(store, session_id)).ended:
                await finish(store, CANCELLED, session_id=session_id)
            told = await kinds(store, session_id)
            assert told == await heard(events, session_id)
            assert [number for number, _ in told] == list(range(1, len(told) + 1))
            assert [kind for _, kind in told].count("end") == 1


async def test_attempts_tell_where_and_how_long_each_was(store: Store) -> None:
    await add(store)
    assert await store.attempts(ID) == await store.attempts("\0") == []
    await store.claim(ID, worker="w0", device="cpu:0", now=10.0)
    await requeue(store)
    await store.claim(ID, worker="w1", device="cuda:0", now=400.0, steps_resumed=7)
    running_one = Attempt(number=2, device="cuda:0", started_at=400.0, steps_resumed=7)
    lost = Attempt(
        number=1,
        device="cpu:0",
        started_at=10.0,
        ended_at=300.0,
        ended_as=QUEUED,
        cause="worker_lost",
        steps_resumed=0,
    )
    assert await store.attempts(ID) == [lost, running_one]
    await finish(store, SUCCEEDED, attempt=2)
    ended = dataclasses.replace(running_one, ended_at=300.0, ended_as=SUCCEEDED, cause="succeeded")
    assert await store.attempts(ID) == [lost, ended]


async def test_the_newest_thousand_are_kept(backend: Backend) -> None:
    async with started(backend) as (store, _):
        await add(store)
    backend.raw(
        f"WITH RECURSIVE more(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM more WHERE n < {KEPT * 2}) "
        f"INSERT INTO events SELECT '{ID}', n, 'warning', '{{}}' FROM more"
    )
    async with started(backend) as (store, _):
        for attempt in (1, 2):
            await claim(store)
            await requeue(store, attempt)
        (count,) = backend.raw("SELECT count(*) FROM events")[0]
        assert count == KEPT + 2, "trimmed by each claim, before it adds its own"
        told = await kinds(store)
        assert len(told) == KEPT
        assert (told[0][0], told[-1][0]) == (KEPT + 5, 1_000_004)


async def test_events_go_with_their_session(backend: Backend) -> None:
    async with started(backend) as (store, _):
        await add(store)
        await store.request_cancel(ID, now=1.0)
        await store.delete(ID)
        assert backend.raw("SELECT count(*) FROM events") == [(0,)]
