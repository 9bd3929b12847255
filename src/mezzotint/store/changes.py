"""The statements that several methods of the store share, the change of state first. Must not begin a transaction.

What runs for each session is built once, at import: to build a statement takes ten times as long as to run it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Update,
    bindparam,
    false,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from ulid import ULID

from mezzotint.batches import Batch, Standing
from mezzotint.errors import ErrorInfo
from mezzotint.session import FINAL, ImageRecord, Session, State
from mezzotint.store import rows
from mezzotint.store.tables import batches, images, outbox, sessions, transitions

WEBHOOK_OFF = "webhook_off"  # a warning: the receiver wants no more, or may not be called any more
BATCH_ENDED = "batch.ended"  # to webhooks; the other events are of sessions

_IN_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Work:
    """One transaction that writes, and what it has to tell once it is committed."""

    connection: Connection
    told: list[tuple[str, str, Any]] = field(default_factory=list)  # session, kind, data
    posted: list[str] = field(default_factory=list)  # ids in the outbox

    def tell(self, session_id: str, kind: str, data: Any) -> None:
        self.told.append((session_id, kind, data))


@dataclass(frozen=True, slots=True)
class Change:
    session_id: str
    before: State
    after: State
    cause: str
    now: float
    steps_resumed: int | None = None  # of a claim


# Which row, and guards, with the parameters that they take.
THIS = sessions.c.id == bindparam("of_session")
OWNED = sessions.c.attempt == bindparam("of_attempt")
UNCANCELLED = sessions.c.cancel_requested == false()
IN_TIME = or_(  # what has started does not expire
    sessions.c.attempt > 0, sessions.c.expires_at.is_(None), sessions.c.expires_at > bindparam("as_of")
)


def moving(*guards: ColumnElement[bool], **sets: ColumnElement[Any]) -> Update:
    """A statement for `move`; `sets` holds columns whose new value only the database knows."""
    statement = update(sessions).where(THIS, sessions.c.state == bindparam("of_state"), *guards)
    return (statement.values(**sets) if sets else statement).returning(*sessions.c)


ANYWAY = moving()
_EXPIRE = moving(not_(IN_TIME))
_SEEN = select(func.coalesce(func.max(transitions.c.seq), 0)).where(transitions.c.session_id == bindparam("of_session"))
_NOTE = insert(transitions).values(seq=_SEEN.scalar_subquery() + 1)
_POST = insert(outbox)
_OF_BATCH = sessions.c.batch_id == bindparam("of_batch")
# the newest first: they end last, so that none but the last end has to look far
_LEFT = select(sessions.c.id).where(_OF_BATCH, sessions.c.state.not_in(FINAL)).order_by(sessions.c.id.desc()).limit(1)
_WEBHOOKS = select(sessions.c.id, sessions.c.request, sessions.c.warnings).where(_OF_BATCH).order_by(sessions.c.id)
_BATCH = select(batches).where(batches.c.id == bindparam("of_batch"))
_STANDINGS = select(sessions.c.id, sessions.c.state, sessions.c.error).where(_OF_BATCH)


def move(work: Work, change: Change, statement: Update, **values: Any) -> Session | None:
    """The only function that changes a state: by a statement of `moving`, its guards' parameters among the `values`.

    Returns None, with nothing changed, when the row is not as expected.
    """
    if change.after in FINAL:
        values["ended_at"] = change.now
    if change.before is State.RUNNING:
        values["worker"] = None
    if change.after is State.PAUSED:
        values["pause_requested"] = False  # it has what it asked for, and must not pause again when resumed
    row = {"of_session": change.session_id, "of_state": change.before}
    moved = work.connection.execute(statement, row | {"state": change.after} | values).one_or_none()
    if moved is None:
        return None
    note = {
        "of_session": change.session_id,
        "session_id": change.session_id,
        "from_state": change.before,
        "to_state": change.after,
        "attempt": moved.attempt,
        "cause": change.cause,
        "device": values.get("device"),
        "steps_resumed": change.steps_resumed,
        "at": change.now,
    }
    work.connection.execute(_NOTE, note)
    session = _whole(work.connection, moved)
    work.tell(change.session_id, "state", session)
    if change.after in FINAL:
        work.tell(change.session_id, "end", session)
    _post_change(work, session, change.now)
    if change.after in FINAL and session.batch_id is not None:
        _post_end(work, session.batch_id, change.now)
    return session


def _post_change(work: Work, session: Session, now: float) -> None:
    """What the session's webhook is to be told of this change, in the same transaction."""
    webhook, kind = session.request.webhook, f"session.{session.state}"
    if session.state is State.RUNNING and session.attempt == 1:
        kind = "session.started"
    if webhook is None or kind not in webhook.events:
        return
    if not _is_off(session.warnings):
        _post(work, session.id, kind, webhook.url, session, now)


