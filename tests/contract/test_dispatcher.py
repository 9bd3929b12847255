"""What the dispatcher does when a worker goes at an awkward moment; the store is real, the workers are not."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint import astray
from mezzotint.batches import Batch, Item
from mezzotint.catalog import Catalog
from mezzotint.checkpoints import Checkpoints
from mezzotint.claims import IMAGES_AT_ONCE
from mezzotint.dispatcher import Dispatcher
from mezzotint.errors import Conflict
from mezzotint.events import Events
from mezzotint.measurements import Measurements
from mezzotint.refs import Refs
from mezzotint.request import LoraUse, Resolved
from mezzotint.session import State, Usage
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.workers import wire
from tests.models import build_controlnet, build_lora, build_sd
from tests.requests import request

pytestmark = pytest.mark.anyio

QUICK_S = 0.05  # between two looks, for tests that wait for some


class Worker:
    """Dies after so many looks at whether it lives."""

    device = "cpu:0"
    hello = heartbeat = None
    keeps: tuple[str, ...] = ()

    def __init__(self, name: str, looks: int) -> None:
        self.id, self._looks = name, looks
        self.sent: list[wire.ToWorker] = []

    @property
    def alive(self) -> bool:
        self._looks -= 1
        return self._looks >= 0

    def send(self, message: wire.ToWorker, blob: bytes = b"") -> None:
        self.sent.append(message)


@contextlib.asynccontextmanager
async def dispatching(
    folder: Path, models: Path, ready: Callable[[], list[Worker]], *, unread: str = ""
) -> AsyncIterator[Dispatcher]:
    """`unread`: a model that was never hashed."""
    catalog = Catalog([models], folder)
    catalog.scan()
    supervisor: Any = SimpleNamespace(
        ready=ready, seats=dict.fromkeys(("cpu:0", "cuda:0"), SimpleNamespace(failed=None))
    )
    store = await Store.open(f"sqlite:///{folder / 'db'}")
    blobs, choices = Blobs(folder / "sessions"), Choices(folder, 1)
    known = Measurements(folder, 1, keep=False)
    kept, refs = Checkpoints(folder / "checkpoints"), Refs(catalog)
    for model_id in catalog.models.keys() - {unread}:
        await refs.of(model_id)
    dispatcher = Dispatcher(store, blobs, kept, refs, supervisor, Events(), choices, known)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.drain(0)
        await store.close()


async def submits(worker: Worker, count: int) -> list[wire.Submit]:
    async with asyncio.timeout(10):
        while len(found := [one for one in worker.sent if isinstance(one, wire.Submit)]) < count:
            await asyncio.sleep(0.01)
    return found


async def denoises(dispatcher: Dispatcher, played: Worker, *, attempt: int, step: int = 0) -> Any:
    """The session `ses_1` in a worker, which has told of a state at `step`, if that is not 0."""
    worker: Any = played
    await submits(played, 1)
    phase = wire.Phase(session_id="ses_1", attempt=attempt, phase="denoising", at_s=time.monotonic())
    await dispatcher._reports.heard(worker, phase, b"")
    if step:
        told = wire.Checkpoint(session_id="ses_1", attempt=attempt, index=0, step=step, usage=Usage())
        await dispatcher._reports.heard(worker, told, b"where it stands")
        await dispatcher._checkpoints.settle("ses_1")
    return worker


async def test_owners_take_turns_and_a_higher_priority_goes_to_a_full_worker(tmp_path: Path, random_sd: Path) -> None:
    up: list[Worker] = []
    worker = Worker("wrk_1", 10_000)
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        for number in range(20):
            await dispatcher.accept(f"ses_a{number:02}", Resolved(request=request(), warnings=()), owner="a")
        for number in range(2):
            await dispatcher.accept(f"ses_b{number:02}", Resolved(request=request(), warnings=()), owner="b")
        up.append(worker)
        order = [one.session_id for one in await submits(worker, IMAGES_AT_ONCE)]
        assert order[:5] == ["ses_a00", "ses_b00", "ses_a01", "ses_b01", "ses_a02"]
        await dispatcher.accept("ses_c", Resolved(request=request(), warnings=()), owner="c")
        await dispatcher.accept("ses_d", Resolved(request=request(priority=6), warnings=()), owner="a")
        order = [one.session_id for one in await submits(worker, IMAGES_AT_ONCE + 1)]
        assert order[IMAGES_AT_ONCE:] == ["ses_d"]


async def test_what_is_for_another_device_neither_stands_before_a_request_nor_holds_it_up(
    tmp_path: Path, random_sd: Path
) -> None:
    up: list[Worker] = []
    worker = Worker("wrk_1", 10_000)
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        for number in range(4):
            elsewhere = request(device="cuda:0")
            await dispatcher.accept(f"ses_a{number}", Resolved(request=elsewhere, warnings=()))
            await dispatcher.accept(f"ses_b{number}", Resolved(request=request(), warnings=()))
            await dispatcher.accept(f"ses_c{number}", Resolved(request=request(device="cpu:0"), warnings=()))
        await dispatcher.accept("ses_d", Resolved(request=request(device="cpu:0", priority=4), warnings=()))
        here, there = request(device="cpu:0"), request(device="cuda:0")
        assert len(dispatcher.ahead_of(here, "cpu:0")) == 4 + 2, "of what may run anywhere each device has its share"
        assert len(dispatcher.ahead_of(there, "cuda:0")) == 4 + 2
        suspect = dispatcher._line.get("ses_a0")
        assert suspect is not None
        suspect.session = suspect.session.having(losses=3)  # runs alone, and not here
        up.append(worker)
        await submits(worker, 9)


async def test_a_session_that_cannot_be_given_to_a_worker_ends_and_lets_the_others_by(
    tmp_path: Path, random_sd: Path
) -> None:
    up: list[Worker] = []
    worker = Worker("wrk_1", 1000)
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(metadata={"n": 2**64}), warnings=()))
        await dispatcher.accept("ses_2", Resolved(request=request(), warnings=()))
        up.append(worker)
        (submit,) = await submits(worker, 1)
        assert submit.session_id == "ses_2"
        session = await dispatcher._store.get("ses_1")
        assert session is not None
        assert session.error is not None
        assert (session.state, session.error.code) == ("failed", "internal")


async def test_a_clock_that_is_set_expires_nothing(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.claims.TICK_S", QUICK_S)
    up: list[Worker] = []
    worker = Worker("wrk_1", 1000)
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(expires_s=3600.0), warnings=()))
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() + 7200)
        await asyncio.sleep(3 * QUICK_S)
        up.append(worker)
        (submit,) = await submits(worker, 1)
        assert submit.session_id == "ses_1"


async def test_the_time_that_acceptance_took_counts_to_what_expires(tmp_path: Path, random_sd: Path) -> None:
    worker = Worker("wrk_1", 10_000)
    async with dispatching(tmp_path, random_sd, lambda: [worker]) as dispatcher:
        async with dispatcher._store._database.writing:  # as behind others on a slow disk
            late = Resolved(request=request(expires_s=0.05), warnings=())
            accepting = asyncio.create_task(dispatcher.accept("ses_1", late))
            await asyncio.sleep(0.1)
        await accepting
        await dispatcher.accept("ses_2", Resolved(request=request(), warnings=()))
        assert [one.session_id for one in await submits(worker, 1)] == ["ses_2"]
        session = await dispatcher._store.get("ses_1")
        assert session is not None
        assert (session.state, session.attempt) == ("expired", 0)


async def test_what_a_session_was_queued_is_the_time_from_acceptance_to_start_however_slow_the_disk(
    tmp_path: Path, random_sd: Path
) -> None:
    worker = Worker("wrk_1", 10_000)
    up: list[Worker] = []
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        writing = dispatcher._store._database.writing
        async with writing:
            accepting = asyncio.create_task(dispatcher.accept("ses_1", Resolved(request=request(), warnings=())))
            await asyncio.sleep(0.1)
        await accepting
        async with writing:
            up.append(worker)
            dispatcher._wake.set()
            await asyncio.sleep(0.1)
        await submits(worker, 1)
        live = dispatcher._lives["ses_1"]
        assert live.session.started_at is not None
        queued = live.session.started_at - live.session.created_at
        assert 0.1 < queued < 0.2
        assert live.spans["queued"] == pytest.approx(queued, abs=1e-6)
        whole = sum(live.spans_now().values())
        assert whole == pytest.approx(time.time() - live.session.created_at, abs=0.02), "no time is lost"


async def test_a_batch_is_queued_while_its_pictures_are_laid_out_and_a_lost_session_while_it_is_written(
    tmp_path: Path, random_sd: Path
) -> None:
    worker = Worker("wrk_1", 10_000)
    up = [worker]
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        late, slow = (Resolved(request=request(expires_s=limit), warnings=()) for limit in (0.05, None))
        accepted = {"ses_1": late, "ses_2": slow}
        items = tuple(Item(index=index, session_id=session_id) for index, session_id in enumerate(accepted))
        await dispatcher.accept_batch(Batch(id="bat_1", created_at=time.time() - 0.1, items=items), accepted)
        assert [one.session_id for one in await submits(worker, 1)] == ["ses_2"]
        expired = await dispatcher._store.get("ses_1")
        assert expired is not None
        assert expired.state == "expired"
        created_at = expired.created_at
        up.clear()
        async with dispatcher._store._database.writing:
            losing = asyncio.create_task(dispatcher._reports.lost(worker))  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
        await losing
        waiting = dispatcher._line.get("ses_2")
        assert waiting is not None
        assert waiting.waited_s == pytest.approx(time.time() - created_at, abs=0.02)


async def test_a_session_in_nobodys_hands_is_counted_by_the_second_look(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.claims.TICK_S", QUICK_S)
    monkeypatch.setattr(astray, "EVERY_S", QUICK_S)
    async with dispatching(tmp_path, random_sd, list) as dispatcher:
        for name in ("ses_1", "ses_2"):
            await dispatcher.accept(name, Resolved(request=request(), warnings=()))
        await asyncio.sleep(4 * QUICK_S)
        assert dispatcher.astray == 0
        dispatcher._line.leave("ses_1")
        async with asyncio.timeout(20):
            while not dispatcher.astray:
                await asyncio.sleep(QUICK_S)
        assert dispatcher._claims.astray.found == {"ses_1"}


async def test_a_running_session_shows_what_its_row_and_its_worker_say(tmp_path: Path, random_sd: Path) -> None:
    worker = Worker("wrk_1", 1000)
    async with dispatching(tmp_path, random_sd, lambda: [worker]) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(), warnings=({"code": "early"},)))
        await submits(worker, 1)
        await dispatcher._store.add_warning("ses_1", attempt=1, warning={"code": "late"})
        row = await dispatcher._store.get("ses_1")
        assert row is not None
        shown = dispatcher.view(row)
        assert shown.warnings == ({"code": "early"}, {"code": "late"})
        assert shown.usage.unknown["device_s"] == "its worker has not told yet"
        live = dispatcher._lives["ses_1"]
        live.usage = Usage(device_s=1.5, steps_run=3)
        assert dispatcher.view(row).usage == live.usage


async def test_a_pause_that_comes_too_late_is_refused_also_after_one_that_did_not(
    tmp_path: Path, random_sd: Path
) -> None:
    worker = Worker("w", 10**6)
    async with dispatching(tmp_path, random_sd, lambda: [worker]) as dispatcher:
        for index, name in enumerate(("cancelled", "succeeded")):
            await dispatcher.accept(name, Resolved(request=request(model="tiny"), warnings=()))
            await submits(worker, index + 1)
            assert (await dispatcher.pause(name)).pause_requested
        await dispatcher.cancel("cancelled")
        ended = wire.Ended(session_id="succeeded", attempt=1, outcome="succeeded", usage=Usage(), error=None)
        played: Any = worker
        await dispatcher._reports.heard(played, ended, b"")
        while "succeeded" in dispatcher._lives:
            await asyncio.sleep(0)
        for name in ("cancelled", "succeeded"):
            with pytest.raises(Conflict, match="only a running one can be paused"):
                await dispatcher.pause(name)


async def test_a_session_that_comes_as_its_worker_dies_goes_to_the_next(tmp_path: Path, random_sd: Path) -> None:
    dying, next_one = Worker("wrk_1", 1), Worker("wrk_2", 1000)
    ready = lambda: [dying] if dying._looks > 0 else [dying, next_one]  # noqa: E731
    async with dispatching(tmp_path, random_sd, ready) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(), warnings=()))
        (submit,) = await submits(next_one, 1)
        assert (submit.session_id, submit.attempt) == ("ses_1", 2)
        assert not any(isinstance(one, wire.Submit) for one in dying.sent)


@pytest.mark.parametrize(("moves", "left"), [(True, (State.QUEUED, 1)), (False, (State.FAILED, 1))])
async def test_what_moved_between_two_losses_is_not_to_blame_also_if_the_server_was_stopped_meanwhile(
    tmp_path: Path, random_sd: Path, moves: bool, left: tuple[State, int]
) -> None:
    first, second, third = (Worker(f"wrk_{number}", 10_000) for number in (1, 2, 3))
    up = [first]
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(), warnings=()))
        lost = await denoises(dispatcher, first, attempt=1)
        up[:] = [second]
        await dispatcher._reports.lost(lost)
        await denoises(dispatcher, second, attempt=2, step=3 if moves else 0)
    up[:] = [third]
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        lost = await denoises(dispatcher, third, attempt=3)
        up.clear()
        await dispatcher._reports.lost(lost)
        session = await dispatcher._store.get("ses_1")
        assert session is not None
        assert (session.state, session.losses) == left


async def test_what_moved_before_a_loss_is_to_blame_for_it_and_the_next_one(tmp_path: Path, random_sd: Path) -> None:
    first, second = (Worker(f"wrk_{number}", 10_000) for number in (1, 2))
    up = [first]
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(), warnings=()))
        lost = await denoises(dispatcher, first, attempt=1, step=3)
        up[:] = [second]
        await dispatcher._reports.lost(lost)
        lost = await denoises(dispatcher, second, attempt=2)
        up.clear()
        await dispatcher._reports.lost(lost)
        session = await dispatcher._store.get("ses_1")
        assert session is not None
        assert (session.state, session.losses) == (State.FAILED, 1)


async def test_a_session_whose_model_is_being_hashed_holds_nobody_up_and_says_why_it_waits(
    tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(random_sd, tmp_path / "models")
    shutil.copytree(random_sd / "tiny", tmp_path / "models" / "large")
    worker, later, hashing = Worker("wrk_1", 10_000), Future[str](), Catalog.hashing
    monkeypatch.setattr(Catalog, "hashing", lambda self, model: later if model.id == "large" else hashing(self, model))
    async with dispatching(tmp_path, tmp_path / "models", lambda: [worker], unread="large") as dispatcher:
        waits = await dispatcher.accept("ses_1", Resolved(request=request(model="large"), warnings=()))
        await dispatcher.accept("ses_2", Resolved(request=request(), warnings=()))
        (submit,) = await submits(worker, 1)
        assert submit.session_id == "ses_2"
        assert [one["code"] for one in dispatcher.view(waits).warnings] == ["model_being_read"]
        later.set_result("f" * 64)
        _, submit = await submits(worker, 2)
        assert (submit.session_id, submit.model.sha256) == ("ses_1", "f" * 64)


async def test_the_time_that_a_session_has_waited_is_not_lost_while_it_is_claimed(
    tmp_path: Path, random_sd: Path
) -> None:
    async with dispatching(tmp_path, random_sd, list) as dispatcher:
        waits = await dispatcher.accept("ses_1", Resolved(request=request(), warnings=()))
        await asyncio.sleep(QUICK_S)
        claimed = waits.having(state=State.RUNNING, attempt=1, spans={})  # as its row says before the line does
        assert dispatcher.view(claimed).spans["queued"] >= QUICK_S


async def test_a_claim_shows_the_step_that_it_goes_on_from(tmp_path: Path, random_sd: Path) -> None:
    first, second = (Worker(f"wrk_{number}", 10_000) for number in (1, 2))
    up = [first]
    async with dispatching(tmp_path, random_sd, lambda: up) as dispatcher:
        await dispatcher.accept("ses_1", Resolved(request=request(num_images=2), warnings=()))
        lost = await denoises(dispatcher, first, attempt=1, step=3)
        up[:] = [second]
        await dispatcher._reports.lost(lost)
        await submits(second, 1)
        progress = dispatcher._lives["ses_1"].progress
        assert (progress.image_index, progress.step) == (0, 3)


@pytest.mark.parametrize("swapped", ["model", "lora"])
async def test_a_session_whose_model_was_replaced_by_one_that_cannot_run_it_ends_and_says_so(
    tmp_path: Path, random_sd: Path, swapped: str
) -> None:
    models, worker = tmp_path / "models", Worker("wrk_1", 10_000)
    up: list[Worker] = []
    shutil.copytree(random_sd / "tiny", models / "tiny")
    build_lora(models / "style.safetensors", models / "tiny")
    async with dispatching(tmp_path, models, lambda: up) as dispatcher:
        loras = (LoraUse(name="style", scale=1.0),)
        await dispatcher.accept("ses_1", Resolved(request=request(type="lora", loras=loras), warnings=()))
        if swapped == "model":
            shutil.rmtree(models / "tiny")
            build_sd(models / "tiny", inpaints=True)
        else:
            (models / "style.safetensors").unlink()
            build_controlnet(models / "style", models / "tiny")
        dispatcher._refs._catalog.scan()
        up.append(worker)
        async with asyncio.timeout(20):
            while (session := await dispatcher._store.get("ses_1")) is None or session.state is State.QUEUED:
                await asyncio.sleep(0.01)
        assert session.error is not None
        told = {"model": "cannot run lora; it can run: inpainting", "lora": "lora 'style' or model 'tiny'"}[swapped]
        assert (session.state, session.error.code) == (State.FAILED, "model_invalid")
        assert told in session.error.message
