"""What goes into a store comes out, in order, within bounds. Must not test changes of state."""

import asyncio
import contextlib
import dataclasses
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event

from mezzotint.errors import TryLater
from mezzotint.schema import MAX_SEED
from mezzotint.session import Session, State, Usage
from mezzotint.store.sql import Store
from tests.contract.backends import Backend, Postgres, Sqlite
from tests.contract.stores import (
    CANCELLED,
    FAILED,
    ID,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    add,
    claim,
    count,
    end_queued,
    finish,
    image,
    in_state,
    known,
    request,
    requeue,
)

pytestmark = pytest.mark.anyio


async def test_an_added_session_comes_back_as_it_was_accepted(store: Store) -> None:
    warnings = [{"code": "size_far_from_native", "message": "far", "field": "width"}]
    sent = request(expires_s=60.0)
    session = await store.add(ID, sent, warnings=warnings, now=100.25, batch_id="bat_1")
    assert session == await store.get(ID)
    assert session.request == sent
    assert (session.state, session.attempt, session.losses, session.created_at) == (QUEUED, 0, 0, 100.25)
    assert (session.started_at, session.ended_at, session.device, session.error) == (None, None, None, None)
    assert (session.spans, session.usage, session.images) == ({}, Usage(), ())
    assert (session.warnings, session.batch_id) == (tuple(warnings), "bat_1")
    assert (session.progress.steps, session.progress.fraction, session.progress.phase) == (8, 0.0, None)
    assert session.queue_position is None


async def test_an_unknown_session_is_none_everywhere(store: Store) -> None:
    assert await store.get(ID) is None
    assert await claim(store) is None
    assert await requeue(store) is None
    assert await finish(store, SUCCEEDED) is None
    assert await end_queued(store, FAILED) is None
    assert await store.request_cancel(ID, now=1.0) is None
    assert await store.add_image(ID, attempt=1, image=image()) is False
    assert await store.delete(ID) is False
    assert await store.transitions(ID) == []


async def test_the_largest_seed_survives(store: Store) -> None:
    await add(store, seed=MAX_SEED)
    await claim(store)
    assert await store.add_image(ID, attempt=1, image=dataclasses.replace(image(), seed=MAX_SEED))
    session = await known(store)
    assert session.request.seed == session.images[0].seed == 2**63 - 1


async def test_text_that_no_row_can_hold_fails_alone(store: Store) -> None:
    bad = add(store, "ses_bad", prompt="\ud800")
    results = await asyncio.gather(add(store, "ses_a"), bad, add(store, "ses_b"), return_exceptions=True)
    assert [type(result) for result in results] == [Session, UnicodeEncodeError, Session]
    assert await count(store, [QUEUED]) == 2


async def test_an_id_added_twice_fails_and_the_calls_beside_it_do_not(store: Store) -> None:
    first = await add(store)
    ids = ["ses_a", ID, "ses_b", "ses_c"]
    results = await asyncio.gather(*(add(store, session_id, now=7.0) for session_id in ids), return_exceptions=True)
    assert any(isinstance(result, Exception) for result in results)
    for session_id, result in zip(ids, results, strict=True):
        stored = await store.get(session_id)
        assert stored == first if session_id == ID else stored == (None if isinstance(result, Exception) else result)


async def test_many_adds_at_once_are_all_kept(store: Store) -> None:
    ids = [f"ses_{i:04}" for i in range(300)]
    added = await asyncio.gather(*(add(store, session_id) for session_id in ids))
    assert [session.id for session in added] == ids
    assert [session.id for session in await store.queued()] == ids
    assert [step.seq for session_id in ids for step in await store.transitions(session_id)] == [1] * 300


async def test_a_caller_who_leaves_leaves_the_change_to_happen(store: Store) -> None:
    calls = [asyncio.ensure_future(add(store, f"ses_{i:02}")) for i in range(20)]
    for _ in range(3):
        await asyncio.sleep(0)  # under way, none done
    for call in calls:
        call.cancel()
        await asyncio.sleep(0)
    assert {type(answer) for answer in await asyncio.gather(*calls, return_exceptions=True)} == {asyncio.CancelledError}
    await add(store, "ses_after")
    assert await count(store, [QUEUED]) == 21
    for session in await store.queued():
        assert len(await store.transitions(session.id)) == 1


