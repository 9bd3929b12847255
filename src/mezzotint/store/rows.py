"""Turns rows into the values of session.py and back. Must not run a statement."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import Row

from mezzotint.batches import Batch
from mezzotint.events import Event
from mezzotint.request import Request
from mezzotint.session import ImageRecord, Progress, Session, State, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One change of state as it was committed. `attempt` is the one after the change."""

    session_id: str
    seq: int  # from 1, without gaps
    from_state: State | None  # None: accepted
    to_state: State
    attempt: int
    cause: str
    at: float
    device: str | None  # of a claim
    steps_resumed: int | None  # of a claim


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One time that a session was given to a worker."""

    number: int  # from 1
    device: str | None  # None: from before it was recorded
    started_at: float
    steps_resumed: int | None = None  # done before it; None: from before it was recorded
    ended_at: float | None = None  # None: it runs
    ended_as: State | None = None
    cause: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Once:
    """A caller's word that equal keys mean one request, however often it is sent."""

    scope: str  # whose keys they are
    key: str
    fingerprint: str  # of the body

    @property
    def name(self) -> tuple[str, str]:
        return self.scope, self.key


def of_request(
    session_id: str,
    request: Request,
    *,
    warnings: tuple[dict[str, Any], ...],
    now: float,
    batch_id: str | None,
    owner: str | None,
) -> dict[str, Any]:
    """The row of a session just accepted. Raises ValueError for text that is not Unicode, which no row can hold."""
    msgspec.json.encode((request, warnings))  # here it fails alone; in a shared commit it would fail its neighbours
    return {
        "id": session_id,
        "state": State.QUEUED,
        "type": request.type,
        "model": request.model,
        "priority": request.priority,
        "batch_id": batch_id,
        "owner": owner,
        "created_at": now,
        "expires_at": None if request.expires_s is None else now + request.expires_s,
        "request": request,
        "spans": {},
        "usage": Usage(),
        "warnings": warnings,
    }


def of_acceptance(row: dict[str, Any]) -> dict[str, Any]:
    """The first line of a session's history."""
    first = {"seq": 1, "from_state": None, "to_state": State.QUEUED, "attempt": 0, "cause": "accepted"}
    return {"session_id": row["id"], "at": row["created_at"]} | first


def accepted(row: dict[str, Any]) -> Session:
    """The session of a row just written, as reading it back would have it."""
    return Session(
        id=row["id"],
        state=row["state"],
        request=row["request"],
        device=None,
        attempt=0,
        losses=0,
        created_at=row["created_at"],
        started_at=None,
        ended_at=None,
        spans=row["spans"],
        usage=row["usage"],
        images=(),
        error=None,
        warnings=row["warnings"],
        cancel_requested=False,
        pause_requested=False,
        progress=_progress(row["state"], row["request"], row["usage"], ()),
        batch_id=row["batch_id"],
        owner=row["owner"],
    )


def session(row: Row[Any], pictures: tuple[ImageRecord, ...]) -> Session:
    state = State(row.state)
    return Session(
        id=row.id,
        state=state,
        request=row.request,
        device=row.device,
        attempt=row.attempt,
        losses=row.losses,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        spans=row.spans,
        usage=row.usage,
        images=pictures,
        error=row.error,
        warnings=row.warnings,
        cancel_requested=row.cancel_requested,
        pause_requested=row.pause_requested,
        progress=_progress(state, row.request, row.usage, {picture.index for picture in pictures}),
        batch_id=row.batch_id,
        owner=row.owner,
    )


def batch(row: Row[Any]) -> Batch:
    return Batch(
        id=row.id,
        created_at=row.created_at,
        items=row.items,
        stop_on_first_error=row.stop_on_first_error,
        metadata=row.metadata,
        owner=row.owner,
    )


def _progress(state: State, request: Request, usage: Usage, stored: Collection[int]) -> Progress:
    """What a row alone can tell: by what the worker said last, at least that the stored images are done.

    `steps_resumed` adds nothing: an earlier attempt ran those.
    """
    steps, count = request.steps, request.num_images
    if state is State.SUCCEEDED:
        return Progress(step=steps, steps=steps, fraction=1.0, image_index=count - 1)
    left = [index for index in range(count) if index not in stored]
    index, step = (left[0], 0) if left else (count - 1, steps)
    if usage.reached is not None and usage.reached[0] in left:
        index, step = usage.reached
    done = max(usage.steps_run, steps * (count - len(left)))
    return Progress(step=step, steps=steps, fraction=min(0.999, done / (steps * count)), image_index=index)


def image(row: Row[Any]) -> ImageRecord:
    return ImageRecord(
        index=row.idx,
        seed=row.seed,
        width=row.width,
        height=row.height,
        format=row.format,
        bytes=row.bytes,
        sha256=row.sha256,
    )


def of_image(session_id: str, record: ImageRecord) -> dict[str, Any]:
    columns = ("seed", "width", "height", "format", "bytes", "sha256")
    return {"session_id": session_id, "idx": record.index} | {name: getattr(record, name) for name in columns}


def transition(row: Row[Any]) -> Transition:
    before = None if row.from_state is None else State(row.from_state)
    return Transition(
        session_id=row.session_id,
        seq=row.seq,
        from_state=before,
        to_state=State(row.to_state),
        attempt=row.attempt,
        cause=row.cause,
        at=row.at,
        device=row.device,
        steps_resumed=row.steps_resumed,
    )


def attempts(history: Iterable[Transition]) -> list[Attempt]:
    """The attempts that a history tells of: each begins with a claim and ends with the next change."""
    found: list[Attempt] = []
    for change in history:
        if change.to_state is State.RUNNING:
            found.append(
                Attempt(
                    number=change.attempt,
                    device=change.device,
                    started_at=change.at,
                    steps_resumed=change.steps_resumed,
                )
            )
        elif change.from_state is State.RUNNING:
            found[-1] = replace(found[-1], ended_at=change.at, ended_as=change.to_state, cause=change.cause)
    return found


def of_event(session_id: str, number: int, kind: str, data: Any) -> dict[str, Any]:
    told = msgspec.to_builtins(data)
    if isinstance(data, Session):
        del told["request"]
    return {"session_id": session_id, "id": number, "kind": kind, "data": msgspec.json.encode(told).decode()}


def event(row: Row[Any], request: Request) -> Event:
    data = msgspec.json.decode(row.data)
    if row.kind in ("state", "end"):
        data = msgspec.convert(data | {"request": request}, Session)
    elif row.kind == "image":
        data = msgspec.convert(data, ImageRecord)
    return Event(id=row.id, kind=row.kind, data=data)
