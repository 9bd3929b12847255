"""Pause and resume of one session, against cancel, loss, restart and stale attempts. Must not test other changes."""

import asyncio

import pytest

from mezzotint.session import Session, State
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import (
    CANCELLED,
    FAILED,
    ID,
    PAUSED,
    QUEUED,
    RUNNING,
    SPANS,
    SUCCEEDED,
    USAGE,
    add,
    claim,
    finish,
    image,
    in_state,
    known,
    requeue,
    running,
)

pytestmark = pytest.mark.anyio


async def paused(store: Store, attempt: int = 1, session_id: str = ID) -> Session | None:
    return await store.paused(session_id, attempt=attempt, spans=SPANS, usage=USAGE, now=300.0)


async def test_a_pause_is_asked_for_then_done_and_undone(store: Store, backend: Backend) -> None:
    await running(store)
    asked = await store.request_pause(ID)
    assert asked is not None
    assert (asked.state, asked.pause_requested) == (RUNNING, True)
    assert await store.request_pause(ID) == asked
    done = await paused(store)
    assert done is not None
    assert (done.state, done.pause_requested, done.spans, done.usage, done.ended_at) == (
        PAUSED,
        False,
        SPANS,
        USAGE,
        None,
    )
    assert backend.raw("SELECT worker FROM sessions") == [(None,)]
    back = await store.resume(ID, now=500.0, spans=SPANS | {"paused": 200.0})
    assert back is not None
    assert (back.state, back.attempt, back.losses, back.spans["paused"]) == (QUEUED, 1, 0, 200.0)
    again = await claim(store)
    assert again is not None
    assert (again.attempt, again.pause_requested) == (2, False)
    history = [(change.to_state, change.cause) for change in await store.transitions(ID)]
    assert history[2:4] == [(PAUSED, "pause"), (QUEUED, "resume")]


@pytest.mark.parametrize("state", [state for state in State if state is not RUNNING])
async def test_what_does_not_run_is_not_paused(store: Store, backend: Backend, state: State) -> None:
    before = await in_state(store, backend, state)
    assert await store.request_pause(ID) == before
    assert await paused(store, before.attempt) is None
    assert await known(store) == before


@pytest.mark.parametrize("state", [state for state in State if state is not PAUSED])
async def test_what_is_not_paused_is_not_resumed(store: Store, backend: Backend, state: State) -> None:
    before = await in_state(store, backend, state)
    assert await store.resume(ID, now=9.0) is None
    assert await known(store) == before


async def test_an_unknown_session_is_neither_paused_nor_resumed(store: Store) -> None:
    for session_id in (ID, "\0", "é"):
        assert await store.request_pause(session_id) is None
        assert await store.resume(session_id, now=1.0) is None


async def test_nothing_is_paused_that_nobody_asked_to_pause(store: Store) -> None:
    before = await running(store)
    assert await paused(store) is None
    assert await known(store) == before


@pytest.mark.parametrize("attempt", [0, 1, 3])
async def test_a_stale_attempt_cannot_pause(store: Store, attempt: int) -> None:
    await running(store)
    await requeue(store)
    await claim(store)
    await store.request_pause(ID)
    before = await known(store)
    assert await paused(store, attempt) is None
    assert await known(store) == before
    assert await paused(store, 2) is not None


async def test_cancel_beats_pause_whichever_came_first(store: Store) -> None:
    for session_id, cancel_first in (("ses_a", True), ("ses_b", False)):
        await running(store, session_id)
        if cancel_first:
            await store.request_cancel(session_id, now=1.0)
        await store.request_pause(session_id)
        if not cancel_first:
            await store.request_cancel(session_id, now=1.0)
        assert await paused(store, session_id=session_id) is None
        ended = await finish(store, CANCELLED, session_id=session_id)
        assert ended is not None
        assert ended.state is CANCELLED


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED])
async def test_an_end_that_comes_before_the_pause_stands(store: Store, state: State) -> None:
    await running(store)
    await store.request_pause(ID)
    ended = await finish(store, state)
    assert ended is not None
    assert await paused(store) is None
    assert await known(store) == ended


async def test_pause_and_finish_at_once_agree(store: Store) -> None:
    for i in range(10):
        session_id = f"ses_{i}"
        await running(store, session_id)
        await store.request_pause(session_id)
        calls = [paused(store, session_id=session_id), finish(store, SUCCEEDED, session_id=session_id)]
        results = await asyncio.gather(*(calls if i % 2 else reversed(calls)))
        assert sum(result is not None for result in results) == 1


async def test_a_paused_session_is_cancelled_at_once_and_keeps_its_pictures(store: Store) -> None:
    await running(store)
    await store.add_image(ID, attempt=1, image=image())
    await store.request_pause(ID)
    await paused(store)
    assert not await store.add_image(ID, attempt=1, image=image(1)), "what is paused makes nothing"
    ended = await store.request_cancel(ID, now=400.0)
    assert ended is not None
    assert (ended.state, ended.images) == (CANCELLED, (image(),))
    assert await store.resume(ID, now=500.0) is None


async def test_resume_and_cancel_at_once_agree(store: Store) -> None:
    for i in range(10):
        session_id = f"ses_{i}"
        await running(store, session_id)
        await store.request_pause(session_id)
        await paused(store, session_id=session_id)
        calls = [store.resume(session_id, now=1.0), store.request_cancel(session_id, now=2.0)]
        await asyncio.gather(*(calls if i % 2 else reversed(calls)))
        assert (await known(store, session_id)).state is CANCELLED, "a queued one is cancelled as well"


async def test_a_restart_leaves_paused_ones_and_pauses_those_that_were_asked_to(backend: Backend) -> None:
    store = await Store.open(backend.url)
    for session_id in ("ses_paused", "ses_asked"):
        await running(store, session_id)
        await store.request_pause(session_id)
    before = await paused(store, session_id="ses_paused")
    await store.close()
    store = await Store.open(backend.url)
    assert await store.recover(now=900.0) == {PAUSED: 1}
    assert await known(store, "ses_paused") == before
    asked = await known(store, "ses_asked")
    assert (asked.state, asked.pause_requested) == (PAUSED, False)
    assert await store.queued() == []
    assert await store.resume("ses_asked", now=1000.0)
    await store.close()


async def test_a_resume_is_not_refused_by_a_full_queue(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=1)
    await running(store)
    await store.request_pause(ID)
    await paused(store)
    await add(store, "ses_2")
    assert await store.resume(ID, now=1.0)
    assert [session.id for session in await store.queued()] == [ID, "ses_2"]
    await store.close()
