"""Batches and their sessions: one transaction, one key, gone when their sessions are."""

import pytest

from mezzotint.batches import Batch, Item
from mezzotint.errors import Conflict, TryLater
from mezzotint.request import Resolved
from mezzotint.session import State
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from tests.contract.backends import Backend
from tests.contract.stores import REQUEST, finish

pytestmark = pytest.mark.anyio


def batch(name: str = "bat_1", *ids: str, stops: bool = False) -> Batch:
    items = tuple(Item(index=index, session_id=session_id) for index, session_id in enumerate(ids))
    return Batch(id=name, created_at=1.0, items=items, stop_on_first_error=stops, metadata={"a": ["b"]})


def resolved(*ids: str) -> dict[str, Resolved]:
    return {session_id: Resolved(request=REQUEST, warnings=()) for session_id in ids}


async def test_a_batch_is_stored_with_its_sessions_and_stands_as_they_do(store: Store) -> None:
    stored, sessions = await store.batches.add(batch("bat_1", "ses_a", "ses_b", stops=True), resolved("ses_a", "ses_b"))
    assert stored == batch("bat_1", "ses_a", "ses_b", stops=True)
    assert [(one.id, one.batch_id, one.state) for one in sessions] == [
        ("ses_a", "bat_1", State.QUEUED),
        ("ses_b", "bat_1", State.QUEUED),
    ]
    assert [one.id for one in (await store.list(batch_id="bat_1"))[0]] == ["ses_b", "ses_a"]
    assert await store.batches.stopping() == ["bat_1"]
    await store.claim("ses_a", worker="w", device="cpu:0", now=2.0)
    await finish(store, State.SUCCEEDED, session_id="ses_a")
    found = await store.batches.get("bat_1")
    assert found is not None
    assert {name: one.state for name, one in found[1].items()} == {"ses_a": State.SUCCEEDED, "ses_b": State.QUEUED}
    await store.request_cancel("ses_b", now=3.0)
    assert await store.batches.stopping() == []
    assert await store.batches.get("bat_2") is None
    assert await store.batches.get("\0") is None


async def test_all_find_room_or_none(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=3)
    await store.batches.add(batch("bat_1", "ses_a", "ses_b"), resolved("ses_a", "ses_b"))
    with pytest.raises(TryLater) as told:
        await store.batches.add(batch("bat_2", "ses_c", "ses_d"), resolved("ses_c", "ses_d"))
    assert (told.value.code, told.value.message[:46]) == (
        "queue_full",
        "the queue has room for 1 of these 2 sessions; ",
    )
    many = [f"ses_{number}" for number in range(4)]
    with pytest.raises(TryLater, match="these are 4 sessions, and this server keeps 3; send fewer at a time"):
        await store.batches.add(batch("bat_2", *many), resolved(*many))
    assert await store.batches.get("bat_2") is None
    assert len(await store.queued()) == 2
    await store.close()


async def test_a_key_stands_for_its_first_batch(store: Store) -> None:
    once = Once(scope="anybody batches", key="k", fingerprint="f")
    await store.batches.add(batch("bat_1", "ses_a"), resolved("ses_a"), once=once)
    again, sessions = await store.batches.add(batch("bat_2", "ses_b"), resolved("ses_b"), once=once)
    assert (again.id, list(sessions)) == ("bat_1", [])
    first = await store.batches.first(once)
    assert first is not None
    assert first.id == "bat_1"
    with pytest.raises(Conflict):
        await store.batches.first(Once(scope="anybody batches", key="k", fingerprint="other"))
    assert await store.batches.first(Once(scope="else", key="k", fingerprint="f")) is None


async def test_an_old_batch_goes_when_its_last_session_has(store: Store) -> None:
    await store.batches.add(batch("bat_1", "ses_a"), resolved("ses_a"))
    assert await store.batches.forget(before=100.0) == 0
    await store.request_cancel("ses_a", now=2.0)
    assert await store.delete("ses_a")
    assert await store.batches.forget(before=1.0) == 0
    assert await store.batches.forget(before=100.0) == 1
    assert await store.batches.get("bat_1") is None
