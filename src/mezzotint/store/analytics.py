"""Sessions that ended in a span of time, as columns for statistics. Must not change a row."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from mezzotint.errors import ErrorInfo
from mezzotint.session import State, Usage
from mezzotint.store.tables import sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What statistics need of a session."""

    state: State
    type: str
    model: str
    spans: dict[str, float]
    usage: Usage
    error: ErrorInfo | None
    ended_at: float


def ended(connection: Connection, since: float, owner: str | None, limit: int) -> list[Ended]:
    """Those of an owner (None: of all) that ended since then, the latest first, `limit` at most."""
    columns = [sessions.c[name] for name in ("state", "type", "model", "spans", "usage", "error", "ended_at")]
    query = select(*columns).where(sessions.c.ended_at >= since).order_by(sessions.c.ended_at.desc()).limit(limit)
    if owner is not None:
        query = query.where(sessions.c.owner == owner)
    return [
        Ended(
            state=State(row.state),
            type=row.type,
            model=row.model,
            spans=row.spans,
            usage=row.usage,
            error=row.error,
            ended_at=row.ended_at,
        )
        for row in connection.execute(query)
    ]
