"""What every store promises of a session: its changes, its pictures, its end. Must not reach into a store."""

import asyncio
from dataclasses import replace

import pytest

from mezzotint.session import FINAL, Progress, State
from mezzotint.store.sql import Store
from tests.contract.backends import Backend, Sqlite
from tests.contract.stores import (
    CANCELLED,
    EXPIRED,
    FAILED,
    ID,
    LOST,
    PAUSED,
    QUEUED,
    RUNNING,
    SPANS,
    SUCCEEDED,
    USAGE,
    add,
    claim,
    end_queued,
    finish,
    flag,
    image,
    in_state,
    known,
    requeue,
    running,
)

pytestmark = pytest.mark.anyio


async def test_of_twenty_claims_at_once_one_wins(store: Store) -> None:
    for round_number in range(5):
        session_id = f"ses_{round_number}"
        await add(store, session_id)
        claims = [store.claim(session_id, worker=f"w{i}", device=f"cpu:{i}", now=200.0) for i in range(20)]
        won = [session for session in await asyncio.gather(*claims) if session is not None]
        assert len(won) == 1
        assert won[0] == await store.get(session_id)
        assert (won[0].state, won[0].attempt) == (RUNNING, 1)
        assert len(await store.transitions(session_id)) == 2


async def test_two_stores_on_one_database_cannot_both_claim(sqlite: Sqlite) -> None:
    store, other = await Store.open(sqlite.url), await Store.open(sqlite.url)
    try:
        for i in range(10):
            await add(store, f"ses_{i}")
            claims = await asyncio.gather(claim(store, f"ses_{i}"), claim(other, f"ses_{i}"))
            assert sum(session is not None for session in claims) == 1
    finally:
        await other.close()
        await store.close()


async def test_two_stores_on_one_database_wait_for_each_other(sqlite: Sqlite) -> None:
    """A transaction that only took the lock at its first write would be refused, its snapshot being stale."""
    ids = [f"ses_{i}" for i in range(20)]
    store, other = await Store.open(sqlite.url), await Store.open(sqlite.url)
    try:
        for session_id in ids:
            await running(store, session_id)
        cancels = [each.request_cancel(session_id, now=250.0) for session_id in ids for each in (store, other)]
        assert all(session and session.cancel_requested for session in await asyncio.gather(*cancels))
    finally:
        await other.close()
        await store.close()


async def test_started_at_is_that_of_the_first_attempt(store: Store) -> None:
    await running(store)
    await requeue(store)
    again = await claim(store, now=400.0)
    assert again is not None
    assert (again.attempt, again.started_at, again.device) == (2, 200.0, "cpu:0")


async def test_a_requeue_keeps_what_it_is_told_and_frees_the_worker(store: Store, backend: Backend) -> None:
    await running(store)
    assert backend.raw("SELECT worker FROM sessions") == [("w0",)]
    session = await requeue(store)
    assert session is not None
    assert (session.state, session.losses, session.spans, session.ended_at) == (QUEUED, 1, SPANS, None)
    assert backend.raw("SELECT worker FROM sessions") == [(None,)]
    last = (await store.transitions(ID))[-1]
    assert (last.from_state, last.to_state, last.attempt, last.cause, last.at) == (
        RUNNING,
        QUEUED,
        1,
        "worker_lost",
        300,
    )


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ((), QUEUED),
        (("pause_requested",), PAUSED),
        (("cancel_requested",), CANCELLED),
        (("cancel_requested", "pause_requested"), CANCELLED),
    ],
)
async def test_a_requeue_goes_where_the_flags_want_it(
    store: Store, backend: Backend, flags: tuple[str, ...], state: State
) -> None:
    await running(store)
    for name in flags:
        flag(backend, name)
    session = await requeue(store)
    assert session is not None
    assert session.state is state
    assert session.ended_at == (300.0 if state is CANCELLED else None)
    if state is PAUSED:
        assert session.pause_requested is False, "or it would pause again as soon as it is resumed"


@pytest.mark.parametrize("attempt", [0, 1, 3])
async def test_a_stale_attempt_changes_nothing(store: Store, attempt: int) -> None:
    await running(store)
    await requeue(store)
    await claim(store)
    before, history = await known(store), await store.transitions(ID)
    assert before.attempt == 2
    for state in (SUCCEEDED, FAILED, CANCELLED):
        assert await finish(store, state, attempt) is None
    assert await requeue(store, attempt) is None
    assert await store.add_image(ID, attempt=attempt, image=image()) is False
    assert await store.add_warning(ID, attempt=attempt, warning={"code": "late"}) is False
    assert await known(store) == before
    assert await store.transitions(ID) == history
    assert await finish(store, SUCCEEDED, 2) is not None


