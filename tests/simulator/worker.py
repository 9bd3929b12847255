"""A worker of which only the handle is real: what its process would say is played by a coroutine.

Draws no picture, but each step's result depends on all before it, so that one too many, too few or of another session
shows in the file.
"""

import asyncio
import hashlib
import io
import json
import math
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mezzotint.errors import ErrorInfo
from mezzotint.request import Request
from mezzotint.session import Usage
from mezzotint.workers import wire
from mezzotint.workers.local import LocalWorker
from tests.simulator.world import CHECK_S, World

SIZE = 8
NOBODY = 1 << 30  # above every process id that a system gives: a signal to it reaches nobody
TAKES_BACK_S = 0.05  # that the system takes until a killed process is gone
MODEL = wire.ModelRef(id="tiny", kind="checkpoint", family="sd", path="tiny", bytes=1 << 20, sha256="d" * 64)
STEP = wire.Work(what="step", model=MODEL.sha256, height=2, width=2, windows=1, rows=2)


def drawn(request: Request, index: int) -> bytes:
    """The file of an undisturbed image."""
    return _file(_after(request, index, request.steps))


@dataclass(kw_only=True, slots=True)
class Sitting:
    """One attempt of a session inside the worker."""

    submit: wire.Submit
    steps: dict[int, int] = field(default_factory=dict)  # of the images that are not drawn yet
    results: dict[int, str] = field(default_factory=dict)
    phase: str = "loading"
    cancelled: bool = False
    pausing: bool = False
    checked_at: float = -math.inf
    run: int = 0

    @property
    def who(self) -> dict[str, Any]:
        return {"session_id": self.submit.session_id, "attempt": self.submit.attempt}

    @property
    def usage(self) -> Usage:
        return Usage(steps_run=self.run, device_s=0.1 * self.run)


