"""Which sessions came through AUTOMATIC1111's dialect, from whom, under which names. Must not know their state.

It lives as long as the process: after a restart the callers who waited are gone too.
"""

from collections import OrderedDict
from dataclasses import dataclass

from fastapi import Request

from mezzotint.callers import asking

MAX_ENDED = 2000
MAX_LEFT = 2000


@dataclass(frozen=True, slots=True)
class Task:
    session_id: str
    caller: str
    name: str  # as the caller says; else the session's id


class Tasks:
    """In the order of their coming. Another caller's are as if they were not there."""

    def __init__(self) -> None:
        self._active: OrderedDict[str, Task] = OrderedDict()
        self._ended: OrderedDict[str, Task] = OrderedDict()
        self._left: OrderedDict[str, None] = OrderedDict()  # of the active ones, those nobody waits for

    def add(self, session_id: str, caller: str, name: str | None) -> None:
        if session_id not in self._active:
            self._active[session_id] = Task(session_id, caller, name or session_id)

    def end(self, session_id: str) -> None:
        """It has ended. Harmless when repeated."""
        self._left.pop(session_id, None)
        task = self._active.pop(session_id, None)
        if task is not None:
            self._ended[session_id] = task
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def leave(self, session_id: str) -> None:
        """Its caller waits no longer. It stays active until somebody who looks says that it has ended."""
        self._left[session_id] = None
        if len(self._left) > MAX_LEFT:
            self.end(next(iter(self._left)))

    def active(self, caller: str) -> list[Task]:
        return [task for task in self._active.values() if task.caller == caller]

    def named(self, name: str, caller: str) -> Task | None:
        """By session id or by the caller's own name, the newest of that name."""
        every = [*self._ended.values(), *self._active.values()]
        fitting = (task for task in reversed(every) if task.caller == caller and name in (task.session_id, task.name))
        return next(fitting, None)


def caller(request: Request) -> str:
    """Whose tasks a call may see: those of its key; without keys, those of its address."""
    return asking.get().key or (request.client.host if request.client else "")


def owner() -> str:
    """Whose options a call reads and sets: one set while there are no keys."""
    return asking.get().key or ""
