"""What the supervisor does about workers that hang and about the one in reserve, in virtual time."""

import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint import image_handle
from mezzotint.measurements import Measurements
from mezzotint.operations.models import ModelVerbs
from mezzotint.workers import wire
from mezzotint.workers.base import (
    GONE_S,
    LEAST_S,
    SETTLES_S,
    SILENT_S,
    SPARE_BUDGET,
    STOP_S,
    TIMES,
    UNKNOWN_S,
    WATCH_S,
    Supervisor,
)
from tests.requests import request
from tests.simulator.clock import in_virtual_time
from tests.simulator.worker import MODEL, STEP, PlayedWorker, _Process, _Writer
from tests.simulator.world import calm_world

DEVICE = "cpu:0"


class Rig:
    """A supervisor, its workers played; `lost` has when each was lost."""

    def __init__(
        self,
        cache: Path,
        *,
        devices: tuple[str, ...] = (DEVICE,),
        keeps_spare: bool = False,
        free_memory: Callable[[], int] = lambda: 0,
    ) -> None:
        self.world = calm_world()
        self.measurements = Measurements(cache, 1, keep=False)
        self.supervisor = Supervisor(
            devices,
            1,
            SPARE_BUDGET,
            self.measurements,
            keeps_spare=keeps_spare,
            start_worker=self._start,
            free_memory=free_memory,
        )
        self.start_s = 0.0
        self.failures = 0  # starts that are still to fail
        self.lost: list[float] = []
        self.supervisor.on_ready = self.supervisor.on_message = self._hears
        self.supervisor.on_lost = self._loses

    async def _start(
        self, name: str, device: str, _: int, __: int, on_message: Any, on_end: Any, on_exit: Any, *, is_spare: bool
    ) -> PlayedWorker:
        await asyncio.sleep(self.start_s)
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EAGAIN, "no process to be had")
        worker = PlayedWorker(name, device, self.world, is_spare=is_spare)
        worker.listen(on_message, on_end, on_exit)
        return worker

    async def _hears(self, *_: Any) -> None:
        pass

    async def _loses(self, _: Any) -> None:
        self.lost.append(self.world.now)

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[PlayedWorker]:
        self.supervisor.start()
        await self.supervisor.until_ready()
        yield self.world.workers[0]
        await self.supervisor.stop()
        assert not self.world.workers


@pytest.mark.parametrize(
    ("takes_s", "limit_s"), [(None, UNKNOWN_S), (0.01, LEAST_S), (7.0, TIMES * 7.0), (100.0, TIMES * 100.0)]
)
def test_a_step_that_never_ends_is_ended_by_what_such_steps_take(
    tmp_path: Path, takes_s: float | None, limit_s: float
) -> None:
    async def play() -> None:
        rig = Rig(tmp_path)
        if takes_s is not None:
            for _ in range(3):
                rig.measurements.take(DEVICE, wire.Measured(work=STEP, seconds=takes_s))
        async with rig.up() as worker:
            worker.spin()
            worker.send(wire.Submit(session_id="ses_1", attempt=1, request=request(), model=MODEL))
            began = rig.world.now
            while not rig.lost:
                await asyncio.sleep(0.1)
            assert limit_s <= rig.lost[0] - began <= limit_s + 2 * WATCH_S + 3.0  # it loads and encodes before

    in_virtual_time(play())


def test_a_worker_that_says_nothing_any_more_is_ended(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path)
        async with rig.up() as worker:
            worker.hang()
            began = rig.world.now
            while not rig.lost:
                await asyncio.sleep(0.1)
            assert SILENT_S - 1.0 <= rig.lost[0] - began <= SILENT_S + 2 * WATCH_S

    in_virtual_time(play())


def test_a_server_that_stood_still_takes_nobody_for_silent_or_stuck(tmp_path: Path) -> None:
    """As one that is suspended with its machine or container: its workers are, too, and say so when all go on."""

    async def play() -> None:
        rig = Rig(tmp_path)
        for _ in range(3):
            rig.measurements.take(DEVICE, wire.Measured(work=STEP, seconds=1.0))
        async with rig.up() as worker:
            worker.spin()
            worker.send(wire.Submit(session_id="ses_1", attempt=1, request=request(), model=MODEL))
            await asyncio.sleep(LEAST_S / 2)
            asyncio.get_running_loop().now += 1000.0  # type: ignore[attr-defined]
            await asyncio.sleep(LEAST_S / 3)
            assert worker.alive
            while not rig.lost:  # and who does hang is still found
                await asyncio.sleep(0.1)
            assert rig.world.now - 1000.0 <= LEAST_S + 2 * WATCH_S + 3.0

    in_virtual_time(play())


