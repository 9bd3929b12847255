"""Takes sessions in, and does what callers ask of those that wait or run.

With claims.py and reports.py all that changes sessions. Must not decide what a request may hold, or speak HTTP.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from mezzotint.batches import Batch
from mezzotint.checkpoints import Checkpoints
from mezzotint.claims import Claims
from mezzotint.errors import Conflict, NotFound, TryLater
from mezzotint.estimates import Busy
from mezzotint.events import Events
from mezzotint.line import Line
from mezzotint.live import Lives
from mezzotint.measurements import Measurements
from mezzotint.refs import Refs
from mezzotint.reports import Reports
from mezzotint.request import Request, Resolved
from mezzotint.residency import Residency, names_of
from mezzotint.session import Preview, Session, State
from mezzotint.store.blobs import Blobs
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from mezzotint.workers.base import Supervisor
from mezzotint.workers.local import LocalWorker

log = structlog.get_logger(__name__)

REMEMBERED_S, REMEMBERED = 7 * 86400.0, 2000  # ended sessions that tell a new process what is used
STORE_S = 10.0  # that a stop waits for the database, longer than it may be held by another process


class Dispatcher:
    """Holds the queue and the running sessions in memory; the store holds the truth."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        checkpoints: Checkpoints,
        refs: Refs,
        supervisor: Supervisor,
        events: Events,
        choices: Choices,
        measurements: Measurements,
        most_running: Callable[[str | None], float] = lambda owner: math.inf,
    ) -> None:
        """`most_running`: how many sessions of an owner may be in workers at one time."""
        self._store, self._refs, self._events, self._checkpoints = store, refs, events, checkpoints
        self._supervisor = supervisor
        self._line, self._lives = Line(), Lives()
        self._residency = Residency(supervisor, refs, choices)
        self._wake = asyncio.Event()
        self._reports = Reports(store, blobs, checkpoints, events, choices, self._line, self._lives, self._wake.set)
        self._claims = Claims(
            store,
            blobs,
            checkpoints,
            refs,
            supervisor,
            choices,
            measurements,
            self._residency,
            self._reports,
            self._line,
            self._lives,
            self._wake,
            most_running,
        )
        supervisor.on_ready, supervisor.on_message, supervisor.on_lost = (
            self._ready,
            self._reports.heard,
            self._reports.lost,
        )
        refs.on_read = self._wake.set
        self._hurry = False

    # ---- life

    async def start(self) -> None:
        """Take up what an earlier process left: every running row goes back to the queue, or where its flags say."""
        await self._store.begin(now=time.time())
        counts = await self._store.recover(now=time.time())
        if counts:
            log.info("recovered sessions", **{str(state): count for state, count in counts.items()})
        for session_id in await self._checkpoints.sessions():
            left = await self._store.get(session_id)
            if left is None or left.ended:
                self._checkpoints.forget(session_id)
        for session in sorted(await self._store.queued(), key=lambda session: session.id):
            elapsed = max(0.0, time.time() - session.created_at - sum(session.spans.values()))
            spans = session.spans | {"queued": session.spans.get("queued", 0.0) + elapsed}
            self._line.join(session, spans, time.monotonic())
            if not self._events.knows(session.id):  # else it was told with its recovery
                self._events.tell(session.id, "state", self.view(session))
        for ended in await self._store.ended(since=time.time() - REMEMBERED_S, owner=None, limit=REMEMBERED):
            self._residency.used(ended.model, ended.ended_at)
        self._claims.start()

    async def drain(self, limit_s: float) -> None:
        """Claim no more and let running sessions end; after `limit_s` what still runs goes back to the queue."""
        self._claims.close()
        deadline = time.monotonic() + limit_s
        while self._lives and time.monotonic() < deadline and not self._hurry:
            await asyncio.sleep(0.02)
        await self._reports.stop()
        await self._claims.stop()
        for live in list(self._lives.values()):
            session, spans = live.session, live.spans_now()
            if self._lives.pop(session.id, None) is not live:
                continue  # it ended while another was written
            with contextlib.suppress(TryLater, TimeoutError):  # what stays a running row is taken up by the next start
                async with asyncio.timeout(STORE_S):
                    await self._store.requeue(
                        session.id,
                        attempt=session.attempt,
                        cause="stop",
                        losses=session.losses,
                        spans=spans,
                        usage=live.usage_so_far,
                        now=time.time(),
                    )

    def stop_draining(self) -> None:
        self._hurry = True

    # ---- what callers ask

    async def accept(
        self, session_id: str, resolved: Resolved, once: Once | None = None, owner: str | None = None
    ) -> Session:
        """Store a new session and put it in the queue. It is durable when this returns. Raises TryLater, Conflict."""
        self.check_accepting()
        since = time.monotonic()
        session = await self._store.add(
            session_id, resolved.request, warnings=resolved.warnings, now=time.time(), owner=owner, once=once
        )
        if session.id != session_id:  # the key stands for an earlier one
            return self.view(session)
        self._join(session, since)
        self._wake.set()
        return self.view(session)

    async def accept_batch(self, batch: Batch, accepted: Mapping[str, Resolved], once: Once | None = None) -> Batch:
        """Store a batch with its sessions, by id, and queue them: all or none. Raises TryLater, Conflict."""
        self.check_accepting()
        since = time.monotonic() - max(0.0, time.time() - batch.created_at)  # since then pictures were laid out
        stored, sessions = await self._store.batches.add(batch, accepted, once=once)
        for session in sessions:
            self._join(session, since)
        self._wake.set()
        return stored

    def _join(self, session: Session, since: float) -> None:
        self._line.join(session, {}, since)
        self._residency.used(session.request.model, session.created_at)

    def check_accepting(self) -> None:
        """Raises TryLater while the server stops."""
        if self._claims.closed:
            raise TryLater("the server is stopping; try another or come back", code="not_ready", retry_after_s=10)

    async def cancel(self, session_id: str) -> Session:
        """Raises NotFound, or Conflict when it had ended. What this returns, ends cancelled."""
        now, spans = time.time(), None
        if (waiting := self._line.get(session_id)) is not None:
            spans = waiting.spans_now()
        elif session_id not in self._lives and (found := await self._store.get(session_id)) is not None:
            spans = found.spans_now(now)
        session = await self._store.request_cancel(session_id, now=now, spans=spans)
        if session is None:
            raise NotFound(f"session {session_id[:64]!r} is not here", code="session_not_found")
        if session.state is State.CANCELLED and session.ended_at == now:  # ended by this very call
            self._line.leave(session_id)
            self._reports.ended(session)
            return session
        if session.ended:
            message = f"session {session_id!r} ended {session.state}; nothing is left to cancel"
            raise Conflict(message, code="session_ended")
        if (live := self._lives.get(session_id)) is not None:
            live.session = live.session.having(cancel_requested=True)
            live.worker.send(wire.Cancel(session_id=session_id, attempt=live.session.attempt))
        else:
            self._claims.cancelled_early(session_id)
        return self.view(session)

    async def cancel_all(self, session_ids: Iterable[str]) -> None:
        """Cancel those that have not ended, the ones that would run last first."""
        for session_id in sorted(session_ids, reverse=True):
            with contextlib.suppress(Conflict, NotFound):  # it ended, or was removed, meanwhile
                await self.cancel(session_id)

    async def pause(self, session_id: str) -> Session:
        """Let go of it at the next boundary; its state is kept. Raises NotFound, or Conflict when it does not run."""
        session = await self._store.request_pause(session_id)
        if session is None:
            raise NotFound(f"session {session_id[:64]!r} is not here", code="session_not_found")
        is_pausing = session.pause_requested and not session.ended and not session.cancel_requested
        if session.state is not State.PAUSED and not is_pausing:
            what = "is being cancelled" if session.state is State.RUNNING else f"is {session.state}"
            raise Conflict(f"session {session_id!r} {what}; only a running one can be paused", code="illegal_state")
        if (live := self._lives.get(session_id)) is not None:
            live.session = live.session.having(pause_requested=True)
            live.worker.send(wire.Pause(session_id=session_id, attempt=live.session.attempt))
        elif session.state is State.RUNNING:
            self._claims.paused_early(session_id, session.attempt)
        return self.view(session)

    async def resume(self, session_id: str) -> Session:
        """Back to its old place in the queue. Raises NotFound, or Conflict when it is not paused."""
        session, now, since = await self._store.get(session_id), time.time(), time.monotonic()
        if session is None:
            raise NotFound(f"session {session_id[:64]!r} is not here", code="session_not_found")
        if session.state is not State.PAUSED:
            message = f"session {session_id!r} is {session.state}; only a paused one can be resumed"
            raise Conflict(message, code="illegal_state")
        spans = session.spans_now(now)
        resumed = await self._store.resume(session_id, now=now, spans=spans)
        if resumed is None:
            raise Conflict(f"session {session_id!r} has just been resumed or cancelled", code="illegal_state")
        self._line.join(resumed, spans, since)
        self._wake.set()
        return self.view(resumed)

    def forget_use(self, model_id: str) -> None:
        """A model that somebody had unloaded is not loaded again before it is used."""
        self._residency.forget(model_id)

    def knows(self, session: Session) -> bool:
        """Whether memory has a stored session as its row says, or need not have it."""
        if session.state is State.RUNNING:
            return session.id in self._lives
        return session.state is not State.QUEUED or session.id in self._line

    def view(self, session: Session) -> Session:
        """A stored session with what only memory knows: progress, timing up to now, its place in the queue."""
        if (live := self._lives.get(session.id)) is not None and session.state is State.RUNNING:
            warnings = [*session.warnings, *(one for one in live.session.warnings if one not in session.warnings)]
            return session.having(
                progress=live.progress, spans=live.spans_now(), usage=live.usage_so_far, warnings=tuple(warnings)
            )
        waiting = self._line.get(session.id)
        if waiting is not None and session.state is State.RUNNING:  # just claimed: its row was written first
            return session.having(spans=waiting.spans_now())
        if waiting is not None and session.state is State.QUEUED:
            told = session.having(queue_position=self._line.position(session), spans=waiting.spans_now())
            return told if (why := self._cannot_start(session)) is None else told.having(warnings=(*told.warnings, why))
        return session.having(spans=session.spans_now(time.time()))

    def preview(self, session_id: str) -> Preview | None:
        """How a running session's image looks on its way, if it was asked to be shown and has been."""
        live = self._lives.get(session_id)
        return None if live is None else live.preview

    def _cannot_start(self, session: Session) -> dict[str, Any] | None:
        """A warning to who waits for a model that is being hashed, or for a device that is out: it starts when the
        device comes back, or expires."""
        if unread := [name for name in names_of(session.request) if self._refs.is_being_read(name)]:
            message = f"{unread[0]!r} is read through once before its first use, for its digest; then this starts"
            return {"code": "model_being_read", "message": message, "field": None}
        device = session.request.device
        seat = self._supervisor.seats.get(device) if device is not None else None
        if device is None or (seat is not None and seat.failed is None):
            return None
        why = "is not one of this server's any more" if seat is None else f"cannot be used: {seat.failed}"
        message = f"device {device!r} {why}; cancel the session and send it without device"
        return {"code": "device_failed", "message": message, "field": "device"}

    def sessions_on(self, device: str) -> list[Session]:
        return [live.session for live in self._lives.at_work(device)]

    def running_on(self, device: str) -> list[Busy]:
        """What a device works on."""
        return [
            Busy(request=live.session.request, fraction=live.progress.fraction, images_left=live.images_left)
            for live in self._lives.at_work(device)
        ]

    def sessions_now(self) -> Counter[tuple[str, str]]:
        """Those that wait or run, by state and type."""
        running = (("running", live.session.request.type) for live in self._lives.values())
        return Counter((*running, *(("queued", one.session.request.type) for one in self._line)))

    @property
    def astray(self) -> int:
        """Sessions that wait or run by their rows and that nobody has in hand."""
        return len(self._claims.astray.found)

    def ahead_of(self, request: Request, device: str) -> list[Busy]:
        """What waits and would start before a new session of this request on a device: what must run there, and the
        device's share of what may run anywhere.
        """
        before: list[Busy] = []
        turn = itertools.cycle(self._supervisor.seats)
        for waiting in self._line:
            ahead = waiting.session.request
            if ahead.priority < request.priority:
                break
            if device == (ahead.device or next(turn)):
                before.append(Busy(request=ahead))
        return before

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._line and not self._lives

    def waiting_of(self, owner: str) -> int:
        """How many sessions of an API key wait."""
        return self._line.owners[owner]

    @property
    def queued(self) -> int:
        return len(self._line)

    async def _ready(self, worker: LocalWorker) -> None:
        log.info("worker ready", worker=worker.id, device=worker.device, pid=worker.pid)
        self._wake.set()