async def test_a_stale_requeue_does_not_use_up_a_cancel(store: Store) -> None:
    await running(store)
    await requeue(store)
    await claim(store)
    await store.request_cancel(ID, now=250.0)
    assert await requeue(store, attempt=1) is None
    assert (await known(store)).state is RUNNING


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED])
async def test_a_finished_session_keeps_how_it_ended(store: Store, state: State) -> None:
    await running(store)
    session = await finish(store, state)
    assert session == await store.get(ID)
    assert session is not None
    assert (session.state, session.ended_at, session.spans, session.usage) == (state, 300.0, SPANS, USAGE)
    assert session.error == (LOST if state is FAILED else None)
    done = (8, 1, 1.0) if state is SUCCEEDED else (4, 0, 0.5)  # 8 of the 16 steps of two images
    assert (session.progress.step, session.progress.image_index, session.progress.fraction) == done


async def test_a_session_that_ends_before_it_is_done_does_not_fall_back_in_its_progress(store: Store) -> None:
    await running(store)
    assert await store.add_image(ID, attempt=1, image=image())
    usage = replace(USAGE, steps_run=13, reached=(1, 5))
    session = await store.finish(ID, attempt=1, state=CANCELLED, now=300.0, spans=SPANS, usage=usage)
    assert session is not None
    assert session.progress == Progress(step=5, steps=8, fraction=13 / 16, image_index=1)


async def test_a_row_tells_the_step_of_images_that_run_one_after_another_as_the_worker_did(store: Store) -> None:
    await running(store)
    usage = replace(USAGE, steps_run=6, reached=(0, 6))
    session = await store.finish(ID, attempt=1, state=FAILED, now=300.0, spans=SPANS, usage=usage)
    assert session is not None
    assert session.progress == Progress(step=6, steps=8, fraction=6 / 16, image_index=0)


async def test_a_row_whose_worker_told_nothing_knows_that_the_stored_images_are_done(store: Store) -> None:
    await running(store)
    assert await store.add_image(ID, attempt=1, image=image())
    assert (await known(store)).progress == Progress(step=0, steps=8, fraction=0.5, image_index=1)


async def test_progress_without_a_success_stays_below_all(store: Store) -> None:
    await running(store)
    for index in (0, 1):
        assert await store.add_image(ID, attempt=1, image=image(index))
    usage = replace(USAGE, steps_run=20, steps_resumed=8)  # an attempt could not go on from where the last one was
    session = await store.finish(ID, attempt=1, state=CANCELLED, now=300.0, spans=SPANS, usage=usage)
    assert session is not None
    assert session.progress == Progress(step=8, steps=8, fraction=0.999, image_index=1)


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED])
async def test_a_pending_cancel_wins_over_the_end(store: Store, state: State) -> None:
    await running(store)
    await store.request_cancel(ID, now=250.0)
    before = await known(store)
    assert await finish(store, state) is None
    assert await known(store) == before
    ended = await finish(store, CANCELLED)
    assert ended is not None
    assert ended.state is CANCELLED


@pytest.mark.parametrize("first", ["cancel", "finish"])
async def test_cancel_and_finish_at_once_agree_on_one_end(store: Store, first: str) -> None:
    for i in range(10):
        session_id = f"ses_{i}"
        await running(store, session_id)
        calls = [store.request_cancel(session_id, now=250.0), finish(store, SUCCEEDED, session_id=session_id)]
        results = await asyncio.gather(*(calls if first == "cancel" else reversed(calls)))
        cancelled, finished = results if first == "cancel" else reversed(results)
        assert cancelled is not None
        assert cancelled.cancel_requested is (finished is None)


@pytest.mark.parametrize("state", [QUEUED, RUNNING, PAUSED, EXPIRED])
async def test_finish_refuses_states_that_are_not_its_own(store: Store, state: State) -> None:
    await running(store)
    with pytest.raises(ValueError, match="cannot finish as"):
        await finish(store, state)


@pytest.mark.parametrize("state", [EXPIRED, FAILED])
async def test_a_waiting_session_can_end_without_running(store: Store, state: State) -> None:
    await add(store)
    session = await end_queued(store, state)
    assert session is not None
    assert (session.state, session.ended_at, session.spans) == (state, 300.0, SPANS)


async def test_what_has_started_does_not_expire(store: Store) -> None:
    await running(store)
    assert await end_queued(store, EXPIRED) is None
    await requeue(store)
    assert await end_queued(store, EXPIRED) is None
    assert (await known(store)).state is QUEUED
    assert await end_queued(store, FAILED) is not None


@pytest.mark.parametrize("state", [state for state in State if state not in (EXPIRED, FAILED)])
async def test_end_queued_refuses_states_that_are_not_its_own(store: Store, state: State) -> None:
    await add(store)
    with pytest.raises(ValueError, match="cannot end as"):
        await end_queued(store, state)


@pytest.mark.parametrize("state", [QUEUED, PAUSED])
async def test_cancelling_what_does_not_run_ends_it_at_once(store: Store, backend: Backend, state: State) -> None:
    await in_state(store, backend, state)
    first = await store.request_cancel(ID, now=400.0, spans=SPANS)
    assert first is not None
    assert (first.state, first.ended_at, first.spans) == (CANCELLED, 400.0, SPANS)
    assert await store.request_cancel(ID, now=500.0, spans={}) == first
    assert [change.to_state for change in await store.transitions(ID)].count(CANCELLED) == 1


