"""No session is changed against the law of states, even around the store. Must not trust the methods."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from mezzotint.session import FINAL, NEXT, State
from mezzotint.store.sql import Store
from mezzotint.store.tables import sessions
from tests.contract.backends import Backend
from tests.contract.stores import (
    CANCELLED,
    EXPIRED,
    FAILED,
    ID,
    QUEUED,
    SUCCEEDED,
    USAGE,
    add,
    claim,
    end_queued,
    finish,
    image,
    in_state,
    known,
    requeue,
)

pytestmark = pytest.mark.anyio


def test_the_law_in_the_database_is_the_law_in_the_code(backend: Backend) -> None:
    code = {(before.value, after.value) for before, nexts in NEXT.items() for after in nexts}
    assert set(backend.raw("SELECT from_state, to_state FROM legal")) == code


@pytest.mark.parametrize("before", list(State))
async def test_the_database_itself_refuses_every_illegal_change(store: Store, backend: Backend, before: State) -> None:
    for after in State:
        session_id = f"ses_{after}"
        await in_state(store, backend, before, session_id)
        statement = "UPDATE sessions SET state = ? WHERE id = ?"
        if after in NEXT[before]:
            backend.raw(statement, after.value, session_id)
            assert (await known(store, session_id)).state is after
        else:
            with pytest.raises(backend.refusals, match="illegal change of state"):
                backend.raw(statement, after.value, session_id)
            assert (await known(store, session_id)).state is before


@pytest.mark.parametrize("word", ["", "QUEUED", "done", None])
async def test_the_database_refuses_a_state_that_is_none(store: Store, backend: Backend, word: str | None) -> None:
    await add(store)
    with pytest.raises(backend.refusals):
        backend.raw("UPDATE sessions SET state = ? WHERE id = ?", word, ID)


@pytest.mark.parametrize("state", [state for state in State if state is not QUEUED])
async def test_a_row_cannot_begin_in_another_state(store: Store, backend: Backend, state: State) -> None:
    await add(store)
    columns = [column.name for column in sessions.columns]
    chosen = ", ".join({"id": "'ses_2'", "state": f"'{state}'"}.get(name, name) for name in columns)
    with pytest.raises(backend.refusals, match="begins queued"):
        backend.raw(f"INSERT INTO sessions ({', '.join(columns)}) SELECT {chosen} FROM sessions")
    assert await store.get("ses_2") is None


async def test_every_legal_change_the_methods_make_is_in_the_history(store: Store, backend: Backend) -> None:
    seen: set[tuple[State | None, State]] = set()
    ids = (f"ses_{number}" for number in itertools.count())

    async def lived(*steps: Callable[[str], Any]) -> None:
        session_id = next(ids)
        await add(store, session_id)
        for step in steps:
            await step(session_id)
        history = await store.transitions(session_id)
        assert [change.seq for change in history] == list(range(1, len(history) + 1))
        assert [change.to_state for change in history[:-1]] == [change.from_state for change in history[1:]]
        assert (await known(store, session_id)).state is history[-1].to_state
        seen.update((change.from_state, change.to_state) for change in history)

    def pause(session_id: str) -> Any:
        return store.request_pause(session_id)

    def paused(session_id: str) -> Any:
        return store.paused(session_id, attempt=1, spans={}, usage=USAGE, now=2.0)

    def resume(session_id: str) -> Any:
        return store.resume(session_id, now=2.5)

    def cancel(session_id: str) -> Any:
        return store.request_cancel(session_id, now=2.0)

    def take(session_id: str) -> Any:
        return claim(store, session_id)

    def give_back(session_id: str) -> Any:
        return requeue(store, session_id=session_id)

    def end(state: State) -> Callable[[str], Any]:
        return lambda session_id: finish(store, state, session_id=session_id)

    def end_second(session_id: str) -> Any:
        return finish(store, SUCCEEDED, 2, session_id)

    def end_waiting(state: State) -> Callable[[str], Any]:
        return lambda session_id: store.end_queued(session_id, state=state, now=3.0, spans={}, error=None)

    await lived(cancel)
    await lived(end_waiting(EXPIRED))
    await lived(end_waiting(FAILED))
    await lived(take, give_back)
    await lived(take, pause, give_back, cancel)
    await lived(take, pause, paused, resume, take, end_second)
    await lived(take, cancel, give_back)
    for state in (SUCCEEDED, FAILED, CANCELLED):
        await lived(take, end(state))
    every = {(before, after) for before, nexts in NEXT.items() for after in nexts}
    assert seen == {(None, QUEUED)} | every


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_no_method_moves_an_ended_session(store: Store, backend: Backend, state: State) -> None:
    before = await in_state(store, backend, state)
    history = await store.transitions(ID)
    assert await claim(store) is None
    for attempt in (0, 1):
        assert await requeue(store, attempt) is None
        assert await finish(store, SUCCEEDED, attempt) is None
        assert await finish(store, CANCELLED, attempt) is None
        assert await store.add_image(ID, attempt=attempt, image=image()) is False
        assert await store.paused(ID, attempt=attempt, spans={}, usage=USAGE, now=9.0) is None
    assert await end_queued(store, FAILED) is None
    assert await store.request_pause(ID) == before
    assert await store.resume(ID, now=9.0) is None
    assert await store.request_cancel(ID, now=9.0) == before
    assert await store.recover(now=9.0) == {}
    assert await known(store) == before
    assert await store.transitions(ID) == history