def test_at_a_stop_no_spare_takes_over(tmp_path: Path) -> None:
    async def play() -> None:
        rig, seated = Rig(tmp_path, keeps_spare=True), list[str]()

        async def seats(worker: Any) -> None:
            seated.append(worker.id)

        rig.supervisor.on_ready = seats
        async with rig.up() as worker:
            while (spare := rig.supervisor.spare) is None or spare.hello is None:
                await asyncio.sleep(0.1)
            rig.world.workers[1].hang()  # it ends later than the worker
        assert seated == [worker.id]

    in_virtual_time(play())


def test_it_is_ended_too_while_nobody_can_tell_how_long_its_work_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        rig = Rig(tmp_path)
        async with rig.up() as worker:
            await asyncio.sleep(2 * WATCH_S)  # a look fails, and there is another
            worker.hang()
            while not rig.lost:
                await asyncio.sleep(0.1)

    def fails(*_: Any) -> None:
        raise KeyError("measured by nobody")

    monkeypatch.setattr(Supervisor, "_overdue", fails)
    in_virtual_time(play())


def test_a_worker_whose_messages_wait_for_the_database_is_not_silent(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path)
        async with rig.up() as worker:

            async def slowly(*_: Any) -> None:
                await asyncio.sleep(2 * SILENT_S)

            rig.supervisor.on_message = slowly
            worker.send(wire.Submit(session_id="ses_1", attempt=1, request=request(), model=MODEL))
            await asyncio.sleep(5 * SILENT_S)
            assert worker.alive
            rig.supervisor.on_message = rig._hears
            await asyncio.sleep(2 * SILENT_S)

    in_virtual_time(play())


def test_a_spare_holds_what_its_like_holds_while_the_worker_could_still_take_its_budget(tmp_path: Path) -> None:
    free = 2 * SPARE_BUDGET

    async def play() -> None:
        nonlocal free
        rig = Rig(tmp_path, keeps_spare=True, free_memory=lambda: free)
        rig.world.weights_bytes = SPARE_BUDGET // 2
        async with rig.up() as worker:
            worker.send(wire.Load(model=MODEL))
            await asyncio.sleep(10)
            spare = rig.supervisor.spare
            assert spare is not None
            assert spare.models == {MODEL.id: MODEL}
            free = SPARE_BUDGET
            await asyncio.sleep(5)
            assert spare.models
            free -= 1
            await asyncio.sleep(5)
            assert not spare.models
            free += 1  # at the edge it does not come and go
            await asyncio.sleep(5)
            assert not spare.models
            rig.world.weights_bytes, free = SPARE_BUDGET // 100, 0
            await asyncio.sleep(5)
            assert spare.models, "what is little is held in any case"

    in_virtual_time(play())


def test_the_next_spare_begins_when_the_one_that_took_over_has_settled(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path, keeps_spare=True)
        async with rig.up() as worker:
            await asyncio.sleep(10)
            spare = rig.supervisor.spare
            worker.die()
            await asyncio.sleep(SETTLES_S)
            assert rig.supervisor.seats[DEVICE].worker is spare
            assert rig.world.workers == [spare]
            await asyncio.sleep(2 * WATCH_S)
            assert rig.supervisor.spare in rig.world.workers

    in_virtual_time(play())


def test_where_no_process_is_to_be_had_it_is_tried_again(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path, keeps_spare=True)
        rig.failures = 2
        async with rig.up() as worker:
            rig.failures = 2
            worker.die()
            await asyncio.sleep(60)
            seat = rig.supervisor.seats[DEVICE]
            assert seat.worker is not None
            assert rig.supervisor.spare is not None
            assert not seat.failed

    in_virtual_time(play())


def test_a_worker_that_starts_as_all_stops_is_ended_too(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path, devices=(DEVICE, "cpu:1"))
        async with rig.up() as worker:
            rig.world.workers[1].hang()  # the stop waits for it
            rig.start_s = STOP_S / 2
            worker.die()
            await asyncio.sleep(0.1)

    in_virtual_time(play())


