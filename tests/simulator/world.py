"""What outlives a server of a simulation: callers with what they were told, and what workers were seen to do."""

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx2

from mezzotint.workers import wire

if TYPE_CHECKING:
    from tests.simulator.worker import PlayedWorker

CHECK_S = 0.25  # between two checkpoints of a session
WRITTEN_S = 8.0  # by then a checkpoint lies on disk, however slow the disk
CLOSING_S = 4.0  # what workers say while a server closes is not kept any more


class World:
    """`faults`: promises that were broken, each with its invariant. All that is drawn comes from `chance`."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.faults: list[str] = []
        self.trace: list[str] = []
        self.workers: list[PlayedWorker] = []
        self.is_over = False  # the server is being taken down: what it does now counts for nothing
        self.asked: dict[str, Any] = {}  # key -> request, of all that was ever sent
        self.acknowledged: dict[str, str] = {}  # key -> session
        self.wanted_gone: set[str] = set()  # asked to be cancelled, whatever came of it
        self.cancelled: set[str] = set()  # of those, what was told to be
        self.pauses: Counter[str] = Counter()  # session -> how often somebody asked it to pause
        self.deaths: Counter[str] = Counter()  # session -> workers that died with it
        self.weights_bytes = 1 << 20  # of the model
        self.full_until = 0.0  # when the disk of the pictures has room again
        self.echoes = chance.choice([0.0, 0.1, 0.5])  # messages that come again late
        self.told: dict[str, set[str]] = {}  # session -> what its receiver has heard, by webhook
        self.receivers_until = float("inf")  # from then on every receiver answers well
        self.bad_starts = chance.choice([0.0, 0.0, 0.2])  # workers that die before they say Hello
        self._settled: dict[str, float] = {}  # session -> what was handed over until then is on disk for certain
        self._kept: dict[tuple[str, int], list[tuple[float, int | None]]] = {}
        self._lost: list[tuple[float, float]] = []  # when what was handed over need not have been kept

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:9.3f} {text}")

    def fault(self, text: str) -> None:
        if not self.is_over:
            self.note(text)
            self.faults.append(text)

    # ---- who is told

    async def receives(self, session_id: str, event: str) -> int:
        """A call of a webhook, and the status of its answer: it may come late, be lost, or be no."""
        well = self.now >= self.receivers_until
        await asyncio.sleep(self.chance.expovariate(20))
        fate = 1.0 if well else self.chance.random()
        if fate < 0.2:
            raise httpx2.ConnectError("nobody there")
        self.note(f"{session_id}: {event} is heard")
        self.told.setdefault(session_id, set()).add(event)
        if fate < 0.25:
            await asyncio.sleep(60.0)
        if fate < 0.3:
            raise httpx2.ReadError("the answer is lost")
        return 410 if fate < 0.33 else 500 if fate < 0.4 else 204

    # ---- what workers do

    def kept(self, session_id: str, index: int, step: int | None) -> None:
        """A worker has handed over this state of an image. None: the image itself."""
        self._kept.setdefault((session_id, index), []).append((self.now, step))

    def was_paused(self, session_id: str) -> None:
        self._settled[session_id] = self.now

    def lost(self, session_id: str) -> None:
        if not self.is_over:
            self.deaths[session_id] += 1

    def begun(self, submit: wire.Submit, steps: dict[int, int]) -> None:
        """An attempt begins; its images stand at `steps`. P3: not before what was handed over."""
        self.note(f"{submit.session_id} attempt {submit.attempt} begins at {steps}, has {submit.done}")
        for index, step in steps.items():
            told = self._kept.get((submit.session_id, index), [])
            known = [one for at, one in told if one is not None and self._is_sure(submit.session_id, at)]
            if step < max(known, default=0):
                self.fault(f"P3 {submit.session_id}: image {index} begins at {step}, not at {max(known)}")
            self._kept[submit.session_id, index] = [(self.now, step)]  # what was lost is lost

    def _is_sure(self, session_id: str, at: float) -> bool:
        """Whether what was handed over then is on disk: a pause says so of what came since the last start."""
        settled = self._settled.get(session_id, -1.0)
        started = max((end for _, end in self._lost if end <= settled), default=-1.0)
        return started < at <= settled or not any(begin < at <= end for begin, end in self._lost)

    def restarts(self, now: float, lost_s: float) -> None:
        """The server has gone, and with it what it was handed in so many seconds before."""
        self._lost.append((now - lost_s, now))
        self.workers.clear()


def calm_world(seed: int = 1) -> World:
    """One in which nothing goes wrong by itself."""
    world = World(random.Random(seed))
    world.echoes = world.bad_starts = 0.0
    return world
