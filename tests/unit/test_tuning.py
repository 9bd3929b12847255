"""What an idle server does with a measurement once it is there."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint import profiles
from mezzotint.catalog import Catalog
from mezzotint.profiles import Candidate, Profile
from mezzotint.refs import Refs
from mezzotint.tuning import Choices, Tuner
from mezzotint.workers import wire

pytestmark = pytest.mark.anyio

FASTER = Candidate(executor="torch", dtype="bfloat16", ms_per_step=1, ms_per_image=1, difference=0.1)


@dataclass
class Child:
    """A measuring process that has done its work when it is waited for."""

    written: Profile
    cache: Path
    meanwhile: Any
    returncode: int | None = None

    async def communicate(self) -> tuple[None, bytes]:
        profiles.write(self.cache, self.written)
        self.meanwhile()
        self.returncode = 0
        return None, b""


@dataclass
class Worker:
    hello: object = True
    heartbeat: Any = field(default_factory=lambda: SimpleNamespace(resident=("tiny",), refused={}))
    sent: list[wire.ToWorker] = field(default_factory=list)

    def send(self, message: wire.ToWorker) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("meanwhile", ["nothing", "unloaded", "replaced"])
async def test_what_is_resident_once_it_is_measured_is_loaded_as_it_is_fastest(
    meanwhile: str, tmp_path: Path, random_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog([random_sd], tmp_path)
    catalog.scan()
    refs, choices, worker, spare = Refs(catalog), Choices(tmp_path, 1), Worker(), Worker()
    seat = SimpleNamespace(device="cpu:0", worker=worker)
    model = await refs.of("tiny")
    assert model is not None
    choices.ref(model, "cpu:0")

    def happen() -> None:
        if meanwhile == "unloaded":
            worker.heartbeat.resident = ()
        if meanwhile == "replaced":
            seat.worker = spare

    async def start(*_: object, **__: object) -> Child:
        measured = Profile(
            model=model.sha256,
            device="cpu:0",
            machine=profiles.machine(),
            threads=1,
            versions=profiles.versions(),
            ranking=(FASTER,),
        )
        return Child(measured, tmp_path, happen)

    monkeypatch.setattr("mezzotint.children.start", start)
    supervisor: Any = SimpleNamespace(seats={"cpu:0": seat})
    measurements: Any = SimpleNamespace(speed=lambda device: {"float32": 1.0})
    tuner = Tuner(choices, catalog, refs, supervisor, measurements, lambda: True, "tiny")
    await tuner._improve()
    assert choices.of("tiny", model.sha256, "cpu:0").dtype == "bfloat16"
    loads = {"nothing": (1, 0), "unloaded": (0, 0), "replaced": (0, 1)}[meanwhile]
    assert (len(worker.sent), len(spare.sent)) == loads