class PlayedWorker(LocalWorker):
    """Started as LocalWorker is. Killed by `die`, frozen by `hang`, kept in one model call by `spin`, and by `stick` so
    that even a kill does not end it."""

    def __init__(self, worker_id: str, device: str, world: World, *, is_spare: bool) -> None:
        self._world, self._is_spare = world, is_spare
        self._ours = asyncio.StreamReader(limit=1 << 20)
        self._child = _Process()
        streams: Any = (self._ours, _Writer())
        child: Any = self._child
        super().__init__(worker_id, device, child, streams)
        self._inbox: asyncio.Queue[tuple[wire.ToWorker, bytes]] = asyncio.Queue()
        self._sittings: dict[str, Sitting] = {}
        self._resident: list[str] = []
        self._moved = world.now
        self._phase: str | None = "starting"
        self._work: wire.Work | None = None
        self._taken: wire.ToWorker | None = None  # and not done with
        self._frozen = self._spinning = self._is_stuck = False
        self._playing = [asyncio.create_task(self._play()), asyncio.create_task(self._beat())]
        world.workers.append(self)

    # ---- the handle

    @property
    def own_bytes(self) -> int:
        return 0

    def send(self, message: wire.ToWorker, blob: bytes = b"") -> None:
        super().send(message, blob)
        self._inbox.put_nowait((message, blob))

    def kill(self) -> None:
        self.alive = False
        if not self._is_stuck:
            self.die()

    # ---- faults

    def die(self, *, amid_a_frame: bool = False) -> None:
        if self._child.returncode is not None:
            return
        for task in self._playing:
            task.cancel()
        if amid_a_frame:
            frame = wire.frame(wire.Loaded(asked="", resident=("x",), loaded=()))
            self._ours.feed_data(frame[: len(frame) // 2])
        self._ours.feed_eof()
        self._child.end(-9)
        unread = [self._taken, *(self._inbox.get_nowait()[0] for _ in range(self._inbox.qsize()))]
        for submit in [*(one.submit for one in self._sittings.values()), *unread]:
            if isinstance(submit, wire.Submit):
                self._world.lost(submit.session_id)
        self._sittings.clear()
        if self in self._world.workers:
            self._world.workers.remove(self)

    def hang(self) -> None:
        self._frozen = True

    def spin(self) -> None:
        self._spinning = True

    def stick(self) -> None:
        """As in a call of a driver that does not return: its socket stays open too. `die` ends that."""
        self._frozen = self._is_stuck = True

    def say(self, message: wire.FromWorker, blob: bytes = b"") -> None:
        """Whatever the child would not."""
        self._ours.feed_data(wire.frame(message, blob))

    @property
    def is_up(self) -> bool:
        return self.hello is not None

    # ---- the child

    def _tell(self, message: wire.FromWorker, blob: bytes = b"") -> None:
        if self._child.returncode is not None:
            return
        self._ours.feed_data(wire.frame(message, blob))
        match message:
            case wire.Checkpoint():
                self._world.kept(message.session_id, message.index, message.step)
            case wire.ImageDone():
                self._world.kept(message.session_id, message.index, None)
        late = isinstance(message, wire.Checkpoint | wire.ImageDone | wire.Ended | wire.Paused | wire.Progress)
        if late and self._world.chance.random() < self._world.echoes:
            loop, delay_s = asyncio.get_running_loop(), self._world.chance.uniform(0.0, 6.0)
            loop.call_later(delay_s, self._echo, message, blob)

    def _echo(self, message: wire.FromWorker, blob: bytes) -> None:
        """Once more, long after; not while the attempt is still here: no socket does that."""
        sitting = self._sittings.get(getattr(message, "session_id", ""))
        gone = sitting is None or sitting.submit.attempt != getattr(message, "attempt", None)
        if gone and self._child.returncode is None and not self._frozen:
            self.say(message, blob)

    @property
    def _loaded(self) -> tuple[wire.Work, ...]:
        return (wire.load_of(MODEL),) if MODEL.id in self._resident else ()

    async def _beat(self) -> None:
        while True:
            if not self._frozen:
                beat = wire.Heartbeat(
                    phase=self._phase,
                    since_s=self._world.now - self._moved,
                    memory_bytes=1 << 30,
                    weights_bytes=len(self._resident) * self._world.weights_bytes,
                    prompt_hits=0,
                    prompt_misses=0,
                    resident=tuple(self._resident),
                    loaded=self._loaded,
                    work=None if self._is_spare else self._work,
                )
                self._tell(beat)
            await asyncio.sleep(1.0)

    async def _play(self) -> None:
        chance = self._world.chance
        await asyncio.sleep(chance.uniform(0.1, 2.0))
        if chance.random() < self._world.bad_starts:
            self.die()
            return
        facts = wire.DeviceFacts(
            id=self.device,
            kind="cpu",
            name="played",
            memory_total_bytes=8 << 30,
            memory_budget_bytes=6 << 30,
            dtypes=("float32",),
            driver=None,
            threads=1,
            base_bytes=1 << 28,
        )
        self._phase = None
        self._tell(wire.Hello(version=wire.VERSION, pid=self.pid, network="none", device=facts))
        while True:
            while not self._sittings or not self._inbox.empty():
                await self._take(*await self._inbox.get())
            await self._round()

    async def _take(self, message: wire.ToWorker, blob: bytes) -> None:
        self._taken = message
        await self._busy("inbox", self._world.chance.expovariate(1000))
        match message:
            case wire.Submit():
                self._is_spare = False
                self._sit(message, wire.states(message, blob))
            case wire.Cancel() | wire.Pause():
                sitting = self._sittings.get(message.session_id)
                if sitting is not None and sitting.submit.attempt == message.attempt:
                    sitting.cancelled |= isinstance(message, wire.Cancel)
                    sitting.pausing |= isinstance(message, wire.Pause)
            case wire.Load():
                await self._load(message.model)
                self._tell(wire.Loaded(asked=message.asked, resident=tuple(self._resident), loaded=self._loaded))
            case wire.Unload():
                self._resident = [one for one in self._resident if one != message.model_id]
                self._tell(wire.Loaded(asked=message.asked, resident=tuple(self._resident), loaded=self._loaded))
            case wire.Practise():
                await self._busy("denoising", 0.5)
            case wire.Stop():
                self.die()
        self._taken = None

    def _sit(self, submit: wire.Submit, states: dict[int, bytes]) -> None:
        sitting = Sitting(submit=submit)
        for index in range(submit.request.num_images):
            if index in submit.done:
                continue
            sitting.steps[index] = 0
            if index in states:
                said = json.loads(states[index])
                sitting.steps[index] = said["step"]
                if (said["session"], said["index"]) != (submit.session_id, index):
                    self._world.fault(f"I9 {submit.session_id}: was handed the state of {said}")
            sitting.results[index] = _after(submit.request, index, sitting.steps[index])
            if index in states and json.loads(states[index])["result"] != sitting.results[index]:
                self._world.fault(f"I9 {submit.session_id}: image {index}'s state is not that of its step")
        self._world.begun(submit, sitting.steps)
        self._sittings[submit.session_id] = sitting

    async def _load(self, model: wire.ModelRef) -> None:
        if model.id not in self._resident:
            await self._busy("loading", self._world.chance.uniform(0.1, 1.5))
            self._resident.append(model.id)

    async def _busy(self, phase: str, seconds: float, work: wire.Work | None = None) -> None:
        """Blocks as the loop of a worker does, for ever when it hangs or spins."""
        self._phase, self._work, self._moved = phase if phase != "inbox" else None, work, self._world.now
        await asyncio.sleep(seconds)
        if self._frozen or (self._spinning and work is not None):
            await asyncio.Event().wait()
        self._phase = self._work = None
        self._moved = self._world.now

    async def _round(self) -> None:
        """What the engine does between two looks into its inbox."""
        for sitting in list(self._sittings.values()):
            if sitting.cancelled:
                self._end(sitting, "cancelled")
            elif sitting.pausing:
                self._check(sitting)
                del self._sittings[sitting.submit.session_id]
                self._tell(wire.Paused(**sitting.who, usage=sitting.usage))
        for sitting in [one for one in self._sittings.values() if one.phase == "loading"][:1]:
            await self._admit(sitting)
        for sitting in list(self._sittings.values()):
            finished = next(
                (index for index, step in sitting.steps.items() if step >= sitting.submit.request.steps), None
            )
            if sitting.phase == "denoising" and finished is not None:
                await self._decode(sitting, finished)
                break
        members = [one for one in self._sittings.values() if one.phase == "denoising"]
        if not members:
            return
        seconds = self._world.chance.uniform(0.05, 0.4)
        await self._busy("denoising", seconds, STEP)
        if any(one.submit.request.prompt == "poison" for one in members):
            self.die()
            return
        self._tell(wire.Findings(measured=(wire.Measured(work=STEP, seconds=seconds),)))
        for sitting in members:
            self._step(sitting)

    async def _admit(self, sitting: Sitting) -> None:
        request = sitting.submit.request
        if not sitting.steps:
            self._end(sitting, "succeeded")
            return
        if sitting.submit.model.id not in self._resident:
            self._announce(sitting, "loading")
            await self._load(sitting.submit.model)
        self._announce(sitting, "encoding")
        await self._busy("encoding", self._world.chance.uniform(0.01, 0.1))
        if request.prompt == "broken":
            error = ErrorInfo(code="out_of_memory", message="it does not fit", phase="encoding", retryable=False)
            self._end(sitting, "failed", error)
            return
        sitting.phase = "denoising"
        if sitting.submit.attempt == 1:
            sitting.checked_at = self._world.now
        self._announce(sitting, "denoising")

    def _step(self, sitting: Sitting) -> None:
        request = sitting.submit.request
        for index, step in sitting.steps.items():
            if step < request.steps:
                sitting.steps[index] = step + 1
                sitting.results[index] = _next(sitting.results[index])
                sitting.run += 1
        lowest = min(sitting.steps)
        total = request.steps * request.num_images
        done = total - sum(request.steps - step for step in sitting.steps.values())
        step = sitting.steps[lowest]
        at: dict[str, Any] = {"image_index": lowest, "step": step, "steps": request.steps}
        self._tell(wire.Progress(**sitting.who, **at, done=done, total=total, call=1))
        if self._world.chance.random() < 0.1:
            self._tell(wire.Preview(**sitting.who, **at, width=SIZE, height=SIZE), b"preview")
        if self._world.now - sitting.checked_at >= CHECK_S:
            sitting.checked_at = self._world.now
            self._check(sitting)

    def _check(self, sitting: Sitting) -> None:
        for index, step in sitting.steps.items():
            if step == 0:
                continue
            state = {"session": sitting.submit.session_id, "index": index, "step": step}
            blob = json.dumps(state | {"result": sitting.results[index]}).encode()
            self._tell(wire.Checkpoint(**sitting.who, index=index, step=step, usage=sitting.usage), blob)

    async def _decode(self, sitting: Sitting, index: int) -> None:
        self._announce(sitting, "decoding")
        await self._busy("decoding", self._world.chance.uniform(0.01, 0.3))
        file = _file(sitting.results.pop(index))
        del sitting.steps[index]
        image = wire.ImageDone(
            **sitting.who,
            index=index,
            seed=sitting.submit.request.seed_of(index),
            width=SIZE,
            height=SIZE,
            format="png",
            thumbnail_bytes=0,
            usage=sitting.usage,
        )
        self._tell(image, file)
        if not sitting.steps:
            self._announce(sitting, "storing")
            self._end(sitting, "succeeded")

    def _announce(self, sitting: Sitting, phase: str) -> None:
        self._tell(wire.Phase(**sitting.who, phase=phase, at_s=self._world.now))

    def _end(self, sitting: Sitting, outcome: str, error: Any = None) -> None:
        del self._sittings[sitting.submit.session_id]
        self._tell(wire.Ended(**sitting.who, outcome=outcome, usage=sitting.usage, error=error))


class _Process:
    """What a handle asks of a child process."""

    pid = NOBODY

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.stderr = asyncio.StreamReader()
        self._ended = asyncio.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self.stderr.feed_eof()
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        await asyncio.sleep(TAKES_BACK_S)
        assert self.returncode is not None
        return self.returncode


class _Writer:
    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _after(request: Request, index: int, steps: int) -> str:
    result = f"{request.prompt} {request.seed_of(index)}"
    for _ in range(steps):
        result = _next(result)
    return result


def _next(result: str) -> str:
    return hashlib.sha256(result.encode()).hexdigest()


def _file(result: str) -> bytes:
    content = io.BytesIO()
    Image.frombytes("L", (SIZE, SIZE), hashlib.sha512(result.encode()).digest()).save(content, "PNG")
    return content.getvalue()
