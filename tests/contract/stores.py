"""What the suites of the store share: a database to go around the store in, and short ways through a session's life."""

import dataclasses
from collections.abc import Collection
from typing import Any

import tests.requests
from mezzotint.errors import ErrorInfo
from mezzotint.request import Request
from mezzotint.session import ImageRecord, Session, State, Usage
from mezzotint.store.sql import Store
from tests.contract.backends import Backend

QUEUED, RUNNING, PAUSED = State.QUEUED, State.RUNNING, State.PAUSED
SUCCEEDED, FAILED, CANCELLED, EXPIRED = State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED
ID = "ses_1"
REQUEST = tests.requests.request(
    prompt="a lighthouse, ünïcode \0 and all",
    num_inference_steps=8,
    num_images=2,
    metadata={"deep": [{"n": 10**30, "x": 1.0, "none": None}]},
)
SPANS = {"queued": 1.5, "denoising": 0.25}
USAGE = Usage(peak_memory_bytes=2**40, device_s=0.5, steps_run=8, reached=(0, 4), unknown={"power": "no sensor"})
LOST = ErrorInfo(code="worker_lost", message="it died", phase="denoising", retryable=True)


def request(**changes: Any) -> Request:
    return dataclasses.replace(REQUEST, **changes)


def image(index: int = 0, sha: str = "a") -> ImageRecord:
    return ImageRecord(index=index, seed=7 + index, width=64, height=96, format="png", bytes=123, sha256=sha * 64)


async def add(store: Store, session_id: str = ID, now: float = 100.0, **changes: Any) -> Session:
    return await store.add(session_id, request(**changes), warnings=[], now=now)


async def count(store: Store, states: Collection[State]) -> int:
    found, more = await store.list(states=states, limit=1000)
    assert more is None
    return len(found)


async def claim(store: Store, session_id: str = ID, now: float = 200.0) -> Session | None:
    return await store.claim(session_id, worker="w0", device="cpu:0", now=now)


async def running(store: Store, session_id: str = ID) -> Session:
    await add(store, session_id)
    session = await claim(store, session_id)
    assert session is not None
    return session


async def known(store: Store, session_id: str = ID) -> Session:
    session = await store.get(session_id)
    assert session is not None
    return session


async def finish(
    store: Store, state: State, attempt: int = 1, session_id: str = ID, last: ImageRecord | None = None
) -> Session | None:
    error = LOST if state is FAILED else None
    return await store.finish(
        session_id, attempt=attempt, state=state, now=300.0, spans=SPANS, usage=USAGE, image=last, error=error
    )


async def requeue(store: Store, attempt: int = 1, session_id: str = ID) -> Session | None:
    return await store.requeue(session_id, attempt=attempt, cause="worker_lost", losses=1, spans=SPANS, now=300.0)


async def end_queued(store: Store, state: State) -> Session | None:
    return await store.end_queued(ID, state=state, now=300.0, spans=SPANS, error=LOST if state is FAILED else None)


def flag(backend: Backend, name: str, session_id: str = ID) -> None:
    backend.raw(f"UPDATE sessions SET {name} = true WHERE id = ?", session_id)


async def in_state(store: Store, backend: Backend, state: State, session_id: str = ID) -> Session:
    """A session led to a state by legal steps only."""
    await add(store, session_id)
    if state in (CANCELLED, EXPIRED):
        backend.raw("UPDATE sessions SET state = ? WHERE id = ?", state.value, session_id)
    elif state is not QUEUED:
        await claim(store, session_id)
        if state is not RUNNING:
            backend.raw("UPDATE sessions SET state = ? WHERE id = ?", state.value, session_id)
    return await known(store, session_id)
