"""The table of states as a plain dict: what a store should make of each call. Must not share code with the store.

Every method is named as the store's and answers whether the call should have changed something.
"""

from dataclasses import dataclass, field

QUEUED, RUNNING, PAUSED = "queued", "running", "paused"
Move = tuple[str | None, str, int, str]  # from, to, attempt, cause


@dataclass(kw_only=True, slots=True)
class Row:
    """One session as it should be."""

    created_at: float
    expires_at: float | None
    state: str = QUEUED
    attempt: int = 0
    losses: int = 0
    cancel_requested: bool = False
    pause_requested: bool = False
    ended_at: float | None = None
    images: set[int] = field(default_factory=set)
    moves: list[Move] = field(default_factory=lambda: [(None, QUEUED, 0, "accepted")])


class Model:
    def __init__(self, queue_size: int) -> None:
        self._queue_size = queue_size
        self.rows: dict[str, Row] = {}
        self.keys: dict[str, tuple[str, str]] = {}  # key -> session, body

    def in_state(self, state: str) -> list[str]:
        return [session_id for session_id, row in self.rows.items() if row.state == state]

    def living(self) -> list[str]:
        return [session_id for session_id, row in self.rows.items() if row.ended_at is None]

    def add(self, session_id: str, key: str | None, body: str, now: float, expires_s: float | None) -> str:
        """The id of the session that answers, or the code of the refusal."""
        if key in self.keys:
            first, its_body = self.keys[key]
            return first if body == its_body else "idempotency_mismatch"
        if len(self.in_state(QUEUED)) >= self._queue_size:
            return "queue_full"
        self.rows[session_id] = Row(created_at=now, expires_at=None if expires_s is None else now + expires_s)
        if key is not None:
            self.keys[key] = session_id, body
        return session_id

    def claim(self, session_id: str, now: float) -> bool:
        row = self.rows[session_id]
        if row.state != QUEUED:
            return False
        if row.attempt == 0 and row.expires_at is not None and now >= row.expires_at:
            _move(row, "expired", "expired", now)
            return False
        row.attempt += 1
        _move(row, RUNNING, "claimed", now)
        return True

    def requeue(self, session_id: str, attempt: int, losses: int, now: float) -> bool:
        row = self.rows[session_id]
        if not _owns(row, attempt):
            return False
        row.losses = losses
        _let_go(row, "worker_lost", now)
        return True

    def paused(self, session_id: str, attempt: int, now: float) -> bool:
        row = self.rows[session_id]
        if not _owns(row, attempt) or not row.pause_requested or row.cancel_requested:
            return False
        _move(row, PAUSED, "pause", now)
        return True

    def finish(self, session_id: str, attempt: int, state: str, cause: str, now: float) -> bool:
        row = self.rows[session_id]
        if not _owns(row, attempt) or (row.cancel_requested and state != "cancelled"):
            return False
        _move(row, state, cause, now)
        return True

    def end_queued(self, session_id: str, state: str, cause: str, now: float) -> bool:
        row = self.rows[session_id]
        if row.state != QUEUED or (state == "expired" and row.attempt > 0):
            return False
        _move(row, state, cause, now)
        return True

    def request_cancel(self, session_id: str, now: float) -> None:
        row = self.rows[session_id]
        if row.state == RUNNING:
            row.cancel_requested = True
        elif row.state in (QUEUED, PAUSED):
            _move(row, "cancelled", "cancel", now)

    def request_pause(self, session_id: str) -> None:
        row = self.rows[session_id]
        row.pause_requested |= row.state == RUNNING and not row.cancel_requested

    def resume(self, session_id: str, now: float) -> bool:
        row = self.rows[session_id]
        if row.state != PAUSED:
            return False
        _move(row, QUEUED, "resume", now)
        return True

    def add_image(self, session_id: str, attempt: int, index: int) -> bool:
        row = self.rows[session_id]
        if not _owns(row, attempt) or row.cancel_requested:
            return False
        row.images.add(index)
        return True

    def recover(self, now: float) -> None:
        for session_id in self.in_state(RUNNING):
            _let_go(self.rows[session_id], "restart", now)


def _owns(row: Row, attempt: int) -> bool:
    return row.state == RUNNING and row.attempt == attempt


def _let_go(row: Row, cause: str, now: float) -> None:
    """Cancel beats pause."""
    _move(row, "cancelled" if row.cancel_requested else PAUSED if row.pause_requested else QUEUED, cause, now)


def _move(row: Row, state: str, cause: str, now: float) -> None:
    row.moves.append((row.state, state, row.attempt, cause))
    row.state = state
    if state == PAUSED:
        row.pause_requested = False
    elif state not in (QUEUED, RUNNING):
        row.ended_at = now
