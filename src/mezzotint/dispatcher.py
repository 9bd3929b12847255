"""Gives sessions to workers and turns what workers say into stored facts and events.

The only one that claims, ends and requeues. Must not decide what a request may hold, or speak HTTP.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from mezzotint.catalog import Catalog
from mezzotint.errors import Conflict, ErrorInfo, NotFound, TryLater
from mezzotint.events import Events
from mezzotint.request import Request, Resolved
from mezzotint.session import ImageRecord, Phase, Progress, Session, State, Usage
from mezzotint.store.blobs import Blobs
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from mezzotint.workers.base import Supervisor
from mezzotint.workers.local import LocalWorker

log = structlog.get_logger(__name__)

TICK_S = 0.5
IMAGES_AT_ONCE = 16  # claimed per worker: what denoises now and about as much again, ready to join
MAX_LOSSES = 10
STORE_S = 10.0  # that a stop waits for the database, longer than it may be held by another process


@dataclass(kw_only=True, slots=True)
class _Waiting:
    session: Session
    since: float  # monotonic
    spans: dict[str, float]
    dtype: str | None = None  # of its last attempt, which the next keeps to

    def spans_now(self) -> dict[str, float]:
        waited = time.monotonic() - self.since
        return self.spans | {"queued": self.spans.get("queued", 0.0) + waited}


@dataclass(kw_only=True, slots=True)
class _Live:
    """A session inside a worker: what is true now and not in its row yet."""

    session: Session
    worker: LocalWorker
    spans: dict[str, float]
    phase: str
    since: float  # monotonic, when the phase began
    progress: Progress
    model: wire.ModelRef
    loads: bool = False  # its worker says that it is loading the model
    denoising_since: float | None = None
    images: dict[int, ImageRecord] = field(default_factory=dict)
    timed_out: bool = False
    store_error: ErrorInfo | None = None

    def enter(self, phase: str, at_s: float) -> None:
        at_s = min(max(at_s, self.since), time.monotonic())  # the worker's clock is this machine's
        self.spans[self.phase] = self.spans.get(self.phase, 0.0) + at_s - self.since
        self.phase, self.since = phase, at_s
        if phase == "denoising" and self.denoising_since is None:
            self.denoising_since = at_s

    def spans_now(self) -> dict[str, float]:
        return self.spans | {self.phase: self.spans.get(self.phase, 0.0) + time.monotonic() - self.since}


class Dispatcher:
    """Holds the queue and the running sessions in memory; the store holds the truth."""

    def __init__(
        self, store: Store, blobs: Blobs, catalog: Catalog, supervisor: Supervisor, events: Events, choices: Choices
    ) -> None:
        self._store, self._blobs, self._catalog, self._events = store, blobs, catalog, events
        self._choices = choices
        self._supervisor = supervisor
        supervisor.on_ready, supervisor.on_message, supervisor.on_lost = self._ready, self._heard, self._lost
        self._queue: dict[str, _Waiting] = {}
        self._line: list[tuple[int, str]] = []  # its ids behind their priority, sorted: who is next stands first
        self._live: dict[str, _Live] = {}
        self._refs: dict[str, wire.ModelRef] = {}
        self._cancelled_early: set[str] = set()  # cancelled between the claim's commit and its Submit
        self._retries: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closing = self._hurry = False
        self.stale_messages = 0

    # ---- life

    async def start(self) -> None:
        """Take up what an earlier process left: every running row goes back to the queue, or where its flags say."""
        await self._store.begin(now=time.time())
        counts = await self._store.recover(now=time.time())
        if counts:
            log.info("recovered sessions", **{str(state): count for state, count in counts.items()})
        for session in sorted(await self._store.queued(), key=lambda session: session.id):
            elapsed = max(0.0, time.time() - session.created_at - sum(session.spans.values()))
            spans = session.spans | {"queued": session.spans.get("queued", 0.0) + elapsed}
            self._enqueue(session, spans)
            if not self._events.knows(session.id):  # else it was told with its recovery
                self._events.tell(session.id, "state", self.view(session))
        self._loop = asyncio.create_task(self._run(), name="dispatcher")

    async def drain(self, limit_s: float) -> None:
        """Claim no more and let running sessions end; after `limit_s` what still runs goes back to the queue."""
        self._closing = True
        deadline = time.monotonic() + limit_s
        while self._live and time.monotonic() < deadline and not self._hurry:
            await asyncio.sleep(0.02)
        tasks = [*self._retries, *([self._loop] if self._loop is not None else [])]
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for live in list(self._live.values()):
            session, spans = live.session, live.spans_now()
            del self._live[session.id]
            with contextlib.suppress(TryLater, TimeoutError):  # what stays a running row is taken up by the next start
                async with asyncio.timeout(STORE_S):
                    await self._store.requeue(
                        session.id,
                        attempt=session.attempt,
                        cause="stop",
                        losses=session.losses,
                        spans=spans,
                        now=time.time(),
                    )

    def stop_draining(self) -> None:
        self._hurry = True

    # ---- what callers ask

    async def accept(self, session_id: str, resolved: Resolved, once: Once | None = None) -> Session:
        """Store a new session and put it in the queue. It is durable when this returns. Raises TryLater, Conflict."""
        self.check_accepting()
        session = await self._store.add(
            session_id, resolved.request, warnings=resolved.warnings, now=time.time(), once=once
        )
        if session.id != session_id:  # the key stands for an earlier one
            return self.view(session)
        self._enqueue(session, {})
        return self.view(session)

    def check_accepting(self) -> None:
        """Raises TryLater while the server stops."""
        if self._closing:
            raise TryLater("the server is stopping; try another or come back", code="not_ready", retry_after_s=10)

    async def cancel(self, session_id: str) -> Session:
        """Raises NotFound, or Conflict when it had ended. What this returns, ends cancelled."""
        waiting = self._queue.get(session_id)
        spans, now = waiting.spans_now() if waiting else None, time.time()
        session = await self._store.request_cancel(session_id, now=now, spans=spans)
        if session is None:
            raise NotFound(f"session {session_id[:64]!r} is not here", code="session_not_found")
        if session.state is State.CANCELLED and session.ended_at == now:  # ended by this very call
            self._dequeue(session_id)
            self._ended(session)
            return session
        if session.ended:
            message = f"session {session_id!r} ended {session.state}; nothing is left to cancel"
            raise Conflict(message, code="session_ended")
        if (live := self._live.get(session_id)) is not None:
            live.session = live.session.having(cancel_requested=True)
            live.worker.send(wire.Cancel(session_id=session_id, attempt=live.session.attempt))
        else:
            self._cancelled_early.add(session_id)
        return self.view(session)

    def view(self, session: Session) -> Session:
        """A stored session with what only memory knows: progress, timing up to now, its place in the queue."""
        if (live := self._live.get(session.id)) is not None and session.state is State.RUNNING:
            return session.having(progress=live.progress, spans=live.spans_now(), warnings=live.session.warnings)
        if (waiting := self._queue.get(session.id)) is not None and session.state is State.QUEUED:
            return session.having(queue_position=bisect_left(self._line, _place(session)), spans=waiting.spans_now())
        return session

    def sessions_on(self, device: str) -> list[str]:
        return [live.session.id for live in self._live.values() if live.worker.device == device]

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._queue and not self._live

    @property
    def queued(self) -> int:
        return len(self._queue)

    # ---- claiming

    def _enqueue(self, session: Session, spans: dict[str, float], dtype: str | None = None) -> None:
        self._queue[session.id] = _Waiting(session=session, since=time.monotonic(), spans=spans, dtype=dtype)
        insort(self._line, _place(session))
        self._wake.set()

    def _dequeue(self, session_id: str) -> _Waiting | None:
        waiting = self._queue.pop(session_id, None)
        if waiting is not None:
            del self._line[bisect_left(self._line, _place(waiting.session))]
        return waiting

    async def _run(self) -> None:
        next_tick = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK_S
                    await self._keep_time()
                await self._fill()
            except TryLater as error:
                log.warning("cannot claim", code=error.code)  # the queue stands; the next tick tries again
            except Exception:
                log.exception("claiming failed")  # the loop must outlive any single fault

    async def _keep_time(self) -> None:
        now = time.time()
        for waiting in list(self._queue.values()):
            session, expires_s = waiting.session, waiting.session.request.expires_s
            if expires_s is not None and session.attempt == 0 and now - session.created_at > expires_s:
                error = ErrorInfo(code="expired", message=f"not started within {expires_s:g} s")
                await self._end_queued(waiting, State.EXPIRED, error)
        for live in self._live.values():
            limit = live.session.request.timeout_s
            spent = sum(seconds for name, seconds in live.spans_now().items() if name not in ("queued", "paused"))
            if limit is not None and spent > limit and not live.timed_out:
                live.timed_out = True
                live.worker.send(wire.Cancel(session_id=live.session.id, attempt=live.session.attempt))

    async def _fill(self) -> None:
        if self._closing:
            return
        for worker in sorted(self._supervisor.ready(), key=self._images_on):
            while worker.alive and (waiting := self._next_for(worker)) is not None:
                await self._claim(waiting, worker)

    def _images_on(self, worker: LocalWorker) -> int:
        return sum(live.session.request.num_images - len(live.images) for live in self._on(worker))

    def _on(self, worker: LocalWorker) -> list[_Live]:
        return [live for live in self._live.values() if live.worker is worker]

    def _next_for(self, worker: LocalWorker) -> _Waiting | None:
        running = self._on(worker)
        if any(live.session.losses for live in running) or self._images_on(worker) >= IMAGES_AT_ONCE:
            return None
        for _, session_id in self._line:
            waiting = self._queue[session_id]
            if waiting.session.request.device not in (None, worker.device):
                continue
            if waiting.session.losses and running:
                return None  # a suspect runs alone; let the worker empty itself for it
            return waiting
        return None

    async def _claim(self, waiting: _Waiting, worker: LocalWorker) -> None:
        session_id = waiting.session.id
        request = waiting.session.request
        names = [request.model, *(one.model for one in request.controlnets), *(one.name for one in request.loras)]
        refs = [await self._ref(name) for name in names]
        if session_id not in self._queue:
            return  # cancelled while a digest was read
        found = [ref for ref in refs if ref is not None]
        if len(found) < len(names):
            message = f"model {names[refs.index(None)]!r} is gone or cannot be used any more"
            await self._end_queued(waiting, State.FAILED, ErrorInfo(code="model_invalid", message=message))
            return
        model, *adapters = found
        session = await self._store.claim(session_id, worker=worker.id, device=worker.device, now=time.time())
        spans = waiting.spans_now()
        if self._dequeue(session_id) is None or session is None:
            return  # cancelled meanwhile
        model = self._choices.ref(model, worker.device, waiting.dtype)
        self._live[session_id] = _Live(
            session=session,
            worker=worker,
            spans=spans,
            phase="loading",
            since=time.monotonic(),
            progress=Progress(steps=request.steps),
            model=model,
        )
        submit = wire.Submit(
            session_id=session_id,
            attempt=session.attempt,
            request=request,
            model=model,
            controlnets=tuple(adapters[: len(request.controlnets)]),
            loras=tuple(adapters[len(request.controlnets) :]),
            inputs=inputs(request, self._blobs.folder(session_id)),
        )
        if not worker.alive:  # lost while the row was written: it never had the session
            await self._requeue(self._live[session_id], session.losses)
            return
        worker.send(submit)
        if session_id in self._cancelled_early:
            self._cancelled_early.discard(session_id)
            worker.send(wire.Cancel(session_id=session_id, attempt=session.attempt))

    async def _ref(self, model_id: str) -> wire.ModelRef | None:
        model = self._catalog.models.get(model_id)
        if model is None or model.state == "invalid":
            return None
        known = self._refs.get(model_id)
        if known is None or known.path != model.path:
            sha256 = await asyncio.to_thread(self._catalog.digest, model_id)
            known = wire.ModelRef(
                id=model.id,
                kind=model.kind,
                family=model.family,
                path=model.path,
                bytes=model.bytes,
                sha256=sha256,
            )
            self._refs[model_id] = known
        return known

    async def _end_queued(self, waiting: _Waiting, state: State, error: ErrorInfo) -> None:
        ended = await self._store.end_queued(
            waiting.session.id, state=state, now=time.time(), spans=waiting.spans_now(), error=error
        )
        if self._dequeue(waiting.session.id) is not None and ended is not None:
            self._ended(ended)

    # ---- what workers say

    async def _ready(self, worker: LocalWorker) -> None:
        log.info("worker ready", worker=worker.id, device=worker.device, pid=worker.pid)
        self._wake.set()

    async def _heard(self, worker: LocalWorker, message: wire.FromWorker, blob: bytes) -> None:
        live = self._live.get(getattr(message, "session_id", ""))
        if live is None or live.worker is not worker or live.session.attempt != getattr(message, "attempt", None):
            self.stale_messages += 1
            return
        session_id = live.session.id
        match message:
            case wire.Phase():
                live.enter(message.phase, message.at_s)
                live.loads = message.phase == "loading"
                live.progress = replace(live.progress, phase=Phase(message.phase))
                self._events.tell(session_id, "progress", live.progress)
            case wire.Progress():
                live.progress = _progress(live, message)
                self._events.tell(session_id, "progress", live.progress)
            case wire.Warned():
                warning = {"code": message.code, "message": message.message, "field": message.field}
                await self._warn(live, warning)
            case wire.ImageDone():
                await self._keep_image(live, message, blob)
            case wire.Ended():
                await self._end(live, message)

    async def _warn(self, live: _Live, warning: dict[str, Any]) -> None:
        if warning in live.session.warnings:
            return
        live.session = live.session.having(warnings=(*live.session.warnings, warning))

        async def write() -> None:
            await self._store.add_warning(live.session.id, attempt=live.session.attempt, warning=warning)

        await self._insist(write)

    async def _keep_image(self, live: _Live, message: wire.ImageDone, blob: bytes) -> None:
        try:
            sha256 = await self._blobs.put(live.session.id, blob)
            image = ImageRecord(
                index=message.index,
                seed=message.seed,
                width=message.width,
                height=message.height,
                format=message.format,
                bytes=len(blob),
                sha256=sha256,
            )
            if await self._store.add_image(live.session.id, attempt=live.session.attempt, image=image):
                live.images[image.index] = image
        except TryLater as error:
            live.store_error = ErrorInfo(code=error.code, message=error.message, phase="storing", retryable=True)

    async def _end(self, live: _Live, message: wire.Ended) -> None:
        state, error = State(message.outcome), message.error
        if live.timed_out and state is State.CANCELLED and not live.session.cancel_requested:
            limit = live.session.request.timeout_s
            state, error = State.FAILED, ErrorInfo(code="timeout", message=f"ran longer than {limit:g} s")
        if state is State.SUCCEEDED and live.store_error is not None:
            state, error = State.FAILED, live.store_error
        await self._finish(live, state, message.usage, error)
        self._wake.set()

    async def _finish(self, live: _Live, state: State, usage: Usage, error: ErrorInfo | None) -> None:
        session_id, attempt, spans = live.session.id, live.session.attempt, live.spans_now()
        now = time.time()

        async def write() -> None:
            ended = await self._store.finish(
                session_id,
                attempt=attempt,
                state=state,
                now=now,
                spans=spans,
                usage=usage,
                warnings=live.session.warnings,
                error=error,
            )
            if ended is None and state is not State.CANCELLED:  # a cancel came first: it was promised
                ended = await self._store.finish(
                    session_id, attempt=attempt, state=State.CANCELLED, now=now, spans=spans, usage=usage
                )
            self._live.pop(session_id, None)
            if ended is not None:
                self._ended(ended)

        await self._insist(write)

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """What has happened must be written, however long the database is busy or full; nobody waits for a retry."""

        async def again() -> None:
            while True:
                await asyncio.sleep(TICK_S)
                with contextlib.suppress(TryLater):
                    return await write()

        try:
            await write()
        except TryLater as error:
            log.warning("cannot write yet", code=error.code)
            retry = asyncio.create_task(again(), name="write again")
            self._retries.add(retry)
            retry.add_done_callback(self._retries.discard)

    async def _lost(self, worker: LocalWorker, why: str) -> None:
        lives = self._on(worker)
        for live in lives:
            await self._lose(live, alone=len(lives) == 1)
        self._wake.set()

    async def _lose(self, live: _Live, *, alone: bool) -> None:
        """Its worker is gone: back to the queue, or ended when it is the one that kills workers."""
        if live.loads and live.model.executor != "torch":
            why = "a worker was lost while it loaded the faster form"
            self._choices.distrust(live.model.id, live.worker.device, why)
        losses = live.session.losses + 1
        if (losses >= 2 and alone) or losses >= MAX_LOSSES:
            message = f"{losses} workers were lost while they ran it"
            error = ErrorInfo(code="worker_lost", message=message, phase=live.phase)
            await self._finish(live, State.FAILED, Usage(), error)
            return
        await self._requeue(live, losses)

    async def _requeue(self, live: _Live, losses: int) -> None:
        session, spans = live.session, live.spans_now()

        async def write() -> None:
            after = await self._store.requeue(
                session.id, attempt=session.attempt, cause="worker_lost", losses=losses, spans=spans, now=time.time()
            )
            self._live.pop(session.id, None)
            if after is not None and after.state is State.QUEUED:
                self._enqueue(after, spans, live.model.dtype)
            elif after is not None and after.ended:
                self._ended(after)

        await self._insist(write)

    def _ended(self, session: Session) -> None:
        self._cancelled_early.discard(session.id)
        code = session.error.code if session.error else None
        log.info("session ended", session=session.id, state=str(session.state), code=code, attempt=session.attempt)


def inputs(request: Request, folder: Path) -> dict[str, str]:
    """The files of a session's pictures, by field; they lie in its own folder."""
    fields = [name for name in ("image", "mask") if getattr(request, name) is not None]
    fields += [f"controlnets[{index}].image" for index in range(len(request.controlnets))]
    return {field: str(folder / input_name(field)) for field in fields}


def input_name(field: str) -> str:
    return f"input-{field.replace('[', '-').replace('].', '-')}.png"


def _place(session: Session) -> tuple[int, str]:
    """Priority, then age: ids carry the time of acceptance, so a session that comes back keeps its place."""
    return -session.request.priority, session.id


def _progress(live: _Live, message: wire.Progress) -> Progress:
    """A share of all steps; the time left from the steps of this attempt so far."""
    eta = None
    if live.denoising_since is not None and message.done:
        eta = (time.monotonic() - live.denoising_since) * (message.total - message.done) / message.done
    return replace(
        live.progress,
        step=message.step,
        steps=message.steps,
        image_index=message.image_index,
        fraction=min(0.999, message.done / message.total),
        eta_s=eta,
    )
