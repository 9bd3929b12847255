"""One history by seed: callers ask, workers and servers die, in virtual time; then what is left is checked.

`python -m tests.simulator.run --seed 7` plays one again and prints what happened.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from mezzotint.errors import Conflict, TryLater
from mezzotint.request import Resolved, WebhookUse
from mezzotint.schema import WEBHOOK_EVENTS
from mezzotint.session import Session, State
from mezzotint.store.rows import Once
from mezzotint.store.sql import Store
from tests.requests import request
from tests.simulator.clock import Loop, abandon, simulated
from tests.simulator.server import Server
from tests.simulator.worker import drawn
from tests.simulator.world import CLOSING_S, WRITTEN_S, World
from tests.torture.history import check

TEMPLATE = "template.db"
LASTS_S = 40.0  # that callers ask and things break
SETTLED_S = 3600.0  # by then all must have ended: a worker may spin for a quarter of an hour before it is known
LOOK_S = 0.5
QUIET_S = 10.0  # after the last end: by then its writer has heard of it too
TELLS = WebhookUse(url="https://example.org/", events=WEBHOOK_EVENTS[:4])  # the ends
REQUESTS = {
    one.prompt: one
    for one in (
        request(prompt="boat", webhook=TELLS),
        request(prompt="two cats", num_images=2, num_inference_steps=4, webhook=TELLS),
        request(prompt="a long way", num_inference_steps=25, priority=3),
        request(prompt="at once", num_inference_steps=3, priority=8, webhook=TELLS),
        request(prompt="in a hurry", expires_s=4.0, webhook=TELLS),
        request(prompt="a minute's work", num_inference_steps=100, timeout_s=8.0),
        request(prompt="poison"),
        request(prompt="broken"),
    )
}
TRUTHS = {name: [drawn(one, index) for index in range(one.num_images)] for name, one in REQUESTS.items()}
OFTEN = ["boat", "two cats", "a long way", "at once"]
# what may become of a session that nobody cancels, beside success
MAY_FAIL = {"a minute's work": "timeout", "broken": "out_of_memory"}

Plan = list[tuple[float, str]]


class History:
    """All of it from one seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._chance = random.Random(seed)
        self.world = World(self._chance)
        self._folder, self._lives = folder, 0
        self._data = folder / "0"
        self._data.mkdir()
        shutil.copy(folder.parent / TEMPLATE, self._data / "mezzotint.db")
        self._devices = ("cpu:0",) if self._chance.random() < 0.7 else ("cpu:0", "cpu:1")
        self._server: Server
        self._numbers = itertools.count()
        self._clients: dict[asyncio.Task[None], None] = {}  # in order: a set would be in another each time

    def play(self) -> list[str]:
        """The promises that were broken."""
        plan: Plan | None = self._plan()
        loop = Loop(0.0, self._chance)
        with simulated(), capture_logs() as logs:
            while plan is not None:
                loop, plan = self._life(loop, plan)
        for one in logs:
            if one["log_level"] in ("error", "critical") and one["event"] not in ("worker hangs", "worker failed"):
                self.world.faults.append(f"a log of {one['event']!r}: {one.get('exc_info')} {one}")
        return self.world.faults + check(self._data, self.world.acknowledged, TRUTHS) + self._ends()

    # ---- lives of the server

    def _plan(self) -> Plan:
        """What happens when, in order."""
        count = self._chance.randint(10, 40)
        weights = {
            "submit": 8, "second thoughts": 4, "cancel": 3, "pause": 3, "resume": 3, "worker dies": 3,
            "worker dies amid a frame": 1, "spare dies": 1, "worker hangs": 1, "worker spins": 0.3, "server dies": 1.5,
            "server stops": 1, "disk fills": 0.7, "database fills": 0.7,
        }  # fmt: skip
        chosen = self._chance.choices(list(weights), list(weights.values()), k=count)
        times = sorted(self._chance.uniform(0.0, LASTS_S) for _ in chosen)
        return [(0.0, "submit"), *zip(times, chosen, strict=True)]

    def _life(self, loop: Loop, plan: Plan) -> tuple[Loop, Plan | None]:
        """Until the server dies, or is stopped; what is left of the plan, None when all is over."""
        asyncio.set_event_loop(loop)
        self.world.is_over = False
        server = self._server = Server(self._data, self.world, self._devices)
        loop.run_until_complete(server.start())
        for key in [one for one in self.world.asked if one not in self.world.acknowledged]:
            loop.call_soon(self._client, self._submit, key)
        while plan:
            (at, what), plan = plan[0], plan[1:]
            loop.run_until_complete(asyncio.sleep(max(0.0, at - loop.now)))
            if what == "server dies":
                return self._killed(loop), plan
            if what == "server stops":
                loop.run_until_complete(self._stop(self._chance.choice([0.0, 1.0, 30.0])))
                self._ended(loop)
                return Loop(loop.now + 1.0, self._chance), plan
            loop.call_soon(self._happen, what)
        loop.run_until_complete(self._settle())
        loop.run_until_complete(self._stop(0.0))
        self._ended(loop)
        return loop, None

    async def _stop(self, drain_s: float) -> None:
        self.world.note(f"the server stops within {drain_s:g} s")
        for one in self._clients:
            one.cancel()
        await self._server.stop(drain_s)
        await asyncio.sleep(0.1)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            self.world.fault(f"I4 left running: {sorted(one.get_name() for one in left)}")

    def _ended(self, loop: Loop) -> None:
        self.world.restarts(loop.now, CLOSING_S)
        abandon(loop, self._server.store.close)

    def _killed(self, loop: Loop) -> Loop:
        """What the files hold this instant is what a kill would leave."""
        self.world.trace.append(f"{loop.now:9.3f} the server dies")
        self.world.is_over = True
        self._lives += 1
        before, self._data = self._data, self._folder / str(self._lives)
        shutil.copytree(before, self._data, ignore=shutil.ignore_patterns("*-shm"))
        abandon(loop, self._server.store.close)
        self.world.restarts(loop.now, WRITTEN_S)
        shutil.rmtree(before)
        return Loop(loop.now + self._chance.uniform(0.5, 2.0), self._chance)

    async def _settle(self) -> None:
        """No more faults: whoever is paused goes on, everything ends."""
        self.world.full_until = 0.0
        self.world.receivers_until = self.world.now
        until = self.world.now + SETTLED_S
        while left := await self._left():
            for session in left:
                if session.state is State.PAUSED:
                    self._client(self._resume, session.id)
            await asyncio.sleep(LOOK_S)
            while not self._server.dispatcher.idle and self.world.now < until:
                await asyncio.sleep(LOOK_S)
            if self.world.now > until:
                for session in left:
                    self.world.fault(f"I8 {session.id}: still {session.state}, attempt {session.attempt}")
                break
        await asyncio.sleep(QUIET_S)
        while (due_at := await self._server.store.outbox.next_at()) is not None:
            await asyncio.sleep(max(LOOK_S, due_at - time.time()))
            if self.world.now > until:
                self.world.fault("I7 something is still to be told")
                break
        dispatcher = self._server.dispatcher
        held = vars(dispatcher) | vars(dispatcher._claims)
        for name in ("_lives", "_cancelled_early", "_paused_early"):
            if held[name]:
                self.world.fault(f"I10 {name} still holds {sorted(held[name])}")

    async def _left(self) -> list[Session]:
        while self._clients:  # all get an answer now
            await asyncio.wait(self._clients)
        found = [await self._server.store.get(one) for one in self.world.acknowledged.values()]
        return [one for one in found if one is not None and not one.ended]

    # ---- what happens

    def _happen(self, what: str) -> None:
        self.world.note(what)
        running = [one for one in self.world.workers if one.is_up]
        spare = self._server.spare
        seated = [one for one in running if one is not spare]
        match what:
            case "submit":
                key = f"key-{len(self.world.asked)}"
                often = self._chance.random() < 0.75
                asked = REQUESTS[self._chance.choice(OFTEN if often else list(REQUESTS))]
                self.world.asked[key] = asked
                for _ in range(self._chance.choice([1, 1, 1, 2])):  # an impatient caller sends it twice
                    self._client(self._submit, key)
            case "second thoughts":
                self._client(self._regret, f"key-{len(self.world.asked)}")
            case "cancel" | "pause" | "resume":
                if sessions := list(self.world.acknowledged.values()):
                    call = {"cancel": self._cancel, "pause": self._pause, "resume": self._resume}[what]
                    self._client(call, self._chance.choice(sessions[-4:]))
            case "worker dies" | "worker dies amid a frame" if seated:
                self._chance.choice(seated).die(amid_a_frame=what != "worker dies")
            case "spare dies" if spare is not None and spare in self.world.workers:
                self.world.workers[self.world.workers.index(spare)].die()
            case "worker hangs" if seated:
                self._chance.choice(seated).hang()
            case "worker spins" if seated:
                self._chance.choice(seated).spin()
            case "database fills":
                loop = asyncio.get_running_loop()
                assert isinstance(loop, Loop)
                loop.database_full_until = loop.now + self._chance.uniform(0.1, 3.0)
            case "disk fills":
                self.world.full_until = self.world.now + self._chance.uniform(0.5, 20.0)

    def _client(self, call: Callable[[str], Coroutine[Any, Any, None]], about: str) -> None:
        task = asyncio.ensure_future(call(about))
        self._clients[task] = None
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        del self._clients[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.fault(f"a caller met {error!r}")

    async def _submit(self, key: str) -> None:
        """Again and again until the server has answered."""
        world = self.world
        while True:
            session_id = f"ses_{int(world.now * 1000):09}{next(self._numbers):04}"
            once = Once(scope="all", key=key, fingerprint=world.asked[key].prompt)
            resolved = Resolved(request=world.asked[key], warnings=())
            try:
                answer = await self._server.dispatcher.accept(session_id, resolved, once)
                break
            except TryLater:
                await asyncio.sleep(0.3)
        world.note(f"{answer.id} is {key}, {resolved.request.prompt!r}")
        if world.acknowledged.setdefault(key, answer.id) != answer.id:
            world.fault(f"I5 {key} was answered with {world.acknowledged[key]} and {answer.id}")

    async def _regret(self, key: str) -> None:
        """Cancels or pauses what was hardly accepted."""
        self.world.asked[key] = REQUESTS[self._chance.choice(OFTEN)]
        await self._submit(key)
        await asyncio.sleep(self._chance.expovariate(10))
        await self._chance.choice([self._cancel, self._pause])(self.world.acknowledged[key])

    async def _cancel(self, session_id: str) -> None:
        self.world.wanted_gone.add(session_id)
        with contextlib.suppress(TryLater):
            if await self._asks("cancel", session_id) is not None:
                self.world.cancelled.add(session_id)

    async def _pause(self, session_id: str) -> None:
        self.world.pauses[session_id] += 1
        with contextlib.suppress(TryLater):
            if await self._asks("pause", session_id) is not None and self._chance.random() < 0.5:
                await asyncio.sleep(self._chance.uniform(0.2, 2.0))
                await self._asks("resume", session_id)

    async def _resume(self, session_id: str) -> None:
        with contextlib.suppress(TryLater):
            await self._asks("resume", session_id)

    async def _asks(self, what: str, session_id: str) -> Session | None:
        self.world.note(f"{what} {session_id}?")
        try:
            answer: Session = await getattr(self._server.dispatcher, what)(session_id)
        except Conflict as error:
            self.world.note(f"{what} {session_id}: {error.code}")
            known = await self._server.store.get(session_id)
            if what == "cancel" and (known is None or not known.ended):
                self.world.fault(f"P7 {session_id}: cannot be cancelled, and has not ended")
            return None
        self.world.note(f"{what} {session_id}: {answer.state}")
        if what == "resume":
            self.world.was_paused(session_id)
        return answer

    # ---- what must hold of the rows

    def _ends(self) -> list[str]:
        faults: list[str] = []
        with contextlib.closing(sqlite3.connect(self._data / "mezzotint.db")) as db:
            rows = list(db.execute("SELECT id, state, attempt, json_extract(request, '$.prompt'), error FROM sessions"))
            pauses = Counter(
                one for (one,) in db.execute("SELECT session_id FROM transitions WHERE to_state = 'paused'")
            )
        faults += [f"I6 {one} was paused more often than asked" for one in pauses - self.world.pauses]
        for session_id, state, attempt, prompt, error in rows:
            told = self.world.told.get(session_id, set())
            if REQUESTS[prompt].webhook is not None and told != {f"session.{state}"}:
                faults.append(f"I7 {session_id} ended {state}, and its receiver heard {sorted(told)}")
            says = f"{session_id} {prompt!r} ended {state} at attempt {attempt}: {error}"
            if session_id in self.world.cancelled:
                if state != "cancelled":
                    faults.append(f"P7 {says}, and was told it would be cancelled")
            elif state == "cancelled" and session_id not in self.world.wanted_gone:
                faults.append(f"P7 {says}, and nobody asked for it")
            elif state == "expired" and (REQUESTS[prompt].expires_s is None or attempt):
                faults.append(f"I2 {says}")
            elif state == "failed":
                lost = "worker_lost" in error and self.world.deaths[session_id] >= 2
                if not lost and MAY_FAIL.get(prompt, "no code") not in error:
                    faults.append(f"P5 {says}, {self.world.deaths[session_id]} workers died with it")
        return faults


def template(folder: Path) -> None:
    """An empty database for `play` to copy."""
    path = folder / TEMPLATE

    async def make() -> None:
        await (await Store.open(f"sqlite:///{path}")).close()

    asyncio.run(make())


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder in memory, where there is one: nothing here outlives a power cut anyway."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def play(seed: int, folder: Path) -> tuple[list[str], list[str]]:
    """Broken promises, and what happened. `template` has been called for the folder."""
    own = folder / str(seed)
    own.mkdir()
    history = History(seed, own)
    faults = history.play()
    shutil.rmtree(own)
    return faults, history.world.trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    with workspace() as folder:
        template(folder)
        faults, trace = play(args.seed, folder)
    sys.stdout.write("\n".join([*trace, "", *faults, f"{len(faults)} promises broken\n"]))


if __name__ == "__main__":
    main()
