"""Equal keys make one session. Must not test what an accepted session does."""

import asyncio
from typing import Any

import pytest

from mezzotint.errors import Conflict, TryLater
from mezzotint.session import Session, State
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import CANCELLED, ID, QUEUED, SUCCEEDED, claim, count, finish, request

pytestmark = pytest.mark.anyio


def once(key: str = "k", fingerprint: str = "body", scope: str = "anybody") -> Once:
    return Once(scope=scope, key=key, fingerprint=fingerprint)


async def add(store: Store, session_id: str, sent: Once | None, now: float = 100.0) -> Session:
    return await store.add(session_id, request(prompt=session_id), warnings=[], now=now, once=sent)


async def test_the_same_key_and_body_answer_the_first_session_whatever_became_of_it(store: Store) -> None:
    assert await store.first(once()) is None
    first = await add(store, ID, once())
    assert await store.first(once()) == first == await add(store, "ses_2", once())
    await claim(store)
    ended = await finish(store, SUCCEEDED)
    assert await store.first(once()) == ended == await add(store, "ses_3", once())
    assert await count(store, list(State)) == 1
    assert await store.get("ses_2") is None
    assert await store.transitions("ses_2") == []


@pytest.mark.parametrize("call", ["add", "first"])
async def test_the_same_key_with_another_body_is_a_conflict_and_stores_nothing(store: Store, call: str) -> None:
    await add(store, ID, once())
    other = once(fingerprint="another")
    with pytest.raises(Conflict) as caught:
        await (add(store, "ses_2", other) if call == "add" else store.first(other))
    assert caught.value.code == "idempotency_mismatch"
    assert await count(store, [QUEUED]) == 1


async def test_keys_of_different_callers_are_different_keys(store: Store) -> None:
    assert (await add(store, ID, once(scope="a"))).id == ID
    assert (await add(store, "ses_2", once(scope="b", fingerprint="other"))).id == "ses_2"
    assert (await add(store, "ses_3", None)).id == "ses_3"


async def test_twenty_at_once_make_one_session_and_those_beside_them_are_untouched(store: Store) -> None:
    for turn in range(5):
        equal = [add(store, f"ses_{turn}_{i:02}", once(f"k{turn}")) for i in range(20)]
        beside = [add(store, f"ses_{turn}_b{i}", None) for i in range(5)]
        mixed = [call for pair in zip(equal[:5], beside, strict=True) for call in pair] + equal[5:]
        answers = await asyncio.gather(*mixed)
        ids = {session.id for session in answers if "_b" not in session.id}
        assert len(ids) == 1
        assert await count(store, [QUEUED]) == 6 * (turn + 1)


async def test_of_two_bodies_at_once_one_wins(store: Store) -> None:
    calls = [add(store, f"ses_{i}", once(fingerprint=f"body {i % 2}")) for i in range(10)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Session, Conflict] * 5
    assert await count(store, [QUEUED]) == 1


async def test_a_full_queue_still_answers_a_known_key(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=1)
    try:
        calls: list[Any] = [
            add(store, "ses_1", once("a")),
            add(store, "ses_2", once("b")),
            add(store, "ses_3", once("a")),
        ]
        first, full, again = await asyncio.gather(*calls, return_exceptions=True)
        assert first == again
        assert isinstance(full, TryLater)
        assert await store.first(once("b")) is None, "a refused key is free"
        await store.request_cancel("ses_1", now=1.0)
        assert (await add(store, "ses_2", once("b", fingerprint="changed"))).id == "ses_2"
    finally:
        await store.close()


async def test_a_key_outlives_a_restart_and_goes_with_its_session(backend: Backend) -> None:
    store = await Store.open(backend.url)
    await add(store, ID, once())
    await store.close()
    store = await Store.open(backend.url)
    assert (await add(store, "ses_2", once())).id == ID
    cancelled = await store.request_cancel(ID, now=1.0)
    assert cancelled is not None
    assert cancelled.state is CANCELLED
    await store.delete(ID)
    assert (await add(store, "ses_3", once())).id == "ses_3"
    await store.close()


async def test_old_keys_are_forgotten_oldest_first_in_slices(store: Store) -> None:
    for i in range(5):
        await add(store, f"ses_{i}", once(f"k{i}"), now=float(i))
    assert await store.forget_keys(before=4.0, limit=3) == 3
    assert [(await store.first(once(f"k{i}"))) is not None for i in range(5)] == [False] * 3 + [True] * 2
    assert await store.forget_keys(before=4.0, limit=3) == 1
    assert await store.forget_keys(before=4.0, limit=3) == 0
    assert await count(store, [QUEUED]) == 5, "sessions stay"