async def test_queued_are_in_order_of_priority_then_age(store: Store) -> None:
    for i, priority in enumerate([5, 9, 0, 5, 9, 0]):
        await add(store, f"ses_{i}", priority=priority)
    await claim(store, "ses_4")
    assert [session.id for session in await store.queued()] == ["ses_1", "ses_0", "ses_3", "ses_2", "ses_5"]
    await requeue(store, session_id="ses_4")
    assert [session.id for session in await store.queued()][:2] == ["ses_1", "ses_4"]


async def test_a_list_walked_page_by_page_has_no_gaps_and_no_repeats(store: Store) -> None:
    ids = [f"ses_{i:03}" for i in range(200)]
    await asyncio.gather(*(add(store, session_id) for session_id in ids))
    for limit in (1, 7, 50, 100, 199, 200, 201):
        walked: list[str] = []
        cursor: str | None = None
        pages = 0
        while cursor is not None or pages == 0:
            page, cursor = await store.list(limit=limit, cursor=cursor)
            assert 0 < len(page) <= limit
            assert len(walked) < 200, "or it walks for ever"
            walked += [session.id for session in page]
            pages += 1
        assert walked == ids[::-1]
        assert pages == -(-200 // limit)


async def test_a_walk_is_not_upset_by_what_comes_and_goes(store: Store) -> None:
    for i in range(10):
        await add(store, f"ses_{i}")
    page, cursor = await store.list(limit=3)
    assert cursor == page[-1].id == "ses_7"
    await store.request_cancel("ses_7", now=1.0)
    await store.delete("ses_7")  # the cursor's own row
    await add(store, "ses_9z")
    page, cursor = await store.list(limit=3, cursor=cursor)
    assert [session.id for session in page] == ["ses_6", "ses_5", "ses_4"]


async def test_list_filters_alone_and_together(store: Store) -> None:
    await store.add("ses_1", request(model="a"), warnings=[], now=1.0, batch_id="bat_1")
    await store.add("ses_2", request(model="b", type="img2img"), warnings=[], now=2.0, batch_id="bat_1")
    await store.add("ses_3", request(model="a"), warnings=[], now=3.0)
    await claim(store, "ses_1")
    await store.request_cancel("ses_3", now=4.0)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["ses_3", "ses_2", "ses_1"]),
        ({"states": [RUNNING]}, ["ses_1"]),
        ({"states": {QUEUED, CANCELLED}}, ["ses_3", "ses_2"]),
        ({"states": [SUCCEEDED]}, []),
        ({"type": "img2img"}, ["ses_2"]),
        ({"model": "a"}, ["ses_3", "ses_1"]),
        ({"device": "cpu:0"}, ["ses_1"]),
        ({"batch_id": "bat_1"}, ["ses_2", "ses_1"]),
        ({"batch_id": "bat_1", "model": "b"}, ["ses_2"]),
        ({"states": [RUNNING], "model": "b"}, []),
        ({"model": "a' OR 1=1 --"}, []),
    ]
    for filters, expected in cases:
        page, cursor = await store.list(**filters)
        assert [session.id for session in page] == expected, filters
        assert cursor is None


@pytest.mark.parametrize("cursor", ["", "zzz", "\0", "\ud800", "%", "' OR 1=1 --", "é" * 1000, "ses_unknown", "\n"])
async def test_no_cursor_raises(store: Store, cursor: str) -> None:
    await add(store)
    page, following = await store.list(cursor=cursor)
    assert len(page) <= 1
    assert following is None


async def test_only_what_waits_has_a_place_in_the_queue(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=2)
    try:
        for state in State:
            await in_state(store, backend, state, f"ses_{state}")
        await add(store, "ses_second")
        with pytest.raises(TryLater):
            await add(store, "ses_third")
    finally:
        await store.close()


async def test_the_queue_is_full_at_exactly_its_size(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=5)
    try:
        for i in range(5):
            await add(store, f"ses_{i}")
        with pytest.raises(TryLater) as caught:
            await add(store, "ses_5")
        assert (caught.value.code, caught.value.retry_after_s) == ("queue_full", 10)
        assert await store.get("ses_5") is None
        assert await store.transitions("ses_5") == []
        await claim(store, "ses_0")
        await add(store, "ses_5")  # room again
        requeued = await requeue(store, session_id="ses_0")
        assert requeued is not None, "what was accepted is never refused"
        assert await count(store, [QUEUED]) == 6
        with pytest.raises(TryLater):
            await add(store, "ses_6")
    finally:
        await store.close()