def test_a_load_beside_the_steps_of_others_may_hang_too(tmp_path: Path) -> None:
    supervisor = Rig(tmp_path).supervisor

    def why(loading_s: float) -> str | None:
        beat = wire.Heartbeat(
            phase="denoising", since_s=0.1, memory_bytes=1, weights_bytes=1, prompt_hits=0, prompt_misses=0,
            resident=(), loaded=(), work=STEP, loading=wire.Work(what="load", model=MODEL.sha256), loading_s=loading_s,
        )  # fmt: skip
        return supervisor._overdue(DEVICE, beat, deque())

    assert why(UNKNOWN_S - 1) is None
    assert why(UNKNOWN_S + 1) == f"load took over {UNKNOWN_S:g} s"


def test_a_worker_that_is_at_work_and_says_nothing_of_it_hangs(tmp_path: Path) -> None:
    supervisor = Rig(tmp_path).supervisor

    def why(phase: str | None) -> str | None:
        beat = wire.Heartbeat(
            phase=phase, since_s=LEAST_S + 1, memory_bytes=1, weights_bytes=1, prompt_hits=0, prompt_misses=0,
            resident=(), loaded=(),
        )  # fmt: skip
        return supervisor._overdue(DEVICE, beat, deque())

    assert why(None) is None, "nothing is asked of it"
    assert why(wire.BETWEEN) == f"{wire.BETWEEN} took over {LEAST_S:g} s"


def test_a_killed_worker_that_does_not_die_fails_its_seat_until_it_does(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path)
        async with rig.up() as worker:
            seat = rig.supervisor.seats[DEVICE]
            worker.stick()
            await asyncio.sleep(SILENT_S + GONE_S - 5)
            assert not worker.alive
            assert not seat.failed
            await asyncio.sleep(10)
            assert seat.failed == f"its worker was killed and does not end (process {worker.pid})"
            assert rig.lost, "its sessions go elsewhere"
            await asyncio.sleep(10 * GONE_S)
            assert rig.world.workers == [worker], "nobody shares its memory with another"
            worker.die()
            await asyncio.sleep(10)
            assert not seat.failed
            assert seat.worker in rig.supervisor.ready()

    in_virtual_time(play())


def test_a_spare_in_the_place_of_one_that_does_not_die_is_watched_and_replaced(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path, keeps_spare=True)
        async with rig.up() as worker:
            seat = rig.supervisor.seats[DEVICE]
            await asyncio.sleep(10)
            worker.stick()
            await asyncio.sleep(SILENT_S + GONE_S + 10)
            spare: Any = seat.worker
            assert spare in rig.supervisor.ready()
            assert not seat.failed
            spare.hang()
            await asyncio.sleep(SILENT_S + 10)
            assert not spare.alive
            assert seat.worker in rig.supervisor.ready()
            worker.die()
            await asyncio.sleep(1)
            assert seat.worker in rig.supervisor.ready()

    in_virtual_time(play())


def test_a_stop_does_not_wait_for_ever_for_a_worker_that_does_not_die(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path)
        async with rig.up() as worker:
            worker.stick()
            began = rig.world.now
            await rig.supervisor.stop()
            assert rig.world.now - began <= GONE_S + 2 * STOP_S
            worker.die()
            await worker.wait()

    in_virtual_time(play())


def test_an_image_child_that_does_not_die_is_left_behind() -> None:
    async def play() -> None:
        process: Any = _Process()
        streams: Any = (asyncio.StreamReader(), _Writer())
        child = image_handle._Child(process, streams)
        began = asyncio.get_running_loop().time()
        await child.end()
        assert asyncio.get_running_loop().time() - began == image_handle.GONE_S
        process.end(-9)
        await child._telling

    in_virtual_time(play())


def test_an_unload_is_asked_of_all_devices_together_and_who_leaves_is_forgotten(tmp_path: Path) -> None:
    async def play() -> None:
        rig = Rig(tmp_path, devices=(DEVICE, "cpu:1"))
        async with rig.up():
            workers: list[Any] = [seat.worker for seat in rig.supervisor.seats.values()]
            first, second = workers
            for worker in workers:
                await rig.supervisor.ask(worker, wire.Load(model=MODEL, asked=worker.id))
            parts: Any = SimpleNamespace(
                catalog=SimpleNamespace(models={MODEL.id: None}),
                supervisor=rig.supervisor,
                dispatcher=SimpleNamespace(forget_use=lambda _: None),
            )
            first.hang()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SILENT_S / 2):
                    await ModelVerbs(parts).unload_model(MODEL.id)
            assert second.heartbeat.resident == ()
            assert not rig.supervisor._asked

    in_virtual_time(play())
