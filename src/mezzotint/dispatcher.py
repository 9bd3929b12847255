"""Gives sessions to workers, and does what callers ask of those that wait or run.

With reports.py the only one that claims, ends and requeues. Must not decide what a request may hold, or speak HTTP.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from mezzotint.astray import Astray
from mezzotint.batches import Batch
from mezzotint.checkpoints import Checkpoints, fingerprint
from mezzotint.errors import Conflict, ErrorInfo, NotFound, TryLater
from mezzotint.estimates import Busy
from mezzotint.events import Events
from mezzotint.line import Line, Waiting
from mezzotint.live import Live, Lives
from mezzotint.measurements import Measurements
from mezzotint.placing import Place, best
from mezzotint.refs import Refs
from mezzotint.reports import Reports
from mezzotint.request import Request, Resolved
from mezzotint.residency import Residency, names_of
from mezzotint.session import Preview, Progress, Session, State
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
SUSPECTS = 4  # that run together after a second loss
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
        self._most_running = most_running
        self._store, self._blobs, self._refs, self._events = store, blobs, refs, events
        self._checkpoints, self._choices, self._measurements = checkpoints, choices, measurements
        self._supervisor = supervisor
        self._line, self._lives = Line(), Lives()
        self._astray = Astray(store)
        self._residency = Residency(supervisor, refs, choices)
        self._wake = asyncio.Event()
        self._reports = Reports(store, blobs, checkpoints, events, choices, self._line, self._lives, self._wake.set)
        supervisor.on_ready, supervisor.on_message, supervisor.on_lost = (
            self._ready,
            self._reports.heard,
            self._reports.lost,
        )
        refs.on_read = self._wake.set
        self._cancelled_early: set[str] = set()  # cancelled between the claim's commit and its Submit
        self._paused_early: set[tuple[str, int]] = set()  # the same of a pause, with the attempt it is of
        self._loop: asyncio.Task[None] | None = None
        self._closing = self._hurry = False

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
        self._loop = asyncio.create_task(self._run(), name="dispatcher")

    async def drain(self, limit_s: float) -> None:
        """Claim no more and let running sessions end; after `limit_s` what still runs goes back to the queue."""
        self._closing = True
        deadline = time.monotonic() + limit_s
        while self._lives and time.monotonic() < deadline and not self._hurry:
            await asyncio.sleep(0.02)
        await self._reports.stop()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
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
        if self._closing:
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
            self._cancelled_early.add(session_id)
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
            self._paused_early.add((session_id, session.attempt))
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

    def view(self, session: Session) -> Session:
        """A stored session with what only memory knows: progress, timing up to now, its place in the queue."""
        if (live := self._lives.get(session.id)) is not None and session.state is State.RUNNING:
            warnings = [*session.warnings, *(one for one in live.session.warnings if one not in session.warnings)]
            return session.having(
                progress=live.progress, spans=live.spans_now(), usage=live.usage_so_far, warnings=tuple(warnings)
            )
        if (waiting := self._line.get(session.id)) is not None and session.state is State.QUEUED:
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

    def sessions_on(self, device: str) -> list[str]:
        return [live.session.id for live in self._lives.at_work(device)]

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
        return len(self._astray.found)

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

    # ---- claiming

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
                    await self._astray.look(lambda one: one in self._line or one in self._lives)
                    await self._foresee()
                await self._fill()
            except TryLater as error:
                log.warning("cannot claim", code=error.code)  # the queue stands; the next tick tries again
            except Exception:
                log.exception("claiming failed")  # the loop must outlive any single fault

    async def _keep_time(self) -> None:
        for waiting in list(self._line):
            session, expires_s = waiting.session, waiting.session.request.expires_s
            if expires_s is not None and session.attempt == 0 and waiting.waited_s > expires_s:
                error = ErrorInfo(code="expired", message=f"not started within {expires_s:g} s")
                await self._end_queued(waiting, State.EXPIRED, error)
        for live in self._lives.values():
            limit = live.session.request.timeout_s
            spent = sum(seconds for name, seconds in live.spans_now().items() if name not in ("queued", "paused"))
            if limit is not None and spent > limit and not live.timed_out:
                live.timed_out = True
                live.worker.send(wire.Cancel(session_id=live.session.id, attempt=live.session.attempt))

    async def _foresee(self) -> None:
        idle = [] if self._line else [one for one in self._supervisor.ready() if not self._lives.images_on(one)]
        await self._residency.foresee((one.session.request for one in self._line), idle)

    async def _fill(self) -> None:
        if self._closing:
            return
        claimed = True
        while claimed:  # a claim may make another worker the best for the next one
            claimed = False
            for worker in sorted(self._supervisor.ready(), key=self._lives.images_on):
                while worker.alive and (waiting := self._next_for(worker)) is not None:
                    await self._claim_safely(waiting, worker)
                    claimed = True

    def _next_for(self, worker: LocalWorker) -> Waiting | None:
        """Of the highest priority that can go there: of the owner who has least running, the oldest."""
        theirs = Counter(live.session.owner for live in self._lives.values())
        found: Waiting | None = None
        for waiting in self._line:
            owner, request = waiting.session.owner, waiting.session.request
            if found is not None and request.priority < found.session.request.priority:
                break
            if theirs[owner] >= self._most_running(owner):
                continue
            if request.device not in (None, worker.device):
                continue
            if not all(self._refs.is_read(name) for name in names_of(request)):
                continue
            if not self._has_room(worker, waiting.session):
                break  # also for who is suspected and must wait until the worker has emptied itself
            if request.device is None and self._best_for(waiting, worker).device != worker.device:
                continue  # that one has room, and its turn comes
            if found is None or theirs[owner] < theirs[found.session.owner]:
                found = waiting
            if len(self._line.owners) < 2 or theirs[found.session.owner] == 0:
                break
        return found

    def _best_for(self, waiting: Waiting, worker: LocalWorker) -> Place:
        request = waiting.session.request
        others = [one for one in self._supervisor.ready() if one is not worker]
        others = [one for one in others if self._has_room(one, waiting.session)]
        return best(request.model, map(self._place, [worker, *others]))

    def _has_room(self, worker: LocalWorker, session: Session) -> bool:
        """A full worker takes as many again that may overtake one that it runs. Suspects run with few, then alone."""
        running = [live.session for live in self._lives.on(worker)]
        if len(running) >= min(_company(one.losses) for one in (*running, session)):
            return False
        overtakes = any(one.request.priority < session.request.priority for one in running)
        return self._lives.images_on(worker) < IMAGES_AT_ONCE * (2 if overtakes else 1)

    def _place(self, worker: LocalWorker) -> Place:
        beat, hello = worker.heartbeat, worker.hello
        taken = {live.model.id for live in self._lives.on(worker)}  # it is about to hold them
        return Place(
            device=worker.device,
            resident=(*(beat.resident if beat else ()), *taken),
            images=self._lives.images_on(worker),
            gflops=self._measurements.speed(worker.device).get("float32"),
            free_bytes=hello.device.memory_budget_bytes - (beat.memory_bytes if beat else 0) if hello else 0,
        )

    async def _claim_safely(self, waiting: Waiting, worker: LocalWorker) -> None:
        """One that cannot be given to a worker ends, or nobody behind it would ever run. Raises TryLater."""
        try:
            await self._claim(waiting, worker)
        except TryLater:
            raise
        except Exception:
            log.exception("a session cannot be given to a worker", session=waiting.session.id)
            message = "it could not be given to a worker; the server's log has the cause"
            error = ErrorInfo(code="internal", message=message)
            if (live := self._lives.get(waiting.session.id)) is not None:
                await self._reports.finish(live, State.FAILED, error)
            else:
                await self._end_queued(waiting, State.FAILED, error)

    async def _claim(self, waiting: Waiting, worker: LocalWorker) -> None:
        session_id, request = waiting.session.id, waiting.session.request
        names = names_of(request)
        refs = [await self._refs.of(name) for name in names]
        stored = {image.index for image in waiting.session.images}
        begun = [i for i in range(request.num_images) if i not in stored] if waiting.session.attempt else []
        kept = await self._checkpoints.of(session_id, begun)
        if session_id not in self._line:
            return  # cancelled meanwhile
        found = [ref for ref in refs if ref is not None]
        if len(found) < len(names):
            message = f"model {names[refs.index(None)]!r} is gone or cannot be used any more"
            await self._end_queued(waiting, State.FAILED, ErrorInfo(code="model_invalid", message=message))
            return
        dtype = waiting.dtype or (kept[0].dtype if kept else None)
        found[0] = self._choices.ref(found[0], worker.device, dtype, deterministic=request.deterministic)
        print_ = fingerprint(request, found)
        states = [one for one in kept if one.print == print_]
        steps = len(stored) * request.steps + sum(one.step for one in states)
        has_moved = waiting.session.losses > 0 and await self._has_moved(session_id, steps)
        since = time.monotonic()
        spans = waiting.spans_at(since)
        session = await self._store.claim(
            session_id,
            worker=worker.id,
            device=worker.device,
            steps_resumed=steps,
            now=time.time(),
            as_of=waiting.session.created_at + sum(spans.values()),
        )
        if self._line.leave(session_id) is None or session is None:
            return  # cancelled meanwhile
        if has_moved:
            session = session.having(losses=0)
        live = self._lives[session_id] = Live(
            session=session,
            worker=worker,
            spans=spans,
            phase="loading",
            since=since,
            progress=Progress(steps=request.steps, fraction=min(0.999, steps / (request.steps * request.num_images))),
            model=found[0],
            print=print_,
            resumed=dict.fromkeys(stored, request.steps) | {one.index: one.step for one in states},
            images={image.index: image for image in session.images},
        )
        nets, loras = 1 + len(request.controlnets), 1 + len(request.controlnets) + len(request.loras)
        submit = wire.Submit(
            session_id=session_id,
            attempt=session.attempt,
            request=request,
            model=found[0],
            controlnets=tuple(found[1:nets]),
            loras=tuple(found[nets:loras]),
            embeddings=tuple(found[loras:]),
            inputs=inputs(request, self._blobs.folder(session_id)),
            done=tuple(sorted(stored)),
            states=tuple((one.index, len(one.state)) for one in states),
        )
        is_cancelled, is_pausing = (
            session_id in self._cancelled_early,
            (session_id, session.attempt) in self._paused_early,
        )
        self._cancelled_early.discard(session_id)
        self._paused_early.discard((session_id, session.attempt))
        if not worker.alive:  # lost while the row was written: it never had the session
            await self._reports.requeue(live, session.losses)
            return
        worker.send(submit, b"".join(one.state for one in states))
        if is_cancelled:
            worker.send(wire.Cancel(session_id=session_id, attempt=session.attempt))
        if is_pausing:
            live.session = live.session.having(pause_requested=True)
            worker.send(wire.Pause(session_id=session_id, attempt=session.attempt))
        if len(states) < len(kept):
            message = "what was kept of it is of another version or model; those images begin at their first step"
            await self._reports.warn(live, {"code": "checkpoint_foreign", "message": message, "field": None})

    async def _has_moved(self, session_id: str, steps: int) -> bool:
        """Whether more is kept of it than when it was claimed after its last loss of a worker, by an attempt that a
        stop of the server ended: what moves does not kill workers."""
        attempts = reversed(await self._store.attempts(session_id))
        since = [*itertools.takewhile(lambda one: one.cause != "worker_lost", attempts)]
        return bool(since) and steps > (since[-1].steps_resumed or 0)

    async def _end_queued(self, waiting: Waiting, state: State, error: ErrorInfo) -> None:
        ended = await self._store.end_queued(
            waiting.session.id, state=state, now=time.time(), spans=waiting.spans_now(), error=error
        )
        if self._line.leave(waiting.session.id) is not None and ended is not None:
            self._reports.ended(ended)

    async def _ready(self, worker: LocalWorker) -> None:
        log.info("worker ready", worker=worker.id, device=worker.device, pid=worker.pid)
        self._wake.set()


def _company(losses: int) -> float:
    """How many sessions a worker may have with one that lost so many workers in a row, so that the guilty is found."""
    return math.inf if losses < 2 else SUSPECTS if losses == 2 else 1


def inputs(request: Request, folder: Path) -> dict[str, str]:
    """The files of a session's pictures, by field; they lie in its own folder."""
    fields = [name for name in ("image", "mask") if getattr(request, name) is not None]
    fields += [f"controlnets[{index}].image" for index in range(len(request.controlnets))]
    return {field: str(folder / input_name(field)) for field in fields}


def input_name(field: str) -> str:
    return f"input-{field.replace('[', '-').replace('].', '-')}.png"