def _post_end(work: Work, batch_id: str, now: float) -> None:
    """What is to be told of a batch that has ended, in the transaction of its last session: once to each URL.

    invariant: nobody else writes meanwhile, and an end is final; so there is one last session.
    """
    of = {"of_batch": batch_id}
    if work.connection.scalar(_LEFT, of) is not None:
        return
    told = [row for row in work.connection.execute(_WEBHOOKS, of) if row.request.webhook is not None]
    off = {row.request.webhook.url for row in told if _is_off(row.warnings)}
    asking: dict[str, str] = {}  # by URL the first session that names it
    for row in told:
        if BATCH_ENDED in row.request.webhook.events and row.request.webhook.url not in off:
            asking.setdefault(row.request.webhook.url, row.id)
    if not asking or (ended := find_batch(work.connection, batch_id)) is None:
        return
    for url, session_id in asking.items():
        _post(work, session_id, BATCH_ENDED, url, ended, now)


def _is_off(warnings: Sequence[dict[str, Any]]) -> bool:
    return any(warning.get("code") == WEBHOOK_OFF for warning in warnings)


def _post(work: Work, session_id: str, kind: str, url: str, data: Any, now: float) -> None:
    """`session_id`: whose warnings tell when it cannot be delivered."""
    post_id = f"evt_{ULID()}"
    row = {
        "id": post_id,
        "session_id": session_id,
        "type": kind,
        "url": url,
        "session": msgspec.json.encode(data).decode(),
        "at": now,
        "next_at": now,
    }
    work.connection.execute(_POST, row)
    work.posted.append(post_id)


def plain(text: str | None) -> bool:
    """Whether text can be in a row's names at all. Postgres does not even compare text that holds a NUL."""
    return text is None or (text.isascii() and text.isprintable())


def searchable(text: str | None) -> bool:
    """Whether text can be in a prompt at all. A NUL or half a pair of surrogates cannot even be looked for."""
    return text is None or not _IN_NO_TEXT.search(text)


def expire(work: Work, session_id: str, now: float, as_of: float) -> None:
    """End it when it is still queued past its time by then."""
    found = find(work.connection, session_id)
    if found is None or found.request.expires_s is None:
        return
    error = ErrorInfo(code="expired", message=f"not started within {found.request.expires_s:g} s")
    spans = {"queued": max(0.0, as_of - found.created_at)}
    change = Change(session_id, State.QUEUED, State.EXPIRED, error.code, now)
    move(work, change, _EXPIRE, as_of=as_of, spans=spans, error=error)


_FLAGS = select(sessions.c.cancel_requested, sessions.c.pause_requested).where(THIS).with_for_update()


def after_running(connection: Connection, session_id: str) -> State:
    """Where a session whose attempt ends unfinished belongs. Cancel beats pause."""
    row = connection.execute(_FLAGS, {"of_session": session_id}).one_or_none()
    if row is None or not any(row):
        return State.QUEUED
    return State.CANCELLED if row.cancel_requested else State.PAUSED


def pictures_of(connection: Connection, session_ids: Collection[str]) -> dict[str, frozenset[str] | None]:
    """The digests of each session's pictures, None of one that has not ended."""
    states = select(sessions.c.id, sessions.c.state).where(sessions.c.id.in_(session_ids))
    digests = select(images.c.session_id, images.c.sha256).where(images.c.session_id.in_(session_ids))
    known = {row.id: set[str]() if row.state in FINAL else None for row in connection.execute(states)}
    for row in connection.execute(digests):
        if (kept := known.get(row.session_id)) is not None:
            kept.add(row.sha256)
    return {session_id: None if kept is None else frozenset(kept) for session_id, kept in known.items()}


_SESSION = select(sessions).where(THIS)
_PICTURES = select(images).where(images.c.session_id == bindparam("of_session")).order_by(images.c.idx)


def find(connection: Connection, session_id: str) -> Session | None:
    row = connection.execute(_SESSION, {"of_session": session_id}).one_or_none()
    return None if row is None else _whole(connection, row)


def find_batch(connection: Connection, batch_id: str) -> tuple[Batch, Mapping[str, Standing]] | None:
    """A batch, and how those of its sessions stand that were not removed."""
    of = {"of_batch": batch_id}
    row = connection.execute(_BATCH, of).one_or_none()
    if row is None:
        return None
    found = connection.execute(_STANDINGS, of)
    return rows.batch(row), {one.id: Standing(state=State(one.state), error=one.error) for one in found}


def _whole(connection: Connection, row: Row[Any]) -> Session:
    """With its pictures."""
    return rows.session(row, tuple(map(rows.image, connection.execute(_PICTURES, {"of_session": row.id}))))


def load(connection: Connection, query: Select[Any]) -> list[Session]:
    """The sessions of a query over whole rows, with their pictures, in the query's order."""
    found = connection.execute(query).all()
    ids = query.with_only_columns(sessions.c.id).subquery()
    pictures: dict[str, list[ImageRecord]] = {row.id: [] for row in found}
    of_these = select(images).where(images.c.session_id.in_(select(ids.c.id)))
    for row in connection.execute(of_these.order_by(images.c.session_id, images.c.idx)):
        pictures[row.session_id].append(rows.image(row))
    return [rows.session(row, tuple(pictures[row.id])) for row in found]
