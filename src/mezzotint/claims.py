"""Gives sessions that wait to workers with room, and keeps their time limits. Must not do what callers ask, or write an
end that a worker told.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from mezzotint.astray import Astray
from mezzotint.catalog import Model, fitting
from mezzotint.checkpoints import Checkpoints, fingerprint
from mezzotint.errors import ErrorInfo, TryLater
from mezzotint.line import Line, Waiting
from mezzotint.live import Live, Lives
from mezzotint.measurements import Measurements
from mezzotint.placing import Place, best
from mezzotint.refs import Refs
from mezzotint.reports import Reports
from mezzotint.request import Request, input_files
from mezzotint.residency import Residency, names_of
from mezzotint.session import Progress, Session, State
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from mezzotint.workers.base import Supervisor
from mezzotint.workers.local import LocalWorker

log = structlog.get_logger(__name__)

TICK_S = 0.5
IMAGES_AT_ONCE = 16  # claimed per worker: what denoises now and about as much again, ready to join
SUSPECTS = 4  # that run together after a second loss


class Claims:
    """The claiming half of the dispatcher."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        checkpoints: Checkpoints,
        refs: Refs,
        supervisor: Supervisor,
        choices: Choices,
        measurements: Measurements,
        residency: Residency,
        reports: Reports,
        line: Line,
        lives: Lives,
        wake: asyncio.Event,
        most_running: Callable[[str | None], float],
    ) -> None:
        """`wake` is set when there may be something to claim, or room for it; `most_running`: how many sessions of an
        owner may be in workers at one time.
        """
        self._store, self._blobs, self._checkpoints, self._refs = store, blobs, checkpoints, refs
        self._supervisor, self._choices, self._measurements = supervisor, choices, measurements
        self._residency, self._reports = residency, reports
        self._line, self._lives, self._wake, self._most_running = line, lives, wake, most_running
        self._cancelled_early: set[str] = set()  # cancelled between the claim's commit and its Submit
        self._paused_early: set[tuple[str, int]] = set()  # the same of a pause, with the attempt it is of
        self.astray = Astray(store)
        self.closed = False
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="claims")

    def close(self) -> None:
        """Claim no more."""
        self.closed = True

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    def cancelled_early(self, session_id: str) -> None:
        """One that is in no worker yet: the claim that is being written passes it on."""
        self._cancelled_early.add(session_id)

    def paused_early(self, session_id: str, attempt: int) -> None:
        """The same of a pause."""
        self._paused_early.add((session_id, attempt))

    # ---- the loop

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
                    await self.astray.look(lambda one: one in self._line or one in self._lives)
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
        if self.closed:
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
            resident=(*self._refs.held(beat), *taken),
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
        if (why := _unfit(request, [self._refs.facts(ref) for ref in found])) is not None:
            await self._end_queued(waiting, State.FAILED, ErrorInfo(code="model_invalid", message=why))
            return
        dtype = waiting.dtype or (kept[0].dtype if kept else None)
        found[0] = self._choices.ref(found[0], worker.device, dtype, deterministic=request.deterministic)
        print_ = fingerprint(request, found)
        states = [one for one in kept if one.print == print_]
        resumed = dict.fromkeys(stored, request.steps) | {one.index: one.step for one in states}
        steps, last = sum(resumed.values()), request.num_images - 1
        lowest = next((i for i in range(last) if resumed.get(i, 0) < request.steps), last)
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
            progress=Progress(
                step=resumed.get(lowest, 0),
                steps=request.steps,
                fraction=min(0.999, steps / (request.steps * request.num_images)),
                image_index=lowest,
            ),
            model=found[0],
            print=print_,
            resumed=resumed,
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
            inputs=input_files(request, self._blobs.folder(session_id)),
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


def _unfit(request: Request, models: Sequence[Model]) -> str | None:
    """Why a request that was valid cannot be run by its model and its adapters as they are now: one was replaced."""
    model, *adapters = models
    if request.type not in model.types:
        can = ", ".join(model.types) or f"nothing, as a {model.kind}"
        return f"model {model.id!r} has been replaced by one that cannot run {request.type}; it can run: {can}"
    for one in request.passes:
        if one.width % model.size_multiple or one.height % model.size_multiple:
            now = f"one whose sizes are multiples of {model.size_multiple}"
            return f"model {model.id!r} has been replaced by {now}, and {one.width}x{one.height} is none"
    kinds = dict.fromkeys((one.model for one in request.controlnets), "controlnet")
    kinds |= dict.fromkeys((one.name for one in request.loras), "lora") | dict.fromkeys(request.embeddings, "embedding")
    for adapter in adapters:
        if adapter.kind != kinds[adapter.id] or not fitting(adapter, [model]):
            return f"{kinds[adapter.id]} {adapter.id!r} or model {model.id!r} has been replaced; they do not fit"
    return None


def _company(losses: int) -> float:
    """How many sessions a worker may have with one that lost so many workers in a row, so that the guilty is found."""
    return math.inf if losses < 2 else SUSPECTS if losses == 2 else 1
