"""Decides what each model runs with on each device, and has models measured while nothing else is to be done.

Measuring and converting happen in processes of their own, one at a time. Must not import torch.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import structlog

from mezzotint import children, profiles
from mezzotint.catalog import Catalog
from mezzotint.costs import weights_bound
from mezzotint.measurements import Measurements
from mezzotint.profiles import Choice, Subject
from mezzotint.refs import Refs, is_unread
from mezzotint.workers import wire
from mezzotint.workers.base import Seat, Supervisor
from mezzotint.workers.limits import memory_budget
from mezzotint.workers.local import LocalWorker, environment

log = structlog.get_logger(__name__)

IDLE_S = 5.0  # without a session before models are measured
TICK_S = 0.5
STOP_CHECK_S = 0.05
LIMIT_S = 3600.0  # for a model to be converted, or to be measured: the largest take minutes
FLOAT32_SHARE = {"cpu": 1.0, "cuda": 0.4}  # of its memory that a device gives to float32; a GPU measures beside itself


class Choices:
    """What is in use, by model and device: the stored choice as it was when it was adopted."""

    def __init__(
        self,
        cache: Path,
        threads: int,
        *,
        executor: str = "auto",
        dtype: str = "auto",
        devices: Mapping[str, Seat] = MappingProxyType({}),
    ) -> None:
        """What is not of `devices` has room for every model in float32."""
        self.cache, self.threads = cache, threads
        self._devices = devices
        self._executor, self._dtype = executor, dtype
        self._adopted: dict[_Key, Choice] = {}
        self._distrusted: dict[_Key, str] = {}
        self._dtypes: dict[str, str] = {}  # of models that have their own

    @property
    def needs_measuring(self) -> bool:
        return profiles.needs_measuring(self._executor, self._dtype)

    def ref(
        self, model: wire.ModelRef, device: str, dtype: str | None = None, *, deterministic: bool = False
    ) -> wire.ModelRef:
        """The model with what is to run it. With `dtype`, which a session has begun with, in no other. `deterministic`
        ones run in torch float32, which is there beside another executor as its twin."""
        choice = self._adopted.get(_key(model, device))
        if choice is None:  # asked for with every request, and `wanted` reads a file
            choice = self.wanted(model, device)
            if not is_unread(model) and (device not in self._devices or self._facts(device) is not None):
                self._adopted[_key(model, device)] = choice
        if deterministic and choice.executor == "torch" and self.half_for(model, device) is None:
            choice = Choice()
        if dtype is not None and dtype != choice.dtype:
            choice = Choice(dtype=dtype)
        graphs = profiles.graphs_of(self.cache, model.sha256) if choice.executor == "openvino" else ""
        return msgspec.structs.replace(model, executor=choice.executor, dtype=choice.dtype, graphs=str(graphs))

    def prefer(self, model_id: str, dtype: str) -> None:
        """From the next session on; "auto" is what is set for all."""
        self._dtypes[model_id] = dtype
        for key in [key for key in self._adopted if key[0] == model_id]:
            del self._adopted[key]

    def _dtype_of(self, model_id: str) -> str:
        own = self._dtypes.get(model_id, "auto")
        return self._dtype if own == "auto" else own

    def wanted(self, model: wire.ModelRef, device: str) -> Choice:
        """What the stored measurement says now."""
        why = self._distrusted.get(_key(model, device))
        profile = None if why is not None else self.profile(model, device)
        choice = profiles.choose(profile, self._executor, self._dtype_of(model.id))
        if choice.basis == "default" and (half := self.half_for(model, device)) is not None:
            return Choice(dtype=half, reason=f"in float32 it would take too much memory on {device}")
        return choice if why is None else msgspec.structs.replace(choice, reason=why)

    def half_for(self, model: wire.ModelRef, device: str) -> str | None:
        """The half precision that a model runs in when that is left to us and the device has no room to run or to
        measure it in float32; None where it has."""
        facts = self._facts(device)
        if facts is None or self._dtype_of(model.id) != "auto":
            return None
        needs = facts.base_bytes + weights_bound("torch", "float32", model.parameters)
        if needs <= FLOAT32_SHARE[facts.kind] * facts.memory_budget_bytes:
            return None
        return "bfloat16" if "bfloat16" in facts.dtypes else "float16"  # some GPUs only imitate the first

    def _facts(self, device: str) -> wire.DeviceFacts | None:
        """None until its worker has told."""
        return self._devices[device].facts if device in self._devices else None

    def profile(self, model: wire.ModelRef, device: str) -> profiles.Profile | None:
        return profiles.read(self.cache, model.sha256, device, self.threads)

    def adopt(self, model: wire.ModelRef, device: str) -> bool:
        """Take over what is wanted. False: it was in use already."""
        before, wanted = self._adopted.get(_key(model, device)), self.wanted(model, device)
        self._adopted[_key(model, device)] = wanted
        return before is not None and (before.executor, before.dtype) != (wanted.executor, wanted.dtype)

    def distrust(self, model: wire.ModelRef, device: str, why: str) -> None:
        """torch float32 from the next load on, until this process ends."""
        self._distrusted[_key(model, device)] = why
        self._adopted.pop(_key(model, device), None)

    def of(self, model_id: str, sha256: str, device: str) -> Choice:
        """An empty digest is that of weights that nothing was adopted for."""
        adopted = self._adopted.get((model_id, sha256, device))
        return adopted or profiles.choose(None, self._executor, self._dtype_of(model_id))


_Key = tuple[str, str, str]  # a model's id and digest, and a device: what is true of some weights is not of others


def _key(model: wire.ModelRef, device: str) -> _Key:
    return model.id, model.sha256, device


class Stopped(Exception):
    """Work arrived before the measuring was done."""


class Tuner:
    """While the server is idle: measures what is not measured, mends graphs, and lets workers adopt what is faster."""

    def __init__(
        self,
        choices: Choices,
        catalog: Catalog,
        refs: Refs,
        supervisor: Supervisor,
        measurements: Measurements,
        is_idle: Callable[[], bool],
        default_model: str,
    ) -> None:
        self._choices, self._catalog, self._refs, self._supervisor = choices, catalog, refs, supervisor
        self._measurements, self._is_idle, self._default_model = measurements, is_idle, default_model
        self._tried: set[tuple[str, str]] = set()  # (digest, device): once in a process, whatever comes of it
        self._mended: set[tuple[str, str]] = set()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="tuner")

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            if not self._is_idle():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= IDLE_S:
                after_s = 0.0
                try:
                    await self._improve()
                except Stopped:
                    log.info("measuring makes way for work")
                except Exception:
                    log.exception("tuning failed")
                    after_s = 60.0
                idle_since = time.monotonic() + after_s  # and look again when it was idle for as long once more

    async def _improve(self) -> None:
        for seat in self._supervisor.seats.values():
            worker = seat.worker
            if worker is None or worker.hello is None or not self._is_idle():
                continue
            if not self._measurements.speed(seat.device):
                worker.send(wire.Race())
            resident = worker.heartbeat.resident if worker.heartbeat else ()
            for model_id in dict.fromkeys((self._default_model, *resident)):
                model = await self._refs.of(model_id)
                if model is not None and model.kind == "checkpoint":
                    await self._improve_one(model, seat, worker)

    async def _improve_one(self, model: wire.ModelRef, seat: Seat, worker: LocalWorker) -> None:
        choices, device = self._choices, seat.device
        key = (model.sha256, device)
        unmeasured = choices.needs_measuring and choices.profile(model, device) is None
        if unmeasured and key not in self._tried and choices.half_for(model, device) is None:
            self._tried.add(key)
            try:
                why = await measure(self._subject(model, device), stop=lambda: not self._is_idle())
            except Stopped:
                self._tried.discard(key)
                raise
            log.info("measured", model=model.id, device=device, why_not=why)
        refused = worker.heartbeat.refused.get(model.id) if worker.heartbeat else None
        mends = refused is not None and key not in self._mended
        if mends:
            why = await _child("convert", self._subject(model, device), stop=lambda: not self._is_idle())
            self._mended.add(key)
            log.info("made its graphs anew", model=model.id, device=device, refused=refused, why_not=why)
        if not choices.adopt(model, device) and not mends:
            return
        now = seat.worker  # by now another may sit there, or this one may have been told to unload it
        if now is not None and now.heartbeat is not None and model.id in now.heartbeat.resident:
            if mends:  # else the worker keeps what it has
                now.send(wire.Unload(asked="", model_id=model.id))
            now.send(wire.Load(model=choices.ref(model, device)))
        choice = choices.of(model.id, model.sha256, device)
        log.info("adopted", model=model.id, device=device, executor=choice.executor, dtype=choice.dtype)

    def _subject(self, model: wire.ModelRef, device: str) -> Subject:
        return subject(self._catalog, model.id, model.sha256, device, self._choices)


def subject(catalog: Catalog, model_id: str, sha256: str, device: str, choices: Choices) -> Subject:
    model = catalog.models[model_id]
    return Subject(
        id=model.id,
        family=model.family,
        path=model.path,
        sha256=sha256,
        device=device,
        threads=choices.threads,
        cache=str(choices.cache),
        width=model.width,
        height=model.height,
        steps=model.num_inference_steps,
        guidance_scale=model.guidance_scale,
        scheduler=model.scheduler,
        vae=model.vae_path,
    )


async def measure(subject: Subject, *, stop: Callable[[], bool] = lambda: False) -> str | None:
    """Convert what can be, measure, store the profile. Returns why there is none, or None. Raises Stopped soon after
    `stop()` becomes true; what is converted by then stays."""
    refused = None
    if any(executor == "openvino" for executor, _ in profiles.CANDIDATES[subject.device.partition(":")[0]]):
        refused = await _child("convert", subject, stop=stop)
    return await _child("tune", subject, *(("--refused", refused) if refused else ()), stop=stop)


async def _child(name: str, subject: Subject, *flags: str, stop: Callable[[], bool]) -> str | None:
    """Run engine/<name>.py to its end. Returns None when it did what it is for, else why not."""
    process = await children.start(
        f"mezzotint.engine.{name}",
        msgspec.json.encode(subject).decode(),
        *("--memory-bytes", str(memory_budget()), *flags),
        env=environment(),
    )
    ending, until = asyncio.create_task(process.communicate(), name=name), time.monotonic() + LIMIT_S
    try:
        while not ending.done():
            if stop():
                raise Stopped
            if time.monotonic() > until:
                return f"it took longer than {LIMIT_S:g} s"
            await asyncio.wait([ending], timeout=STOP_CHECK_S)
    finally:
        children.kill(process)
        _, stderr = await ending
    if process.returncode == 0:
        return None
    lines: Iterable[str] = stderr.decode(errors="replace").strip().splitlines()
    return [f"the process {children.exit_text(process.returncode or 0)}", *lines][-1]
