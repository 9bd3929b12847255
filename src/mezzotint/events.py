"""What happened to each session, told to whoever listens. Must not block a teller: who is too slow is dropped."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mezzotint.errors import TryLater

_T = TypeVar("_T")

KEPT = 1000  # events of a session that can be replayed
KEPT_ENDED = 2000  # ended sessions whose events are still in memory
BACKLOG = 256  # events that a listener may be behind
BACKLOG_OF_PREVIEWS = 16  # events that a listener may be behind to be shown a preview
BACKLOG_OF_ALL = 4096  # the same for one of all sessions
PREVIEWS_OF_ALL = 512
GATHER_S = 0.1  # events of all sessions come in bundles of so long

# Replayed to who comes later. Progress and previews are not: the next one says more.
STORED = frozenset({"state", "image", "warning", "end"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """`kind` is state, progress, preview, image, warning or end; `id` rises by one within a session."""

    id: int
    kind: str
    data: Any
    written: dict[Any, bytes] = field(default_factory=dict, compare=False, repr=False)  # what shared() wrote

    def shared(self, how: Any, write: Callable[[], bytes]) -> bytes:
        """As bytes, written once for all readers that want it alike. Bytes of what is stored would stay in memory."""
        if self.kind in STORED:
            return write()
        if how not in self.written:
            self.written[how] = write()
        return self.written[how]


@dataclass(kw_only=True, slots=True)
class _Log:
    last_id: int = 0
    stored: deque[Event] = field(default_factory=lambda: deque(maxlen=KEPT))
    listeners: set[asyncio.Queue[Event | None]] = field(default_factory=set)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Events:
    """The events of all sessions, in memory. The store keeps those of STORED, and tells them itself once it has."""

    def __init__(self, ended: Callable[[Any], None] = lambda session: None) -> None:
        """`ended` is called with every session that ends."""
        self._ended = ended
        self._logs: dict[str, _Log] = {}
        self._over: dict[str, None] = {}  # those that have ended, the oldest first
        self._above = 0
        self._held: set[str] = set()
        self._numbering = threading.Lock()
        self._feeds: set[asyncio.Queue[tuple[str, Event] | None]] = set()
        self._closed = False

    def close(self) -> None:
        """Nothing more will be told: listeners come to their end, and so does who waits for that of a session."""
        self._closed = True
        for log in self._logs.values():
            for listener in log.listeners:
                listener.put_nowait(None)
            log.over.set()
        for feed in self._feeds:
            feed.put_nowait(None)

    def begin(self, above: int) -> None:
        """Number on from there, above all that an earlier process can have used. Before the first event."""
        self._above = above

    def last_id(self, session_id: str) -> int:
        """The next event of the session has one more."""
        log = self._logs.get(session_id)
        return self._above if log is None else log.last_id

    @contextmanager
    def held(self, session_ids: Collection[str]) -> Iterator[None]:
        """While their next events are being written: what is not stored is not told, or it would take their numbers.

        May be entered in another thread than tells.
        """
        with self._numbering:
            self._held.update(session_ids)
        try:
            yield
        finally:
            self._held.difference_update(session_ids)

    def tell(self, session_id: str, kind: str, data: Any) -> None:
        """Pass it on. Progress, of which the next says more, may be left out."""
        log = self._log(session_id)
        with self._numbering:
            if kind not in STORED and session_id in self._held:
                return
            log.last_id += 1
        event = Event(id=log.last_id, kind=kind, data=data)
        if kind in STORED:
            log.stored.append(event)
        for listener in list(log.listeners):
            _hand(listener, log.listeners, event, kind, BACKLOG, BACKLOG_OF_PREVIEWS)
        for feed in list(self._feeds):
            _hand(feed, self._feeds, (session_id, event), kind, BACKLOG_OF_ALL, PREVIEWS_OF_ALL)
        if kind == "end":
            log.over.set()
            self._ended(data)
            self._over[session_id] = None
            if len(self._over) > KEPT_ENDED:
                self.forget(next(iter(self._over)))

    async def everything(self) -> AsyncIterator[list[tuple[str, Event]]]:
        """Events of all sessions with their ids, from now on, in bundles. Ends early for a listener too slow."""
        feed: asyncio.Queue[tuple[str, Event] | None] = asyncio.Queue()
        self._feeds.add(feed)
        try:
            while (first := await feed.get()) is not None:
                await asyncio.sleep(GATHER_S)
                bundle: list[tuple[str, Event] | None] = [first, *(feed.get_nowait() for _ in range(feed.qsize()))]
                yield _without_old_previews([told for told in bundle if told is not None])
                if bundle[-1] is None:
                    return
        finally:
            self._feeds.discard(feed)

    def knows(self, session_id: str) -> bool:
        return session_id in self._logs

    def follow(self, session_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events above `after` of this process, then each as it comes; ends after `end`.

        Ends early for a listener too slow. The session must be known, or not have ended.
        """
        return self._follow(self._log(session_id), after)

    async def over(self, session_id: str) -> Any:
        """Until it has ended; returns what was told with the end. A session that is not known must not have.

        Raises TryLater `not_ready` when this is closed first.
        """
        log = self._log(session_id)
        await log.over.wait()
        if not log.stored or log.stored[-1].kind != "end":
            raise closed()
        return log.stored[-1].data

    def _log(self, session_id: str) -> _Log:
        log = self._logs.setdefault(session_id, _Log(last_id=self._above))
        if self._closed:
            log.over.set()
        return log

    async def _follow(self, log: _Log, after: int) -> AsyncIterator[Event]:
        while behind := [event for event in log.stored if event.id > after]:  # more may come while these are taken
            for event in behind:
                yield event
                after = event.id
        if log.over.is_set():
            return
        listener: asyncio.Queue[Event | None] = asyncio.Queue()
        log.listeners.add(listener)
        try:
            while (next_event := await listener.get()) is not None:
                yield next_event
                if next_event.kind == "end":
                    return
        finally:
            log.listeners.discard(listener)

    def forget(self, session_id: str) -> None:
        self._logs.pop(session_id, None)
        self._over.pop(session_id, None)


def closed() -> TryLater:
    message = "what runs this session was closed before its end; it goes on when that is opened again"
    return TryLater(message, code="not_ready", retry_after_s=10)


def _without_old_previews(bundle: list[tuple[str, Event]]) -> list[tuple[str, Event]]:
    """Of each image the newest: the ones before would be replaced as soon as they were shown."""
    newest = {(session_id, event.data.image_index): event for session_id, event in bundle if event.kind == "preview"}
    return [
        (session_id, event)
        for session_id, event in bundle
        if event.kind != "preview" or newest[session_id, event.data.image_index] is event
    ]


def _hand(
    listener: asyncio.Queue[_T | None],
    among: set[asyncio.Queue[_T | None]],
    told: _T,
    kind: str,
    most: int,
    most_previews: int,
) -> None:
    """What it has been handed it gets, without a gap, however slow it is; what it has no room for it gets by replay."""
    if kind == "preview" and listener.qsize() >= most_previews:
        return  # too slow for pictures, which are large; the next may find room
    if listener.qsize() < most:
        listener.put_nowait(told)
    elif kind in STORED:
        among.discard(listener)
        listener.put_nowait(None)  # too slow: the stream ends, and the listener may come back and replay
