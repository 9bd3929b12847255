"""What devices are likely to need next. Must not claim sessions.

What waits in the queue is kept when room is short; else the least recently used goes, which past use does not better
(benchmarks/residency). An idle worker with room loads ahead what was used most: each use counts one, and half as much
for every HALF_LIFE_S since then (LRFU, Lee et al. 2001).
"""

import math
from collections.abc import Iterable
from itertools import islice

from mezzotint.refs import Refs
from mezzotint.request import Request
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from mezzotint.workers.base import Supervisor
from mezzotint.workers.local import LocalWorker

HALF_LIFE_S = 3600.0
MOST_NAMES = 64  # that a worker is told
LOOK_AHEAD = 200  # waiting sessions whose needs count


class Demand:
    """How much each model was used, by id."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._uses: dict[str, float] = {}  # log2 of its uses, each doubled for every half-life that it is younger

    def used(self, name: str, at: float) -> None:
        """`at`: seconds of any clock, in any order."""
        low, high = sorted((at / self._half_life_s, self._uses.get(name, -math.inf)))
        self._uses[name] = high + math.log2(1 + 2 ** (low - high))

    def forget(self, name: str) -> None:
        self._uses.pop(name, None)

    def order(self) -> list[str]:
        """Names, the most used first."""
        return sorted(self._uses, key=lambda name: -self._uses[name])


class Residency:
    """Keeps what workers hold in step with demand. One loop calls everything."""

    def __init__(self, supervisor: Supervisor, refs: Refs, choices: Choices) -> None:
        self._supervisor, self._refs, self._choices = supervisor, refs, choices
        self._demand = Demand()
        self._tried: set[tuple[str, str]] = set()  # device and name: loaded ahead already, or found not to fit

    def used(self, model_id: str, at: float) -> None:
        """A session of it was accepted, now or by an earlier process."""
        self._demand.used(model_id, at)
        self._tried = {(device, name) for device, name in self._tried if name != model_id}

    def forget(self, name: str) -> None:
        """Somebody had it unloaded: it is not wanted until it is used again."""
        self._demand.forget(name)

    async def foresee(self, waiting: Iterable[Request], idle: Iterable[LocalWorker]) -> None:
        """Tell every worker what to keep; let the `idle` ones load what they lack, if there is room."""
        soon = needed(waiting)
        for worker in self._supervisor.ready():
            if worker.keeps != soon:
                worker.send(wire.Keep(names=soon))
        for worker in idle:
            await self._load_ahead(worker)

    async def _load_ahead(self, worker: LocalWorker) -> None:
        if worker.heartbeat is None:
            return
        for name in self._demand.order():
            if name in worker.heartbeat.resident or (worker.device, name) in self._tried:
                continue
            if not self._refs.is_read(name):
                continue
            ref = await self._refs.of(name)
            self._tried.add((worker.device, name))  # once: a model that kills its worker is not brought back for ever
            if ref is not None and ref.kind == "checkpoint":
                worker.send(wire.Load(model=self._choices.ref(ref, worker.device), ahead=True))
                return


def needed(waiting: Iterable[Request]) -> tuple[str, ...]:
    """What sessions that wait will need, in their order."""
    names = (name for request in islice(waiting, LOOK_AHEAD) for name in names_of(request))
    return tuple(islice(dict.fromkeys(names), MOST_NAMES))


def names_of(request: Request) -> list[str]:
    """Of the model and all adapters."""
    nets, loras = (one.model for one in request.controlnets), (one.name for one in request.loras)
    return [request.model, *nets, *loras, *request.embeddings]
