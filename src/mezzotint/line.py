"""The sessions that wait, in the order in which they are to run. In memory only: the store holds the truth."""

import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mezzotint.session import Session


@dataclass(kw_only=True, slots=True)
class Waiting:
    session: Session
    since: float  # monotonic: what was before is in `spans`
    spans: dict[str, float]
    dtype: str | None = None  # of its last attempt, which the next keeps to

    @property
    def waited_s(self) -> float:
        """Since it was accepted, in whatever states, if it has never run."""
        return sum(self.spans_now().values())

    def spans_now(self) -> dict[str, float]:
        return self.spans_at(time.monotonic())

    def spans_at(self, moment: float) -> dict[str, float]:
        return self.spans | {"queued": self.spans.get("queued", 0.0) + moment - self.since}


class Line:
    """By priority, then by age. Iterating gives them in order."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._order: list[tuple[int, str]] = []  # sorted: who is next stands first
        self.owners: Counter[str | None] = Counter()  # how many sessions of each wait

    def join(self, session: Session, spans: dict[str, float], since: float, dtype: str | None = None) -> None:
        """`since`: up to when `spans` tell, monotonic; writing its row took a while."""
        self._waiting[session.id] = Waiting(session=session, since=since, spans=spans, dtype=dtype)
        insort(self._order, _place(session))
        self.owners[session.owner] += 1

    def leave(self, session_id: str) -> Waiting | None:
        """None: it was not there."""
        waiting = self._waiting.pop(session_id, None)
        if waiting is not None:
            del self._order[bisect_left(self._order, _place(waiting.session))]
            self.owners[waiting.session.owner] -= 1
            self.owners += Counter()  # none at zero
        return waiting

    def get(self, session_id: str) -> Waiting | None:
        return self._waiting.get(session_id)

    def position(self, session: Session) -> int:
        """How many stand before it."""
        return bisect_left(self._order, _place(session))

    def __iter__(self) -> Iterator[Waiting]:
        return (self._waiting[session_id] for _, session_id in self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._waiting


def _place(session: Session) -> tuple[int, str]:
    """Priority, then age: ids carry the time of acceptance, so a session that comes back keeps its place."""
    return -session.request.priority, session.id
