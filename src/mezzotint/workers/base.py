"""Keeps one live worker per device, and one in reserve: starts, watches, kills what hangs, starts again. Knows nothing
of sessions.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec
import structlog

from mezzotint.costs import Cost, Costs
from mezzotint.errors import ErrorInfo, RunFailure, SetupError
from mezzotint.measurements import Measurements
from mezzotint.request import plain
from mezzotint.workers import wire
from mezzotint.workers.limits import free_memory
from mezzotint.workers.local import LocalWorker

log = structlog.get_logger(__name__)

HELLO_S = 180.0  # imports from a cold disk
SILENT_S = 10.0  # heartbeats come each second from a thread of their own
UNKNOWN_S = 15 * 60.0  # for one load, encoding, model call or decoding of which nothing is measured
LEAST_S, TIMES = 60.0, 20.0  # for one that is: so many times what it takes, and never less
GONE_S = 60.0  # that a killed worker may take to end: a call of a driver or a disk may hold it, and then for ever
WATCH_S = 1.0
STILL_S = 1.0  # that a look comes too late by, where this process stood still
SETTLES_S = 3.0  # that a worker which took over has the cores to itself, before another spare begins
STOP_S = 0.5  # a worker in a model call cannot hear Stop; it is killed
HOPELESS_STARTS = 3
SPARE_BUDGET = 4 << 30  # with less memory for a worker there is none to spare for another
SPARE_SHARE = 0.125  # of that memory, which weights may take for a spare to load them in any case
SPARE_MARGIN = 1.125  # times what must be free, before a spare that holds nothing loads: not to and fro at the edge
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)

Stalls = deque[tuple[float, float]]  # from when and until when, by the monotonic clock, this process stood still


@dataclass(kw_only=True, slots=True)
class Seat:
    """A device's place: who sits there now and what came before."""

    device: str
    worker: LocalWorker | None = None
    restarts: int = 0
    failed_starts: int = 0  # in a row, without a Hello between
    ended: LocalWorker | None = None  # the last that was lost
    last_exit: str | None = None  # how that exited, once it has
    stuck: str | None = None  # of a worker that was killed and does not end: who it is
    said: str | None = None  # why the worker that ends now cannot go on, in its own words
    facts: wire.DeviceFacts | None = None  # as last told

    @property
    def failed(self) -> str | None:
        """Why no session can go here: several workers in a row did not come up, or one that was killed does not end.
        None: it is well, or may yet be.
        """
        if self.stuck is not None:
            return self.stuck
        return (self.last_exit or "its worker does not start") if self.failed_starts > HOPELESS_STARTS else None