async def test_a_rush_at_a_nearly_full_queue_fills_it_exactly(backend: Backend) -> None:
    store = await Store.open(backend.url, queue_size=70)
    try:
        adds = (add(store, f"ses_{i:03}") for i in range(200))
        results = await asyncio.gather(*adds, return_exceptions=True)
        assert [type(result) for result in results] == [Session] * 70 + [TryLater] * 130
        assert await count(store, [QUEUED]) == 70
    finally:
        await store.close()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Databases opened under it may not outgrow 60 pages: SQLite answers as it does on a full disk."""

    def limit(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA max_page_count=60")
        cursor.close()

    event.listen(Engine, "connect", limit)
    yield
    event.remove(Engine, "connect", limit)


@pytest.mark.usefixtures("small_disk")
async def test_a_full_disk_says_try_later_and_loses_nothing(sqlite: Sqlite) -> None:
    store = await Store.open(sqlite.url)
    try:
        kept: list[str] = []

        async def fill() -> None:
            for i in range(200):
                kept.append((await add(store, f"ses_{i:03}", prompt="x" * 2000)).id)

        with pytest.raises(TryLater) as caught:
            await fill()
        assert (caught.value.code, caught.value.retry_after_s) == ("storage_full", 10)
        assert kept
        assert [session.id for session in await store.queued()] == kept
        for session_id in kept[:4]:  # reading, cancelling and deleting go on, and make room
            assert await store.request_cancel(session_id, now=1.0)
            assert await store.delete(session_id)
        await add(store, "ses_later")
        assert await count(store, [QUEUED]) == len(kept) - 4 + 1
    finally:
        await store.close()


@pytest.fixture
def failing_disk() -> Iterator[Callable[[bool], None]]:
    """Called with True, no file of this process can be written beyond 4 KiB; SQLite takes it for a failing disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if on else soft, hard))

    yield fail
    fail(False)


async def test_after_a_failure_of_the_disk_nothing_is_accepted_until_it_is_mended(
    sqlite: Sqlite, failing_disk: Callable[[bool], None]
) -> None:
    store = await Store.open(sqlite.url)
    try:
        await asyncio.gather(*(add(store, f"ses_{i:02}") for i in range(20)))
        before, written = await store.queued(), sqlite.path.with_name("mezzotint.db-wal").stat().st_size
        failing_disk(True)
        for call in (claim(store, "ses_00"), add(store, "ses_late"), store.request_cancel("ses_01", now=1.0)):
            with pytest.raises(TryLater, match="disk") as caught:
                await call
            assert (caught.value.code, caught.value.retry_after_s) == ("not_ready", 10)
        assert await store.queued() == before, "reading goes on, and nothing was changed"
        failing_disk(False)
        assert await claim(store, "ses_00")
        log = sqlite.path.with_name("mezzotint.db-wal").stat().st_size
        assert 0 < log < written, "what was in the log is in the database"
        assert sqlite.raw("PRAGMA integrity_check") == [("ok",)]
        assert await count(store, [QUEUED]) == 19
    finally:
        await store.close()


async def test_nothing_is_accepted_into_a_file_that_was_removed(sqlite: Sqlite) -> None:
    store = await Store.open(sqlite.url)
    await add(store, "ses_1")
    away = sqlite.path.rename(sqlite.path.with_suffix(".away"))
    with pytest.raises(TryLater, match="was removed or replaced; put it back") as told:
        await add(store, "ses_2")
    assert told.value.code == "not_ready"
    away.rename(sqlite.path)
    await add(store, "ses_3")
    await store.close()
    assert sqlite.raw("SELECT id FROM sessions ORDER BY id") == [("ses_1",), ("ses_3",)]


@contextlib.asynccontextmanager
async def held_by_another(backend: Backend) -> AsyncIterator[None]:
    if isinstance(backend, Sqlite):
        with contextlib.closing(sqlite3.connect(backend.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
    elif isinstance(backend, Postgres):
        connection = await backend.connect()
        async with connection.transaction():
            await connection.execute("LOCK TABLE sessions IN EXCLUSIVE MODE")
            yield
        await connection.close()


async def test_a_database_held_by_another_process_says_try_later(backend: Backend) -> None:
    store = await Store.open(backend.url, wait_s=0.5)
    await add(store)
    async with held_by_another(backend):
        assert await store.get(ID) is not None  # readers are not held up
        before = time.monotonic()
        with pytest.raises(TryLater) as caught:
            await claim(store)
        assert caught.value.code == "not_ready"
        assert 0.4 < time.monotonic() - before < 4
    assert await claim(store) is not None
    await store.close()