async def test_cancelling_what_runs_flags_it_as_often_as_asked(store: Store) -> None:
    await running(store)
    first = await store.request_cancel(ID, now=400.0, spans=SPANS)
    assert first is not None
    assert (first.state, first.cancel_requested, first.spans) == (RUNNING, True, {})
    assert await store.request_cancel(ID, now=500.0) == first
    assert len(await store.transitions(ID)) == 2


async def test_pictures_come_back_in_order_wherever_the_session_does(store: Store) -> None:
    await running(store)
    for index in (1, 0):
        assert await store.add_image(ID, attempt=1, image=image(index))
    assert (await known(store)).images == (image(0), image(1))
    assert (await store.list())[0][0].images == (image(0), image(1))
    requeued = await requeue(store)
    assert requeued is not None
    assert requeued.images == (image(0), image(1))
    assert (await store.queued())[0].images == (image(0), image(1))


async def test_a_repeated_picture_replaces_nothing(store: Store) -> None:
    await running(store)
    assert await store.add_image(ID, attempt=1, image=image(sha="a"))
    assert await store.add_image(ID, attempt=1, image=image(sha="a"))
    assert not await store.add_image(ID, attempt=1, image=image(sha="b"))
    assert (await known(store)).images == (image(sha="a"),)


async def test_no_picture_appears_after_a_cancel_was_answered(store: Store) -> None:
    await running(store)
    await store.add_image(ID, attempt=1, image=image(0))
    await store.request_cancel(ID, now=250.0)
    assert await store.add_image(ID, attempt=1, image=image(1)) is False
    assert (await known(store)).images == (image(0),)


async def test_the_last_picture_comes_with_the_end_or_not_at_all(store: Store) -> None:
    await running(store)
    await store.add_image(ID, attempt=1, image=image(0))
    assert await finish(store, SUCCEEDED, attempt=2, last=image(1)) is None
    assert (await known(store)).images == (image(0),)
    ended = await finish(store, SUCCEEDED, last=image(1))
    assert ended is not None
    assert (ended.state, ended.images) == (SUCCEEDED, (image(0), image(1)))


async def test_the_last_picture_does_not_come_after_a_cancel(store: Store) -> None:
    await running(store)
    await store.request_cancel(ID, now=250.0)
    assert await finish(store, SUCCEEDED, last=image()) is None
    assert (await known(store)).images == ()


async def test_a_picture_needs_a_running_session(store: Store) -> None:
    await add(store)
    assert await store.add_image(ID, attempt=0, image=image()) is False
    await claim(store)
    await requeue(store)
    assert await store.add_image(ID, attempt=1, image=image()) is False


async def test_a_list_can_be_of_the_prompts_that_hold_a_text(store: Store) -> None:
    for number, prompt in enumerate(('A Cat"s 100%', "a dog", "")):
        await add(store, f"ses_{number}", prompt=prompt, negative_prompt="cat")
    for text, found in (
        ('cat"s', ["ses_0"]),
        ("0%", ["ses_0"]),
        ("_", []),
        ("dog", ["ses_1"]),
        ("", ["ses_2", "ses_1", "ses_0"]),
    ):
        assert [one.id for one in (await store.list(text=text))[0]] == found


async def test_prompts_of_any_language_and_of_several_lines_are_found(store: Store) -> None:
    await add(store, "ses_1", prompt="un café à Paris")
    await add(store, "ses_2", prompt="灯台\nat night")
    for text, found in (
        ("café", ["ses_1"]),
        ("PARIS", ["ses_1"]),
        ("CAFÉ À", ["ses_1"]),
        ("灯台", ["ses_2"]),
        ("台\nAT", ["ses_2"]),
        ("a\0", []),
        ("\ud800", []),
    ):
        assert [one.id for one in (await store.list(text=text))[0]] == found, text


async def test_a_session_that_holds_a_nul_does_not_break_the_search_for_others(store: Store) -> None:
    await add(store, "ses_1", prompt="a \0 seal", metadata={})
    await add(store, "ses_2", prompt="a dog", metadata={"yours": "\0"})
    await add(store, "ses_3", prompt="a cat \\u0000 and a dog", metadata={})
    for text, found in (("a dog", ["ses_3", "ses_2"]), ("cat \\", ["ses_3"])):
        assert [one.id for one in (await store.list(text=text))[0]] == found


async def test_only_ended_sessions_can_be_deleted(store: Store, backend: Backend) -> None:
    for state in State:
        session_id = f"ses_{state}"
        await in_state(store, backend, state, session_id)
        assert await store.delete(session_id) is (state in FINAL)
        assert (await store.get(session_id) is None) is (state in FINAL)


async def test_delete_takes_everything_of_one_session_only(store: Store, backend: Backend) -> None:
    for session_id in (ID, "ses_2"):
        await running(store, session_id)
        await store.add_image(session_id, attempt=1, image=image())
        await finish(store, SUCCEEDED, session_id=session_id)
    assert await store.delete(ID)
    for table in ("images", "transitions"):
        assert {row[0] for row in backend.raw(f"SELECT session_id FROM {table}")} == {"ses_2"}