class Supervisor:
    """One worker per device. Calls `on_ready`, `on_message`, `on_lost`; for one worker never two at a time.

    With `keeps_spare` one more stands by where a CPU is a device and has memory enough: started, and with the models
    loaded that its like has, as far as memory holds both. It takes a lost worker's seat before `on_lost` is called.
    CUDA devices have none: memory there is too dear.
    """

    def __init__(
        self,
        devices: tuple[str, ...],
        threads: int,
        memory_bytes: int,
        measurements: Measurements,
        *,
        keeps_spare: bool = False,
        start_worker: Callable[..., Awaitable[LocalWorker]] = LocalWorker.start,
        free_memory: Callable[[], int] = free_memory,
    ) -> None:
        """`memory_bytes`: what a worker on a CPU may take. `start_worker` is called as LocalWorker.start."""
        keeps_spare = keeps_spare and memory_bytes >= SPARE_BUDGET
        self._spare_device = next((one for one in devices if one.startswith("cpu") and keeps_spare), None)
        self.spare: LocalWorker | None = None
        self.seats = {device: Seat(device=device) for device in devices}
        self._threads, self._memory_bytes, self._measurements = threads, memory_bytes, measurements
        self._start_worker, self._free_memory = start_worker, free_memory
        self._count = 0
        self._stopping = False
        self._asked: dict[str, tuple[LocalWorker, asyncio.Future[wire.Loaded]]] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self.on_ready: Callable[[LocalWorker], Awaitable[None]]
        self.on_message: Callable[[LocalWorker, wire.FromWorker, bytes], Awaitable[None]]
        self.on_lost: Callable[[LocalWorker], Awaitable[None]]

    def start(self) -> None:
        for seat in self.seats.values():
            self._keeping.append(asyncio.create_task(self._keep(seat), name=f"keep {seat.device}"))
        if self._spare_device is not None:
            keeping = self._keep_spare(self.seats[self._spare_device])
            self._keeping.append(asyncio.create_task(keeping, name="keep spare"))

    async def stop(self) -> None:
        """End every worker at once; returns when none is left, but those that do not end within `GONE_S` of a kill."""
        self._stopping = True
        workers = self._workers()
        for worker in workers:
            worker.send(wire.Stop())
        await asyncio.gather(*(_is_gone(worker, STOP_S) for worker in workers))
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        workers += self._workers()  # one may have been on its way
        for worker in workers:
            worker.kill()
        gone = await asyncio.gather(*(_is_gone(worker, GONE_S) for worker in workers))
        for worker in [worker for worker, is_gone in zip(workers, gone, strict=True) if not is_gone]:
            log.error("a killed worker does not end; it is left behind", worker=worker.id, pid=worker.pid)

    def _workers(self) -> list[LocalWorker]:
        places = [*(seat.worker for seat in self.seats.values()), self.spare]
        return [worker for worker in places if worker is not None]

    async def ask(self, worker: LocalWorker, message: wire.Load | wire.Unload) -> wire.Loaded:
        """Send it and wait for its answer. Raises RunFailure when the worker is lost meanwhile."""
        waiting: asyncio.Future[wire.Loaded] = asyncio.get_running_loop().create_future()
        self._asked[message.asked] = worker, waiting
        try:
            worker.send(message)
            if not worker.alive:
                self._forsake(worker)
            return await waiting
        finally:
            self._asked.pop(message.asked, None)

    def _forsake(self, worker: LocalWorker) -> None:
        error = RunFailure(ErrorInfo(code="worker_lost", message=f"the worker of {worker.device} was lost meanwhile"))
        for token in [token for token, (one, _) in self._asked.items() if one is worker]:
            _, waiting = self._asked.pop(token)
            if not waiting.done():
                waiting.set_exception(error)

    def ready(self) -> list[LocalWorker]:
        """Workers that can take a session now. One that is dying is not among them."""
        workers = [seat.worker for seat in self.seats.values()]
        return [worker for worker in workers if worker is not None and worker.alive and worker.hello is not None]

    async def until_ready(self) -> None:
        """Until every seat has a worker that said Hello. Raises SetupError when one cannot start."""
        hopeless = asyncio.ensure_future(self.until_hopeless())
        try:
            while any(seat.worker is None or seat.worker.hello is None for seat in self.seats.values()):
                if hopeless.done():
                    raise SetupError(f"no worker can start: {hopeless.result()}")
                await asyncio.sleep(0.02)
        finally:
            hopeless.cancel()

    async def until_hopeless(self) -> str:
        """Until no seat has a worker and each failed to start several times in a row; returns the last reason."""
        while not all(seat.failed for seat in self.seats.values()):
            await asyncio.sleep(0.1)
        return next(seat.failed or "unknown" for seat in self.seats.values())

    async def _keep(self, seat: Seat) -> None:
        while not self._stopping:
            if seat.worker is None:
                await asyncio.sleep(BACKOFF_S[min(seat.failed_starts, len(BACKOFF_S) - 1)])
                seat.failed_starts += 1  # taken back by Hello
                seat.worker = await self._start(seat.device)
            if (worker := seat.worker) is None:
                seat.last_exit = "it could not be started; the server's log has the cause"
                continue
            watching = asyncio.create_task(self._watch(worker), name=f"watch {worker.id}")
            gone = asyncio.create_task(worker.wait(), name=f"wait for {worker.id}")
            try:
                while not gone.done() and seat.worker in (
                    None,
                    worker,
                ):  # a spare that has its place is watched at once
                    await asyncio.wait((gone,), timeout=WATCH_S)
            finally:
                watching.cancel()
            seat.stuck = None
            seat.restarts += 1

    async def _keep_spare(self, seat: Seat) -> None:
        """One in reserve, begun whenever the seat has a worker that is up."""
        failed = 0
        while not self._stopping:
            await asyncio.sleep(BACKOFF_S[min(failed, len(BACKOFF_S) - 1)])
            while seat.worker is None or seat.worker.hello is None:
                await asyncio.sleep(WATCH_S)
            spare = self.spare = await self._start(seat.device, is_spare=True)
            if spare is None:
                failed += 1
                continue
            watching = asyncio.create_task(self._watch(spare), name=f"watch {spare.id}")
            try:
                while self.spare is spare and spare.alive:
                    self._prepare(spare, seat)
                    await asyncio.sleep(WATCH_S)
            finally:
                watching.cancel()
            failed = 0 if spare.hello is not None else failed + 1
            if seat.worker is spare:
                await asyncio.sleep(SETTLES_S)

    def _prepare(self, spare: LocalWorker, seat: Seat) -> None:
        """Have it hold what the seat's worker holds, if that is little, or while the worker could still take all of its
        budget beside it.

        invariant: the worker may grow from what it has to its budget, the spare from what it has to what the worker
        has; so what is free and what the spare has make up that budget. Weights that are mapped from files count for
        neither: both share them.
        """
        worker = seat.worker
        if spare.hello is None or worker is None or worker.heartbeat is None:
            return
        needed = self._memory_bytes * (1.0 if spare.models else SPARE_MARGIN)
        little = worker.heartbeat.weights_bytes <= self._memory_bytes * SPARE_SHARE
        fits = little or self._free_memory() + spare.own_bytes >= needed
        wanted = {name: worker.models[name] for name in worker.heartbeat.resident if fits and name in worker.models}
        for name in spare.models.keys() - wanted.keys():
            spare.send(wire.Unload(model_id=name))
        for name, model in wanted.items():
            if spare.models.get(name) != model:
                spare.send(wire.Load(model=model))
            elif (last := worker.drawn.get(name)) is not None and name not in spare.drawn:
                spare.send(wire.Practise(submit=_like(last)))

    async def _start(self, device: str, *, is_spare: bool = False) -> LocalWorker | None:
        """None when there is no process to be had, or no memory for one: it is tried again."""
        self._count += 1
        try:
            return await self._start_worker(
                f"wrk_{self._count}",
                device,
                self._threads,
                self._memory_bytes,
                self._heard,
                self._ended,
                self._exited,
                is_spare=is_spare,
            )
        except Exception:
            log.exception("a worker could not be started", device=device)
            return None

    async def _heard(self, worker: LocalWorker, message: wire.FromWorker, blob: bytes) -> None:
        match message:
            case wire.Hello():
                if message.version != wire.VERSION:
                    raise wire.WireError(f"it speaks version {message.version}, not {wire.VERSION}")
                worker.hello = message
                worker.send(self._measurements.known(worker.device))
                if worker is not self.spare:
                    await self._seated(worker, message)
            case wire.Heartbeat():
                worker.heartbeat = message
            case wire.Loaded():
                if worker.heartbeat is not None:
                    now = {"resident": message.resident, "loaded": message.loaded}
                    worker.heartbeat = msgspec.structs.replace(worker.heartbeat, **now)
                if (asked := self._asked.pop(message.asked, None)) is not None and not asked[1].done():
                    asked[1].set_result(message)
            case wire.Speed():
                self._measurements.take_speed(worker.device, message.gflops)
            case wire.Findings():
                for measured in message.measured:
                    self._measurements.take(worker.device, measured)
            case wire.DeviceFailed():
                if worker is not self.spare:
                    self.seats[worker.device].said = message.message
                log.error("worker failed", worker=worker.id, device=worker.device, reason=message.message)
            case _:
                await self.on_message(worker, message, blob)

    async def _seated(self, worker: LocalWorker, hello: wire.Hello) -> None:
        seat = self.seats[worker.device]
        seat.failed_starts, seat.facts = 0, hello.device
        await self.on_ready(worker)

    async def _ended(self, worker: LocalWorker) -> None:
        self._forsake(worker)
        if worker is self.spare:
            self.spare = None
        seat = self.seats[worker.device]
        if worker is not seat.worker:
            return
        spare, seat.worker, seat.ended = None if self._stopping else self.spare, None, worker
        if spare is not None and spare.alive and spare.hello is not None and spare.device == seat.device:
            seat.worker, self.spare = spare, None
            log.info("the spare takes over", worker=spare.id, device=seat.device, pid=spare.pid)
            await self._seated(spare, spare.hello)
        await self.on_lost(worker)

    async def _exited(self, worker: LocalWorker, why: str) -> None:
        if not self._stopping:
            log.warning("worker lost", worker=worker.id, device=worker.device, pid=worker.pid, why=why)
        seat = self.seats[worker.device]
        if worker is seat.ended:
            seat.last_exit, seat.said = why if seat.said is None else f"{seat.said}; {why}", None

    async def _watch(self, worker: LocalWorker) -> None:
        """Until it is gone: who has it watched ends this then."""
        stood_still: Stalls = deque(maxlen=8)
        while worker.alive:
            due = time.monotonic() + WATCH_S
            await asyncio.sleep(WATCH_S)
            if (now := time.monotonic()) > due + STILL_S:  # a suspended or starved process hears nobody
                stood_still.append((due, now))
                if worker is not self.spare:
                    log.warning(
                        "the server stood still; what it did not hear meanwhile is no hang", seconds=round(now - due, 1)
                    )
            try:
                why = self._hangs(worker, stood_still)
            except Exception:
                log.exception("cannot tell whether a worker hangs", worker=worker.id)
                continue  # nobody else would see that it is silent
            if why is not None:
                log.error("worker hangs", worker=worker.id, device=worker.device, why=why)
                worker.kill()
        await asyncio.sleep(GONE_S)
        log.error("a killed worker does not end", worker=worker.id, device=worker.device, pid=worker.pid)
        worker.leave()
        self.seats[worker.device].stuck = f"its worker was killed and does not end (process {worker.pid})"

    def _hangs(self, worker: LocalWorker, stood_still: Stalls) -> str | None:
        if worker.hello is None:
            return f"not ready after {HELLO_S:g} s" if _ran_s(worker.uptime_s, stood_still) > HELLO_S else None
        if _ran_s(worker.silent_s, stood_still) > SILENT_S:
            return f"silent for {SILENT_S:g} s"
        return None if worker.heartbeat is None else self._overdue(worker.device, worker.heartbeat, stood_still)

    def _overdue(self, device: str, beat: wire.Heartbeat, stood_still: Stalls) -> str | None:
        """Why what the worker is in counts as hanging: by its model's own measurements, at this shape or near it."""
        loop = beat.work, beat.phase, beat.since_s
        for work, phase, told_s in (loop, (beat.loading, "loading", beat.loading_s)):
            since_s = _ran_s(told_s, stood_still)
            if since_s <= LEAST_S or (work is None and phase in (None, "starting")):
                continue
            limit_s = deadline_s(Costs(self._measurements.of(device), {}).seconds(work) if work else None)
            if phase == wire.BETWEEN:
                limit_s = LEAST_S
            if since_s > limit_s:
                return f"{work.what if work else phase} took over {limit_s:g} s"
        return None


def _ran_s(since_s: float, stood_still: Stalls) -> float:
    """Of the last so many seconds those in which this process ran, and could have heard."""
    begun = time.monotonic() - since_s
    return since_s - sum(max(0.0, until - max(begun, since)) for since, until in stood_still)


async def _is_gone(worker: LocalWorker, limit_s: float) -> bool:
    """Whether it is, by then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await worker.wait()
            return True
    return False


def deadline_s(expected: Cost | None) -> float:
    """How long a piece of work may take that is expected to take so long, before it counts as hanging."""
    return UNKNOWN_S if expected is None else max(LEAST_S, TIMES * expected.value)


def _like(last: wire.Submit) -> wire.Submit:
    """One picture of text, as large as that and with two steps."""
    asked = last.request
    request = replace(
        plain(asked.model, "", 0),
        width=asked.width,
        height=asked.height,
        guidance_scale=asked.guidance_scale,
        num_inference_steps=2,
    )
    return wire.Submit(session_id="practice", attempt=0, request=request, model=last.model)
