"""How long a session may wait, and what who finds the queue full is told. Must not test the clock that calls it."""

import pytest

from mezzotint.errors import TryLater
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import EXPIRED, ID, QUEUED, RUNNING, add, claim, known, requeue

pytestmark = pytest.mark.anyio


async def test_what_has_not_started_in_its_time_expires_instead_of_starting(store: Store) -> None:
    await add(store, now=100.0, expires_s=10.0)
    assert await claim(store, now=110.0) is None
    ended = await known(store)
    assert (ended.state, ended.attempt, ended.ended_at, ended.spans) == (EXPIRED, 0, 110.0, {"queued": 10.0})
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == ("expired", "not started within 10 s")
    assert [one.to_state for one in await store.transitions(ID)] == [QUEUED, EXPIRED]


async def test_up_to_its_time_it_starts_and_what_has_started_does_not_expire(store: Store) -> None:
    await add(store, now=100.0, expires_s=10.0)
    assert await claim(store, now=109.99) is not None
    await requeue(store)
    again = await claim(store, now=900.0)
    assert again is not None
    assert (again.state, again.attempt) == (RUNNING, 2)


async def refusal(store: Store, now: float) -> TryLater:
    with pytest.raises(TryLater) as caught:
        await add(store, "ses_more", now=now)
    assert caught.value.code == "queue_full"
    return caught.value


async def test_a_full_queue_tells_how_fast_places_came_free(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=4)
    for number in range(4):
        await add(store, f"ses_{number}")
    unknown = await refusal(store, 100.0)
    assert (unknown.retry_after_s, "not known yet" in unknown.message) == (10, True)
    for number, at in enumerate((200.0, 203.0, 206.0)):
        await claim(store, f"ses_{number}", now=at)
        await add(store, f"ses_new_{number}")
    measured = await refusal(store, 210.0)
    assert (measured.retry_after_s, "every 5 s" in measured.message) == (5, True)
    assert (await refusal(store, 206.5)).retry_after_s == 4, "whole seconds, rounded up"
    assert (await refusal(store, 900.0)).retry_after_s == 59, "a queue that stands still: no more than clients bear"
    assert (await refusal(store, 190.0)).retry_after_s == 10, "a clock that was set back measures nothing"
    await store.request_cancel("ses_3", now=214.0)
    await add(store, "ses_new_3")
    assert (await refusal(store, 215.0)).retry_after_s == 5
    await store.close()
